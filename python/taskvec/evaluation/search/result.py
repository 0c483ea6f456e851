"""The outcome of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taskvec.evaluation.analysis.compare import Comparison, Split
from taskvec.evaluation.record import ArmRecord, Score, finite
from taskvec.evaluation.search.space import Space
from taskvec.evaluation.search.trial import Trial
from taskvec.evaluation.search.verdict import Verdict
from taskvec.report.tables import Tabled

SCHEMA = 1


@dataclass(frozen=True)
class HeldOut:
    """A model on the held-out part.

    Attributes
    ----------
    role : str
        ``best``, ``baseline``, ``random`` or ``plain``.
    trial : Trial
        The same model on the development part.
    record : ArmRecord
    scores : dict of str to Score
        By task, of its metric.
    score : float
        The weighted mean, turned so that more is better.
    """

    role: str
    trial: Trial
    record: ArmRecord
    scores: dict[str, Score]
    score: float


@dataclass(frozen=True, repr=False)
class SearchResult(Tabled):
    """The outcome of a search.

    Attributes
    ----------
    best : Trial
        The candidate of the highest development score, the first of equals.
    trace : tuple of Trial
        Every candidate of the search, in the order in which they were proposed.
    random, plain : tuple of Trial
        Those that the best is held against.
    baseline : Trial
    held_out : tuple of HeldOut
        The best candidate first.
    verdicts : tuple of Verdict
    comparisons : tuple of Comparison
        Task by task.
    recipe : Path
        The best candidate as a recipe: ``taskvec merge RECIPE OUT`` makes its weights.
    report : Path
        The page.
    looks : int
        How many best candidates were looked at on the held-out part; above 1 if the search went on after an
        earlier end.
    """

    space: Space
    split: Split
    metrics: dict[str, str]
    best: Trial
    trace: tuple[Trial, ...]
    random: tuple[Trial, ...]
    plain: tuple[Trial, ...]
    baseline: Trial
    held_out: tuple[HeldOut, ...]
    verdicts: tuple[Verdict, ...]
    comparisons: tuple[Comparison, ...]
    recipe: Path
    recipe_text: str
    report: Path
    looks: int

    @property
    def failed(self) -> int:
        """Candidates of the search without a score."""
        return sum(trial.failed is not None for trial in self.trace)

    @property
    def is_share(self) -> bool:
        """Whether scores are shares of right answers."""
        return all(verdict.is_share for verdict in self.verdicts)

    def _facts(self) -> dict[str, str]:
        facts = {"candidates": str(len(self.trace))}
        if self.failed:
            facts["failed"] = str(self.failed)
        facts["best"] = self.best.name
        facts |= {f"held out: {each.role}": f"{each.score:.4g}" for each in self.held_out}
        return {**facts, "recipe": str(self.recipe), "report": str(self.report)}

    def _tables(self) -> Mapping[str, Any]:
        def trace() -> list[dict[str, Any]]:
            return [trial.to_json() for trial in self.trace]

        return {"trace": trace, "held_out": lambda: self.to_json()["held_out"]}

    def to_json(self) -> dict[str, Any]:
        """Plain data, as ``report.json`` has it."""
        form = self.space.form
        return finite(
            {
                "schema": SCHEMA,
                "verdicts": [verdict.to_json() for verdict in self.verdicts],
                "best": {**self.best.to_json(), "recipe": str(self.recipe)},
                "held_out": [
                    {
                        "role": each.role,
                        "name": each.trial.name,
                        "score": each.score,
                        "scores": {task: asdict(score) for task, score in each.scores.items()},
                    }
                    for each in self.held_out
                ],
                "comparisons": [asdict(comparison) for comparison in self.comparisons],
                "candidates": len(self.trace),
                "failed": self.failed,
                "looks": self.looks,
                "trace": [trial.to_json() for trial in self.trace],
                "random": [trial.to_json() for trial in self.random],
                "plain": [trial.to_json() for trial in self.plain],
                "baseline": self.baseline.to_json(),
                "settings": {
                    "optimiser": {
                        **form.optimiser.model_dump(mode="json"),
                        "population": self.space.population,
                        "budget": self.space.budget,
                    },
                    "split": {"share": self.split.share, "seed": self.split.seed},
                    "metrics": self.metrics,
                    "weights": dict(form.weights),
                    "margin": form.compare.margin,
                    "evaluation": self.held_out[0].record.settings,
                    "versions": self.held_out[0].record.versions,
                },
            }
        )
