"""A run on a Ray cluster: a task for each weight file or handful of small ones; the driver plans and ends it.

Weights never travel through Ray: a task reads the models and writes its files where it runs, as a part does,
and only counts come back. A worker that dies is replaced by Ray, and what it had not put in place is written
again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from taskvec.errors import Error, OutputError
from taskvec.files.names import STATE
from taskvec.host import cores
from taskvec.plan.document import from_file, to_file
from taskvec.plan.part import Part, units
from taskvec.plan.plan import PlanRecord
from taskvec.progress import Callback, Progress
from taskvec.report.report import Report
from taskvec.resolve.remote import materialised
from taskvec.resolve.storage import Storage, current, storage
from taskvec.run import finish as ending
from taskvec.run.deliver import deliver, sent_at
from taskvec.run.dispatch import run_part
from taskvec.run.finished import finished_run
from taskvec.run.inputs import input_rows
from taskvec.run.locked import paths_of
from taskvec.run.parts import admit, hold_divisible
from taskvec.run.shadow import named
from taskvec.run.shared_state import Records
from taskvec.run.sinks import is_address, open_sink
from taskvec.settings import Settings

Unit = tuple[int, ...]
LOCAL = "local"
# The driver writes no weight file: it takes the address of an output, and ends the run.
_DRIVER = Part(0, 2)
# Output of one task: enough to make the task worth it, little enough to lose.
_OF_A_TASK = 512 << 20
_TRIES = 4
# The driver waits in steps, so that an interrupt is answered at once.
_STEP_SECONDS = 0.2
_PROBE_SECONDS = 120.0
_NOTICE_SECONDS = 40.0
_ANSWER_SECONDS = 10.0


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
        Of a checkpoint.
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
    hold_divisible(plan, settings)
    if is_address(out):
        return _deliver_on_ray(plan, str(out), address, settings, progress)
    out = Path(out).absolute()
    folders = ending.folders_of(plan, out)
    finished = finished_run(plan, folders, input_rows(plan.checkpoints), settings)
    if finished is not None:
        return finished
    checkpoints = [materialised(checkpoint, progress) for checkpoint in plan.checkpoints]
    with _connected(address):
        every = units(plan)
        admit(plan, out, folders, checkpoints, Part(0, len(every)))
        _probe(out, [*paths_of(checkpoints)])
        records = Records(plan, out, folders)
        is_missing = not ending.is_assembled(folders)
        missing = [unit for unit in every if is_missing and not records.has(unit, rehash=settings.rehash)]
        _run_tasks(plan, out, missing, settings, progress)
        return ending.finish(plan, out, checkpoints, settings, progress)


def _deliver_on_ray(
    plan: PlanRecord, out: str, address: str, settings: Settings, progress: Callback | None
) -> Report:
    """The same with an output at an address: every node reaches it by itself."""
    with _connected(address):
        # takes the address, or finds the run ended there
        begun = deliver(plan, out, part=_DRIVER, chosen=(), settings=settings, progress=progress)
        if begun.report is not None:
            return begun.report
        local = [checkpoint for checkpoint in plan.checkpoints if checkpoint.repository is None]
        _probe(out, paths_of(local))
        done = sent_at(plan, out)
        names = [[named(output.folder, shard.name) for output in plan.outputs] for shard in plan.shards]
        missing = [unit for unit in units(plan) if not all(n in done for each in unit for n in names[each])]
        _run_tasks(plan, out, missing, settings, progress)
        ended = deliver(plan, out, part=_DRIVER, chosen=(), settings=settings, progress=progress)
    if ended.report is None:
        raise OutputError(f"weight files of `{out}` are missing", "run the same command again: it goes on")
    return ended.report


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """A connection to the cluster; one that was there before stays."""
    if ray.is_initialized():
        yield
        return
    place: dict[str, Any] = {"num_cpus": cores()} if address == LOCAL else {"address": address}
    _hold_answers(address)
    try:
        ray.init(**place, include_dashboard=False if address == LOCAL else None, log_to_driver=False,
                 logging_level=logging.ERROR, configure_logging=True)  # fmt: skip
    except (RayError, ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise _unreachable(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _hold_answers(address: str) -> None:
    """Return if something answers at ``HOST:PORT``: Ray itself waits for it for many minutes.

    Raises
    ------
    OutputError
        Nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, error) from None


def _unreachable(address: str, error: Exception) -> OutputError:
    return OutputError(
        f"the Ray cluster at `{address}` cannot be reached: {' '.join(str(error).split())[:300]}",
        "`ray status` says whether it runs; `--ray` without an address starts one on this machine",
    )


def _probe(out: Path | str, inputs: Sequence[str]) -> None:
    """Return if every node sees the output folder and all inputs.

    Raises
    ------
    OutputError
        One does not; the message names it and what it lacks.
    """
    token = secrets.token_hex(8)
    mark: Path | None = None
    if isinstance(out, Path):
        mark = out / STATE / f"probe.{token}"
        mark.write_text(token, encoding="ascii")
    place = str(out if mark is None else mark)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        waiting = {}
        for node in nodes:
            where = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            task = _look.options(scheduling_strategy=where, num_cpus=0, max_retries=0)
            waiting[task.remote(place, token, list(inputs), dict(current().options))] = node
        pending = list(waiting)
        ends = time.monotonic() + _PROBE_SECONDS
        while pending and time.monotonic() < ends:
            done, pending = ray.wait(pending, timeout=_STEP_SECONDS)
            for ref in done:
                _hold_seen(waiting[ref], ref)
        if pending:
            raise OutputError(
                f"the node {_name(waiting[pending[0]])} does not answer",
                "`ray status` says what it does; remove it from the cluster, or wait until it is free",
            )
    finally:
        with contextlib.suppress(OSError):
            if mark is not None:
                mark.unlink()


@ray.remote
def _look(mark: str, token: str, inputs: list[str], options: dict[str, str]) -> str:
    """What a node does not see; empty if it sees all."""
    try:
        if is_address(mark):
            with storage(options):
                sink = open_sink(mark)
                if sink is not None:
                    sink.head()
            return _missing(inputs)
        with open(mark, encoding="ascii") as file:
            if file.read() != token:
                return f"another `{os.path.dirname(mark)}`"
    except OSError as error:
        if isinstance(error, Error):
            return f"not the output: {error.message}"
        return f"not the output folder `{os.path.dirname(os.path.dirname(mark))}` ({error.strerror})"
    return _missing(inputs)


def _missing(inputs: list[str]) -> str:
    for path in inputs:
        if not os.path.exists(path):
            return f"not the input `{path}`"
    return ""


def _hold_seen(node: dict[str, Any], ref: Any) -> None:
    try:
        lacks = ray.get(ref)
    except RayError as error:
        if not isinstance(error, RayTaskError) and _has_gone(node):
            return  # it died a moment ago, and its tasks run elsewhere
        raise OutputError(
            f"the node {_name(node)} cannot run a task: {' '.join(str(error).split())[-300:]}",
            "install the same version of taskvec on every node",
        ) from error
    if lacks:
        raise OutputError(
            f"the node {_name(node)} sees {lacks}",
            "put models and output on a file system that all nodes mount under one path",
        )


def _has_gone(node: dict[str, Any]) -> bool:
    """Whether the cluster notices, within its heartbeat, that a node has died."""
    ends = time.monotonic() + _NOTICE_SECONDS
    while time.monotonic() < ends:
        if not any(each["Alive"] for each in ray.nodes() if each["NodeID"] == node["NodeID"]):
            return True
        time.sleep(_STEP_SECONDS)
    return False


def _name(node: dict[str, Any]) -> str:
    return f"`{node['NodeManagerHostname']}` ({node['NodeManagerAddress']})"


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
    batches = list(_batches(plan, missing))
    reached = current()
    waiting = {write.remote(data, str(out), batch, settings, reached): batch for batch in batches}
    total, begin, done = sum(_bytes(plan, batch) for batch in batches), time.monotonic(), 0
    pending = list(waiting)
    try:
        while pending:
            ready, pending = ray.wait(pending, timeout=_STEP_SECONDS)
            for ref in ready:
                _hold_written(ref)
                done += _bytes(plan, waiting[ref])
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


def _bytes(plan: PlanRecord, batch: Sequence[Unit]) -> int:
    return sum(plan.shards[number].bytes for unit in batch for number in unit)


def _batches(plan: PlanRecord, missing: Sequence[Unit]) -> Iterator[list[Unit]]:
    """Units by tasks, the largest first: at least as many tasks as the cluster has room for."""
    rest = sorted(missing, key=lambda unit: (-_bytes(plan, [unit]), unit))
    room = max(int(ray.cluster_resources().get("CPU", 1)), 1)
    limit = min(_OF_A_TASK, sum(_bytes(plan, [unit]) for unit in rest) // room + 1)
    batch: list[Unit] = []
    for unit in rest:
        batch.append(unit)
        if _bytes(plan, batch) * len(plan.outputs) >= limit:
            yield batch
            batch = []
    if batch:
        yield batch
