"""Selections that cut groups of a packed tensor: of elements that share a scale, some are not selected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from taskvec.compat.findings import Finding, finding
from taskvec.text import listed

if TYPE_CHECKING:
    from taskvec.models.model import Model
    from taskvec.models.part_names import StoredPart
    from taskvec.models.quantised.format import Format


def check_groups(target: Model, parts: Mapping[str, Sequence[StoredPart]]) -> Iterator[Finding]:
    """What sharing scales means for what a selection leaves, where a target's own format is written.

    Parameters
    ----------
    target : Model
    parts : mapping
        The weights that are taken of its tensors, where these are not all of a tensor.
    """
    packed = [name for name in parts if name in target.packed]
    whole = [name for name in packed if _has_one_scale(target.packed[name].format)]
    cut = [
        name
        for name in packed
        if name not in whole and _is_cut(target.tensors[name].shape, target.packed[name].format, parts[name])
    ]
    if cut:
        yield finding(
            "selection-groups",
            listed(cut),
            "",
            "the selection ends within groups that share a scale: where the selected part needs another one, "
            "the rest of such a group is rounded to it again",
            "`--out-dtype bfloat16` leaves it as it is",
        )
    if whole:
        yield finding(
            "selection-groups",
            listed(whole),
            "",
            "selected and other weights share one scale of the tensor: where the selected ones outgrow it, "
            "the others are rounded again under a larger one",
            "`--out-dtype bfloat16` leaves them as they are",
        )


def _has_one_scale(form: Format) -> bool:
    return "global" in dict(form.parts) or dict(form.parameters).get("block") in ((0, 0), [0, 0])


def _is_cut(shape: tuple[int, ...], form: Format, parts: Sequence[StoredPart]) -> bool:
    rows, columns = shape[-2:]
    block = dict(form.parameters).get("block")
    height = (block[0] or rows) if isinstance(block, tuple | list) else 1
    runs: list[list[int]] = []
    for part in sorted(parts, key=lambda part: part.first):
        inner = part.axes[-1]
        if inner != (columns, 1) or part.first % columns:
            return True
        if any(step != columns for _, step in part.axes[:-1]):
            return height > 1
        length = sum(count for count, _ in part.axes[:-1])
        first = part.first // columns
        if runs and runs[-1][1] == first:
            runs[-1][1] += length
        else:
            runs.append([first, first + length])
    ends = [end % rows for run in runs for end in run]
    return any(end % height for end in ends)
