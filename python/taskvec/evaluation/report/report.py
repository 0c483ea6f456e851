"""The report as data: finished arms, compared, and the content of ``report.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.analysis.compare import (
    Comparison,
    Sameness,
    Split,
    check_comparable,
    compare_tests,
    zero_checks,
)
from taskvec.evaluation.analysis.conclusions import (
    Choice,
    Choosing,
    Conclusion,
    Gate,
    choose_alpha,
    conclusion,
    gates,
)
from taskvec.evaluation.analysis.draws import AtK, at_k
from taskvec.evaluation.analysis.flips import Flip, flips, unchanged
from taskvec.evaluation.analysis.mistakes import Change, changes
from taskvec.evaluation.analysis.norms import NormMap, norm_map
from taskvec.evaluation.analysis.pairs import baselines, part_tests, planned_tests, vector_arm
from taskvec.evaluation.analysis.parts import PartFinding, part_findings
from taskvec.evaluation.analysis.perturbed import Effect, Example, effects, examples
from taskvec.evaluation.analysis.scores import part_lengths, part_scores
from taskvec.evaluation.analysis.slices import Form, Slice, forms, slices
from taskvec.evaluation.arms import PARTS, Arm
from taskvec.evaluation.paper import Size
from taskvec.evaluation.record import ArmRecord, Merged, Score, finite
from taskvec.evaluation.report.paper import PaperPage, paper_page

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Report:
    """Arms and everything that was found by comparing them.

    Attributes
    ----------
    records : tuple of ArmRecord
        In the order in which they are shown.
    split : Split
        Development and report part; tests and scores are of the report part.
    think : str, optional
        The request to reason that every arm carries, where there is no arm without one.
    choice : Choice, optional
        The alpha of which claims are made.
    comparisons : tuple of Comparison
        Every test, corrected by Holm's method over its family: the primary one, on which claims rest, or
        the secondary one.
    merges : dict of str to Merged
        The measurements of merges, by arm.
    commands : tuple of str
        The commands that repeat the whole.
    recovery : bool
        Whether donor and reference were tuned from the target: adding the vector there recovers what they
        learned, and carries nothing to another model.
    part_tests : tuple of Comparison
        The tests of the parts of the vector, a family of their own.
    size : {"1.5b", "7b"}, optional
        The preset of the paper that was asked for.
    pass_at : tuple of int
        The k of pass@k and majority@k; empty for powers of two.
    """

    records: tuple[ArmRecord, ...]
    split: Split
    think: str | None
    choice: Choice | None
    gates: tuple[Gate, ...]
    comparisons: tuple[Comparison, ...]
    conclusions: tuple[Conclusion, ...]
    checks: tuple[Sameness, ...]
    merges: dict[str, Merged]
    commands: tuple[str, ...]
    recovery: bool = False
    part_tests: tuple[Comparison, ...] = ()
    size: Size | None = None
    pass_at: tuple[int, ...] = ()

    @property
    def whole_records(self) -> list[ArmRecord]:
        """The arms of whole models and vectors, without the parts of the vector."""
        return [record for record in self.records if record.kind not in PARTS]

    def parts(self) -> list[PartFinding]:
        """What the parts of the vector showed."""
        return part_findings(self.records, self.part_tests, self.merges, self.chosen)

    @property
    def tasks(self) -> list[str]:
        """The tasks of the unperturbed arms."""
        return list(self.records[0].tasks)

    @property
    def chosen(self) -> dict[str, ArmRecord]:
        """The vector arms of which claims are made, by task."""
        found = {
            task: vector_arm(self.records, self.choice.of(task), self.think)
            for task in self.tasks
            if self.choice is not None
        }
        return {task: record for task, record in found.items() if record is not None}

    @property
    def primary(self) -> tuple[Comparison, ...]:
        """The tests on which claims rest, fixed beforehand; the others are secondary."""
        return tuple(c for c in self.comparisons if c.family == "primary")

    def score(self, record: ArmRecord, task: str) -> Score | None:
        """The score of the task's metric on the report part."""
        metric = record.tasks[task].metric if task in record.tasks else None
        return self.scores(record)[task].get(metric) if metric is not None else None

    def scores(self, record: ArmRecord) -> dict[str, dict[str, Score]]:
        """Every score on the report part; see `part_scores`."""
        return part_scores(record, self.split, "report")

    def output_tokens(self, record: ArmRecord) -> dict[str, dict[str, float]]:
        """Mean length and share cut at the limit, on the report part."""
        return part_lengths(record, self.split, "report")

    def against_baseline(self, record: ArmRecord, task: str) -> Comparison | None:
        """The comparison of an arm with the baseline under its own prompt."""
        baseline = baselines(self.records).get(record.arm.condition)
        return self.comparison(record.name, baseline.name, task) if baseline is not None else None

    def comparison(self, arm: str, against: str, task: str) -> Comparison | None:
        """One comparison of the family."""
        return next(
            (c for c in self.comparisons if (c.arm, c.against, c.task) == (arm, against, task)),
            None,
        )

    def flips(self) -> list[Flip]:
        """Documents that the chosen vector turned right or wrong; without one, those of every other arm."""
        return [
            flip
            for plain, other, tasks in self._sides()
            for flip in flips(plain, other, self.split)
            if flip.task in tasks
        ]

    def unchanged(self) -> list[Flip]:
        """Some documents of the same arms that stayed right or wrong."""
        return [
            flip
            for plain, other, tasks in self._sides()
            for flip in unchanged(plain, other, self.split)
            if flip.task in tasks
        ]

    def _sides(self) -> list[tuple[ArmRecord, ArmRecord, list[str]]]:
        """The baseline, what it is looked at next to, and the tasks of which."""
        plain = baselines(self.records).get((self.think, None))
        if plain is None:
            return []
        return [(plain, record, [task]) for task, record in self.chosen.items()] or [
            (plain, record, self.tasks)
            for record in self.whole_records
            if record.arm.condition == plain.arm.condition and record is not plain
        ]

    def changes(self) -> list[Change]:
        """What was wrong with the answers that the chosen vector turned right or wrong."""
        plain = baselines(self.records).get((self.think, None))
        if plain is None:
            return []
        return [
            change
            for task, record in self.chosen.items()
            for change in changes(plain, record, self.split)
            if change.task == task
        ]

    def slices(self) -> list[Slice]:
        """Baseline and chosen vector on the same answers, cut by length, form and kind."""
        plain = baselines(self.records).get((self.think, None))
        return slices(plain, self.chosen, self.split) if plain is not None else []

    def forms(self) -> list[Form]:
        """How well the answers of unperturbed arms keep to the form that is asked for."""
        return forms([r for r in self.whole_records if not r.perturb], self.split)

    def draws(self) -> list[AtK]:
        """Pass@k and majority@k of the unperturbed arms under the prompt that claims are made of."""
        samples = max((len(s.draws) for rows in self.records[0].samples.values() for s in rows), default=0)
        powers = {k for k in self.pass_at if k <= samples}
        if not powers:
            powers = {1 << power for power in range(samples.bit_length())} | {samples}
        own = [r for r in self.whole_records if r.arm.condition == (self.think, None)]
        plain = baselines(self.records).get((self.think, None))
        return at_k(own, plain, sorted(powers), self.split) if samples else []

    def effects(self) -> list[Effect]:
        """What each perturbation did to baseline and vector."""
        return effects(self.records, self.comparisons, self.chosen, self.think)

    def examples(self) -> list[Example]:
        """Questions before and after each perturbation."""
        return examples(self.records, self.split)

    def norms(self) -> NormMap | None:
        """The vector's norms by layer and module."""
        for record in (*self.chosen.values(), *self.records):
            merged = self.merges.get(record.name)
            if merged is not None and merged.norms and record.kind == "vector":
                return norm_map(merged.norms)
        return None

    def paper(self) -> PaperPage | None:
        """The paper's table and settings next to those here; None where nothing of the paper was run."""
        return paper_page(self.records, self.comparison, self.size)

    def to_json(self) -> dict[str, Any]:
        """The content of ``report.json``; `taskvec.evaluation.report.json_schema` documents it."""
        first = self.records[0]
        norms = self.norms()
        content = {
            "schema": SCHEMA,
            "settings": {
                "evaluation": first.settings,
                "versions": first.versions,
                "think": self.think,
                "development": asdict(self.split),
                "tasks": {name: asdict(facts) for name, facts in first.tasks.items()},  # type: ignore[call-overload]
            },
            "arms": [self._arm(record) for record in self.records],
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "tests": len(self.comparisons),
            "primary": len(self.primary),
            "alpha": asdict(self.choice) if self.choice else None,
            "gate": [asdict(gate) for gate in self.gates],
            "changes": [asdict(change) for change in self.changes()],
            "recovery": self.recovery,
            "conclusions": [asdict(item) for item in self.conclusions],
            "checks": [asdict(check) for check in self.checks],
            "survival": {name: merged.survival for name, merged in self.merges.items() if merged.survival},
            "norms": asdict(norms) if norms else None,
            "findings": self.findings(),
            "paper": self._paper(),
            "parts": {"tests": len(self.part_tests), "found": [asdict(found) for found in self.parts()]},
            "slices": [asdict(row) for row in self.slices()],
            "forms": [asdict(row) for row in self.forms()],
            "draws": [asdict(row) for row in self.draws()],
            "perturbed": {
                "effects": [asdict(effect) for effect in self.effects()],
                "examples": [asdict(example) for example in self.examples()],
            },
            "commands": list(self.commands),
        }
        return finite(content)

    def _paper(self) -> dict[str, Any] | None:
        page = self.paper()
        if page is None:
            return None
        return {
            "size": page.size,
            "asked": page.asked,
            "rows": [asdict(row) for row in page.rows],
            "settings": [{**asdict(setting), "here": here} for setting, here in page.settings],
        }

    def _arm(self, record: ArmRecord) -> dict[str, Any]:
        merged = self.merges.get(record.name)
        return {
            "name": record.name,
            "kind": record.kind,
            "alpha": record.alpha,
            "think": record.think,
            "perturb": record.perturb,
            "seed": record.seed,
            "origin": record.origin,
            "part": record.part,
            "scores": {
                task: {metric: asdict(score) for metric, score in scores.items()}  # type: ignore[call-overload]
                for task, scores in self.scores(record).items()
            },
            "output_tokens": self.output_tokens(record),
            "left_out": {task: facts.left_out for task, facts in record.tasks.items() if facts.left_out},
            "batch_size": record.batch_size,
            "seconds": record.seconds,
            "model": record.model,
            "command": merged.command if merged else None,
            "warnings": record.warnings,
        }

    def warnings(self) -> list[tuple[list[ArmRecord], str]]:
        """Every warning once, with the arms that it is of."""
        found: dict[str, list[ArmRecord]] = {}
        for record in self.records:
            for text in dict.fromkeys(record.warnings):
                found.setdefault(text, []).append(record)
        return [(records, text) for text, records in found.items()]

    def findings(self) -> list[dict[str, Any]]:
        """The compatibility findings of all merges, each once."""
        found: dict[str, dict[str, Any]] = {}
        for merged in self.merges.values():
            for finding in merged.findings:
                found.setdefault(json.dumps(finding, sort_keys=True, default=str), finding)
        return list(found.values())


def build_report(
    records: Sequence[ArmRecord],
    *,
    split: Split | None = None,
    think: str | None = None,
    merges: Mapping[str, Merged] | None = None,
    commands: Sequence[str] = (),
    recovery: bool = False,
    choosing: Choosing = "once",
    size: Size | None = None,
    pass_at: Sequence[int] = (),
) -> Report:
    """Compare finished arms.

    Parameters
    ----------
    records : sequence of ArmRecord
        Arms that were run under the same settings.
    split : Split, optional
        The division into a development and a report part; by default all documents are reported on.
    think : str, optional
        The request to reason that every arm carries.
    merges : mapping of str to Merged, optional
        The measurements of merges, by arm.
    commands : sequence of str
        The commands that repeat the experiment.
    recovery : bool
        Whether donor and reference were tuned from the target.
    choosing : {"once", "task"}
        Whether one alpha is chosen for all tasks, or one for each.
    size : {"1.5b", "7b"}, optional
        The preset of the paper that was asked for.
    pass_at : sequence of int
        The k of pass@k and majority@k; by default powers of two.

    Raises
    ------
    EvaluationError
        The arms' settings differ (the message names the setting), or they share no document.
    """
    split = split or Split(0.0, 0)
    check_comparable(records)
    hold_one_baseline([record.arm for record in records])
    seed = split.seed
    choice = choose_alpha(records, split, think=think, choosing=choosing)
    alphas = {task: choice.of(task) for task in records[0].tasks} if choice else {}
    tests, primary = planned_tests(records, alphas, think)
    comparisons = compare_tests(tests, split, "report", seed=seed, primary=primary)
    parts = compare_tests(part_tests(records, alphas, think), split, "report", seed=seed)
    found_gates = gates(records, think=think, seed=seed)
    vectors = [record for record in records if record.kind == "vector"]
    conclusions = [
        conclusion(g.task, g, choice, records, comparisons, split=split, think=think, recovery=recovery)
        for g in found_gates
    ]
    return Report(
        records=tuple(records),
        split=split,
        think=think,
        choice=choice,
        gates=tuple(found_gates) if vectors else (),
        comparisons=tuple(comparisons),
        conclusions=tuple(conclusions) if vectors else (),
        checks=tuple(zero_checks(records)),
        merges=dict(merges or {}),
        commands=tuple(commands),
        recovery=recovery,
        part_tests=tuple(replace(found, family="parts") for found in parts),
        size=size,
        pass_at=tuple(pass_at),
    )


def hold_one_baseline(arms: Sequence[Arm]) -> None:
    """Return if at most one arm is the baseline under each prompt.

    Raises
    ------
    EvaluationError
        Two are.
    """
    named: dict[tuple[str | None, str | None], str] = {}
    for arm in arms:
        other = named.setdefault(arm.condition, arm.name) if arm.kind == "baseline" else arm.name
        if other != arm.name:
            raise EvaluationError(
                f"arms `{other}` and `{arm.name}` both are baselines under the same prompt",
                "say what the other one is, such as `--as vector`",
            )
