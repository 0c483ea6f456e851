"""Was the step really added? A merged model held against base and donor, or base and adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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
# Tools that merge an adapter round its product to the model's type before they add it.
_TWICE = 2.0**-8


@dataclass(slots=True)
class _Sums:
    step: float = 0.0
    moved: float = 0.0
    product: float = 0.0
    scale: float = 0.0
    elements: int = 0
    differs: int = 0
    changes: int = 0
    names: list[str] = field(default_factory=list)


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

    ``values`` gives, of an adapter, base + adapter in float64, tensor by tensor in the order of the names.
    """
    merged_as = fitted(merged, base, None)
    donor = fitted(step, base, None) if isinstance(step, Model) else None
    names = [name for name, info in base.tensors.items() if info.dtype in FLOAT_DTYPES]
    changed = set(step.changed) if donor is None else set(donor.tensors)  # type: ignore[union-attr]
    if not changed & set(names):
        raise RecipeError(
            f"`{step.spec}` has no tensor of `{base.spec}`", "name the model that it was trained from as BASE"
        )
    whole = dict.fromkeys(name for name in names if name in changed)
    made = values(list(whole)) if values is not None else iter(())
    ready: dict[str, np.ndarray] = {}
    tell = meter(progress, "compare")
    total, done = sum(math.prod(base.tensors[name].shape) for name in names), 0
    found: dict[str, TensorCheck] = {}
    for name in names:
        info = base.tensors[name]
        if name in whole and values is not None:
            ready = dict([next(made)])
        if name not in merged_as.tensors:
            found[name] = TensorCheck("missing")
        elif merged_as.tensors[name].shape != info.shape:
            found[name] = TensorCheck("shape")
        else:
            target = ready.get(name) if values is not None else None
            other = None if name not in whole else target if target is not None else donor
            found[name] = _tensor(base, other, merged_as, name)
        done += math.prod(info.shape)
        if tell is not None:
            tell(done, total)
    extra = tuple(name for name in merged_as.tensors if name not in base.tensors)
    factor = _factor(found)
    check = MergeCheck(base.spec, step.spec, merged.spec, found, factor, alpha, extra)
    return MergeCheck(
        base.spec, step.spec, merged.spec, found, factor, alpha, extra, tuple(_guesses(check, step))
    )


def _factor(found: Mapping[str, TensorCheck]) -> float | None:
    """The factor over all tensors, each with the weight of its step."""
    rows = [each for each in found.values() if each.status == "added" and each.alpha is not None]
    squares = sum(each.step_norm**2 for each in rows)
    product = sum((each.alpha or 0.0) * each.step_norm**2 for each in rows)
    return product / squares if squares else None


def _chunks(base: Model, other: Any, merged: Model, name: str) -> Iterator[tuple[np.ndarray, ...]]:
    """Base, step and merged - base of a tensor, float64, and whether elements of merged and base differ."""
    count = math.prod(base.tensors[name].shape)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        b, m = _read(base, name, start, size), _read(merged, name, start, size)
        if other is None:
            target = b
        elif isinstance(other, np.ndarray):
            target = other.reshape(-1)[start : start + size].astype(np.float64)
        else:
            target = _read(other, name, start, size)
        yield b, target - b, m - b, m


def _read(model: Model, name: str, start: int, size: int) -> np.ndarray:
    if model.assembled or model.tensors[name].dtype == "F64":
        return _whole(model, name)[start : start + size]
    return np.frombuffer(model.sample(name, start, size), "<f4").astype(np.float64)


_kept: dict[tuple[int, str], np.ndarray] = {}


def _whole(model: Model, name: str) -> np.ndarray:
    """A tensor that has no plain place in a file, or is wider than a sample."""
    key = id(model), name
    if key not in _kept:
        for old in [each for each in _kept if each[1] != name]:
            del _kept[old]
        _kept[key] = stored(model, name, "F64").reshape(-1)
    return _kept[key]


def _tensor(base: Model, other: Any, merged: Model, name: str) -> TensorCheck:
    sums = _Sums()
    bits, least = _FRACTION.get(merged.tensors[name].dtype, (7, -126))
    is_lost = True
    for b, s, d, m in _chunks(base, other, merged, name):
        sums.step += float(s @ s)
        sums.moved += float(d @ d)
        sums.product += float(s @ d)
        sums.elements += len(b)
        sums.differs += int(np.count_nonzero(d))
        sums.changes += int(np.count_nonzero(s))
        ulp = _ulp(m, bits, least)
        sums.scale += float(ulp @ ulp) / 12
        is_lost = is_lost and bool((np.abs(s) <= ulp / 2).all())
    if not math.isfinite(sums.step + sums.moved):
        return TensorCheck(
            "other", None, 1.0, math.sqrt(abs(sums.step)), math.sqrt(abs(sums.moved)), math.nan
        )
    step, moved = math.sqrt(sums.step), math.sqrt(sums.moved)
    if not sums.changes:
        # the type of the merged model may be narrower than the base's
        rest = _unexplained(base, other, merged, name, 0.0, 0.0, bits, least) if sums.differs else 0.0
        return TensorCheck("other" if rest > _FEW else "no-step", None, rest, 0.0, moved, moved)
    if not sums.differs:
        return TensorCheck("rounded-away" if is_lost else "base", 0.0, 0.0, step, 0.0, 0.0)
    alpha = sums.product / sums.step
    error = 3 * math.sqrt(sums.scale) / step  # of the fit, by rounding that is drawn anew in each element
    at_zero = _unexplained(base, other, merged, name, 0.0, 0.0, bits, least)
    if at_zero == 0.0 and abs(alpha) <= max(error, 1e-3):
        return TensorCheck("rounded-away" if is_lost else "base", 0.0, 0.0, step, moved, moved)
    rest = _unexplained(base, other, merged, name, alpha, max(error, 1e-3 * abs(alpha)), bits, least)
    left = math.sqrt(max(sums.moved - alpha * alpha * sums.step, 0.0))
    status: Status = "added" if rest <= _FEW else "other"
    return TensorCheck(status, alpha, rest, step, moved, left)


def _unexplained(
    base: Model, other: Any, merged: Model, name: str, alpha: float, slack: float, bits: int, least: int
) -> float:
    """The share of elements that are further from base + alpha * step than rounding takes them."""
    apart = count = 0
    for b, s, _, m in _chunks(base, other, merged, name):
        wanted = b + alpha * s
        room = 0.501 * np.maximum(_ulp(m, bits, least), _ulp(wanted, bits, least))
        room += np.abs(s) * (slack + _TWICE * abs(alpha)) + np.abs(wanted) * 2.0**-23
        apart += int(np.count_nonzero(~(np.abs(m - wanted) <= room)))
        count += len(b)
    return apart / count if count else 0.0


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
