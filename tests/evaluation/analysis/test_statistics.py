"""Tests and intervals against SciPy, statsmodels and answers known in advance."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from taskvec.evaluation.analysis import statistics


def binary(gained: int, lost: int, both: int, neither: int) -> tuple[list[float], list[float]]:
    """Two columns with the given counts of pairs."""
    first = [1.0] * gained + [0.0] * lost + [1.0] * both + [0.0] * neither
    second = [0.0] * gained + [1.0] * lost + [1.0] * both + [0.0] * neither
    return first, second


def test_mcnemar_of_known_counts():
    # 10 against 2 disagreeing pairs: twice the tail of a fair coin, (1 + 12 + 66) / 2^12 * 2
    assert statistics.mcnemar(10, 2) == pytest.approx(2 * 79 / 4096)
    assert statistics.mcnemar(0, 0) == 1.0
    assert statistics.mcnemar(5, 5) == 1.0
    assert statistics.mcnemar(6, 0) == pytest.approx(2 / 64)


@pytest.mark.parametrize("counts", [(10, 2, 50, 38), (3, 3, 10, 10), (40, 12, 300, 100), (0, 7, 5, 5)])
def test_mcnemar_is_that_of_statsmodels(counts):
    gained, lost, both, neither = counts
    found = statistics.paired(*binary(*counts))
    expected = statsmodels_mcnemar([[both, gained], [lost, neither]], exact=True)
    assert found.p == pytest.approx(float(expected.pvalue))
    assert found.test == "mcnemar"
    assert (found.gained, found.lost, found.n) == (gained, lost, sum(counts))
    assert found.difference == pytest.approx((gained - lost) / sum(counts))


def test_paired_interval_of_known_counts():
    # Bonett and Price (2012): p12 = (b + 1) / (n + 2), p21 = (c + 1) / (n + 2)
    found = statistics.paired(*binary(20, 5, 50, 25))
    up, down = 21 / 102, 6 / 102
    half = stats.norm.ppf(0.975) * math.sqrt((up + down - (up - down) ** 2) / 102)
    assert (found.low, found.high) == pytest.approx((up - down - half, up - down + half))


def test_paired_interval_covers_the_truth():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(600):
        draws = rng.choice(4, size=120, p=[0.12, 0.04, 0.54, 0.30])
        found = statistics.paired(*binary(*(int((draws == kind).sum()) for kind in range(4))))
        covered += found.low <= 0.08 <= found.high
    assert covered / 600 > 0.93


def test_equal_arms_show_nothing():
    values = [1.0, 0.0] * 50
    found = statistics.paired(values, values)
    assert (found.difference, found.p, found.gained, found.lost) == (0.0, 1.0, 0, 0)
    assert found.low < 0 < found.high


def test_wilson_interval_is_that_of_statsmodels():
    values = [1.0] * 83 + [0.0] * 17
    assert statistics.interval(values) == pytest.approx(proportion_confint(83, 100, method="wilson"))
    low, high = statistics.interval([0.0] * 20)
    assert low == 0.0
    assert 0.1 < high < 0.2


def test_bootstrap_interval_is_that_of_scipy():
    rng = np.random.default_rng(3)
    values = rng.gamma(2.0, 1.5, 80)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=statistics.RESAMPLES, method="BCa", rng=np.random.default_rng(7)
    ).confidence_interval
    assert statistics.interval(list(values), seed=7) == pytest.approx((expected.low, expected.high))


def test_bootstrap_test_agrees_with_the_paired_t_test():
    rng = np.random.default_rng(11)
    for shift in (0.0, 0.1, 0.25):
        one = rng.normal(0.0, 1.0, 300)
        other = one - shift + rng.normal(0.0, 0.8, 300)
        found = statistics.paired(list(one), list(other), seed=1)
        assert found.test == "bootstrap"
        assert found.p == pytest.approx(float(stats.ttest_rel(one, other).pvalue), abs=0.02)
        assert found.spread == pytest.approx(float(np.std(one - other, ddof=1)))


def test_bootstrap_is_seeded():
    one, other = [0.1, 0.4, 0.35, 0.9, 0.2], [0.0, 0.5, 0.3, 0.6, 0.1]
    assert statistics.paired(one, other, seed=4) == statistics.paired(one, other, seed=4)


def test_constant_differences_need_no_bootstrap():
    found = statistics.paired([0.5, 0.25, 0.75], [0.0, -0.25, 0.25])
    assert (found.difference, found.low, found.high) == (0.5, 0.5, 0.5)
    assert found.p == 0.25
    assert statistics.paired([0.5], [0.5]).p == 1.0


def test_holm_is_that_of_statsmodels():
    p_values = [0.01, 0.04, 0.03, 0.005]
    assert statistics.holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]) == []
    for count, seed in enumerate([1, 2, 3, 4, 60], 1):
        family = np.random.default_rng(seed).random(count * 7).round(1)  # with equal ones among them
        expected = multipletests(family, method="holm")[1]
        assert statistics.holm(family.tolist()) == pytest.approx(expected.tolist(), rel=1e-15)


@pytest.mark.parametrize(
    ("difference", "p", "up", "said"),
    [
        (0.1, 0.01, True, "better"),
        (-0.1, 0.01, True, "worse"),
        (-0.1, 0.01, False, "better"),
        (0.1, 0.05, True, "no difference shown"),
        (0.1, math.nan, True, "no difference shown"),
        (0.0, 0.01, True, "no difference shown"),
    ],
)
def test_verdicts(difference, p, up, said):
    assert statistics.verdict(difference, p, higher_is_better=up) == said


@pytest.mark.parametrize(
    ("n", "share", "level"),
    [(400, 0.2, 0.05), (1319, 0.25, 0.01), (115, 0.15, 0.05 / 24), (40, 0.1, 0.01), (17, 0.0, 0.05)],
)
def test_detectable_difference_is_seen_four_times_in_five(n, share, level):
    difference = statistics.detectable(n, discordant=share, level=level)
    apart = max(share, difference)
    up, down = (apart + difference) / 2, (apart - difference) / 2
    draws = np.random.default_rng(2).multinomial(n, [up, down, 1 - up - down], size=40_000)
    pairs, counts = np.unique(draws[:, :2], axis=0, return_counts=True)
    seen = 0
    for (gained, lost), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        if gained > lost and stats.binomtest(gained, gained + lost).pvalue < level:
            seen += count
    assert seen / 40_000 == pytest.approx(0.8, abs=0.01)


def test_detectable_difference_needs_what_the_exact_test_needs():
    # six pairs, all one way, are the fewest with 2 * 0.5^6 < 0.05, nine with a tenth of that
    for tests, fewest in ((1, 6), (10, 9)):
        difference = statistics.detectable(100, discordant=0.0, tests=tests)
        assert stats.binom.sf(fewest - 1, 100, difference) == pytest.approx(0.8, abs=1e-3)
    assert statistics.detectable(3, discordant=0.0) == 1.0


def test_detectable_difference_of_a_mean():
    expected = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * 2.0 / math.sqrt(50)
    assert statistics.detectable(50, spread=2.0) == pytest.approx(expected)


@given(st.integers(1, 400), st.floats(0, 1), st.integers(1, 60))
@example(2, 1.1125369292536007e-308, 1)
@example(400, 1 - 2**-53, 1)
def test_detectable_difference_shrinks_with_pairs(n, share, tests):
    here = statistics.detectable(n, discordant=share, tests=tests)
    assert 0 < here <= 1
    assert statistics.detectable(4 * n, discordant=share, tests=tests) <= here + 1e-4


def test_what_makes_no_pairs_is_refused():
    with pytest.raises(ValueError, match="do not make pairs"):
        statistics.paired([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="no values"):
        statistics.interval([])
    with pytest.raises(ValueError):
        statistics.detectable(10)


@given(st.integers(0, 2**32))
def test_order_of_pairs_does_not_matter(seed):
    rng = random.Random(seed)
    pairs = [(float(rng.random() < 0.6), float(rng.random() < 0.5)) for _ in range(60)]
    first = statistics.paired(*map(list, zip(*pairs, strict=True)))
    rng.shuffle(pairs)
    again = statistics.paired(*map(list, zip(*pairs, strict=True)))
    assert (again.difference, again.low, again.high, again.p) == pytest.approx(
        (first.difference, first.low, first.high, first.p)
    )
