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
    share = predicted(target, donor, reference, stored, alphas)
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


def survival(
    models: tuple[Model, Model, Model], stored: Mapping[str, Sequence[str]], alpha: float
) -> float | None:
    """The part of α·(donor − reference), along itself, that is left; ``None`` where the sample is zero."""
    kept = asked = 0.0
    for name in spread(list(stored), TENSORS):
        form, shape = models[0].packed[name].format, models[0].tensors[name].shape
        size = math.prod(shape)
        count = min(ELEMENTS, size)
        starts = sorted({(size - count) * (2 * block + 1) // (2 * BLOCKS) for block in range(BLOCKS)})
        names = (name, *stored[name])
        t, d, r = (sampled(model, each, starts, count) for model, each in zip(models, names, strict=True))
        for step, size_of_step in zip(map(float.__sub__, d, r), steps(form, t), strict=True):
            wanted = alpha * step
            if math.isfinite(wanted) and size_of_step > 0:
                kept += size_of_step * round(wanted / size_of_step) * wanted
                asked += wanted * wanted
    return kept / asked if asked else None


def steps(form: Format, values: Sequence[float]) -> Iterator[float]:
    """The distance to the next code at each of some decoded values that lie side by side, about."""
    parameters = dict(form.parameters)
    group = parameters.get("group") or len(values)
    is_float8 = form.kind == "scaled" and not form.words.startswith("INT8")
    top = {"e2m1": 6.0, "scaled": 127.0}.get(form.kind) or float(2 ** (parameters.get("bits", 4) - 1) - 1)
    for start in range(0, len(values), group):
        part = [abs(value) for value in values[start : start + group]]
        scale = max(part, default=0.0) / top
        for value in part:
            if is_float8:
                yield value / 11.3  # 1/16 to 1/8 of the value, by its mantissa
            elif form.kind == "e2m1":
                yield scale * (2.0 if value > 4 * scale else 1.0 if value > 2 * scale else 0.5)
            else:
                yield scale
