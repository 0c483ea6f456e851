"""The memory that packed tensors of an output take, by the formulas of the engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Elements that are encoded at a time, about.
_PATCH = 1 << 16


def of_encodings(document: Mapping[str, Any], rows: Iterable[Any]) -> int:
    """Bytes that a thread needs for the packed tensors of a plan, besides its blocks: those of the largest.

    Parameters
    ----------
    document : mapping
        The plan's document.
    rows : iterable
        Its rows of packed codes: each encoding with each shape once is enough.
    """
    outputs = max(1, len(document["outputs"]))
    most = 0
    for encoding, shape in {(row[0], tuple(row[3])) for row in rows}:
        elements, row_bytes, high = _patch(document["encodings"][encoding], shape)
        # Values of each output, target, step, result, draws and codes; two bands of each output.
        most = max(most, elements * (4 * outputs + 17) + outputs * 2 * high * row_bytes)
    return most


def _patch(form: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Elements of a patch of a tensor, bytes of a row of its codes, and rows of a patch."""
    rows, columns = (max(side, 1) for side in (1, 1, *shape)[-2:])
    tall, wide, row_bytes = 1, columns, columns
    if form["kind"] == "scaled":
        block = form["block"]
        tall = min(block[0] or (1 if not block[1] else rows), rows)
        wide = min(block[1] or columns, columns)
    elif form["kind"] == "e2m1":
        wide, row_bytes = min(form["group"], columns), columns // 2
    else:
        wide, row_bytes = min(form["group"] or columns, columns), -(-columns * form["bits"] // 32) * 4
    # whole bytes, whatever the bits of a code
    unit = wide if wide % 8 == 0 else 8 * wide
    broad = min(max(1, max(1, _PATCH // tall) // unit) * unit, columns)
    if "order" in form["parts"]:  # the columns of a group are anywhere in a row
        broad = columns
    high = tall if tall > 1 else min(max(_PATCH // columns, 1), rows)
    return high * broad, row_bytes, high
