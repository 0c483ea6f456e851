"""What an experiment can show, before it is run."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from support.evaluation_models import small, tiny
from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.analysis.power import POOLED, Size, power
from taskvec.evaluation.analysis.statistics import told_apart
from taskvec.evaluation.sweep.forecast import family, forecast


def shown(n: int, difference: float, discordant: float, level: float) -> float:
    """How often McNemar's exact test shows a difference, by simulation."""
    up, down = (discordant + difference) / 2, (discordant - difference) / 2
    draws = np.random.default_rng(0).multinomial(n, [up, down, 1 - up - down], size=20_000)
    gained, lost = draws[:, 0], draws[:, 1]
    least = np.minimum(gained, lost)
    p = np.minimum(1.0, 2 * stats.binom.cdf(least, gained + lost, 0.5))
    return float(((p < level) & (gained > lost)).mean())


def test_the_gate_and_the_claim_are_seen_four_times_in_five():
    split = Split(0.3, 0)
    (row,) = power({"gsm8k": Size.expected(1319, split)}, split, tests=24)
    assert (row.documents, row.development, row.report) == (1319, 396, 923)
    assert row.gate is not None and row.claim is not None  # noqa: PT018
    assert shown(1319, row.gate, row.discordant, 0.01) == pytest.approx(0.8, abs=0.01)
    assert shown(923, row.claim, row.discordant, 0.05 / 24) == pytest.approx(0.8, abs=0.01)
    assert row.gate_whole is not None
    assert row.gate_whole == row.gate
    for times, (gate, claim) in row.more.items():
        assert shown(1319 * times, gate or 0, row.discordant, 0.01) == pytest.approx(0.8, abs=0.01)
        assert shown(923 * times, claim or 0, row.discordant, 0.05 / 24) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("task", "documents", "gain", "on_a_part", "on_all"),
    [
        ("gsm8k", 1319, 0.049, 0.23, 0.83),
        ("sciq", 1000, 0.017, 0.05, 0.31),
        ("humaneval", 164, 0.043, 0.01, 0.08),
    ],
)
def test_the_gate_on_all_documents_at_the_papers_gains(task, documents, gain, on_a_part, on_all):
    split = Split(0.3, 0)
    (row,) = power({task: Size.expected(documents, split)}, split, tests=1)
    assert shown(row.development, gain, row.discordant, 0.01) == pytest.approx(on_a_part, abs=0.02)
    assert shown(documents, gain, row.discordant, 0.01) == pytest.approx(on_all, abs=0.02)
    assert row.gate is not None
    assert (row.gate <= gain) is (on_all > 0.8)


def test_the_better_alpha_is_chosen_four_times_in_five():
    difference = told_apart(396, 0.25)
    up, down = (0.25 + difference) / 2, (0.25 - difference) / 2
    draws = np.random.default_rng(0).multinomial(396, [up, down, 0.75], size=20_000)
    ahead = (draws[:, 0] > draws[:, 1]).mean() + (draws[:, 0] == draws[:, 1]).mean() / 2
    assert ahead == pytest.approx(0.8, abs=0.01)


def test_tasks_pooled_show_less():
    split = Split(0.3, 0)
    sizes = {"a": Size.expected(300, split), "b": Size.expected(500, split)}
    one, other, both = power(sizes, split, tests=8)
    assert (both.task, both.documents) == (POOLED, 800)
    assert both.gate is not None and one.gate is not None and other.gate is not None  # noqa: PT018
    assert both.gate < other.gate < one.gate


def test_a_part_without_documents_shows_nothing_and_without_a_division_there_is_no_choice():
    (row,) = power({"t": Size(3, 0)}, Split(0.3, 0), tests=1)
    assert (row.gate, row.choice) == (None, None)
    (row,) = power({"t": Size(7, 2)}, Split(0.5, 0), tests=1)
    assert (row.gate, row.claim) == (None, None)  # 2 ** (1 - 7) > 0.01, 2 ** (1 - 5) > 0.05
    (row,) = power({"t": Size(8, 2)}, Split(0.5, 0), tests=1)
    # all eight, and all six, lean one way four times in five
    assert (row.gate, row.claim) == pytest.approx((0.8 ** (1 / 8), 0.8 ** (1 / 6)), abs=1e-4)
    (row,) = power({"t": Size.expected(100, Split(0.0, 0))}, Split(0.0, 0), tests=1)
    assert row.choice is None
    assert row.gate == row.gate_whole
    assert (row.development, row.report) == (100, 100)


def test_a_forecast_counts_the_tests_and_the_documents():
    content = {"include_path": None, "device": "cpu"}
    found = forecast(small(tasks=["gsm8k", "bbh_cot_fewshot"], evaluation={**content, "limit": 10}))
    assert [(row.task, row.documents) for row in found.rows] == [
        ("gsm8k", 10), ("bbh_cot_fewshot", 270), (POOLED, 280)
    ]  # fmt: skip
    # the chosen vector against the baseline, 2 random and 1 permuted vectors, SFT at 1 and at v's norm
    assert family(small()) == 1 + 3 + 2
    assert found.tests == 6 * 2
    rivals = [str(tiny().reference), str(tiny().donor)]
    assert family(small(rivals=rivals, sft_alphas=[0.5])) == 6 + 1 + 4
    assert found.unknown == {}


def test_a_local_task_is_counted_and_one_that_cannot_be_had_is_said():
    found = forecast(small(tasks=["tiny_choice", "no_such_task"]))
    (row,) = found.rows
    assert (row.task, row.documents) == ("tiny_choice", 24)
    assert 0 < row.development < 24
    assert "no_such_task" in found.unknown["no_such_task"]
