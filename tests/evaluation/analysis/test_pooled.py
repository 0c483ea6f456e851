"""Pooling of differences over experiments: against figures worked out by hand, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from taskvec.evaluation.analysis.pooled import Effect, interval_error, paired_error, pool
from taskvec.evaluation.analysis.statistics import paired


def test_random_effects_by_hand():
    # effects 0, 1, 2 with variance 0.1 each: Q = 20, C = 20, tau² = (20 - 2) / 20
    found = pool([Effect(float(value), math.sqrt(0.1)) for value in (0, 1, 2)])
    assert found.difference == pytest.approx(1.0)
    assert found.between**2 == pytest.approx(0.9)
    assert found.share == pytest.approx(0.9)
    # equal weights: Hartung and Knapp's variance is that of a mean, 1 / 3
    reach = stats.t.ppf(0.975, 2) * math.sqrt(1 / 3)
    assert (found.low, found.high) == pytest.approx((1 - reach, 1 + reach))
    assert found.p == pytest.approx(stats.ttest_1samp([0.0, 1.0, 2.0], 0.0).pvalue)
    wide = stats.t.ppf(0.975, 1) * math.sqrt(0.9 + 1 / 3)
    assert (found.expected_low, found.expected_high) == pytest.approx((1 - wide, 1 + wide))


def test_unequal_weights_agree_with_statsmodels_where_effects_differ():
    from statsmodels.stats.meta_analysis import combine_effects

    values, errors = [0.10, 0.02, 0.30, -0.05], [0.02, 0.03, 0.05, 0.04]
    found = pool([Effect(v, e) for v, e in zip(values, errors, strict=True)])
    theirs = combine_effects(np.array(values), np.array(errors) ** 2, method_re="dl", use_t=True)
    assert theirs.tau2 > 0
    assert found.between**2 == pytest.approx(theirs.tau2)
    assert found.difference == pytest.approx(theirs.mean_effect_re)
    error = (found.high - found.low) / 2 / stats.t.ppf(0.975, 3)
    assert error == pytest.approx(theirs.sd_eff_w_re_hksj)


def test_equal_differences_are_not_surer_than_their_documents():
    found = pool([Effect(0.05, 0.02)] * 4)
    assert (found.between, found.share) == (0.0, 0.0)
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, 3) * 0.02 / 2)


def test_one_alone_has_its_own_interval():
    found = pool([Effect(0.05, 0.02)])
    assert (found.low, found.high) == pytest.approx((0.05 - 1.95996 * 0.02, 0.05 + 1.95996 * 0.02), rel=1e-4)
    assert (found.count, found.expected_low) == (1, None)
    assert pool([Effect(0.05, 0.02)] * 2).expected_low is None


@pytest.mark.parametrize("effects", [[], [Effect(0.1, 0.0)], [Effect(0.1, 0.1), Effect(0.1, 0.0)]])
def test_what_cannot_be_weighed_is_refused(effects):
    with pytest.raises(ValueError, match="standard errors above zero"):
        pool(effects)


def test_intervals_cover_the_mean_of_few_experiments():
    rng, inside, runs = np.random.default_rng(5), 0, 2000
    for _ in range(runs):
        errors = rng.uniform(0.01, 0.03, size=6)
        true = rng.normal(0.04, 0.02, size=6)
        found = pool(
            [Effect(float(v), float(e)) for v, e in zip(rng.normal(true, errors), errors, strict=True)]
        )
        inside += found.low <= 0.04 <= found.high
    assert inside / runs == pytest.approx(0.95, abs=0.02)


def test_errors_are_those_of_the_tests_own_intervals():
    rng = np.random.default_rng(1)
    one, other = rng.random(300) < 0.6, rng.random(300) < 0.5
    test = paired(one.astype(float).tolist(), other.astype(float).tolist())
    error = paired_error(test.gained, test.lost, test.n)
    assert error == pytest.approx(interval_error(test.low, test.high), rel=1e-3)
    assert error == pytest.approx(test.spread / math.sqrt(test.n), rel=0.02)
