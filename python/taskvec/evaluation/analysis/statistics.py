"""Tests and intervals for paired samples: SciPy does the work, this states which and why.

Everything here takes plain numbers and knows nothing of arms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

LEVEL = 0.95
ALPHA = 0.05
POWER = 0.8
RESAMPLES = 9999

Verdict = Literal["better", "worse", "no difference shown"]
Test = Literal["mcnemar", "bootstrap"]


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The result of a paired comparison.

    Attributes
    ----------
    difference : float
        Mean of the first minus mean of the second.
    low, high : float
        95 % interval of the difference.
    p : float
        Two-sided.
    test : {"mcnemar", "bootstrap"}
    n : int
        Pairs.
    gained, lost : int
        Pairs in which the first is above, and below, the second.
    spread : float
        Standard deviation of the differences.
    """

    difference: float
    low: float
    high: float
    p: float
    test: Test
    n: int
    gained: int
    lost: int
    spread: float


def is_binary(values: Sequence[float]) -> bool:
    """Whether every value is 0 or 1."""
    return all(value in (0.0, 1.0) for value in values)


def interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean: Wilson's for 0/1 values, a bootstrap (BCa) otherwise."""
    from scipy import stats

    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no values")
    if is_binary(values):
        found = stats.binomtest(int(data.sum()), data.size).proportion_ci(LEVEL, method="wilson")
        return float(found.low), float(found.high)
    low, high, _ = _bootstrap_mean(data, seed)
    return low, high


def paired(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> PairedTest:
    """Compare two columns of paired values.

    0/1 values: McNemar's exact test, that is the binomial test on the pairs that disagree, and Bonett and
    Price's interval (one is added to either count of disagreeing pairs), which keeps its coverage where few
    pairs disagree (Psychometrika 77, 2012). Other values: a bootstrap of the mean difference over pairs; p is
    the share of resamples, shifted to mean zero, at least as far from zero as the difference that was seen.

    Parameters
    ----------
    first, second : sequences of float
        Of the same length, pair by pair.
    seed : int
        Of the bootstrap.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != other.shape or one.size == 0:
        raise ValueError(f"{one.size} and {other.size} values do not make pairs")
    difference = one - other
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    mean, n = float(difference.mean()), one.size
    spread = float(difference.std(ddof=1)) if n > 1 else 0.0
    if is_binary(first) and is_binary(second):
        low, high = _paired_proportions(gained, lost, n)
        return PairedTest(mean, low, high, mcnemar(gained, lost), "mcnemar", n, gained, lost, spread)
    low, high, p = _bootstrap_mean(difference, seed)
    return PairedTest(mean, low, high, p, "bootstrap", n, gained, lost, spread)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test from the pairs that disagree."""
    from scipy import stats

    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _paired_proportions(gained: int, lost: int, n: int) -> tuple[float, float]:
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = quantile(ALPHA) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def _bootstrap_mean(data: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Interval of a mean, and p that it is zero."""
    from scipy import stats

    mean = float(data.mean())
    if np.ptp(data) == 0:  # every resample is the sample: nothing to estimate a spread from
        return mean, mean, 1.0 if mean == 0 else 2.0 ** (1 - data.size)
    result = stats.bootstrap(
        (data,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="BCa",
        vectorized=True,
        batch=max(1, 4_000_000 // data.size),
        rng=np.random.default_rng(seed),
    )
    low, high = map(float, result.confidence_interval)
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = map(float, np.quantile(result.bootstrap_distribution, [ALPHA / 2, 1 - ALPHA / 2]))
    shifted = np.abs(result.bootstrap_distribution - mean)
    # the small slack keeps resamples that equal the sample from being lost to rounding
    beyond = int((shifted >= abs(mean) * (1 - 1e-12)).sum())
    return low, high, (beyond + 1) / (RESAMPLES + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction over a family of tests: adjusted p-values in the same order.

    The smallest of m p-values counts m times, the next m - 1 times and so on, none less than the one before
    it (Scandinavian Journal of Statistics 6, 1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1.0)
    return adjusted.tolist()


def verdict(difference: float, p: float, *, higher_is_better: bool = True) -> Verdict:
    """The claim that a corrected p-value allows."""
    if not p < ALPHA or difference == 0:
        return "no difference shown"
    return "better" if (difference > 0) == higher_is_better else "worse"


def detectable(
    n: int,
    *,
    discordant: float | None = None,
    spread: float | None = None,
    tests: int = 1,
    level: float = ALPHA,
) -> float:
    """The smallest difference that would have been shown with a probability of 80 %.

    For 0/1 metrics the power of McNemar's exact test is summed over the number of pairs that disagree, of
    which a share is given; all of them lean one way where the difference is as large as that share, or
    larger. For other metrics it is the usual (z + z') times the standard error of the mean difference.

    Parameters
    ----------
    n : int
        Pairs.
    discordant : float, optional
        Share of pairs that disagree, for 0/1 metrics.
    spread : float, optional
        Standard deviation of the differences, for other metrics.
    tests : int
        Size of the family that Holm's correction is over; its strictest threshold is used.
    level : float
        The p below which a difference counts as shown.
    """
    if n < 1 or (discordant is None) == (spread is None):
        raise ValueError("pairs, and either their disagreement or their spread")
    threshold = level / max(1, tests)
    reach = quantile(threshold) + quantile(2 * (1 - POWER))
    if spread is not None:
        return reach * spread / math.sqrt(n)
    assert discordant is not None
    return _detectable_exactly(n, discordant, threshold)


@functools.lru_cache(maxsize=4096)
def _detectable_exactly(n: int, discordant: float, level: float) -> float:
    """The difference of paired 0/1 values that McNemar's exact test shows with a probability of 80 %."""
    from scipy import optimize

    if n < fewest(level):
        return 1.0

    def surplus(difference: float) -> float:
        return mcnemar_power(n, difference, max(discordant, difference), level) - POWER

    if surplus(1.0) <= 0:
        return 1.0
    return float(optimize.brentq(surplus, 0.0, 1.0, xtol=1e-5))  # type: ignore[arg-type]


def mcnemar_power(n: int, difference: float, discordant: float, level: float) -> float:
    """The probability that McNemar's exact test shows a difference, in its own direction.

    Parameters
    ----------
    n : int
        Pairs.
    difference : float
        Of the shares that are right, from 0 to `discordant`.
    discordant : float
        Share of pairs that disagree.
    level : float
        The p below which a difference counts as shown.
    """
    from scipy import stats

    if n * discordant < 1e-9:  # the chance that a pair disagrees at all; SciPy overflows far below
        return 0.0
    reach = 8 * math.sqrt(n * discordant * (1 - discordant)) + 8
    low, high = max(0, math.floor(n * discordant - reach)), min(n, math.ceil(n * discordant + reach))
    differing = np.arange(low, high + 1)
    up = min(1.0, (discordant + difference) / (2 * discordant))
    shown = stats.binom.sf(_fewest_gains(n, level)[low : high + 1] - 1, differing, up)
    return float(stats.binom.pmf(differing, n, discordant) @ shown)


@functools.lru_cache(maxsize=64)
def _fewest_gains(n: int, level: float) -> Any:
    """The gains from which the exact test's p, twice the upper tail, is below a level: of 0 to n pairs."""
    from scipy import stats

    differing = np.arange(n + 1)
    gains = stats.binom.isf(level / 2, differing, 0.5) + 1
    return gains + (2 * stats.binom.sf(gains - 1, differing, 0.5) >= level)


def fewest(level: float) -> int:
    """The pairs that the exact test needs at least: its p is 2^(1-k) if all k disagree and lean one way."""
    return math.ceil(1 - math.log2(level))


def told_apart(n: int, discordant: float) -> float:
    """The difference of two arms at which the better one has the higher score with a probability of 80 %.

    Parameters
    ----------
    n : int
        Pairs.
    discordant : float
        Share of pairs that disagree.
    """
    return min(discordant, quantile(2 * (1 - POWER)) * math.sqrt(discordant / n))


@functools.cache
def quantile(alpha: float) -> float:
    """The two-sided normal quantile of `alpha`."""
    from scipy import stats

    return float(stats.norm.isf(alpha / 2))
