"""Arms on several devices: one process per device, each evaluating one arm at a time.

A process of its own for each device keeps one arm's memory and crashes from the others. A worker that dies,
killed for memory say, ends its arm with an error that says so; arms that are done keep their records.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.backend.delta import Placement
from taskvec.evaluation.backend.identity import Source
from taskvec.evaluation.settings import Settings
from taskvec.host import cores

Progress = Callable[[Arm, str, int, int], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One arm to evaluate: the place of its weights, their identity, and their name in the record.

    With a placement they are made in a target that the worker holds. The sources are the models that must not
    change meanwhile.
    """

    arm: Arm
    model: str
    weights: str
    shown: str
    placement: Placement | None = None
    sources: tuple[Source, ...] = ()


@dataclass(slots=True)
class _Worker:
    process: Any
    pipe: Any
    device: str
    job: Job | None = None


class Pool:
    """Worker processes, one per device.

    Parameters
    ----------
    devices : sequence of str
        GPU numbers (``"0"``), or torch device names; one worker for each.
    settings : Settings
        Shared by all arms; the device is the worker's own.
    out : Path
        Output folder.
    threads : int, optional
        Torch threads of a worker on the CPU; by default the cores are divided among them.
    """

    def __init__(
        self, devices: Sequence[str], settings: Settings, out: Path, threads: int | None = None
    ) -> None:
        self._devices, self._arguments = list(devices), (settings, out)
        self._threads = threads or max(1, cores() // len(devices))
        self._workers: list[_Worker] | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> list[_Worker]:
        """The workers, started by the first call."""
        if self._workers is not None:
            return self._workers
        context, workers = multiprocessing.get_context("spawn"), list[_Worker]()
        self._workers = workers
        for device in self._devices:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(theirs, device, self._threads, *self._arguments),
                daemon=True,
                name=f"taskvec-{device}",
            )
            start_undisturbed(process)
            theirs.close()
            workers.append(_Worker(process, ours, device))
        return workers

    def run(self, jobs: Sequence[Job], progress: Progress, done: Callable[[Job], None]) -> None:
        """Evaluate every job and call `done` after each; when all have ended, raise the first error."""
        waiting, failures, workers = list(jobs), [], self.start()
        content: Any
        for worker in workers:
            self._next(worker, waiting)
        while busy := [worker for worker in workers if worker.job is not None]:
            ready = set(connection.wait([worker.pipe for worker in busy], timeout=PATIENCE))
            for worker in busy:
                # the process itself is asked for, too: what it started may outlive it and hold its pipe open
                if worker.job is None or (worker.pipe not in ready and worker.process.exitcode is None):
                    continue
                try:
                    # a message that a worker sent before it died counts
                    kind, content = worker.pipe.recv() if worker.pipe in ready else ("dead", None)
                except (EOFError, OSError):
                    kind, content = "dead", None
                if kind == "progress":
                    progress(worker.job.arm, *content)
                    continue
                if kind == "done":
                    done(worker.job)
                else:
                    failures.append(self._lost(worker) if kind == "dead" else content)
                worker.job = None
                if kind != "dead":
                    self._next(worker, waiting)
        if failures:
            raise failures[0]

    def close(self) -> None:
        """End the workers at once."""
        workers, self._workers = self._workers or [], []
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            _wait(worker.process)
            worker.pipe.close()

    def _lost(self, worker: _Worker) -> EvaluationError:
        """Part with a worker that is gone; the error of the arm that it had."""
        assert worker.job is not None
        assert self._workers is not None
        self._workers.remove(worker)
        _wait(worker.process)
        worker.pipe.close()
        return EvaluationError(
            f"the worker on {worker.device} ended (exit code {worker.process.exitcode}) while it evaluated "
            f"arm `{worker.job.arm.name}`",
            "run the same command again to go on; a smaller --batch-size needs less memory",
        )

    @staticmethod
    def _next(worker: _Worker, waiting: list[Job]) -> None:
        if waiting:
            worker.job = waiting.pop(0)
            with contextlib.suppress(OSError):  # it died before its first job: `run` finds its pipe closed
                worker.pipe.send(worker.job)


PATIENCE = 1.0  # seconds between two looks at workers that say nothing
GRACE = 5.0  # seconds in which a process may end by itself


def _wait(process: Any) -> None:
    """Wait for a process that is ending, and kill it if it does not."""
    process.join(GRACE)
    if process.is_alive():
        process.kill()
        process.join()


def start_undisturbed(process: Any) -> None:
    """Start a child that Ctrl-C does not reach: a terminal sends it to every process, and ours ends it."""
    resource_tracker.ensure_running()  # or starting the child starts it, which lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a child inherits it, for good
    try:
        with _without_main():
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Meanwhile a child does not learn which program starts it.

    It would run that program again, up to the call that starts it: a script would need a guard, and one on
    standard input cannot be run twice. What a child does is in modules of ours.
    """
    main = sys.modules["__main__"]
    spec, file = main.__spec__, main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


def _serve(pipe: Any, device: str, threads: int, settings: Settings, out: Path) -> None:
    """A worker's life: take a job, evaluate, say how it went."""
    if device.isdigit():  # before torch is imported; vLLM too then sees one GPU
        os.environ["CUDA_VISIBLE_DEVICES"] = device
        settings = replace(settings, device="cuda:0")
    else:
        settings = replace(settings, device=device)
    end_with_parent()
    import lm_eval.evaluator  # while the parent finds tasks and merges, or the first arm would wait for it
    import lm_eval.models.huggingface  # noqa: F401
    import torch
    from tqdm import tqdm

    from taskvec.evaluation.tasks.datasets import loaded_once

    tqdm.set_lock(threading.RLock())  # its own would be left behind by a worker that is ended
    if device == "cpu":
        torch.set_num_threads(threads)
    with loaded_once():
        _take_jobs(pipe, settings, out)


def _take_jobs(pipe: Any, settings: Settings, out: Path) -> None:
    """Evaluate one arm after the other, until the parent closes the pipe."""
    from taskvec.evaluation.backend.evaluate import evaluate_into
    from taskvec.evaluation.backend.memory import free_memory

    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return

        def say(task: str, done: int, total: int) -> None:
            pipe.send(("progress", (task, done, total)))

        try:
            evaluate_into(
                out, job.model, settings, job.arm, job.weights, progress=say, shown=job.shown,
                placement=job.placement, sources=job.sources,
            )  # fmt: skip
            pipe.send(("done", None))
        except EvaluationError as error:
            pipe.send(("failed", error))
        except Exception as error:  # a defect in one arm must not take the worker along
            pipe.send(("failed", EvaluationError(f"arm `{job.arm.name}`: {type(error).__name__}: {error}")))
        free_memory()


def end_with_parent() -> None:
    """Leave when the parent is killed: nobody waits for the result any more."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
