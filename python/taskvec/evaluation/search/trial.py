"""One candidate of a search and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from taskvec.evaluation.record import ArmRecord

Kind = Literal["search", "random", "plain", "baseline"]


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate and its score on the development part.

    Attributes
    ----------
    name : str
        ``candidate-0001``, ``random-0001``, ``alpha=0.5``, ``baseline``.
    kind : {"search", "random", "plain", "baseline"}
    number : int
        From 1, in the order in which its kind was proposed.
    generation : int
        From 1; 0 of those that no optimiser proposed.
    values : dict
        The free values by their names.
    score : float, optional
        The weighted mean over tasks, turned so that more is better; None of a candidate that failed.
    tasks : dict of str to float
        The score of each task.
    failed : str, optional
        Why there is no score.
    seconds : float, optional
        Of merging and evaluating; None where the score is that of equal weights from before.
    same_as : str, optional
        The candidate of the same weights whose score this has.
    """

    name: str
    kind: Kind
    number: int
    generation: int
    values: dict[str, Any]
    score: float | None
    tasks: dict[str, float]
    failed: str | None = None
    seconds: float | None = None
    same_as: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def score(
    record: ArmRecord, metrics: Mapping[str, str], weights: Mapping[str, float]
) -> tuple[float | None, dict[str, float], str | None]:
    """The score of a record, that of each task, and why there is none.

    Parameters
    ----------
    record : ArmRecord
        Of the documents that count, and no others.
    metrics : mapping of str to str
        The metric of each task.
    weights : mapping of str to float
        Of tasks; 1 where none is given.
    """
    found: dict[str, float] = {}
    for task, metric in metrics.items():
        samples = record.samples.get(task, [])
        values = [sample.metrics[metric] for sample in samples if metric in sample.metrics]
        if not samples or len(values) != len(samples) or not all(map(math.isfinite, values)):
            return None, {}, f"`{metric}` of task `{task}` is not finite for every document"
        sign = 1.0 if record.tasks[task].higher_is_better else -1.0
        found[task] = sign * math.fsum(values) / len(values)
    total = math.fsum(weights.get(task, 1.0) for task in found)
    return math.fsum(weights.get(task, 1.0) * value for task, value in found.items()) / total, found, None


def best(trials: list[Trial]) -> Trial | None:
    """The trial of the highest score, the first of equals; None if all failed."""
    scored = [trial for trial in trials if trial.score is not None]
    return max(scored, key=lambda trial: trial.score or 0.0, default=None) if scored else None
