"""Was the step really added? A merged model held against base and donor, saved vector or adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from taskvec.lazy.merge_sides import Chunk, Sides, ulp_of
from taskvec.progress import Callback, meter
from taskvec.report.merge_check import MergeCheck, Status, TensorCheck
from taskvec.report.merge_guesses import guesses
from taskvec.run.evaluate import of_plan

if TYPE_CHECKING:
    from taskvec.models.adapter import Adapter
    from taskvec.models.model import Model
    from taskvec.models.saved_vector import SavedVector

# Share of a tensor's elements that may be further off than rounding explains.
_FEW = 1e-3
# What is left open of a factor that was fitted.
_SLACK = 1e-3
# Tools that merge an adapter round its product to the model's type before they add it.
_TWICE = 2.0**-8


@dataclass(slots=True)
class _Sums:
    """What the first pass adds up of a tensor."""

    step: float = 0.0
    moved: float = 0.0
    product: float = 0.0
    elements: int = 0
    differs: int = 0
    changes: int = 0
    largest: float = 0.0
    """Of the step, in halves of the distance to the next number of the type."""

    @property
    def alpha(self) -> float:
        """The factor by least squares."""
        return self.product / self.step if self.step else 0.0

    def check(self, status: Status, alpha: float | None, unexplained: float) -> TensorCheck:
        """The outcome with the norms."""
        left = self.moved - (2 * (alpha or 0.0) * self.product - (alpha or 0.0) ** 2 * self.step)
        norms = (math.sqrt(abs(each)) for each in (self.step, self.moved, max(left, 0.0)))
        return TensorCheck(status, alpha, unexplained, *norms)


def check_merge(
    base: Model,
    step: Model | Adapter | SavedVector,
    merged: Model,
    *,
    alpha: float | None = None,
    values: Callable[[list[str]], Iterator[tuple[str, np.ndarray]]] | None = None,
    progress: Callback | None = None,
) -> MergeCheck:
    """Compare tensor by tensor; see :func:`taskvec.check_merge`.

    Two passes: sums, from which the factor follows, and then each element against that factor. ``values``
    gives, of an adapter or a vector, base + step in float64, tensor by tensor in the order of the names.
    """
    sides = Sides.of(base, step, merged, values)
    tell, total = (
        meter(progress, "compare"),
        2 * sum(math.prod(base.tensors[name].shape) for name in sides.names),
    )
    done = 0

    def told(name: str) -> None:
        nonlocal done
        done += math.prod(base.tensors[name].shape)
        if tell is not None:
            tell(done, total)

    sums: dict[str, _Sums] = {}
    for name, other in sides.each():
        sums[name] = _summed(sides.chunks(name, other))
        told(name)
    candidates = _candidates(sums.values(), alpha)
    rests: dict[str, list[float]] = {}
    for name, other in sides.each():
        own = [0.0] if not sums[name].changes else [*candidates, *_near(sums[name].alpha)]
        rests[name] = _unexplained(sides.chunks(name, other), own, sides.form(name))
        told(name)
    factor = _factor(sums, rests, candidates)
    found = dict(sides.broken)
    for name, each in sums.items():
        found[name] = _judged(each, rests[name], candidates, factor)
    # a tensor that is the base's lacks a step only if the smallest factor found would show in it
    factors = [abs(each.alpha) for each in found.values() if each.status == "added" and each.alpha]
    least = min(factors, default=1.0 if alpha is None else abs(alpha))
    for name, each in sums.items():
        if each.changes and not each.differs and each.largest * least <= 1.0:
            found[name] = each.check("rounded-away", 0.0, 0.0)
    tensors = {name: found[name] for name in sides.names}
    if factor is None:
        factor = _mean(tensors.values())
    extra = tuple(name for name in sides.merged.tensors if name not in base.tensors)
    made = MergeCheck(base.spec, step.spec, merged.spec, tensors, factor, alpha, extra)
    return replace(made, guesses=tuple(guesses(made, step)))


def _summed(chunks: Iterator[Chunk]) -> _Sums:
    sums = _Sums()
    for base, step, merged, ulp in chunks:
        moved = merged - base
        sums.step += float(step @ step)
        sums.moved += float(moved @ moved)
        sums.product += float(step @ moved)
        sums.elements += len(base)
        sums.differs += int(np.count_nonzero(moved))
        sums.changes += int(np.count_nonzero(step))
        sums.largest = max(sums.largest, float((np.abs(step) / (ulp / 2)).max(initial=0.0)))
    return sums


def _candidates(sums: Iterable[_Sums], expected: float | None) -> list[float]:
    """The factors to try over all tensors: what was asked for, and round numbers near the fit, come first.

    Rounding draws the fit of a small step away from the factor: steps of one unit times 0.8 are one unit.
    """
    rows = [each for each in sums if each.differs and each.changes and math.isfinite(each.step + each.moved)]
    squares = sum(each.step for each in rows)
    if not squares:
        return []
    return _near(sum(each.product for each in rows) / squares, expected)


def _near(alpha: float, expected: float | None = None) -> list[float]:
    """Factors that a fit may stand for."""
    if not math.isfinite(alpha):
        return []
    found = [] if expected is None else [expected]
    found += [round(alpha), round(alpha, 1), round(alpha, 2), alpha]
    room = 0.05 * abs(alpha) + 0.02
    return list(dict.fromkeys(float(each) for each in found if each and abs(each - alpha) <= room))


def _unexplained(chunks: Iterator[Chunk], alphas: Sequence[float], form: tuple[int, int]) -> list[float]:
    """Of each factor, the share of elements that are further from base + alpha * step than rounding goes."""
    apart, count = [0] * len(alphas), 0
    for base, step, merged, ulp in chunks:
        count += len(base)
        size = np.abs(step)
        for number, alpha in enumerate(alphas):
            wanted = base + alpha * step
            room = 0.501 * np.maximum(ulp, ulp_of(wanted, *form))
            room += size * (_SLACK + _TWICE) * abs(alpha) + np.abs(wanted) * 2.0**-23
            apart[number] += int(np.count_nonzero(~(np.abs(merged - wanted) <= room)))
    return [each / count if count else 0.0 for each in apart]


def _factor(
    sums: Mapping[str, _Sums], rests: Mapping[str, list[float]], candidates: Sequence[float]
) -> float | None:
    """The factor at which most of the step is explained; none where no tensor is at any."""
    weights = [0.0] * len(candidates)
    for name, each in sums.items():
        for number in range(len(candidates)):
            if each.changes and each.differs and rests[name][number] <= _FEW:
                weights[number] += each.step
    best = max(weights, default=0.0)
    return candidates[weights.index(best)] if best else None


def _judged(
    sums: _Sums, rests: Sequence[float], candidates: Sequence[float], factor: float | None
) -> TensorCheck:
    if not math.isfinite(sums.step + sums.moved):
        return sums.check("other", None, 1.0)
    if not sums.changes:
        # the type of the merged model may be narrower than the base's
        return sums.check("no-step" if rests[0] <= _FEW else "other", None, rests[0])
    if not sums.differs:
        return sums.check("base", 0.0, 0.0)
    if factor is not None and rests[candidates.index(factor)] <= _FEW:
        return sums.check("added", factor, rests[candidates.index(factor)])
    own = list(zip(_near(sums.alpha), rests[len(candidates) :], strict=True))
    alpha, rest = min(own, key=lambda row: row[1], default=(sums.alpha, 1.0))
    return sums.check("added" if rest <= _FEW else "other", alpha, rest)


def _mean(found: Iterable[TensorCheck]) -> float | None:
    """The factor over all tensors in which the step was added, each with the weight of its step."""
    rows = [each for each in found if each.status == "added" and each.alpha is not None]
    squares = sum(each.step_norm**2 for each in rows)
    return sum((each.alpha or 0.0) * each.step_norm**2 for each in rows) / squares if squares else None


def of_adapter(base: Model, spec: str) -> Callable[[list[str]], Iterator[tuple[str, np.ndarray]]]:
    """What gives base + adapter in float64, as the engine merges it."""
    from taskvec.lazy.recipe import open_recipe

    def values(names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        document = {
            "merge_method": "passthrough",
            "models": [{"model": f"{base.spec}+{spec}"}],
            "dtype": "float64",
        }
        plan = open_recipe(document).plan()
        yield from of_plan(plan, names)

    return values


def of_vector(base: Model, spec: str) -> Callable[[list[str]], Iterator[tuple[str, np.ndarray]]]:
    """What gives base + vector in float64, as the engine adds it."""
    from taskvec.lazy.merge import Merge
    from taskvec.lazy.vector import load_vector

    def values(names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        yield from of_plan(Merge.of(base, load_vector(spec)).plan(out_dtype="float64"), names)

    return values
