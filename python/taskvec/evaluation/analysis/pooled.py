"""Differences of several experiments pooled: random effects, with an honest interval for few of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taskvec.evaluation.analysis import statistics


@dataclass(frozen=True, slots=True)
class Effect:
    """One difference, with its standard error."""

    difference: float
    error: float


@dataclass(frozen=True, slots=True)
class Pooled:
    """The mean of the differences that experiments of this kind have.

    Attributes
    ----------
    difference, low, high : float
        The mean, with its 95 % interval.
    p : float
        Two-sided, that the mean is zero.
    count : int
        Differences.
    between : float
        Standard deviation of the true differences between experiments (tau).
    share : float
        Share of the variation that is between experiments, and not of their documents (I²).
    expected_low, expected_high : float or None
        Where the true difference of a further experiment lies with a probability of 95 %; None of fewer than
        three.
    """

    difference: float
    low: float
    high: float
    p: float
    count: int
    between: float
    share: float
    expected_low: float | None
    expected_high: float | None


def paired_error(gained: int, lost: int, n: int) -> float:
    """The standard error of a difference of paired 0/1 values, by Bonett and Price."""
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    return math.sqrt((up + down - (up - down) ** 2) / (n + 2))


def interval_error(low: float, high: float) -> float:
    """The standard error that a 95 % interval stands for."""
    return (high - low) / (2 * statistics.quantile(statistics.ALPHA))


def pool(effects: Sequence[Effect]) -> Pooled:
    """Pool differences by DerSimonian and Laird's random effects, with Hartung and Knapp's interval.

    The variance between experiments is DerSimonian and Laird's (Controlled Clinical Trials 7, 1986), never
    below zero; the interval is Hartung and Knapp's by Student's t (Statistics in Medicine 20, 2001), never
    narrower than without their factor (Röver, Knapp and Friede, BMC Medical Research Methodology 15, 2015).
    One difference alone has its own interval: nothing is known of the variation between experiments.

    Parameters
    ----------
    effects : sequence of Effect
        At least one; differences without a standard error above zero are refused.

    Raises
    ------
    ValueError
        There is none, or an error is not above zero.
    """
    from scipy import stats

    count = len(effects)
    values = np.array([e.difference for e in effects], dtype=np.float64)
    variances = np.array([e.error for e in effects], dtype=np.float64) ** 2
    if count == 0 or not (variances > 0).all():
        raise ValueError("differences with standard errors above zero")
    if count == 1:
        (only,) = effects
        half = statistics.quantile(statistics.ALPHA) * only.error
        p = float(2 * stats.norm.sf(abs(only.difference) / only.error))
        low, high = only.difference - half, only.difference + half
        return Pooled(only.difference, low, high, p, 1, 0.0, 0.0, None, None)
    fixed = 1 / variances
    spread = float((fixed * (values - (fixed @ values) / fixed.sum()) ** 2).sum())  # Cochran's Q
    scale = float(fixed.sum() - (fixed**2).sum() / fixed.sum())
    between = max(0.0, (spread - (count - 1)) / scale)
    weights = 1 / (variances + between)
    mean = float(weights @ values / weights.sum())
    factor = max(1.0, float((weights * (values - mean) ** 2).sum()) / (count - 1))
    error = math.sqrt(factor / weights.sum())
    reach = float(stats.t.ppf(1 - statistics.ALPHA / 2, count - 1))
    low, high = mean - reach * error, mean + reach * error
    expected: tuple[float | None, float | None] = (None, None)
    if count > 2:
        wide = float(stats.t.ppf(1 - statistics.ALPHA / 2, count - 2)) * math.sqrt(between + error**2)
        expected = mean - wide, mean + wide
    return Pooled(
        difference=mean,
        low=low,
        high=high,
        p=float(2 * stats.t.sf(abs(mean) / error, count - 1)),
        count=count,
        between=math.sqrt(between),
        share=max(0.0, (spread - (count - 1)) / spread) if spread > 0 else 0.0,
        expected_low=expected[0],
        expected_high=expected[1],
    )
