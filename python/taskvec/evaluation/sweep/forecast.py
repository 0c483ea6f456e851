"""What a sweep can show and will cost, before anything is merged or evaluated."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.analysis.conclusions import Choice
from taskvec.evaluation.analysis.pairs import primary_pairs
from taskvec.evaluation.analysis.power import Power, Size, power
from taskvec.evaluation.arms import RIVALS, Arm, at_norm
from taskvec.evaluation.backend.evaluate import document_hashes
from taskvec.evaluation.experiment import Experiment
from taskvec.evaluation.sweep.costs import Cost, costs
from taskvec.evaluation.sweep.part_arms import part_arms
from taskvec.evaluation.sweep.part_vectors import vector_names
from taskvec.evaluation.sweep.sweep import planned_arms, split, waiting_arms

# Documents of the paper's tasks as published: a forecast needs no data set for them. BIG-bench Hard has 27
# parts, of which `limit` takes the first documents each.
PUBLISHED: dict[str, tuple[int, int]] = {
    "gsm8k": (1319, 1),
    "gsm8k_cot_zeroshot": (1319, 1),
    "humaneval": (164, 1),
    "sciq": (1000, 1),
    "bbh_cot_fewshot": (6511, 27),
}


@dataclass(frozen=True, slots=True)
class Forecast:
    """The power and the cost of a sweep.

    Attributes
    ----------
    tests : int
        Tests in the primary family of its report.
    rows : list of Power
        By task, and over all tasks.
    unknown : dict of str to str
        Why the power of a task is not known.
    costs : list of Cost
        By arm.
    """

    tests: int
    rows: list[Power]
    unknown: dict[str, str]
    costs: list[Cost] = field(default_factory=list)


def forecast(experiment: Experiment, out: Path | None = None) -> Forecast:
    """The smallest differences that a sweep shows with a probability of 80 %, and what its arms will cost.

    Parameters
    ----------
    experiment : Experiment
    out : Path, optional
        The output folder: arms that were evaluated there, on a few documents or all, are the measured sample.
    """
    sizes, unknown = dict[str, Size](), dict[str, str]()
    for task in experiment.tasks:
        known = _published(experiment, task)
        if known is not None:
            sizes[task] = Size.expected(known, split(experiment))
            continue
        try:
            found = document_hashes(replace(experiment.settings(), tasks=(task,)))
        except EvaluationError as error:
            unknown[task] = error.message
            continue
        sizes.update({name: Size.of(hashes, split(experiment)) for name, hashes in found.items()})
    tests = max(1, family(experiment)) * max(1, len(sizes))
    rows = power(sizes, split(experiment), tests=tests) if sizes else []
    documents = {name: size.documents for name, size in sizes.items()}
    expected = costs(expected_arms(experiment), experiment.settings(), out, documents)
    return Forecast(tests, rows, unknown, expected)


def family(experiment: Experiment) -> int:
    """The tests on which a claim on one task rests: the chosen vector against baseline, controls, rivals."""
    positive = [alpha for alpha in experiment.alphas if alpha > 0]
    if not positive:
        return 0
    think = experiment.think if experiment.think_only else None
    rows: Any = [_as_record(arm) for arm in expected_arms(experiment)]
    return len(primary_pairs(rows, positive[0], think))


def expected_arms(experiment: Experiment) -> list[Arm]:
    """Every arm that a sweep will have, as though its first positive alpha were chosen for all tasks."""
    arms = planned_arms(experiment)
    positive = [alpha for alpha in experiment.alphas if alpha > 0]
    if not positive:
        return arms
    matched = [at_norm(arm, arm.factor) for arm in arms if arm.kind in RIVALS and arm.alpha == 1]
    choice = Choice(positive[0], "the only one asked for", {})
    parts = part_arms(experiment, choice.alphas, vector_names(experiment))
    return arms + waiting_arms(experiment, choice, {positive[0]: matched}) + parts


def _as_record(arm: Arm) -> Any:
    """An arm in the place of its record, which does not exist yet."""
    return SimpleNamespace(
        arm=arm, name=arm.name, kind=arm.kind, alpha=arm.alpha, think=arm.think, perturb=arm.perturb
    )


def _published(experiment: Experiment, task: str) -> int | None:
    evaluation: Any = experiment.evaluation  # its fields are made from the settings
    if task not in PUBLISHED or evaluation.include_path is not None:
        return None
    whole, parts = PUBLISHED[task]
    limit = evaluation.limit
    if limit is None:
        return whole
    return round(whole * limit) if limit < 1 else min(whole, int(limit) * parts)
