"""What a vector is made of, from one read of it and of those that it is compared with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from taskvec.errors import RecipeError
from taskvec.lazy.spill import BINS, chunks, hold_finite, keys
from taskvec.lazy.vector import TaskVector
from taskvec.models.tensor_groups import layer_groups, module_kind
from taskvec.plan.delta import Term
from taskvec.progress import Callback, meter
from taskvec.report.composition import HELD, TOP, Alike, Composition, Figures, Spectrum, keys_of, pooled
from taskvec.run.evaluate import BATCH, of_terms

RANKS = (1, 4, 16, 64, 256)


def composition(
    vector: TaskVector,
    others: Mapping[str, TaskVector] | None = None,
    *,
    name: str = "v",
    groups: int | None = None,
    spectra: bool = True,
    progress: Callback | None = None,
) -> Composition:
    """Measure a vector: see :func:`taskvec.analyse`.

    Memory is a few times the largest tensor, the square of the smaller side of the largest matrix, and a
    megabyte for each layer and kind of module.

    Raises
    ------
    RecipeError
        Another vector has tensors of one name and different shapes, or there are fewer layers than groups.
    NonFiniteError
        A value of a vector is not finite.
    """
    others = dict(others or {})
    shapes = {each: tuple(shape) for each, shape in vector.tensors.items()}
    for label, other in others.items():
        _hold_alike(label, shapes, other)
    grouped = layer_groups(list(shapes), groups) if groups is not None else {}
    group_of = {each: label for label, names in grouped.items() for each in names}
    tally = _Tally(list(others), spectra)
    terms = [vector.terms(), *(other.terms() for other in others.values())]
    tell = meter(progress, "compare")
    whole, done = 4 * sum(math.prod(shape) for shape in shapes.values()), 0
    for each, arrays in in_step(terms, shapes):
        for array in arrays:
            hold_finite(each, array)
        own = group_of.get(each)
        tally.add(each, arrays, (("group", own),) if own is not None else ())
        done += 4 * arrays[0].size
        if tell is not None:
            tell(done, whole)
    unmatched = {label: [n for n in other.tensors if n not in shapes] for label, other in others.items()}
    return tally.result(name, list(grouped), {k: v for k, v in unmatched.items() if v})


def _hold_alike(label: str, shapes: Mapping[str, tuple[int, ...]], other: TaskVector) -> None:
    common = [name for name in other.tensors if name in shapes]
    for name in common:
        if tuple(other.tensors[name]) != shapes[name]:
            raise RecipeError(
                f"`{name}` has shape {list(shapes[name])}, and {list(other.tensors[name])} in `{label}`",
                "compare vectors of one architecture",
            )
    if not common:
        raise RecipeError(f"`{label}` has no tensor of this vector", "compare vectors of one architecture")


def in_step(
    terms: Sequence[Sequence[Term]], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """The tensors of several vectors side by side, zeros where one lacks a tensor."""
    batch: dict[str, tuple[int, ...]] = {}
    filled = 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        if batch and filled + size > BATCH:
            yield from _step(terms, batch)
            batch, filled = {}, 0
        batch[name] = shape
        filled += size
    if batch:
        yield from _step(terms, batch)


def _step(
    terms: Sequence[Sequence[Term]], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, list[np.ndarray]]]:
    rows = [dict(of_terms(own, shapes)) for own in terms]
    for name in shapes:
        yield name, [row.pop(name) for row in rows]


@dataclass(slots=True)
class _Sums:
    """What is added up over tensors."""

    tensors: int = 0
    elements: int = 0
    changed: int = 0
    largest: float = 0.0
    squares: list[float] = field(default_factory=list)  # of the vector and the others
    dots: list[float] = field(default_factory=list)  # of the vector with each of the others
    common: list[int] = field(default_factory=list)
    same_sign: list[int] = field(default_factory=list)
    spectra: list[tuple[Spectrum, float]] = field(default_factory=list)
    counts: np.ndarray | None = None  # [BINS], elements by magnitude
    held: np.ndarray | None = None  # [BINS], their squares

    def add(self, other: _Sums) -> None:
        self.tensors += other.tensors
        self.elements += other.elements
        self.changed += other.changed
        self.largest = max(self.largest, other.largest)
        for name in ("squares", "dots", "common", "same_sign"):
            mine, theirs = getattr(self, name), getattr(other, name)
            summed = [a + b for a, b in zip(mine, theirs, strict=True)] if mine else list(theirs)
            setattr(self, name, summed)
        self.spectra += other.spectra
        if other.counts is not None and other.held is not None:
            self.counts = other.counts.copy() if self.counts is None else self.counts + other.counts
            self.held = other.held.copy() if self.held is None else self.held + other.held


class _Tally:
    """Sums of everything, per layer, per kind of module, and per tensor."""

    def __init__(self, others: list[str], spectra: bool) -> None:
        self._others, self._spectra = others, spectra
        self._sums: dict[Any, _Sums] = defaultdict(_Sums)
        self._crossed = np.zeros((len(others), len(others)))

    def add(self, name: str, arrays: Sequence[np.ndarray], more: Sequence[Any]) -> None:
        """Count one tensor of the vector and of the others."""
        one = _measured(arrays, spectra=self._spectra)
        for row, left in enumerate(arrays[1:]):
            for column, right in enumerate(arrays[1:]):
                if row < column:
                    self._crossed[row, column] += _dot(left, right)
        layer, module = keys_of(name)
        places = (("all", None), ("layer", layer), ("module", module), ("kind", module_kind(name)), *more)
        for place in places:
            self._sums[place].add(one)
        one.counts = one.held = None  # a megabyte for each tensor would be too much
        self._sums["grid", (layer, module)].add(one)
        self._sums["tensor", name].add(one)

    def result(self, name: str, groups: list[str], unmatched: dict[str, list[str]]) -> Composition:
        """All figures."""
        total = self._sums["all", None]
        if not total.squares:
            total.squares = [0.0] * (1 + len(self._others))
        square = total.squares[0]

        def of(kind: str) -> dict[Any, Figures]:
            return {
                key: _figures(sums, square, self._others)
                for (own, key), sums in self._sums.items()
                if own == kind
            }

        layers = of("layer")
        found = {layer: layers[layer] for layer in sorted(layers, key=lambda at: -1 if at is None else at)}
        grouped = of("group")
        return Composition(
            vector=name,
            total=_figures(total, square, self._others),
            layers=found,
            modules=of("module"),
            kinds=of("kind"),
            groups={label: grouped[label] for label in groups},
            grid=of("grid"),
            tensors=of("tensor"),
            cosines=self._cosines(total),
            unmatched=unmatched,
        )

    def _cosines(self, total: _Sums) -> dict[str, dict[str, float | None]]:
        names, squares = ["v", *self._others], total.squares
        found: dict[str, dict[str, float | None]] = {name: {name: 1.0} for name in names}
        for row, left in enumerate(names):
            found[left][left] = 1.0 if squares[row] else None
            for column in range(row + 1, len(names)):
                dot = total.dots[column - 1] if row == 0 else float(self._crossed[row - 1, column - 1])
                value = _cosine(dot, squares[row], squares[column])
                found[left][names[column]] = found[names[column]][left] = value
        return found


def _measured(arrays: Sequence[np.ndarray], *, spectra: bool) -> _Sums:
    """The sums of one tensor."""
    own = arrays[0]
    counts, held = np.zeros(BINS, np.int64), np.zeros(BINS)
    sums = _Sums(tensors=1, elements=own.size, counts=counts, held=held)
    sums.changed = int(np.count_nonzero(own))
    sums.largest = float(np.abs(own).max(initial=0.0))
    for part in chunks(own):
        places = keys(part)
        counts += np.bincount(places, minlength=BINS)
        held += np.bincount(places, np.square(part, dtype=np.float64), minlength=BINS)
    sums.squares = [float(held.sum()), *(_dot(other, other) for other in arrays[1:])]
    sums.dots = [_dot(own, other) for other in arrays[1:]]
    for other in arrays[1:]:
        pairs = list(zip(chunks(own), chunks(other), strict=True))
        sums.common.append(sum(int(np.count_nonzero((x != 0) & (y != 0))) for x, y in pairs))
        sums.same_sign.append(
            sum(int(np.count_nonzero((np.sign(x) == np.sign(y)) & (x != 0))) for x, y in pairs)
        )
    if spectra and own.ndim >= 2:
        matrices = own.reshape(-1, *own.shape[-2:])
        rows = ((spectrum(matrix), float(np.square(matrix, dtype=np.float64).sum())) for matrix in matrices)
        sums.spectra = [(row, square) for row, square in rows if row is not None]
    return sums


def _dot(one: np.ndarray, other: np.ndarray) -> float:
    pairs = zip(chunks(one), chunks(other), strict=True)
    return math.fsum(float(np.dot(x.astype(np.float64), y.astype(np.float64))) for x, y in pairs)


def spectrum(matrix: np.ndarray) -> Spectrum | None:
    """The figures of one matrix, from the eigenvalues of its product with itself; None of zeros."""
    small = min(matrix.shape)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gram = np.zeros((small, small))
    for at in range(0, tall.shape[0], 4096):
        block = tall[at : at + 4096].astype(np.float64)
        gram += block.T @ block
    squares = np.clip(np.linalg.eigvalsh(gram)[::-1], 0.0, None) if small else np.zeros(0)
    total = float(squares.sum())
    if not total:
        return None
    values = np.sqrt(squares)
    shares = values / values.sum()
    shares = shares[shares > 0]
    kept = np.cumsum(squares) / total
    return Spectrum(
        rank=float(np.exp(-(shares * np.log(shares)).sum())),
        stable_rank=total / float(squares[0]),
        full_rank=float(small),
        energy={rank: float(kept[min(rank, small) - 1]) for rank in RANKS},
    )


def _figures(sums: _Sums, whole: float, others: Sequence[str]) -> Figures:
    square = sums.squares[0]
    alike = {
        name: Alike(
            cosine=_cosine(sums.dots[at], square, sums.squares[1 + at]),
            sign_agreement=sums.same_sign[at] / sums.common[at] if sums.common[at] else None,
            norm=math.sqrt(sums.squares[1 + at]),
        )
        for at, name in enumerate(others if sums.dots or not others else ())
    }
    counted = square > 0 and sums.counts is not None and sums.held is not None
    return Figures(
        tensors=sums.tensors,
        elements=sums.elements,
        changed=sums.changed,
        norm=math.sqrt(square),
        share=square / whole if whole else None,
        largest=sums.largest,
        top={amount: _top(sums, amount / 100) for amount in TOP} if counted else None,
        needed={share: _needed(sums, share) for share in HELD} if counted else None,
        spectrum=pooled(sums.spectra),
        alike=alike,
    )


def _cosine(dot: float, one: float, other: float) -> float | None:
    norms = math.sqrt(one) * math.sqrt(other)
    return max(-1.0, min(1.0, dot / norms)) if norms else None


def _sorted(sums: _Sums) -> tuple[np.ndarray, np.ndarray]:
    """Elements and squares, added up from the largest magnitude down; a zero before the first."""
    assert sums.counts is not None
    assert sums.held is not None
    return (
        np.concatenate([[0], np.cumsum(sums.counts[::-1])]),
        np.concatenate([[0.0], np.cumsum(sums.held[::-1])]),
    )


def _top(sums: _Sums, share: float) -> float:
    """The share of the squared norm in the largest elements; magnitudes of one bin count alike."""
    elements, squares = _sorted(sums)
    return float(np.interp(share * sums.elements, elements, squares) / squares[-1])


def _needed(sums: _Sums, share: float) -> float:
    """The share of the elements that hold so much of the squared norm."""
    elements, squares = _sorted(sums)
    at = int(np.searchsorted(squares, share * squares[-1]))
    low, high = squares[at - 1], squares[at]
    inside = (share * squares[-1] - low) / (high - low) if high > low else 1.0
    return float(elements[at - 1] + inside * (elements[at] - elements[at - 1])) / sums.elements
