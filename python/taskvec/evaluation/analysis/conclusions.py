"""The choice of alpha, the gate, and the claims that a vector allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from taskvec.errors import EvaluationError
from taskvec.evaluation.analysis.compare import Comparison, Part, Split, compare
from taskvec.evaluation.analysis.pairs import controls, plain_arm, vector_arm
from taskvec.evaluation.record import ArmRecord
from taskvec.settings import format_alpha

GATE = 0.01


@dataclass(frozen=True, slots=True)
class Choice:
    """The alpha of which claims are made, and how it came about.

    Attributes
    ----------
    scores : dict of str to float
        Mean development score over the tasks of each candidate arm; empty where nothing was chosen by
        looking.
    """

    alpha: float
    how: Literal["chosen on the development part", "the only one asked for", "fixed beforehand"]
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether the donor beats its reference on a task; `comparison` is None if it was not tested."""

    task: str
    passed: bool
    comparison: Comparison | None


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The claim that is made of the vector on one task."""

    task: str
    transferred: bool
    text: str


def choose_alpha(records: Sequence[ArmRecord], split: Split, *, think: str | None) -> Choice | None:
    """The positive alpha with the best mean development score; None if no vector arm has one.

    Ties go to the smaller alpha. Without a development part nothing is chosen by looking: it is 1, the
    paper's, if that was run, else the largest.
    """
    arms = [
        (record.alpha, record)
        for record in records
        if record.kind == "vector"
        and record.alpha is not None
        and record.alpha > 0
        and record.arm.condition == (think, None)
    ]
    if not arms:
        return None
    alphas = sorted(alpha for alpha, _ in arms)
    if len(arms) == 1:
        return Choice(alphas[0], "the only one asked for", {})
    if not split.share:
        return Choice(1.0 if 1.0 in alphas else alphas[-1], "fixed beforehand", {})
    scores = {record.name: _development_score(record, split) for _, record in arms}
    alpha, _ = max(arms, key=lambda item: (scores[item[1].name], -item[0]))
    return Choice(alpha, "chosen on the development part", scores)


def _development_score(record: ArmRecord, split: Split) -> float:
    """The mean over tasks of the mean metric on development documents, turned so that more is better."""
    keep, means = split.keep("development"), []
    for task, facts in record.tasks.items():
        values = [
            sample.metrics[facts.metric]
            for sample in record.samples[task]
            if facts.metric in sample.metrics and keep(sample.doc_hash)
        ]
        if values:
            means.append((1.0 if facts.higher_is_better else -1.0) * math.fsum(values) / len(values))
    if not means:
        raise EvaluationError(
            f"arm `{record.name}` has no development sample to choose alpha on",
            "raise --limit, or set the development share to 0",
        )
    return math.fsum(means) / len(means)


def gates(records: Sequence[ArmRecord], split: Split, *, think: str | None, seed: int) -> list[Gate]:
    """For each task, whether the donor beats its reference at p < 0.01 on the development part."""
    donor, reference = (plain_arm(records, kind, think) for kind in ("donor", "reference"))
    tested: dict[str, Comparison] = {}
    held = donor is not None and any(split.holds("development", donor, task) for task in donor.tasks)
    if held and donor is not None and reference is not None:
        found = compare([(donor, reference)], split, "development", seed=seed)
        tested = {comparison.task: comparison for comparison in found}
    result = []
    for task, facts in records[0].tasks.items():
        comparison = tested.get(task)
        passed = False
        if comparison is not None:
            up = (comparison.difference > 0) == facts.higher_is_better and comparison.difference != 0
            passed = up and comparison.p < GATE
        result.append(Gate(task, passed, comparison))
    return result


def conclusion(
    task: str,
    gate: Gate,
    choice: Choice | None,
    records: Sequence[ArmRecord],
    comparisons: Sequence[Comparison],
    *,
    split: Split | None = None,
    think: str | None = None,
    recovery: bool = False,
) -> Conclusion:
    """The claim that is made of the vector on `task`, in plain words.

    "Reasoning transferred" is claimed only if the donor beats its reference (the gate) and +v beats the
    baseline, every random and every permuted vector and, where there is one, the SFT vector, after Holm's
    correction; and not of a target that donor and reference were tuned from (`recovery`).
    """

    def none(why: str) -> Conclusion:
        return Conclusion(task, False, f"Nothing is claimed of the vector on {task}: {why}.")

    empty = _empty_part(task, records[0], split)
    if empty is not None:
        return none(f"none of its documents is in the {empty} part")
    if gate.comparison is None:
        return none(
            "donor and reference were not both evaluated, so it is not known whether there was a gain"
        )
    if not gate.passed:
        test = gate.comparison
        return none(
            f"the donor does not beat its reference ({_signed(test)}, {_interval(test)}, p = {test.p:.2g}, "
            f"n = {test.n:,}; the gate asks for p < {GATE})"
        )
    chosen = vector_arm(records, choice.alpha if choice else None, think)
    if chosen is None or choice is None:
        return none("no arm with a positive alpha was evaluated")
    against = {c.against: c for c in comparisons if c.arm == chosen.name and c.task == task}
    baseline = plain_arm(records, "baseline", think)
    rivals = controls(records, think)
    kinds = {record.kind for record in rivals}
    head = f"+v at alpha = {format_alpha(choice.alpha)}"
    if baseline is None or against.get(baseline.name) is None:
        return none("the baseline was not evaluated")
    first = against[baseline.name]
    if first.verdict != "better":
        seen = "" if first.verdict == "worse" else f" (seen: {_signed(first)}, {_interval(first)})"
        return Conclusion(task, False, f"No transfer shown on {task}: {head}: {first.detail}{seen}.")
    lacking = [word for word in ("random", "permuted") if word not in kinds]
    if lacking:
        return Conclusion(
            task,
            False,
            f"A gain on {task}, not yet a transfer: {head} is {first.detail}, but no "
            f"{' and no '.join(lacking)} vector was evaluated, so any change of that size might do it.",
        )
    unbeaten = [r.name for r in rivals if r.name not in against or against[r.name].verdict != "better"]
    if unbeaten:
        return Conclusion(
            task,
            False,
            f"A gain on {task}, not a transfer: {head} is {first.detail}, but is not shown to beat "
            f"{', '.join(unbeaten)}.",
        )
    beaten = "the random and permuted vectors" + (" and the SFT vector" if "sft" in kinds else "")
    if recovery:
        return Conclusion(
            task,
            False,
            f"A recovery on {task}, not a transfer: {head} is {first.detail}, and beats {beaten}, but donor "
            f"and reference were tuned from this very target.",
        )
    return Conclusion(
        task, True, f"Reasoning transferred on {task}: {head} is {first.detail}, and beats {beaten}."
    )


def _empty_part(task: str, record: ArmRecord, split: Split | None) -> Part | None:
    """The part that has no document of a task, if there is one."""
    parts: tuple[Part, ...] = ("development", "report") if split is not None and split.share else ()
    return next((part for part in parts if split and not split.holds(part, record, task)), None)


def _signed(test: Comparison) -> str:
    return f"{100 * test.difference:+.1f} points" if test.test == "mcnemar" else f"{test.difference:+.3g}"


def _interval(test: Comparison) -> str:
    scale, form = (100, "+.1f") if test.test == "mcnemar" else (1, "+.3g")
    return f"95 % interval {scale * test.low:{form}} to {scale * test.high:{form}}"
