"""A run on a Ray cluster: a task for each weight file or handful of small ones; the driver plans and ends it.

Weights never travel through Ray: a task reads the models and writes its files where it runs, as a part does,
and only counts come back. A worker that dies is replaced by Ray, and what it had not put in place is written
again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from taskvec.errors import Error, OutputError
from taskvec.plan.document import from_file, to_file
from taskvec.plan.part import Part, files_of, units
from taskvec.plan.plan import PlanRecord, Shard
from taskvec.progress import Callback, Progress
from taskvec.report.report import Report
from taskvec.resolve.storage import Storage, current, storage
from taskvec.run import finish as ending
from taskvec.run.deliver import deliver, sent_at
from taskvec.run.delivery import names_of
from taskvec.run.dispatch import run_part
from taskvec.run.execute import looked_through
from taskvec.run.finished import finished_run
from taskvec.run.inputs import input_rows
from taskvec.run.locked import paths_of
from taskvec.run.nodes import LOCAL, STEP_SECONDS, connected, probe
from taskvec.run.parts import admit, hold_divisible
from taskvec.run.scratch import scratch
from taskvec.run.shared_state import Records
from taskvec.run.sinks import hold_output, is_address
from taskvec.run.supply import Supply, is_to_be_staged, supply_of
from taskvec.settings import Settings

Unit = tuple[int, ...]
# The driver writes no weight file: it takes the address of an output, and ends the run.
_DRIVER = Part(0, 2)
# Output of one task: enough to make the task worth it, little enough to lose.
_OF_A_TASK = 512 << 20
_TRIES = 4


def execute_on_ray(
    plan: PlanRecord,
    out: str | os.PathLike[str],
    *,
    address: str = LOCAL,
    settings: Settings | None = None,
    progress: Callback | None = None,
) -> Report:
    """Run a plan on a Ray cluster whose nodes see the models and the output folder.

    Parameters
    ----------
    plan : PlanRecord
    out : str or path
        The output folder, on a file system that all nodes share.
    address : str
        Of the cluster, as ``ray.init`` takes it; ``"local"`` starts one on this machine.
    settings : Settings, optional
        ``threads`` are those of one task, which takes as many CPUs of the cluster; all others as in
        :func:`taskvec.run.parts.execute_part`.
    progress : callable, optional
        Called with a :class:`taskvec.Progress` whenever a task has ended.

    Raises
    ------
    OutputError
        The cluster cannot be reached, or a node does not see an input or the output; the message names it.
    taskvec.Error
        As :func:`taskvec.run.execute.execute`.
    KeyboardInterrupt
        Stopped, with all tasks; the same call goes on where it was.
    """
    settings = settings or Settings()
    hold_output(out, settings)
    hold_divisible(plan, settings)
    if is_address(out):
        return _deliver_on_ray(plan, str(out), address, settings, progress)
    out = Path(out).absolute()
    folders = ending.folders_of(plan, out)
    finished = finished_run(plan, folders, input_rows(plan.checkpoints), settings)
    if finished is not None:
        return finished
    with contextlib.ExitStack() as held:
        is_staged = is_to_be_staged(plan, settings, goes_away=False)
        place = held.enter_context(scratch()) if is_staged else Path()
        supply = supply_of(plan, settings, place, progress, goes_away=False)
        plan = looked_through(plan, supply.sources, settings)
        held.enter_context(connected(address))
        return _run_on_ray(plan, out, supply, replace(settings, stream=is_staged), progress)


def _run_on_ray(
    plan: PlanRecord, out: Path, supply: Supply, settings: Settings, progress: Callback | None
) -> Report:
    every, folders = units(plan), ending.folders_of(plan, out)
    admit(plan, out, folders, supply.sources, Part(0, len(every)))
    probe(out, paths_of([each.source for each in supply.staged if each.remote is None]), plan.checkpoints)
    records = Records(plan, out, folders)
    is_missing = not ending.is_assembled(folders)
    missing = [unit for unit in every if is_missing and not records.has(unit, rehash=settings.rehash)]
    _run_tasks(plan, out, missing, settings, progress)
    return ending.finish(plan, out, supply.sources, settings, progress, is_staged=supply.is_staged)


def _deliver_on_ray(
    plan: PlanRecord, out: str, address: str, settings: Settings, progress: Callback | None
) -> Report:
    """The same with an output at an address: every node reaches it by itself."""
    with connected(address):
        # takes the address, or finds the run ended there
        begun = deliver(plan, out, part=_DRIVER, chosen=(), settings=settings, progress=progress)
        if begun.report is not None:
            return begun.report
        local = [checkpoint for checkpoint in plan.checkpoints if checkpoint.repository is None]
        probe(out, paths_of(local), plan.checkpoints)
        done = sent_at(plan, out)
        names = names_of(plan)
        missing = [unit for unit in units(plan) if not all(n in done for each in unit for n in names[each])]
        _run_tasks(plan, out, missing, settings, progress)
        ended = deliver(plan, out, part=_DRIVER, chosen=(), settings=settings, progress=progress)
    if ended.report is None:
        raise OutputError(f"weight files of `{out}` are missing", "run the same command again: it goes on")
    return ended.report


def _run_tasks(
    plan: PlanRecord, out: Path | str, missing: Sequence[Unit], settings: Settings, progress: Callback | None
) -> None:
    """Write the units that are missing, and return when all are in place.

    Raises
    ------
    taskvec.Error
        A task has failed; the others are stopped.
    """
    data, settings = ray.put(to_file(plan)), replace(settings, threads=settings.threads or 1)
    write = _write.options(num_cpus=settings.threads, scheduling_strategy="SPREAD", max_retries=_TRIES - 1)
    files = files_of(plan)
    batches = list(_batches(files, missing, len(plan.outputs)))
    reached = current()
    waiting = {write.remote(data, str(out), batch, settings, reached): batch for batch in batches}
    total, begin, done = sum(_bytes(files, batch) for batch in batches), time.monotonic(), 0
    pending = list(waiting)
    try:
        while pending:
            ready, pending = ray.wait(pending, timeout=STEP_SECONDS)
            for ref in ready:
                _hold_written(ref)
                done += _bytes(files, waiting[ref])
            if ready and progress is not None:
                progress(Progress("merge", done, total, time.monotonic() - begin))
    except BaseException:
        for ref in pending:
            with contextlib.suppress(RayError, ValueError):
                ray.cancel(ref, force=True)
        raise


@ray.remote
def _write(data: bytes, out: str, batch: list[Unit], settings: Settings, reached: Storage) -> int:
    """Write some units; the bytes that were read."""
    with storage(reached.options, scratch=reached.scratch):
        plan = from_file(data, "the plan of this run").plan
        number = Part(0, max(len(units(plan)), 2))
        done = run_part(plan, out, number, units=batch, settings=settings, is_last=False)
    return done.bytes_read


def _hold_written(ref: Any) -> None:
    try:
        ray.get(ref)
    except RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, Error) else _failed(error) from None
    except RayError as error:
        raise _failed(error) from None


def _failed(error: Exception) -> OutputError:
    return OutputError(
        f"a task failed {_TRIES} times or cannot be run: {' '.join(str(error).split())[-400:]}",
        "look at the nodes' memory and logs (`ray logs`), then run the same command again: it goes on",
    )


def _bytes(files: Sequence[Shard], batch: Sequence[Unit]) -> int:
    return sum(files[number].bytes for unit in batch for number in unit)


def _batches(files: Sequence[Shard], missing: Sequence[Unit], outputs: int) -> Iterator[list[Unit]]:
    """Units by tasks, the largest first: at least as many tasks as the cluster has room for."""
    rest = sorted(missing, key=lambda unit: (-_bytes(files, [unit]), unit))
    room = max(int(ray.cluster_resources().get("CPU", 1)), 1)
    limit = min(_OF_A_TASK, sum(_bytes(files, [unit]) for unit in rest) // room + 1)
    batch: list[Unit] = []
    for unit in rest:
        batch.append(unit)
        if _bytes(files, batch) * outputs >= limit:
            yield batch
            batch = []
    if batch:
        yield batch
