"""How much each checkpoint of a training run counts in its average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

from taskvec.errors import RecipeError
from taskvec.text import nearest, plural, shown

Schedule = Literal["uniform", "linear", "1-sqrt", "ema"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)


def weights(
    steps: Sequence[int | None], schedule: str = "uniform", half_life: float | None = None
) -> list[float]:
    """The weight of each checkpoint; they sum to one.

    Parameters
    ----------
    steps : sequence of int or None
        Of n checkpoints, the oldest first; their positions count where one is ``None``.
    schedule : {"uniform", "linear", "1-sqrt", "ema"}
        ``uniform`` is 1/n each, which also stands for a learning rate that decays linearly. ``linear`` grows
        with the position: 1, 2 … n, over their sum. ``1-sqrt`` is √(i/n) − √((i − 1)/n) for the i-th: the
        average that stands for a learning rate that decays as 1 − √x over these checkpoints ("WSM:
        decay-free learning rate schedule via checkpoint merging", 2025). ``ema`` halves with every
        `half_life` of age: 2^(−(last − step)/half_life), over their sum.
    half_life : float, optional
        Of ``ema``: in training steps, or in checkpoints where steps are not known.

    Raises
    ------
    RecipeError
        The schedule is unknown; the half-life is missing, not above zero, or given for another schedule.
    """
    if not isinstance(schedule, str) or schedule not in SCHEDULES:
        near = nearest(schedule, SCHEDULES) if isinstance(schedule, str) else None
        raise RecipeError(
            f"schedule `{shown(schedule)}` is not known",
            f"did you mean `{near}`?" if near else f"choose one of {', '.join(SCHEDULES)}",
        )
    if (schedule == "ema") != (half_life is not None):
        raise RecipeError(
            "`ema` needs a half-life" if half_life is None else f"`{schedule}` has no half-life",
            "give `--half-life` in training steps" if half_life is None else "add `--schedule ema`",
        )
    count = len(steps)
    if schedule == "linear":
        return _divided([float(number) for number in range(1, count + 1)])
    if schedule == "1-sqrt":
        edges = [math.sqrt(number / count) for number in range(count + 1)]
        return [after - before for before, after in pairwise(edges)]
    if half_life is not None:
        return _divided(_halving(steps, half_life))
    return [1.0 / count] * count


def own_weights(values: Sequence[float], steps: Sequence[int | None]) -> list[float]:
    """Weights as they are given, one for each checkpoint in the order of their steps; any finite numbers.

    Raises
    ------
    RecipeError
        Another number of them, or one that is not finite.
    """
    if isinstance(values, str) or not all(
        isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each)
        for each in values
    ):
        raise RecipeError(f"weights `{shown(values)}` are not all finite numbers", "give numbers: 0.25,0.75")
    if len(values) != len(steps):
        raise RecipeError(
            f"{plural(len(values), 'weight')} for {plural(len(steps), 'checkpoint')} (steps "
            f"{', '.join('unknown' if each is None else str(each) for each in steps[:8])}"
            f"{' ...' if len(steps) > 8 else ''})",
            "give one for each, in the order of the steps",
        )
    return [float(each) for each in values]


def _halving(steps: Sequence[int | None], half_life: float) -> list[float]:
    is_number = isinstance(half_life, int | float) and not isinstance(half_life, bool)
    if not (is_number and math.isfinite(half_life) and half_life > 0):
        raise RecipeError(
            f"half-life `{shown(half_life)}` is not a number above zero", "give training steps: 500"
        )
    known = [step for step in steps if step is not None]
    places = known if len(known) == len(steps) else list(range(len(steps)))
    return [math.exp2(-(places[-1] - place) / half_life) for place in places]


def _divided(values: Sequence[float]) -> list[float]:
    total = math.fsum(values)
    return [value / total for value in values]
