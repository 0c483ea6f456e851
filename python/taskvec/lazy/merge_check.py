"""Was the step really added? A merged model held against base and donor, or base and adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from taskvec.compat.layouts.fit import fitted
from taskvec.dtypes import FLOAT_DTYPES
from taskvec.errors import RecipeError
from taskvec.models.adapter import Adapter
from taskvec.models.model import Model
from taskvec.progress import Callback, meter
from taskvec.report.merge_check import MergeCheck, Status, TensorCheck, is_apart
from taskvec.run.evaluate import of_plan, stored

# Elements that are looked at together: 32 MB of float64 a side.
CHUNK = 4 << 20
# Bits of the fraction of a float type, and the exponent of its smallest normal number.
_FRACTION = {"BF16": (7, -126), "F16": (10, -14), "F32": (23, -126), "F64": (52, -1022)}
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
    step: Model | Adapter,
    merged: Model,
    *,
    alpha: float | None = None,
    values: Callable[[list[str]], Iterator[tuple[str, np.ndarray]]] | None = None,
    progress: Callback | None = None,
) -> MergeCheck:
    """Compare tensor by tensor; see :func:`taskvec.check_merge`.

    Two passes: sums, from which the factor follows, and then each element against that factor. ``values``
    gives, of an adapter, base + adapter in float64, tensor by tensor in the order of the names.
    """
    sides = _Sides.of(base, step, merged, values)
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
    return replace(made, guesses=tuple(_guesses(made, step)))


@dataclass(frozen=True, slots=True)
class _Sides:
    """The three sides of the comparison, in the names of the base."""

    base: Model
    donor: Model | None
    merged: Model
    names: list[str]
    changed: list[str]
    broken: dict[str, TensorCheck]
    values: Callable[[list[str]], Iterator[tuple[str, np.ndarray]]] | None

    @classmethod
    def of(cls, base: Model, step: Model | Adapter, merged: Model, values: Any) -> _Sides:
        merged = fitted(merged, base, None)
        donor = fitted(step, base, None) if isinstance(step, Model) else None
        names = [name for name, info in base.tensors.items() if info.dtype in FLOAT_DTYPES]
        has = set(step.changed) if donor is None else set(donor.tensors)  # type: ignore[union-attr]
        broken = {}
        for name in names:
            if name not in merged.tensors:
                broken[name] = TensorCheck("missing")
            elif merged.tensors[name].shape != base.tensors[name].shape:
                broken[name] = TensorCheck("shape")
        changed = [name for name in names if name in has and name not in broken]
        if not any(name in has for name in names):
            raise RecipeError(
                f"`{step.spec}` has no tensor of `{base.spec}`",
                "name the model that it was trained from as BASE",
            )
        return cls(base, donor, merged, names, changed, broken, values)

    def each(self) -> Iterator[tuple[str, Any]]:
        """The tensors that can be compared, each with what base + step is: a model, or values."""
        made = self.values(self.changed) if self.values is not None else None
        ready: dict[str, np.ndarray] = {}
        if made is not None:
            # in file order, as `names` are
            for name in self.names:
                if name in self.broken:
                    continue
                if name in self.changed:
                    while name not in ready:
                        key, array = next(made)
                        ready[key] = array
                yield name, ready.pop(name, None)
            return
        taken = set(self.changed)
        for name in self.names:
            if name not in self.broken:
                yield name, self.donor if name in taken else None

    def form(self, name: str) -> tuple[int, int]:
        """Bits of the fraction of the merged tensor's type, and its smallest exponent."""
        return _FRACTION.get(self.merged.tensors[name].dtype, (7, -126))

    def chunks(self, name: str, other: Any) -> Iterator[_Chunk]:
        """Runs of elements as float64."""
        count = math.prod(self.base.tensors[name].shape)
        bits, least = self.form(name)
        for start in range(0, count, CHUNK):
            size = min(CHUNK, count - start)
            base, merged = _read(self.base, name, start, size), _read(self.merged, name, start, size)
            if other is None:
                target = base
            elif isinstance(other, np.ndarray):
                target = other.reshape(-1)[start : start + size].astype(np.float64)
            else:
                target = _read(other, name, start, size)
            yield _Chunk(base, target - base, merged, _ulp(merged, bits, least))


class _Chunk(NamedTuple):
    base: np.ndarray
    step: np.ndarray
    merged: np.ndarray
    ulp: np.ndarray


def _read(model: Model, name: str, start: int, size: int) -> np.ndarray:
    if model.assembled or model.tensors[name].dtype == "F64":
        return stored(model, name, "F64").reshape(-1)[start : start + size]
    return np.frombuffer(model.sample(name, start, size), "<f4").astype(np.float64)


def _summed(chunks: Iterator[_Chunk]) -> _Sums:
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
    found = [] if expected is None else [expected]
    found += [round(alpha), round(alpha, 1), round(alpha, 2), alpha]
    room = 0.05 * abs(alpha) + 0.02
    return list(dict.fromkeys(float(each) for each in found if each and abs(each - alpha) <= room))


def _unexplained(chunks: Iterator[_Chunk], alphas: Sequence[float], form: tuple[int, int]) -> list[float]:
    """Of each factor, the share of elements that are further from base + alpha * step than rounding goes."""
    apart, count = [0] * len(alphas), 0
    for base, step, merged, ulp in chunks:
        count += len(base)
        size = np.abs(step)
        for number, alpha in enumerate(alphas):
            wanted = base + alpha * step
            room = 0.501 * np.maximum(ulp, _ulp(wanted, *form))
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


def _ulp(values: np.ndarray, bits: int, least: int) -> np.ndarray:
    """The distance of neighbouring numbers of a type at these values."""
    _, exponent = np.frexp(values)
    return np.ldexp(1.0, np.maximum(exponent - 1, least) - bits)


def _guesses(check: MergeCheck, step: Model | Adapter) -> Iterator[str]:
    """What may have happened where the step was not added as it should be."""
    counts = check.counts
    if check.verdict == "added":
        if check.expected is None and check.alpha is not None and is_apart(check.alpha, 1.0):
            yield from _of_scale(check.alpha, step)
        return
    base = [name for name, each in check.tensors.items() if each.status == "base"]
    if check.verdict == "partly-added":
        kinds = sorted({name.rsplit(".", 2)[-2] for name in base if name.count(".") > 1})
        yield f"left as in the base: {len(base)} tensors ({', '.join(kinds[:8])})"
    if check.verdict == "not-added" and not counts.get("rounded-away"):
        yield "the merged model is the base: the merge was not saved, or the wrong folder was"
    if check.verdict == "not-added" and counts.get("rounded-away"):
        yield "the step is too small for the type of the merged model: write it in float32"
    if check.verdict == "wrong-alpha" and check.alpha is not None and check.expected:
        yield f"the factor is {check.alpha / check.expected:.6g} times the expected one"
        yield from _of_scale(check.alpha / check.expected, step)
    if check.verdict == "other":
        yield from _of_other(check)


def _of_scale(factor: float, step: Model | Adapter) -> Iterator[str]:
    """Mistakes in the scale of an adapter that give this factor."""
    if not isinstance(step, Adapter):
        return
    rank, alpha = step.config.get("r"), step.config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or not rank or not alpha:
        return
    is_root = bool(step.config.get("use_rslora"))
    scale = alpha / math.sqrt(rank) if is_root else alpha / rank
    known = {
        "the scale was left out (B * A alone)": 1 / scale,
        "merged with lora_alpha / r, and adapter_config.json says use_rslora": 1 / math.sqrt(rank),
        "merged with lora_alpha / sqrt(r), and adapter_config.json does not say use_rslora": math.sqrt(rank),
        "merged twice": 2.0,
        "subtracted": -1.0,
        "scaled twice": scale,
    }
    skipped = "does not say" if is_root else "says use_rslora"
    for words, wanted in known.items():
        if skipped not in words and is_apart(wanted, 1.0) and not is_apart(factor, wanted):
            yield words


def _of_other(check: MergeCheck) -> Iterator[str]:
    rows = [each for each in check.tensors.values() if each.status == "other"]
    still = [each for each in rows if not each.step_norm]
    if still:
        yield (
            f"{len(still)} tensors that the step does not change differ from the base: another base, or more "
            "than this step"
        )
    far = [each for each in rows if each.step_norm and each.left_norm > 0.5 * each.moved_norm]
    if far and len(far) > len(rows) / 2:
        yield "most of merged - base does not point along the step: is BASE the model that was merged into?"
    elif rows and not still:
        yield "merged - base points along the step, and more than rounding is left: was more added?"


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
