"""Measuring vectors and models against each other: one streamed pass of the engine over both sides."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from taskvec import _core
from taskvec.plan import FORMAT
from taskvec.planner import source_document, source_path
from taskvec.progress import Callback, meter
from taskvec.state_dict import memories

if TYPE_CHECKING:
    from taskvec.checkpoint import Checkpoint
    from taskvec.saved import SavedVector
    from taskvec.state_dict import Handed


class Term(NamedTuple):
    """A part of one side: a weight times a source, or times the difference of two, with the stored names."""

    weight: float
    sources: tuple[Checkpoint | SavedVector, ...]
    stored: Mapping[str, tuple[str, ...]]


class Pair(NamedTuple):
    """Figures of two tensors x and y, or of many together; sums are in float64.

    ``changed`` counts x ≠ y, ``both_nonzero`` the elements in which neither is zero, ``same_sign`` those of
    them in which the signs agree; ``largest`` is the largest |x − y|.
    """

    elements: int
    left_square: float
    right_square: float
    difference_square: float
    dot: float
    largest: float
    changed: int
    left_nonzero: int
    right_nonzero: int
    both_nonzero: int
    same_sign: int
    non_finite: int

    @property
    def left_norm(self) -> float:
        """‖x‖."""
        return math.sqrt(self.left_square)

    @property
    def right_norm(self) -> float:
        """‖y‖."""
        return math.sqrt(self.right_square)

    @property
    def difference_norm(self) -> float:
        """‖x − y‖."""
        return math.sqrt(self.difference_square)

    @property
    def relative_norm(self) -> float | None:
        """‖x − y‖ / ‖x‖; ``None`` where x is zero."""
        return self.difference_norm / self.left_norm if self.left_square else None

    @property
    def cosine(self) -> float | None:
        """Cosine between x and y; ``None`` where one is zero."""
        norms = self.left_norm * self.right_norm
        if not norms:
            return None
        if self.difference_square < norms:
            # the engine reports six digits: near one, the distance tells more than the dot product
            excess = self.difference_square - (self.left_norm - self.right_norm) ** 2
            return min(1.0, 1.0 - excess / (2 * norms))
        return max(-1.0, min(1.0, self.dot / norms))

    @property
    def changed_share(self) -> float:
        """Share of the elements in which x and y differ."""
        return self.changed / self.elements if self.elements else 0.0

    @property
    def overlap(self) -> float | None:
        """Elements in which neither is zero over those in which one is not; ``None`` where both are zero."""
        either = self.left_nonzero + self.right_nonzero - self.both_nonzero
        return self.both_nonzero / either if either else None

    @property
    def sign_agreement(self) -> float | None:
        """Share of the common elements in which the signs agree; ``None`` where there are none."""
        return self.same_sign / self.both_nonzero if self.both_nonzero else None

    @classmethod
    def total(cls, pairs: Iterable[Pair]) -> Pair:
        """The figures of several tensors as one."""
        rows = list(pairs)
        square = [math.fsum(row[at] for row in rows) for at in range(1, 5)]
        counts = [sum(row[at] for row in rows) for at in range(6, 12)]
        largest = max((row.largest for row in rows), default=0.0)
        return cls(sum(row.elements for row in rows), *square, largest, *counts)  # type: ignore[arg-type]


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
        plan, handed = _plan(chosen, sum(n < len(left) for n in present), names, shapes)
        report = _core.compare(
            plan, threads=threads or 0, progress=meter(progress, "compare"), memories=handed
        )
        # each row becomes what it is for as soon as it is read
        pairs.update(json.loads(report, object_hook=_named)["tensors"])
    return {name: pairs[name] for name in shapes}


def _plan(
    terms: Sequence[Term], left: int, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[bytes, list[Handed]]:
    """The engine's part, and the tensors that it is handed: the first `left` terms are the left side."""
    sources, numbers, handed = numbered(terms)
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
    return json.dumps(document, separators=(",", ":")).encode(), handed


def numbered(
    terms: Sequence[Term],
) -> tuple[list[dict[str, Any]], list[tuple[int, ...]], list[Handed]]:
    """The sources of some terms as a plan has them, each once; for each term the numbers of its own; and what
    the engine is handed of those in memory."""
    numbers: dict[tuple[str, str], int] = {}
    sources: list[object] = []
    documents: list[dict[str, Any]] = []
    inputs: list[tuple[int, ...]] = []
    for term in terms:
        keys = [(source_path(source), source.fingerprint) for source in term.sources]
        for key, source in zip(keys, term.sources, strict=True):
            if key not in numbers:
                numbers[key] = len(documents)
                sources.append(source)
                documents.append(source_document(source))
        inputs.append(tuple(numbers[key] for key in keys))
    return documents, inputs, memories(sources)


def _named(row: dict[str, Any]) -> tuple[str, Pair] | dict[str, Any]:
    return (row["name"], _pair(row)) if "left_norm" in row else row


def _pair(row: Mapping[str, Any]) -> Pair:
    squares = {
        f"{side}_square": (row[f"{side}_norm"] or 0.0) ** 2 for side in ("left", "right", "difference")
    }
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
        dot=row["dot"] or 0.0,
        largest=row["largest"] or 0.0,
        **{name: row[name] for name in counts},
    )
