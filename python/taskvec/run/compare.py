"""Measuring vectors and models against each other: one streamed pass of the engine over both sides."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskvec._core import compare as engine_compare
from taskvec.models.source import assembled_of, source_document, source_path
from taskvec.models.state_dict import buffers_of
from taskvec.plan.delta import Term
from taskvec.plan.plan import FORMAT
from taskvec.progress import Callback, meter
from taskvec.report.difference import Pair
from taskvec.resolve.remote import materialised

if TYPE_CHECKING:
    from taskvec.models.model import Model
    from taskvec.models.saved_vector import SavedVector
    from taskvec.models.state_dict import Buffer


def compare(
    left: Sequence[Term],
    right: Sequence[Term],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    threads: int | None = None,
    progress: Callback | None = None,
) -> dict[str, Pair]:
    """Measure one side against the other, tensor by tensor.

    Parameters
    ----------
    left, right : sequence of Term
        Each side is the sum of its terms; a tensor that none of them has is zero.
    shapes : mapping
        The tensors to measure.
    threads : int, optional
        All cores by default.
    progress : callable, optional
        Called with a :class:`taskvec.Progress`.
    """
    terms = [*left, *right]
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in shapes:
        groups[tuple(number for number, term in enumerate(terms) if name in term.stored)].append(name)
    pairs: dict[str, Pair] = {}
    for present, names in groups.items():
        if not present:
            pairs |= {name: Pair.total(())._replace(elements=math.prod(shapes[name])) for name in names}
            continue
        chosen = [terms[number] for number in present]
        plan, buffers = _plan(chosen, sum(n < len(left) for n in present), names, shapes)
        report = engine_compare(
            plan, threads=threads or 0, progress=meter(progress, "compare"), memories=buffers
        )
        # each row becomes a pair of figures as soon as it is read
        pairs.update(json.loads(report, object_hook=_named)["tensors"])
    return {name: pairs[name] for name in shapes}


def _plan(
    terms: Sequence[Term], left: int, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[bytes, list[Buffer]]:
    """The engine's part, and the buffers of sources in memory: the first `left` terms are the left side."""
    sources, numbers, buffers = numbered(terms)
    inputs = [number for each in numbers for number in each]
    sides: list[dict[str, Any]] = []
    at = 0
    for term in terms:
        is_difference = len(term.sources) == 2
        sides.append({"model": at, "reference": at + 1 if is_difference else None, "weight": term.weight})
        at += len(term.sources)
    rows = [
        (
            name,
            shapes[name],
            list(zip(inputs, [stored for term in terms for stored in term.stored[name]], strict=True)),
        )
        for name in names
    ]
    document = {
        "format": FORMAT,
        "sources": sources,
        "tensors": rows,
        "left": sides[:left],
        "right": sides[left:],
    }
    return json.dumps(document, separators=(",", ":")).encode(), buffers


def numbered(
    terms: Sequence[Term],
) -> tuple[list[dict[str, Any]], list[tuple[int, ...]], list[Buffer]]:
    """The sources of some terms as a plan has them, each once; for each term the numbers of its own; and the
    buffers of those in memory."""
    numbers: dict[tuple[str, str, int], int] = {}
    sources: list[object] = []
    documents: list[dict[str, Any]] = []
    inputs: list[tuple[int, ...]] = []
    for term in terms:
        keys = [_key(source) for source in term.sources]
        for key, source in zip(keys, term.sources, strict=True):
            if key not in numbers:
                numbers[key] = len(documents)
                materialised(source)
                sources.append(source)
                documents.append({**source_document(source), "path": source_path(source)})
        inputs.append(tuple(numbers[key] for key in keys))
    return documents, inputs, buffers_of(sources)


def _key(source: Model | SavedVector) -> tuple[str, str, int]:
    """Equal for the same files in the same layout."""
    assembled = assembled_of(source)
    return source_path(source), source.fingerprint, id(assembled) if assembled else 0


def _named(row: dict[str, Any]) -> tuple[str, Pair] | dict[str, Any]:
    return (row["name"], _pair(row)) if "left_norm" in row else row


def _pair(row: Mapping[str, Any]) -> Pair:
    # the engine has null for a number that does not exist, because values are NaN or infinite
    numbers = {
        key: math.nan if row[key] is None else row[key]
        for key in ("left_norm", "right_norm", "difference_norm", "dot", "largest")
    }
    if row["non_finite"]:  # the engine passes over NaN
        numbers["largest"] = math.nan
    squares = {f"{side}_square": numbers[f"{side}_norm"] ** 2 for side in ("left", "right", "difference")}
    counts = (
        "elements",
        "changed",
        "left_nonzero",
        "right_nonzero",
        "both_nonzero",
        "same_sign",
        "non_finite",
    )
    return Pair(
        **squares,
        dot=numbers["dot"],
        largest=numbers["largest"],
        **{name: row[name] for name in counts},
    )
