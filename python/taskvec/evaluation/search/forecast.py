"""What a search will do, before any of it is done."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.search.candidates import Merges, baseline_of
from taskvec.evaluation.search.journal import seconds_measured
from taskvec.evaluation.search.places import check_documents
from taskvec.evaluation.search.space import Space


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a search will do.

    Attributes
    ----------
    baseline : str
        The model that candidates are held against.
    plain : list of str
        The plain recipes.
    documents : dict of str to (int, int)
        Of each task, in the development and in the held-out part; empty where they are not known.
    unknown : str, optional
        Why the documents are not known.
    seconds : float, optional
        Of one candidate on the development part, as measured in the output folder; None: not measured.
    measured : int
        Candidates that were measured.
    """

    baseline: str
    plain: list[str]
    documents: dict[str, tuple[int, int]]
    unknown: str | None
    seconds: float | None
    measured: int
    candidates: int
    random: int

    @property
    def evaluations(self) -> int:
        """Models that are evaluated on the development part."""
        return 1 + len(self.plain) + self.candidates + self.random

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "baseline": self.baseline,
            "plain": self.plain,
            "candidates": self.candidates,
            "random": self.random,
            "evaluations": self.evaluations,
            "documents": {task: list(parts) for task, parts in self.documents.items()},
            "unknown": self.unknown,
            "seconds_per_candidate": self.seconds,
            "seconds": None if self.seconds is None else self.seconds * self.evaluations,
            "measured": self.measured,
        }


def forecast(space: Space, out: Path) -> Forecast:
    """What a search will do; the models are opened, and no weight is read.

    Raises
    ------
    taskvec.Error
        The models are not found, or are incompatible.
    """
    start = space.recipe(space.start())
    Merges(space.form.force).plan(start)
    documents, unknown = dict[str, tuple[int, int]](), None
    try:
        documents = check_documents(space, space.settings())
    except EvaluationError as error:
        unknown = error.message
    measured = seconds_measured(out)
    return Forecast(
        baseline=str(baseline_of(start, space.form.baseline)),
        plain=[name for name, _, _ in space.plain_points()],
        documents=documents,
        unknown=unknown,
        seconds=statistics.median(measured) if measured else None,
        measured=len(measured),
        candidates=space.budget,
        random=space.random_budget,
    )
