"""Candidates through lm-eval on one part of the documents: merged, evaluated, taken away."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from taskvec.errors import CompatibilityError, NonFiniteError, RecipeError
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.backend.evaluate import evaluate_into, finished
from taskvec.evaluation.backend.identity import Source
from taskvec.evaluation.record import ArmRecord, record_path
from taskvec.evaluation.search.candidates import Candidate
from taskvec.evaluation.settings import PartSettings, Settings
from taskvec.evaluation.sweep.events import Event, Progress
from taskvec.evaluation.sweep.scratch import Scratch
from taskvec.evaluation.sweep.workers import Job, Pool
from taskvec.files import look

if TYPE_CHECKING:
    from taskvec.evaluation.sweep.cluster import RayPool

LARGE = 100_000_000  # bytes of a model that must not wait for the garbage collector


@dataclass(frozen=True, slots=True)
class Outcome:
    """The record of a candidate, or why there is none, and the seconds that it took."""

    record: ArmRecord | None
    failed: str | None
    seconds: float


Done = Callable[[Candidate, Outcome], None]


class Evaluator:
    """Evaluates candidates on one part of the documents.

    Parameters
    ----------
    settings : Settings
        With the part.
    out : Path
        Folder of the records.
    scratch : Scratch
        Where merged models lie meanwhile.
    think : str, optional
        A request to reason, in every prompt.
    pool : Pool or RayPool, optional
        Workers; by default this process.
    is_large : bool
        Memory is given back after each candidate at once.
    sources : callable
        The models that must not change meanwhile.
    """

    def __init__(
        self,
        settings: Settings,
        out: Path,
        scratch: Scratch,
        *,
        think: str | None,
        pool: Pool | RayPool | None,
        progress: Progress,
        is_large: bool,
        sources: Callable[[], tuple[Source, ...]] = tuple,
    ) -> None:
        self._settings, self._out, self._scratch, self._think = settings, out, scratch, think
        self._pool, self._progress, self._is_large = pool, progress, is_large
        self._sources = sources

    def known(self, candidate: Candidate) -> ArmRecord | None:
        """The record of a candidate that was evaluated before."""
        return finished(self._out, self._settings, candidate.arm(self._think), candidate.weights)

    def is_lost(self, candidate: Candidate, *, scored: bool) -> bool:
        """Whether the record of a candidate that was evaluated before is not found, or is damaged.

        Parameters
        ----------
        candidate : Candidate
        scored : bool
            Whether it has a score, so that there was a record. Of one that failed there may be none.
        """
        path = record_path(self._out, candidate.arm(self._think).name)
        return (scored or look.exists(path)) and self.known(candidate) is None

    def close(self) -> None:
        """Let the workers go, and with them the models that they hold."""
        if isinstance(self._pool, Pool):
            self._pool.close()

    def run(self, candidates: Sequence[Candidate], done: Done) -> None:
        """Evaluate candidates, and call `done` as soon as there is a record or a reason for none.

        Raises
        ------
        EvaluationError, taskvec.Error
            A candidate could not be evaluated for a reason that is not its own.
        """
        pending = []
        for candidate in candidates:
            record = self.known(candidate)
            if record is None:
                pending.append(candidate)
            else:
                done(candidate, Outcome(record, None, record.seconds))
        size = max(1, self._scratch.capacity) if self._pool is not None else 1
        for start in range(0, len(pending), size):
            self._batch(pending[start : start + size], done)

    def _batch(self, candidates: Sequence[Candidate], done: Done) -> None:
        jobs: dict[str, tuple[Candidate, Job, float]] = {}
        try:
            for candidate in candidates:
                begun = time.monotonic()
                arm = candidate.arm(self._think)
                try:
                    model = self._model(candidate, arm)
                except (CompatibilityError, NonFiniteError, RecipeError) as error:
                    done(candidate, Outcome(None, str(error), time.monotonic() - begun))
                    continue
                shown = candidate.folder or f"merged: {candidate.name}"
                job = Job(arm, model, candidate.weights, shown, sources=self._sources())
                jobs[arm.name] = candidate, job, time.monotonic() - begun
            self._evaluate(jobs, done)
        finally:
            for candidate, job, _ in jobs.values():
                if candidate.folder is None:
                    self._scratch.release(job.arm.weights)

    def _model(self, candidate: Candidate, arm: Arm) -> str:
        if candidate.folder is not None:
            return candidate.folder
        self._progress(Event("merge", candidate.name))
        return str(self._scratch.models([arm], {arm.weights: candidate.weights})[arm.weights])

    def _evaluate(self, jobs: dict[str, tuple[Candidate, Job, float]], done: Done) -> None:
        def say(arm: Arm, task: str, number: int, total: int) -> None:
            self._progress(Event("progress", arm.name, task, number, total))

        def ended(job: Job) -> None:
            candidate, _, merging = jobs[job.arm.name]
            record = self.known(candidate)
            assert record is not None
            done(candidate, Outcome(record, None, merging + record.seconds))
            if candidate.folder is None:
                self._scratch.release(job.arm.weights)

        if self._pool is not None:
            if jobs:
                self._pool.run([job for _, job, _ in jobs.values()], say, ended)
            return
        for _, job, _ in jobs.values():
            tell = functools.partial(say, job.arm)
            evaluate_into(
                self._out, job.model, self._settings, job.arm, job.weights, progress=tell, shown=job.shown,
                sources=job.sources,
            )  # fmt: skip
            if self._is_large:
                from taskvec.evaluation.backend.memory import free_memory

                free_memory()
            ended(job)


def part_settings(settings: Settings, part: str, share: float, seed: int, *, holds: bool) -> PartSettings:
    """Settings that ask the development part, or the held-out part, alone."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    asked = "development" if part == "development" else "report"
    return PartSettings(**values, part=asked, share=share, division=seed, holds=holds)
