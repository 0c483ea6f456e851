"""What a score is made of: slices of paired answers, pass@k and majority@k, against direct counting."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from scipy import stats

from support.evaluation_records import METRIC, record
from taskvec.errors import RecipeError
from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.analysis.draws import at_k, majority_at, pass_at
from taskvec.evaluation.analysis.slices import forms, slices, task_kind
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.record import Draw
from taskvec.evaluation.report.report import build_report
from taskvec.evaluation.settings import Settings

WHOLE = Split(0.0, 0)
BASELINE, VECTOR = Arm("baseline", "baseline"), Arm("alpha=1", "vector", 1.0)


def draws(values, answers=None) -> list[Draw]:
    answers = answers or [str(v) for v in values]
    return [Draw("", float(v), a) for v, a in zip(values, answers, strict=True)]


@pytest.mark.parametrize(("right", "samples", "k"), [(0, 5, 2), (5, 5, 3), (2, 6, 3), (1, 4, 4), (3, 10, 1)])
def test_pass_at_k_is_the_mean_over_all_choices(right, samples, k):
    flags = [True] * right + [False] * (samples - right)
    wanted = [any(chosen) for chosen in itertools.combinations(flags, k)]
    assert pass_at(right, samples, k) == pytest.approx(sum(wanted) / len(wanted))


def test_majority_is_the_mean_over_all_choices_and_ties_are_shared():
    own = draws([1, 1, 0, 0], ["7", "7", "8", "9"])
    assert majority_at(own, 1) == 0.5
    # of the six pairs: 77 right; 78 79 78 79 tied, half; 89 wrong
    assert majority_at(own, 2) == pytest.approx((1 + 4 * 0.5 + 0) / 6)
    assert majority_at(own, 4) == 1.0
    assert majority_at(draws([0, 0, 1], ["[invalid]", "[invalid]", "7"]), 3) == 1.0
    assert majority_at(draws([0, 0], ["[invalid]", "[invalid]"]), 2) == 0.0
    assert majority_at([Draw("def f", 1.0, None)], 1) is None


def test_many_choices_are_drawn_and_come_near():
    own = draws([1] * 12 + [0] * 12, ["7"] * 12 + ["8"] * 12)
    assert majority_at(own, 12, seed=1) == pytest.approx(0.5, abs=0.05)
    assert majority_at(own, 12, seed=1) == majority_at(own, 12, seed=1)


def with_draws(arm, rows):
    one = record(arm, {"t": [float(row[0]) for row in rows]})
    samples = [replace(s, draws=draws(row)) for s, row in zip(one.samples["t"], rows, strict=True)]
    return replace(one, samples={"t": samples})


def test_arms_are_paired_and_corrected():
    before = with_draws(BASELINE, [[0, 0, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0]] * 20)
    after = with_draws(VECTOR, [[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0]] * 20)
    rows = {(r.arm, r.measure, r.k): r for r in at_k([before, after], before, (1, 2, 4), WHOLE)}
    one = rows["alpha=1", "pass", 2]
    wanted = [pass_at(c, 4, 2) for c in (2, 4, 1)]
    theirs = [pass_at(c, 4, 2) for c in (1, 3, 0)]
    assert one.value == pytest.approx(sum(wanted) / 3)
    assert one.difference == pytest.approx((sum(wanted) - sum(theirs)) / 3)
    assert one.difference_low < one.difference < one.difference_high
    assert one.p_holm >= one.p
    assert rows["baseline", "pass", 2].difference is None
    assert at_k([record(BASELINE, {"t": [1.0]})], None, (1,), WHOLE) == []


def two(values_before, values_after, change=lambda _number, sample: sample):
    before, after = record(BASELINE, {"t": values_before}), record(VECTOR, {"t": values_after})
    pairs = zip(before.samples["t"], after.samples["t"], strict=True)
    rows = [change(i, replace(s, tokens=b.tokens)) for i, (b, s) in enumerate(pairs)]
    return before, replace(after, samples={"t": rows})


def test_lengths_cut_the_pairs_into_three():
    def change(number, sample):
        return replace(sample, tokens={0: 1.05, 1: 2.0, 2: 0.5}[number % 3] * (sample.tokens or 0))

    before, after = two([0.0, 1.0, 0.0, 0.0] * 15, [1.0, 1.0, 0.0, 1.0] * 15, change)
    rows = {row.label: row for row in slices(before, {"t": after}, WHOLE) if row.view == "length"}
    assert [row.n for row in rows.values()] == [20, 20, 20]
    same = rows["of the same length, within 10 %"]
    pairs = [
        (b.metrics[METRIC], a.metrics[METRIC])
        for i, (b, a) in enumerate(zip(before.samples["t"], after.samples["t"], strict=True))
        if i % 3 == 0
    ]
    gained, lost = sum(a > b for b, a in pairs), sum(a < b for b, a in pairs)
    assert (same.gained, same.lost) == (gained, lost)
    assert same.p == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    assert same.difference == pytest.approx((gained - lost) / 20)


def test_filters_of_a_task_and_answers_that_were_found():
    def loose(number, sample, right):
        extracted = {"strict": "[invalid]" if number % 4 == 0 else "7"}
        return replace(sample, extracted=extracted, metrics={**sample.metrics, "exact_match,flexible": right})

    before, after = two([0.0] * 40, [0.0, 1.0] * 20, lambda i, s: loose(i, s, 1.0))
    rows = [loose(i, s, float(i % 2)) for i, s in enumerate(before.samples["t"])]
    before = replace(before, samples={"t": rows})
    found = {row.label: row for row in slices(before, {"t": after}, WHOLE) if row.view == "format"}
    assert found["by strict"].difference == 0.5
    assert found["by flexible"].difference == 0.5
    assert found["an answer was found in both"].n == 30
    form = {row.arm: row for row in forms([before, after], WHOLE)}
    assert (form["baseline"].right, form["baseline"].form_only, form["baseline"].not_found) == (0, 20, 10)
    assert (form["alpha=1"].right, form["alpha=1"].form_only) == (20, 20)


def test_flips_are_counted_by_kind_of_task():
    def kinds(number, sample):
        return replace(sample, target="1+2=<<1+2=3>>3 " * (1 + number % 2) + "#### 3")

    before, after = two([0.0, 1.0] * 20, [1.0, 1.0] * 20, kinds)
    before = replace(before, samples={"t": [kinds(i, s) for i, s in enumerate(before.samples["t"])]})
    rows = {row.label: row for row in slices(before, {"t": after}, WHOLE) if row.view == "kind"}
    assert list(rows) == ["1 step", "2 steps"]
    assert (rows["1 step"].gained, rows["1 step"].n) == (20, 20)
    assert rows["2 steps"].gained == 0
    everything = slices(before, {"t": after}, WHOLE)
    assert all(row.p_holm >= row.p for row in everything)
    sample = before.samples["t"][0]
    assert task_kind(replace(sample, subtask="bbh_navigate")) == "bbh_navigate"
    assert task_kind(replace(sample, target="7", question="A has 3 and 4. How many?")) == "2 numbers"


def test_the_k_of_pass_at_k_may_be_named():
    before, after = (with_draws(arm, [[1, 0, 0, 1, 0]] * 40) for arm in (BASELINE, VECTOR))
    powers = build_report([before, after]).draws()
    assert {row.k for row in powers} == {1, 2, 4, 5}
    named = build_report([before, after], pass_at=(3, 5)).draws()
    assert {row.k for row in named} == {3, 5}
    assert [row.value for row in named if row.k == 5] == [row.value for row in powers if row.k == 5]


@pytest.mark.parametrize(("at", "drawn"), [(6, 5), (0, 5), (1, 0)])
def test_a_k_beyond_the_answers_drawn_is_refused(at, drawn):
    with pytest.raises(RecipeError, match="pass@"):
        Settings(tasks=("t",), pass_at=(at,), samples=drawn)
