"""Which arms are compared, on what, and what may be said: on constructed arms with known outcomes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scipy import stats

from support.evaluation_records import METRIC, experiment, outcomes, record
from taskvec.errors import EvaluationError
from taskvec.evaluation.analysis.compare import (
    Split,
    check_comparable,
    compare,
    pair,
    zero_checks,
)
from taskvec.evaluation.analysis.conclusions import choose_alpha, conclusion, gates
from taskvec.evaluation.analysis.flips import MOST, UNCHANGED, flips, unchanged
from taskvec.evaluation.analysis.norms import norm_map
from taskvec.evaluation.analysis.pairs import planned_pairs
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.record import ArmRecord
from taskvec.evaluation.report.report import Report, build_report

ALL = Split(0.0, 0)
DIVIDED = Split(0.3, 1234)
BASE = Arm("baseline", "baseline")


def named(records: list[ArmRecord], name: str) -> ArmRecord:
    return next(r for r in records if r.name == name)


def without(records: list[ArmRecord], *names: str) -> list[ArmRecord]:
    return [r for r in records if r.arm.stem not in names]


def said(report: Report) -> str:
    (item,) = report.conclusions
    return item.text


# --- pairs


def test_samples_are_paired_by_document():
    one = record(BASE, {"t": [1.0, 0.0, 1.0, 0.0]})
    other = record(BASE, {"t": [0.0, 0.0, 1.0, 1.0]})
    shuffled = [other.samples["t"][i] for i in (3, 1, 0)]
    assert pair(one.samples["t"], shuffled, METRIC, ALL.keep("all")) == ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0])


def test_equal_documents_are_paired_in_order():
    one = record(BASE, {"t": [1.0, 0.0, 1.0]}).samples["t"]
    same = [replace(sample, doc_hash="same") for sample in one]
    other = [
        replace(sample, metrics={METRIC: value}) for sample, value in zip(same, (0.0, 1.0, 1.0), strict=True)
    ]
    assert pair(same, other, METRIC, ALL.keep("all")) == ([1.0, 0.0, 1.0], [0.0, 1.0, 1.0])


def test_subtasks_are_kept_apart():
    row = record(BASE, {"t": [1.0]}).samples["t"][0]
    one = [replace(row, subtask="a"), replace(row, subtask="b", metrics={METRIC: 0.0})]
    other = [replace(row, subtask="b", metrics={METRIC: 0.5})]
    assert pair(one, other, METRIC, ALL.keep("all")) == ([0.0], [0.5])


def test_arms_that_share_nothing_are_refused():
    one, other = record(BASE, {"t": [1.0, 0.0]}), record(Arm("donor", "donor"), {"t": [1.0, 0.0]})
    strange = replace(
        other, samples={"t": [replace(s, doc_hash=s.doc_hash + "!") for s in other.samples["t"]]}
    )
    with pytest.raises(EvaluationError, match="`donor` and `baseline` share no document of task `t`"):
        compare([(strange, one)], ALL, "report", seed=0)


def test_the_division_is_fixed_and_of_the_size_asked_for():
    hashes = [f"document-{i}" for i in range(4000)]
    share = sum(map(DIVIDED.is_development, hashes)) / len(hashes)
    assert share == pytest.approx(0.3, abs=0.03)
    assert [DIVIDED.is_development(h) for h in hashes] == [Split(0.3, 1234).is_development(h) for h in hashes]
    development, rest = DIVIDED.keep("development"), DIVIDED.keep("report")
    assert all(development(h) is not rest(h) for h in hashes)
    assert all(ALL.keep("development")(h) and ALL.keep("report")(h) for h in hashes)
    with pytest.raises(EvaluationError, match="not in"):
        Split(1.0, 0)


def test_comparisons_are_corrected_over_the_family():
    records = experiment(count=600)
    family = compare(planned_pairs(records, 0.5, None), ALL, "report", seed=0)
    assert len({(c.arm, c.against) for c in family}) == len(family)
    for item in family:
        assert item.p <= item.p_holm <= min(1.0, item.p * len(family) + 1e-12)
        assert item.part == "all"
        assert (item.verdict == "no difference shown") is (item.p_holm >= 0.05 or item.difference == 0)
    smallest = min(family, key=lambda item: item.p)
    assert smallest.p_holm == pytest.approx(smallest.p * len(family))


def test_every_pair_that_matters_is_tested():
    found = {(a.name, b.name) for a, b in planned_pairs(experiment(count=100), 0.5, None)}
    assert {
        ("alpha=-1", "baseline"), ("alpha=0.5", "baseline"), ("donor", "baseline"),
        ("random-2", "baseline"),
        ("alpha=0.5", "random-1"), ("alpha=0.5", "permuted-1"), ("alpha=0.5", "sft"), ("donor", "reference"),
        ("alpha=0.5+think", "baseline+think"), ("alpha=0.5+think", "baseline"),
        ("baseline+think", "baseline"),
        ("alpha=0.5~typo", "baseline~typo"), ("alpha=0.5~typo", "alpha=0.5"), ("baseline~typo", "baseline"),
    } <= found  # fmt: skip
    assert not any(a == "alpha=0" for a, _ in found)
    assert ("alpha=1", "random-1") not in found


def test_plain_words_say_what_was_seen():
    records = [record(BASE, {"t": [0.0] * 60 + [1.0] * 40})]
    records.append(record(Arm("alpha=1", "vector", 1.0), {"t": [1.0] * 30 + [0.0] * 30 + [1.0] * 40}))
    records.append(record(Arm("donor", "donor"), {"t": [1.0] * 2 + [0.0] * 58 + [1.0] * 40}))
    better, nothing = compare([(records[1], records[0]), (records[2], records[0])], ALL, "report", seed=0)
    assert better.detail.startswith("better than baseline (+30.0 points, 95 % interval +2")
    assert nothing.detail.startswith("no difference to baseline shown (+2.0 points, 95 % interval −")
    # of two tests: seven pairs, all one way, of 100, four times in five
    assert ", n = 100); one of 8.9" in nothing.detail
    assert stats.binom.sf(6, 100, 0.089) == pytest.approx(0.8, abs=0.01)
    assert nothing.detail.endswith("points would have been seen with a probability of 80 %")


def test_a_lower_metric_can_be_the_better_one():
    rows = {"t": [1.0] * 80 + [0.0] * 20}, {"t": [1.0] * 40 + [0.0] * 60}
    one, other = (
        record(BASE, rows[0], higher_is_better=False),
        record(Arm("alpha=1", "vector", 1.0), rows[1], higher_is_better=False),
    )
    (found,) = compare([(other, one)], ALL, "report", seed=0)
    assert found.verdict == "better"
    assert found.difference < 0


# --- the choice of alpha and the gate


def test_alpha_is_chosen_on_the_development_part_alone():
    records = experiment(count=1000)
    choice = choose_alpha(records, DIVIDED, think=None)
    assert choice is not None
    assert (choice.alpha, choice.how) == (0.5, "chosen on the development part")
    assert set(choice.scores) == {"alpha=0.5", "alpha=1"}
    # what happens on the report part changes nothing
    worse = named(records, "alpha=0.5")
    spoilt = [
        replace(s, metrics={METRIC: 0.0}) if not DIVIDED.is_development(s.doc_hash) else s
        for s in worse.samples["gsm8k"]
    ]
    changed = [replace(r, samples={"gsm8k": spoilt}) if r is worse else r for r in records]
    assert choose_alpha(changed, DIVIDED, think=None) == choice


def test_alpha_without_a_development_part_is_the_papers():
    choice = choose_alpha(experiment(count=200), ALL, think=None)
    assert choice is not None
    assert (choice.alpha, choice.how, choice.scores) == (1.0, "fixed beforehand", {})


def test_a_single_alpha_is_no_choice():
    records = without(experiment(count=200), "alpha=1")
    choice = choose_alpha(records, DIVIDED, think=None)
    assert choice is not None
    assert (choice.alpha, choice.how) == (0.5, "the only one asked for")
    assert choose_alpha([r for r in records if (r.alpha or 0) <= 0], DIVIDED, think=None) is None


def test_ties_go_to_the_smaller_alpha():
    values = {"t": outcomes(200, 0.5)}
    records = [record(BASE, values)] + [
        record(Arm(f"alpha={a}", "vector", float(a)), values) for a in (2, 1, 3)
    ]
    choice = choose_alpha(records, DIVIDED, think=None)
    assert choice is not None
    assert choice.alpha == 1.0


def test_too_few_documents_to_choose_on_is_an_error():
    records = [record(BASE, {"t": [1.0]})]
    records += [record(Arm(f"alpha={a}", "vector", float(a)), {"t": [1.0]}) for a in (1, 2)]
    with pytest.raises(EvaluationError, match="no development sample"):
        choose_alpha(records, Split(1e-9, 0), think=None)


def test_the_gate_asks_for_a_donor_that_beats_its_reference():
    records = experiment(count=1000)
    (gate,) = gates(records, think=None, seed=0)
    assert gate.passed
    assert gate.comparison is not None
    assert (gate.comparison.part, gate.comparison.n) == ("all", 1000)
    assert gate.comparison.p < 0.01
    (weak,) = gates(experiment(count=1000, donor_gain=6), think=None, seed=0)
    assert not weak.passed
    (worse,) = gates(experiment(count=1000, donor_gain=-200), think=None, seed=0)
    assert not worse.passed
    (unknown,) = gates(without(records, "donor"), think=None, seed=0)
    assert (unknown.passed, unknown.comparison) == (False, None)


# --- what may be said


def test_a_transfer_is_said_when_everything_is_beaten():
    report = build_report(experiment(), split=DIVIDED)
    assert said(report).startswith(
        "Reasoning transferred on gsm8k: +v at alpha = 0.5 is better than baseline (+"
    )
    assert said(report).endswith(
        "; more than the random vectors, the permuted vector, the SFT vector, more and more at v's norm."
    )
    assert report.conclusions[0].transferred


def test_without_the_sft_vector_it_is_not_mentioned():
    assert "SFT" not in said(build_report(experiment(sft=False), split=DIVIDED))


def test_without_a_rival_no_transfer_is_said():
    (item,) = build_report(experiment(rival=None), split=DIVIDED).conclusions
    assert not item.transferred
    assert item.text.startswith("A gain on gsm8k, not a transfer: ")
    assert "more than the random vectors, the permuted vector and the SFT vector; no rival" in item.text


def test_what_was_beaten_and_what_was_not_is_named():
    # the rival gains as much as the vector
    (item,) = build_report(experiment(rival=95), split=DIVIDED).conclusions
    assert not item.transferred
    assert item.text.endswith(
        "more than the random vectors, the permuted vector and the SFT vector; not shown to be more than "
        "more and more at v's norm."
    )


def test_a_rival_that_gains_more_is_said_to():
    (item,) = build_report(experiment(gain=50, rival=140), split=DIVIDED).conclusions
    assert not item.transferred
    assert item.heading == "A gain"
    assert item.text.endswith("; less than more and more at v's norm.")


def test_claims_rest_on_a_family_of_their_own():
    report = build_report(experiment(tasks=("a", "b")), split=DIVIDED)
    primary = {(c.arm, c.against, c.task) for c in report.primary}
    others = ("baseline", "random-1", "random-2", "random-3", "permuted-1", "sft", "rival-more",
              "rival-more@norm")  # fmt: skip
    assert primary == {("alpha=0.5", other, task) for other in others for task in ("a", "b")}
    for family in ("primary", "secondary"):
        own = [c for c in report.comparisons if c.family == family]
        order = sorted(own, key=lambda c: c.p)
        highest = 0.0
        for rank, item in enumerate(order):  # Holm's method, by hand
            highest = max(highest, min(1.0, item.p * (len(own) - rank)))
            assert item.p_holm == pytest.approx(highest)
    # more secondary tests change no primary p
    fewer = [r for r in experiment(tasks=("a", "b")) if r.perturb is None and r.think is None]
    again = {(c.arm, c.against, c.task): c.p_holm for c in build_report(fewer, split=DIVIDED).primary}
    assert again == {(c.arm, c.against, c.task): c.p_holm for c in report.primary}


def test_alpha_may_be_chosen_for_each_task():
    # on task b the larger alpha is the better one
    records = experiment(tasks=("a", "b"))
    half, whole = named(records, "alpha=0.5"), named(records, "alpha=1")
    swapped = {
        half.name: replace(half, samples={**half.samples, "b": whole.samples["b"]}),
        whole.name: replace(whole, samples={**whole.samples, "b": half.samples["b"]}),
    }
    records = [swapped.get(r.name, r) for r in records]
    once = build_report(records, split=DIVIDED)
    assert once.choice is not None
    assert once.choice.by_task == {}
    assert "for all tasks" in once.choice.in_words
    each = build_report(records, split=DIVIDED, choosing="task")
    assert each.choice is not None
    assert each.choice.by_task == {"a": 0.5, "b": 1.0}
    assert "0.5 for a, 1 for b" in each.choice.in_words
    assert {c.arm for c in each.primary if c.task == "b"} == {"alpha=1"}
    assert {flip.after for flip in each.flips() if flip.task == "b"} == {"alpha=1"}
    assert "+v at alpha = 1" in each.conclusions[1].text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: experiment(donor_gain=5), "the donor does not beat its reference"),
        (lambda _: experiment(donor_gain=-240), "the donor does not beat its reference (−"),
        (lambda r: without(r, "donor"), "donor and reference were not both evaluated"),
        (lambda _: experiment(gain=3), "No transfer shown on gsm8k: +v at alpha = "),
        (lambda r: without(r, "random-1", "random-2", "random-3"), "no random vector was evaluated"),
        (
            lambda r: without(r, "random-1", "random-2", "random-3", "permuted-1"),
            "no random vector and no permuted",
        ),
        (lambda r: [x for x in r if x.kind != "vector" or x.alpha <= 0], "no arm with a positive alpha"),
    ],
)
def test_nothing_less_is_called_a_transfer(change, words):
    report = build_report(change(experiment()), split=DIVIDED)
    assert words in said(report)
    assert "Reasoning transferred" not in said(report)
    assert not report.conclusions[0].transferred


@pytest.mark.parametrize(
    ("rival", "words"),
    [
        ("random-2", "random-2"),
        ("permuted-1", "the permuted vector"),
        ("sft", "the SFT vector"),
        ("rival-more", "more"),
        ("rival-more@norm", "more at v's norm"),
    ],
)
def test_a_control_that_gains_as_much_forbids_the_claim(rival, words):
    records = experiment()
    winner = named(records, "alpha=0.5")
    records = [
        replace(r, samples=winner.samples, scores=winner.scores) if r.name == rival else r for r in records
    ]
    text = said(build_report(records, split=DIVIDED))
    assert text.startswith("A gain on gsm8k, not a transfer")
    assert f"not shown to be more than {words} (+0.0 points, 95 % interval −" in text


def test_harm_is_never_called_a_transfer():
    # a vector that helps when it is subtracted: the gate passes, the vector harms
    records = experiment(gain=-200)
    assert "No transfer shown" in said(build_report(records, split=DIVIDED))


def test_each_task_has_its_own_conclusion():
    report = build_report(experiment(tasks=("a", "b")), split=DIVIDED)
    assert [item.task for item in report.conclusions] == ["a", "b"]


def test_models_without_a_vector_are_compared_without_claims():
    values = outcomes(400, 0.5)
    records = [
        record(BASE, {"t": values}),
        record(Arm("donor", "donor"), {"t": outcomes(400, 0, like=values, moved=60)}),
    ]
    report = build_report(records)
    assert report.conclusions == ()
    assert [(c.arm, c.verdict) for c in report.comparisons] == [("donor", "better")]


def test_a_gate_alone_gives_no_words_without_its_arm():
    records = experiment(count=300)
    gate = gates(records, think=None, seed=0)[0]
    item = conclusion("gsm8k", gate, None, records, [])
    assert not item.transferred


# --- what is checked and refused


def test_alpha_zero_must_give_the_baselines_samples():
    records = experiment(count=100)
    (check,) = zero_checks(records)
    assert (check.samples, check.different) == (100, 0)
    zero = named(records, "alpha=0")
    rows = [replace(s, output="else") if i < 3 else s for i, s in enumerate(zero.samples["gsm8k"])]
    changed = [replace(r, samples={"gsm8k": rows}) if r is zero else r for r in records]
    assert zero_checks(changed)[0].different == 3


def test_arms_of_different_settings_are_refused_and_the_difference_named():
    records = experiment(count=50)
    other = replace(records[3], settings={**records[3].settings, "chat_template": True})
    with pytest.raises(EvaluationError, match=r"chat_template: `baseline` has False, `alpha=0.5` has True"):
        check_comparable([records[0], other])
    newer = replace(records[3], versions={**records[3].versions, "lm_eval": "0.5"})
    with pytest.raises(EvaluationError, match="version of lm_eval"):
        check_comparable([records[0], newer])


def test_arms_of_different_tasks_are_refused():
    one = record(BASE, {"a": [1.0]}, settings={"backend": "hf"})
    other = record(Arm("donor", "donor"), {"b": [1.0]}, settings={"backend": "hf"})
    with pytest.raises(EvaluationError, match="`donor` lacks task `a`"):
        check_comparable([one, other])


def test_no_arm_and_equal_names_are_refused():
    with pytest.raises(EvaluationError, match="no finished arm"):
        build_report([])
    one = record(BASE, {"a": [1.0]})
    with pytest.raises(EvaluationError, match="two arms are named `baseline`"):
        build_report([one, one])
    twin = replace(one, name="other")
    with pytest.raises(EvaluationError, match="`baseline` and `other` both are baselines"):
        build_report([one, twin])


# --- flips and norms


def test_flips_are_what_changed_in_either_direction():
    one, other = (
        record(BASE, {"t": [0.0, 0.0, 1.0, 1.0]}),
        record(Arm("a", "vector", 1.0), {"t": [1.0, 0.0, 0.0, 1.0]}),
    )
    found = flips(one, other, ALL)
    assert [(f.direction, f.doc_id) for f in found] == [("gained", 0), ("lost", 2)]
    assert found[0].output_before != found[0].output_after
    kept = unchanged(one, other, ALL)
    assert [(f.direction, f.doc_id) for f in kept] == [("wrong in both", 1), ("right in both", 3)]
    assert (
        len(unchanged(record(BASE, {"t": [0.0] * 500}), record(BASE, {"t": [0.0] * 500}), ALL)) == UNCHANGED
    )
    many = record(BASE, {"t": [0.0] * 500}), record(Arm("a", "vector", 1.0), {"t": [1.0] * 500})
    assert len(flips(*many, ALL)) == MOST


def test_norms_are_put_together_by_layer_and_module():
    found = norm_map(
        {
            "model.layers.0.self_attn.q_proj.weight": 3.0,
            "model.layers.0.self_attn.q_proj.bias": 4.0,
            "model.layers.1.self_attn.q_proj.weight": 1.0,
            "model.layers.1.mlp.experts.0.up_proj.weight": 3.0,
            "model.layers.1.mlp.experts.7.up_proj.weight": 4.0,
            "model.embed_tokens.weight": 2.0,
        }
    )
    assert found is not None
    assert found.layers == (0, 1)
    assert found.modules == ("self_attn.q_proj", "mlp.experts.*.up_proj")
    assert found.values == ((5.0, 1.0), (None, 5.0))
    assert found.others == {"model.embed_tokens.weight": 2.0}
    assert norm_map({}) is None
