"""The choice of alpha, the gate, and the claims that a vector allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from taskvec.errors import EvaluationError
from taskvec.evaluation.analysis.compare import Comparison, Part, Split, compare, in_figures
from taskvec.evaluation.analysis.pairs import controls, plain_arm, vector_arm
from taskvec.evaluation.arms import RIVALS, rival_in_words
from taskvec.evaluation.record import ArmRecord
from taskvec.settings import format_alpha
from taskvec.text import roles

GATE = 0.01


Choosing = Literal["once", "task"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The alpha of which claims are made, and how it came about.

    Attributes
    ----------
    alpha : float
        Chosen once for all tasks.
    scores : dict of str to float
        Mean development score over the tasks of each candidate arm; empty where nothing was chosen by
        looking.
    by_task : dict of str to float
        The alpha of each task, where it was chosen for each by itself; empty where once for all.
    """

    alpha: float
    how: Literal["chosen on the development part", "the only one asked for", "fixed beforehand"]
    scores: dict[str, float]
    by_task: dict[str, float] = field(default_factory=dict)

    def of(self, task: str) -> float:
        """The alpha of a task."""
        return self.by_task.get(task, self.alpha)

    @property
    def alphas(self) -> tuple[float, ...]:
        """Every alpha that was chosen, for one task or all."""
        return tuple(sorted(set(self.by_task.values()))) or (self.alpha,)

    @property
    def in_words(self) -> str:
        """Whether it was chosen once or per task, and to what."""
        if not self.by_task:
            return f"alpha = {format_alpha(self.alpha)} for all tasks, {self.how}"
        each = ", ".join(f"{format_alpha(alpha)} for {task}" for task, alpha in self.by_task.items())
        return f"alpha = {each}: chosen for each task on its development part"


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

    @property
    def heading(self) -> str:
        """The claim in its first words: ``Reasoning transferred``, ``A gain``, ``No transfer shown``."""
        return self.text.partition(" on ")[0].removesuffix(" of the vector")


def choose_alpha(
    records: Sequence[ArmRecord], split: Split, *, think: str | None, choosing: Choosing = "once"
) -> Choice | None:
    """The positive alpha with the best mean development score; None if no vector arm has one.

    Ties go to the smaller alpha. Without a development part nothing is chosen by looking: it is 1, the
    paper's, if that was run, else the largest. `choosing` per task makes the choice for each task by itself.
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
    means = {record.name: _development_means(record, split) for _, record in arms}
    scores = {name: math.fsum(found.values()) / len(found) for name, found in means.items()}
    alpha, _ = max(arms, key=lambda item: (scores[item[1].name], -item[0]))
    by_task = {}
    if choosing == "task":
        for task in means[arms[0][1].name]:
            by_task[task], _ = max(arms, key=lambda item: (means[item[1].name][task], -item[0]))
    return Choice(alpha, "chosen on the development part", scores, by_task)


def _development_means(record: ArmRecord, split: Split) -> dict[str, float]:
    """The mean metric on development documents by task, turned so that more is better."""
    keep, means = split.keep("development"), dict[str, float]()
    for task, facts in record.tasks.items():
        values = [
            sample.metrics[facts.metric]
            for sample in record.samples[task]
            if facts.metric in sample.metrics and keep(sample.doc_hash)
        ]
        if values:
            means[task] = (1.0 if facts.higher_is_better else -1.0) * math.fsum(values) / len(values)
    if not means:
        raise EvaluationError(
            f"arm `{record.name}` has no development sample to choose alpha on",
            "raise --limit, or set the development share to 0",
        )
    return means


def gates(records: Sequence[ArmRecord], *, think: str | None, seed: int) -> list[Gate]:
    """For each task, whether the donor beats its reference at p < 0.01, on all of its documents.

    Nothing is chosen by the gate, so it needs no part of its own.
    """
    donor, reference = (plain_arm(records, kind, think) for kind in ("donor", "reference"))
    tested: dict[str, Comparison] = {}
    if donor is not None and reference is not None:
        found = compare([(donor, reference)], Split(0.0, seed), "all", seed=seed)
        tested = {comparison.task: comparison for comparison in found}
    return [
        Gate(task, _passes(tested.get(task), facts.higher_is_better), tested.get(task))
        for task, facts in records[0].tasks.items()
    ]


def _passes(found: Comparison | None, higher_is_better: bool) -> bool:
    if found is None or found.difference == 0:
        return False
    return (found.difference > 0) == higher_is_better and found.p < GATE


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
    """The claim that is made of the vector on `task`, in plain words, which name what was beaten.

    "Reasoning transferred" is claimed only if the donor beats its reference (the gate) and +v beats the
    baseline, every random and permuted vector and every rival, of which there has to be one, after Holm's
    correction; and not of a target that donor and reference were tuned from (`recovery`).
    """

    def none(why: str) -> Conclusion:
        return Conclusion(task, False, f"Nothing is claimed of the vector on {task}: {why}.")

    empty = _empty_part(task, records[0], split, choice)
    if empty is not None:
        return none(f"none of its documents is in the {empty} part")
    if gate.comparison is None:
        return none(
            "donor and reference were not both evaluated, so it is not known whether there was a gain"
        )
    if not gate.passed:
        test = gate.comparison
        return none(
            f"the donor does not beat its reference ({in_figures(test)}, p = {test.p:.2g}; the gate asks for "
            f"p < {GATE})"
        )
    alpha = choice.of(task) if choice else None
    chosen = vector_arm(records, alpha, think)
    if chosen is None or alpha is None:
        return none("no arm with a positive alpha was evaluated")
    against = {c.against: c for c in comparisons if c.arm == chosen.name and c.task == task}
    baseline = plain_arm(records, "baseline", think)
    head = f"+v at alpha = {format_alpha(alpha)}"
    if baseline is None or against.get(baseline.name) is None:
        return none("the baseline was not evaluated")
    first = against[baseline.name]
    if first.verdict != "better":
        return Conclusion(task, False, f"No transfer shown on {task}: {head}: {first.detail}.")
    word, why = _weighed(controls(records, alpha, think), against)
    if word == "Reasoning transferred" and recovery:
        word = "A recovery"
        why += ", but donor and reference were tuned from the baseline itself"
    comma = {"A gain": ", not a transfer", "A recovery": ", not a transfer"}.get(word, "")
    return Conclusion(
        task, word == "Reasoning transferred", f"{word} on {task}{comma}: {head} is {first.detail}; {why}."
    )


def _weighed(
    others: Sequence[ArmRecord], against: Mapping[str, Comparison]
) -> tuple[Literal["Reasoning transferred", "A gain", "A recovery"], str]:
    """What a gain may be called, and a clause that says what it is more than."""
    by_verdict: dict[str, list[ArmRecord]] = {"better": [], "no difference shown": [], "worse": []}
    for record in others:
        test = against.get(record.name)
        by_verdict[test.verdict if test else "no difference shown"].append(record)
    words = {"better": "more than", "no difference shown": "not shown to be more than", "worse": "less than"}
    clauses = []
    for verdict, some in by_verdict.items():
        if some:
            alone = against.get(some[0].name) if verdict != "better" and len(some) == 1 else None
            figures = f" ({in_figures(alone)})" if alone else ""
            clauses.append(f"{words[verdict]} {_named(some, others)}{figures}")
    unbeaten = len(by_verdict["better"]) < len(others)
    kinds = {record.kind for record in others}
    lacking = [f"no {kind} vector" for kind in ("random", "permuted") if kind not in kinds]
    lacking += [] if "rival" in kinds else ["no rival, such as continued SFT (--rival),"]
    if lacking:
        clauses.append(f"{' and '.join(lacking)} was evaluated, so that another change might do as much")
    return "A gain" if unbeaten or lacking else "Reasoning transferred", "; ".join(clauses)


def _named(some: Sequence[ArmRecord], of: Sequence[ArmRecord]) -> str:
    """Arms in words: random and permuted vectors together where all of them are meant."""
    words: list[str] = []
    for kind in ("random", "permuted"):
        own = [record for record in some if record.kind == kind]
        if own and len(own) == sum(record.kind == kind for record in of):
            words.append(f"the {kind} vector{'s' if len(own) > 1 else ''}")
        else:
            words += [record.name for record in own]
    words += [rival_in_words(record.arm) for record in some if record.kind in RIVALS]
    return roles(words)


def _empty_part(task: str, record: ArmRecord, split: Split | None, choice: Choice | None) -> Part | None:
    """The part that has no document of a task, of those that are needed."""
    if split is None or not split.share:
        return None
    parts: tuple[Part, ...] = ("development", "report") if choice and choice.scores else ("report",)
    return next((part for part in parts if not split.holds(part, record, task)), None)
