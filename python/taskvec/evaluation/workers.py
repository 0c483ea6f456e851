"""Arms on several devices: one process per device, each evaluating one arm at a time.

A process of its own for each device keeps one arm's memory and crashes from the others. A worker that dies,
killed for memory say, ends its arm with an error that says so; arms that are done keep their records.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

from taskvec.errors import EvaluationError

from .arms import Arm
from .settings import Settings

Progress = Callable[[Arm, str, int, int], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One arm to evaluate: where its weights are, what identifies them, and how the record names them."""

    arm: Arm
    model: str
    weights: str
    shown: str


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
    """

    def __init__(self, devices: Sequence[str], settings: Settings, out: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        threads = max(1, (os.cpu_count() or 1) // len(devices))
        for device in devices:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(theirs, device, threads, settings, out),
                daemon=True,
                name=f"taskvec-{device}",
            )
            process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours, device))

    def run(self, jobs: Sequence[Job], progress: Progress, done: Callable[[Job], None]) -> None:
        """Evaluate every job, saying `done` after each; when all have ended, raise the first error."""
        waiting, failures = list(jobs), []
        for worker in self._workers:
            self._next(worker, waiting)
        while busy := [worker for worker in self._workers if worker.job is not None]:
            ready = set(connection.wait([worker.pipe for worker in busy]))
            for worker in busy:
                if worker.pipe not in ready or worker.job is None:
                    continue
                try:
                    kind, content = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    failures.append(
                        EvaluationError(
                            f"the worker on {worker.device} ended (exit code {worker.process.exitcode}) "
                            f"while it evaluated arm `{worker.job.arm.name}`",
                            "run the same command again to go on; a smaller --batch-size needs less memory",
                        )
                    )
                    worker.job = None
                    self._workers.remove(worker)
                    continue
                if kind == "progress":
                    progress(worker.job.arm, *content)
                    continue
                if kind == "failed":
                    failures.append(content)
                else:
                    done(worker.job)
                worker.job = None
                self._next(worker, waiting)
            if waiting and not self._workers:
                break
        if failures:
            raise failures[0]

    def close(self) -> None:
        """End the workers at once."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()
        self._workers.clear()

    @staticmethod
    def _next(worker: _Worker, waiting: list[Job]) -> None:
        if waiting:
            worker.job = waiting.pop(0)
            with contextlib.suppress(OSError):  # it died before its first job: `run` finds its pipe closed
                worker.pipe.send(worker.job)


def _serve(pipe: Any, device: str, threads: int, settings: Settings, out: Path) -> None:
    """A worker's life: take a job, evaluate, say how it went."""
    if device.isdigit():  # before torch is imported; vLLM too then sees one GPU
        os.environ["CUDA_VISIBLE_DEVICES"] = device
        settings = replace(settings, device="cuda:0")
    else:
        settings = replace(settings, device=device)
    _end_with_parent()
    import torch

    from .blocks import free_memory
    from .harness import evaluate_into

    if device == "cpu":
        torch.set_num_threads(threads)
    while True:
        try:
            job: Job = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return

        def say(task: str, done: int, total: int) -> None:
            pipe.send(("progress", (task, done, total)))

        try:
            evaluate_into(out, job.model, settings, job.arm, job.weights, progress=say, shown=job.shown)
            pipe.send(("done", None))
        except EvaluationError as error:
            pipe.send(("failed", error))
        except KeyboardInterrupt:
            return
        except Exception as error:  # a defect in one arm must not take the worker along
            pipe.send(("failed", EvaluationError(f"arm `{job.arm.name}`: {type(error).__name__}: {error}")))
        free_memory()


def _end_with_parent() -> None:
    """Leave when the sweep is killed: nobody waits for the arm any more."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
