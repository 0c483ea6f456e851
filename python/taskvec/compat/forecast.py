"""How much of a plain vector would survive in a packed target that is written in its own format.

A step that is smaller than half the distance of two codes is rounded away, all of it. A sample of the weights
tells, before the run, how the two compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from taskvec.compat.findings import Finding, finding
from taskvec.compat.lineage import BLOCKS, ELEMENTS, TENSORS, sampled, spread
from taskvec.dtypes import TORCH_NAMES

if TYPE_CHECKING:
    from taskvec.models.model import Model
    from taskvec.models.quantised.format import Format
    from taskvec.models.saved_vector import SavedVector

LEAST = 0.5


def check_survival(
    target: Model,
    donor: Model,
    reference: Model,
    stored: Mapping[str, Sequence[str]],
    alphas: Iterable[float],
) -> Iterator[Finding]:
    """An error where less than half of the vector would survive rounding to the nearest code.

    Parameters
    ----------
    target, donor, reference : Model
        Of the first the packed weights count.
    stored : mapping
        The names in donor and reference of each packed weight that is computed.
    alphas : iterable of float
        Factors; the smallest, zero apart, decides.
    """
    yield from lost(target, stored, predicted(target, donor, reference, stored, alphas))


def lost(target: Model, stored: Mapping[str, Sequence[str]], share: float | None) -> Iterator[Finding]:
    """An error where the part of a vector that would be left is less than half."""
    if share is not None and share < LEAST:
        form = target.packed[next(iter(stored))].format
        yield finding(
            "quantised-lost",
            "vector",
            f"at least {LEAST:.0%} of the step",
            f"a sample says that {share:.0%} of it would be left in {form.words}",
            f"`--out-dtype {TORCH_NAMES[form.dtype]}` keeps it, `--rounding stochastic` does on average, a "
            "larger alpha keeps more",
        )


def predicted(
    target: Model,
    donor: Model,
    reference: Model,
    stored: Mapping[str, Sequence[str]],
    alphas: Iterable[float],
) -> float | None:
    """The part that would be left, by a sample; ``None`` where nothing is known."""
    factors = [abs(alpha) for alpha in alphas if alpha]
    models = (target, donor, reference)
    if not factors or not stored or any(model.path is None for model in models):
        return None
    return survival(models, stored, min(factors))


def predicted_of_vector(
    target: Model, vector: SavedVector, stored: Mapping[str, Sequence[str]], alphas: Iterable[float]
) -> float | None:
    """The same of a saved vector. Where its values lie does not matter: any stand against any weights.

    A vector in another layout is told by the stored tensors that keep their names.
    """
    factors = [abs(alpha) for alpha in alphas if alpha]
    if not factors or target.path is None:
        return None
    kept = asked = 0.0
    for name in spread([name for name in stored if stored[name]], TENSORS):
        place = next((each for each in _places(stored[name][0]) if each in vector.stored.tensors), None)
        if place is None:
            continue
        values = _spread_sample(vector.stored, place, math.prod(vector.stored.tensors[place].shape))
        weights = _spread_sample(target, name, math.prod(target.tensors[name].shape))
        distances = steps(target.packed[name].format, weights)
        one, all_ = _left(values, distances, min(factors))
        kept, asked = kept + one, asked + all_
    return kept / asked if asked else None


def _places(name: str) -> tuple[str, str]:
    """Where a saved vector may have the values of a tensor: dense, or without the zeros."""
    return name, f"{name}.values"


def _spread_sample(model: Model, name: str, size: int) -> Sequence[float]:
    count = min(ELEMENTS, size)
    starts = sorted({(size - count) * (2 * block + 1) // (2 * BLOCKS) for block in range(BLOCKS)})
    return sampled(model, name, starts, count)


def _left(wanted: Iterable[float], distances: Iterable[float], alpha: float) -> tuple[float, float]:
    """The sum of what is kept of each step, along itself, and of all that is asked for."""
    kept = asked = 0.0
    for step, distance in zip(wanted, distances, strict=False):
        value = alpha * step
        if math.isfinite(value) and distance > 0:
            kept += distance * round(value / distance) * value
            asked += value * value
    return kept, asked


def survival(
    models: tuple[Model, Model, Model], stored: Mapping[str, Sequence[str]], alpha: float
) -> float | None:
    """The part of α·(donor − reference), along itself, that is left; ``None`` where the sample is zero."""
    kept = asked = 0.0
    for name in spread(list(stored), TENSORS):
        size, names = math.prod(models[0].tensors[name].shape), (name, *stored[name])
        t, d, r = (_spread_sample(model, each, size) for model, each in zip(models, names, strict=True))
        one, all_ = _left(map(float.__sub__, d, r), steps(models[0].packed[name].format, t), alpha)
        kept, asked = kept + one, asked + all_
    return kept / asked if asked else None


def steps(form: Format, values: Sequence[float]) -> Iterator[float]:
    """The distance to the next code at each of some decoded values that lie side by side, about."""
    parameters = dict(form.parameters)
    group = parameters.get("group") or len(values)
    is_float8 = form.kind == "scaled" and not form.words.startswith("INT8")
    top = {"e2m1": 6.0, "scaled": 127.0}.get(form.kind) or float(2 ** (parameters.get("bits", 4) - 1) - 1)
    for start in range(0, len(values), group):
        own = values[start : start + group]
        if form.kind == "mlx":  # from the smallest to the largest
            yield from [(max(own) - min(own)) / float(2 ** parameters["bits"] - 1)] * len(own)
            continue
        part = [abs(value) for value in own]
        scale = max(part, default=0.0) / top
        for value in part:
            if is_float8:
                yield value / 11.3  # 1/16 to 1/8 of the value, by its mantissa
            elif form.kind == "e2m1":
                yield scale * (2.0 if value > 4 * scale else 1.0 if value > 2 * scale else 0.5)
            else:
                yield scale
