"""The part of a search on the development documents: generations of candidates, each scored once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from taskvec.errors import EvaluationError, RecipeError
from taskvec.evaluation.record import ArmRecord
from taskvec.evaluation.search.candidates import Candidate, Merges
from taskvec.evaluation.search.evaluator import Evaluator, Outcome
from taskvec.evaluation.search.journal import Book
from taskvec.evaluation.search.optimiser import Proposer, RandomPoints, losses, proposer
from taskvec.evaluation.search.space import Point, Space
from taskvec.evaluation.search.trial import Kind, Trial, score
from taskvec.evaluation.sweep.events import Event, Progress

NAMES: dict[Kind, str] = {"search": "candidate", "random": "random"}


class Exploration:
    """The part of a search on the development documents."""

    def __init__(
        self, space: Space, merges: Merges, evaluator: Evaluator, book: Book, progress: Progress
    ) -> None:
        self.space, self.merges = space, merges
        self._evaluator, self._book, self._progress = evaluator, book, progress
        self.metrics: dict[str, str] = {}
        self.candidates: dict[str, Candidate] = {}
        self._scored: dict[str, Trial] = {}
        self._best: Trial | None = None
        self._done, self._total = 0, 0
        # now, so that a package which is missing is named before anything is evaluated
        self._source = proposer(space.free, space.optimiser, space.population, space.start())

    def run(self, reference: Candidate) -> dict[Kind, list[Trial]]:
        """Every trial, by its kind."""
        space = self.space
        plain = list(space.plain_points())
        self._total = 1 + len(plain) + space.budget + space.random_budget
        found: dict[Kind, list[Trial]] = {"baseline": [self._baseline(reference)]}
        found["plain"] = self._plain(plain)
        found["search"] = self._explore("search", self._source, space.budget)
        draws = RandomPoints(space.free, [space.optimiser.seed, 1], space.population)
        found["random"] = self._explore("random", draws, space.random_budget)
        return found

    def tell(self, kind: str, name: str, text: str = "") -> None:
        """Say what is done."""
        self._progress(Event(kind, name, text, self._done, self._total))

    def _baseline(self, candidate: Candidate) -> Trial:
        """The baseline, which decides the metric of each task."""

        def metrics(record: ArmRecord) -> None:
            for task, facts in record.tasks.items():
                if facts.metric is None:
                    raise EvaluationError(
                        f"task `{task}` has no metric per document to search by",
                        "leave it out, or name one in `metrics`",
                    )
                self.metrics[task] = facts.metric

        self.candidates[candidate.name] = candidate
        record = self._evaluator.known(candidate)
        if record is not None:
            metrics(record)
        trial = Trial(candidate.name, "baseline", 1, 0, {}, None, {})
        return self._score([(trial, candidate)], before=metrics)[0]

    def _plain(self, points: Sequence[tuple[str, float | None, Point]]) -> list[Trial]:
        asked = []
        for number, (name, alpha, point) in enumerate(points, start=1):
            values = self.space.values(point) | ({} if alpha is None else {"alpha": alpha})
            trial = Trial(name, "plain", number, 0, values, None, {})
            asked.append((trial, self._candidate(name, point, alpha)))
        return self._score(asked)

    def _explore(self, kind: Kind, source: Proposer, budget: int) -> list[Trial]:
        """Generations of a proposer until the budget is spent; the last may be cut short."""
        trials: list[Trial] = []
        generation = 0
        while len(trials) < budget:
            generation += 1
            points = source.ask()
            asked = []
            for number, point in enumerate(points[: budget - len(trials)], start=len(trials) + 1):
                name = f"{NAMES[kind]}-{number:04d}"
                trial = Trial(name, kind, number, generation, self.space.values(point), None, {})
                asked.append((trial, self._candidate(name, point)))
            trials += self._score(asked)
            if len(asked) == len(points):
                source.tell(losses([trial.score for trial in trials])[-len(points) :])
        return trials

    def _candidate(self, name: str, point: Point, alpha: float | None = None) -> Candidate | str:
        """The candidate at a point, or why there is none."""
        try:
            found = self.merges.candidate(name, self.space.recipe(point, alpha))
        except RecipeError as error:
            return str(error)
        self.candidates[name] = found
        return found

    def _score(
        self,
        asked: Sequence[tuple[Trial, Candidate | str]],
        before: Callable[[ArmRecord], None] = lambda _record: None,
    ) -> list[Trial]:
        """The trials with their scores: from the journal, from equal weights before, or evaluated now."""
        found: dict[str, Trial] = {}
        first: dict[str, str] = {}
        pending: list[Candidate] = []
        trials = {trial.name: trial for trial, _ in asked}

        def finish(trial: Trial, weights: str | None) -> None:
            found[trial.name] = trial
            if weights is not None:
                self._scored.setdefault(weights, trial)
            self._done += 1
            if trial.score is not None and (
                self._best is None or trial.score > (self._best.score or -math.inf)
            ):
                self._best = trial if trial.kind == "search" else self._best

        def record(trial: Trial, weights: str | None) -> None:
            self._book.put(trial)
            finish(trial, weights)
            self.tell("done", trial.name, self._in_words(trial))

        def done(candidate: Candidate, outcome: Outcome) -> None:
            trial, known = trials[candidate.name], found.get(candidate.name)
            seconds = round(outcome.seconds, 3)
            if known is not None:  # what was proposed since then follows from the score in the journal
                if outcome.record is not None:
                    before(outcome.record)
                elif known.score is not None:
                    raise EvaluationError(
                        f"`{trial.name}` has a score in the journal, and cannot be evaluated again: "
                        f"{outcome.failed}",
                        "give --overwrite to begin again",
                    )
                self.tell("done", trial.name, self._in_words(known))
                return
            if outcome.record is None:
                record(replace(trial, failed=outcome.failed, seconds=seconds), candidate.weights)
                return
            before(outcome.record)
            total, tasks, failed = score(outcome.record, self.metrics, self.space.form.weights)
            record(
                replace(trial, score=total, tasks=tasks, failed=failed, seconds=seconds), candidate.weights
            )

        for trial, candidate in asked:
            known = self._book.get(trial.name)
            weights = candidate.weights if isinstance(candidate, Candidate) else None
            if known is not None:
                self._hold_same(trial, known)
                finish(known, weights)
                if isinstance(candidate, Candidate) and self._is_lost(candidate, known):
                    pending.append(candidate)
                else:
                    self.tell("known", trial.name)
            elif isinstance(candidate, str):
                record(replace(trial, failed=candidate), None)
            elif candidate.weights not in self._scored and candidate.weights not in first:
                first[candidate.weights] = trial.name
                pending.append(candidate)
        self._evaluator.run(pending, done)
        for trial, candidate in asked:
            if trial.name not in found and isinstance(candidate, Candidate):
                same = self._scored[candidate.weights]
                record(
                    replace(trial, score=same.score, tasks=same.tasks, failed=same.failed, same_as=same.name),
                    candidate.weights,
                )
        return [found[trial.name] for trial, _ in asked]

    def _is_lost(self, candidate: Candidate, known: Trial) -> bool:
        """Whether the journal has a trial whose record is not found, or is damaged."""
        return known.same_as is None and self._evaluator.is_lost(candidate, scored=known.score is not None)

    def _hold_same(self, trial: Trial, known: Trial) -> None:
        if known.values != trial.values:
            raise EvaluationError(
                f"the journal has `{trial.name}` with other values than are proposed now: another version of "
                "NumPy, or another processor, may draw other points",
                "name another folder with -o, or give --overwrite to begin again",
            )

    def _in_words(self, trial: Trial) -> str:
        if trial.failed is not None:
            return f"failed: {trial.failed}"
        best = "" if self._best is None or self._best.score is None else f", best {self._best.score:.4f}"
        return f"score {trial.score:.4f}{best if trial.kind == 'search' else ''}"
