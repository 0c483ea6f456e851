"""Verdicts on records with known outcomes."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from support.evaluation_records import METRIC, record
from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.record import ArmRecord
from taskvec.evaluation.search.trial import Trial, best, score
from taskvec.evaluation.search.verdict import Verdict, verdicts

SPLIT = Split(0.5, 1)
Values = Mapping[str, Sequence[float]]


def arm(name: str, values: Values, **more: bool) -> ArmRecord:
    made = record(Arm(name, "candidate"), values, **more)
    return dataclasses.replace(made, weights=f"weights of {name}")


def judge(one: ArmRecord, other: ArmRecord, margin: float = 0.01, **weights: float) -> Verdict:
    found = verdicts(one, {"plain": ("alpha=1", other)}, SPLIT, weights=weights, margin=margin, seed=1)
    return found[0]


def shares(count: int, right: float, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [float(draw.random() < right) for _ in range(count)]


def test_a_clear_gain_beats_and_a_clear_loss_is_worse() -> None:
    low, high = arm("low", {"sums": shares(400, 0.5)}), arm("high", {"sums": shares(400, 0.8, seed=1)})
    found = judge(high, low)
    assert found.word == "beats"
    assert found.low > 0
    assert found.text.startswith("The search beats the best plain recipe (alpha=1) on held-out documents: +")
    held_out = sum(not SPLIT.is_development(f"document-{index}") for index in range(400))
    assert f"n = {held_out}" in found.text
    assert judge(low, high).word == "is worse than"


def test_small_differences_equal_only_within_the_margin() -> None:
    values = shares(2000, 0.7)
    near = [1 - value if index % 500 == 0 else value for index, value in enumerate(values)]
    one, other = arm("one", {"sums": values}), arm("other", {"sums": near})
    assert judge(one, other, margin=0.02).word == "equals"
    assert ", within 2 points:" in judge(one, other, margin=0.02).text
    found = judge(one, other, margin=0.0)
    assert found.word == "does not beat"
    assert "no difference shown" in found.text
    # the same answers to a dozen questions are no proof that two models are equal
    few = judge(arm("a", {"sums": values[:12]}), arm("b", {"sums": values[:12]}))
    assert few.word == "does not beat"
    same = dataclasses.replace(arm("b", {"sums": values[:12]}), weights="weights of a")
    assert judge(arm("a", {"sums": values[:12]}), same).word == "equals"


def test_several_tasks_are_weighed_and_turned_so_that_more_is_better() -> None:
    draw = np.random.default_rng(0)
    one = {"a": draw.normal(1.0, 1, 600).tolist(), "b": draw.normal(0.0, 1, 900).tolist()}
    other = {"a": draw.normal(0.0, 1, 600).tolist(), "b": draw.normal(0.5, 1, 900).tolist()}
    found = judge(arm("one", one), arm("other", other), a=3)
    keep = {
        task: [not SPLIT.is_development(f"document-{i}") for i in range(len(row))]
        for task, row in one.items()
    }
    gaps = {task: (np.array(one[task]) - np.array(other[task]))[keep[task]] for task in one}
    expected = (3 * gaps["a"].mean() + gaps["b"].mean()) / 4
    error = np.sqrt(9 * gaps["a"].var(ddof=1) / gaps["a"].size + gaps["b"].var(ddof=1) / gaps["b"].size) / 4
    assert found.difference == pytest.approx(expected)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(error, rel=0.05)
    assert found.word == "beats"
    less = judge(arm("one", one, higher_is_better=False), arm("other", other, higher_is_better=False), a=3)
    assert less.difference == pytest.approx(-expected)
    assert less.word == "is worse than"


def test_holm_is_over_the_rivals() -> None:
    one = arm("one", {"sums": shares(300, 0.7)})
    rivals = {
        kind: (kind, arm(kind, {"sums": shares(300, 0.6, seed=at)}))
        for at, kind in enumerate(("baseline", "random", "plain"), 1)
    }
    found = verdicts(one, rivals, SPLIT, weights={}, margin=0.01, seed=1)
    ordered = sorted(found, key=lambda verdict: verdict.p)
    corrected = 0.0
    for rank, verdict in enumerate(ordered):
        corrected = max(corrected, min(1.0, (3 - rank) * verdict.p))
        assert verdict.p_holm == pytest.approx(corrected)


def test_scores_are_weighed_means_and_none_where_a_value_is_missing() -> None:
    made = record(Arm("one", "candidate"), {"a": [1, 0, 0, 0], "b": [1, 1]})
    total, tasks, failed = score(made, {"a": METRIC, "b": METRIC}, {"a": 3})
    assert total == pytest.approx((3 * 0.25 + 1) / 4)
    assert tasks == {"a": 0.25, "b": 1.0}
    assert failed is None
    total, _, failed = score(made, {"a": METRIC, "b": "other"}, {})
    assert total is None
    assert "not finite" in str(failed)


def test_the_best_is_the_first_of_equals_and_never_one_that_failed() -> None:
    def trial(number: int, value: float | None) -> Trial:
        return Trial(f"candidate-{number}", "search", number, 1, {}, value, {})

    rows = [trial(1, None), trial(2, -2.0), trial(3, -1.0), trial(4, -1.0)]
    found = best(rows)
    assert found is not None
    assert found.name == "candidate-3"
    assert best(rows[:1]) is None
