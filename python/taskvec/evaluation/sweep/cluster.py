"""Arms on a Ray cluster: a task each, on a GPU where the cluster has them.

The driver merges, chooses alpha and reports; a task evaluates one arm into the output folder, which all nodes
share, as a worker of this machine does. What a lost worker had answered is in the arm's journal, and the task
that takes its place goes on there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from taskvec.errors import EvaluationError
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.sweep.workers import Job, Progress
from taskvec.files import look
from taskvec.run.nodes import STEP_SECONDS, connected, probe

_TRIES = 4


class RayPool:
    """The tasks of a sweep on a cluster, in the place of :class:`taskvec.evaluation.sweep.workers.Pool`.

    Parameters
    ----------
    settings : Settings
        Shared by all arms.
    out : Path
        Output folder.
    threads : int
        Torch threads of a task on the CPU, which takes as many CPUs of the cluster.
    """

    def __init__(self, settings: Settings, out: Path, threads: int = 1) -> None:
        self.settings, self._out, self._threads = settings, out.absolute(), threads
        self._has_gpus = has_gpus()

    def start(self) -> None:
        """Nothing: Ray starts its workers by itself."""

    def run(self, jobs: Sequence[Job], progress: Progress, done: Callable[[Job], None]) -> None:
        """Evaluate every job and call `done` after each; when all have ended, raise the first error."""
        needs = (
            {"num_gpus": 1, "num_cpus": 1} if self._has_gpus else {"num_gpus": 0, "num_cpus": self._threads}
        )
        task = _evaluate.options(**needs, max_retries=_TRIES - 1, scheduling_strategy="SPREAD")
        board: Any = _Board.options(num_cpus=0, max_restarts=-1).remote()
        arguments = self.settings, self._out, self._threads, board
        waiting = {task.remote(_absolute(job), *arguments): job for job in jobs}
        arms = {job.arm.name: job.arm for job in jobs}
        pending, failures = list(waiting), []
        try:
            while pending:
                ready, pending = ray.wait(pending, timeout=STEP_SECONDS)
                for arm, what, number, total in _told(board):
                    progress(arms[arm], what, number, total)
                for ref in ready:
                    failure = _failure(ref, waiting[ref])
                    if failure is None:
                        done(waiting[ref])
                    else:
                        failures.append(failure)
        except BaseException:
            for ref in pending:
                with contextlib.suppress(RayError, ValueError):
                    ray.cancel(ref, force=True)
            raise
        finally:
            ray.kill(board)
        if failures:
            raise failures[0]


@contextlib.contextmanager
def ray_pool(
    address: str, settings: Settings, out: Path, models: Sequence[str], threads: int | None
) -> Iterator[RayPool]:
    """The pool on a cluster whose nodes see the models and the output folder.

    Parameters
    ----------
    address : str
        As ``ray.init`` takes it; ``"local"`` starts a cluster on this machine.
    settings : Settings
        The device is chosen by what the cluster has.
    out : Path
    models : sequence of str
        Those of them that are folders are looked for on every node.
    threads : int, optional
        Of a task on the CPU; one by default.

    Raises
    ------
    OutputError
        The cluster cannot be reached, or a node does not see a model or the output; the message names it.
    """
    with connected(address):
        probe(out.absolute(), [os.path.abspath(model) for model in models if look.is_folder(model)], [])
        with contextlib.suppress(OSError):
            (out / ".taskvec").rmdir()
        yield RayPool(settings, out, threads or 1)


def has_gpus() -> bool:
    """Whether the cluster that is connected has any."""
    return bool(ray.cluster_resources().get("GPU"))


@ray.remote
class _Board:
    """What the tasks tell of their arms, until the driver asks for it."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], tuple[int, int]] = {}

    def put(self, arm: str, task: str, done: int, total: int) -> None:
        """The newest of an arm's task counts."""
        self._told[arm, task] = done, total

    def take(self) -> list[tuple[str, str, int, int]]:
        """What was told since the last time."""
        told, self._told = self._told, {}
        return [(*key, *value) for key, value in told.items()]


def _told(board: Any) -> list[tuple[str, str, int, int]]:
    try:
        told: list[tuple[str, str, int, int]] = ray.get(board.take.remote(), timeout=STEP_SECONDS)
    except RayError:  # busy, or being started again elsewhere: progress can wait
        return []
    return told


@ray.remote
def _evaluate(job: Job, settings: Settings, out: Path, threads: int, board: Any) -> None:
    """Evaluate one arm on the GPU that Ray has set apart for it, or on the CPU."""
    import threading

    import torch
    from tqdm import tqdm

    from taskvec.evaluation.backend.evaluate import evaluate_into
    from taskvec.evaluation.backend.memory import free_memory

    tqdm.set_lock(threading.RLock())  # its own would be left behind by a worker that is ended
    if settings.device == "cpu":
        torch.set_num_threads(threads)

    def say(task: str, done: int, total: int) -> None:
        board.put.remote(job.arm.name, task, done, total)

    try:
        evaluate_into(
            out, job.model, settings, job.arm, job.weights, progress=say, shown=job.shown,
            placement=job.placement, sources=job.sources,
        )  # fmt: skip
    finally:
        free_memory()


def _absolute(job: Job) -> Job:
    """The job with its models by names that hold on every node."""
    model = os.path.abspath(job.model) if look.is_folder(job.model) else job.model
    placement = job.placement.absolute() if job.placement is not None else None
    sources = tuple(
        each._replace(place=os.path.abspath(each.place)) if look.exists(each.place) else each
        for each in job.sources
    )
    return replace(job, model=model, placement=placement, sources=sources)


def _failure(ref: Any, job: Job) -> EvaluationError | None:
    """The error of a task that has ended, if it failed."""
    try:
        ray.get(ref)
        return None
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, EvaluationError):
            return cause
        return EvaluationError(f"arm `{job.arm.name}`: {type(cause).__name__}: {cause}")
    except RayError as error:
        return EvaluationError(
            f"the workers that evaluated arm `{job.arm.name}` ended {_TRIES} times, or it cannot be run: "
            f"{' '.join(str(error).split())[-300:]}",
            "look at the nodes' memory and logs (`ray logs`), then run the same command again to go on; a "
            "smaller --batch-size needs less memory",
        )
