"""The nodes of a Ray cluster: connecting, and finding out whether each sees what it is to read and write."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from taskvec.errors import Error, OutputError
from taskvec.files import look
from taskvec.files.names import STATE
from taskvec.host import cores
from taskvec.resolve.open import reach
from taskvec.resolve.stage import remote_of
from taskvec.resolve.storage import current, storage
from taskvec.run.inputs import Source
from taskvec.run.sinks import is_address, open_sink

LOCAL = "local"
# The driver waits in steps, so that an interrupt is answered at once.
STEP_SECONDS = 0.2
_PROBE_SECONDS = 120.0
_NOTICE_SECONDS = 40.0
_ANSWER_SECONDS = 10.0


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to the cluster; one that was there before stays."""
    if ray.is_initialized():
        yield
        return
    place: dict[str, Any] = {"num_cpus": cores()} if address == LOCAL else {"address": address}
    _hold_answers(address)
    try:
        ray.init(**place, include_dashboard=False if address == LOCAL else None, log_to_driver=False,
                 logging_level=logging.ERROR, configure_logging=True)  # fmt: skip
    except Exception as error:  # a node that is slow to start ends in one without a type of its own
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


def probe(out: Path | str, inputs: Sequence[str], sources: Sequence[Source]) -> None:
    """Return if every node sees the output, and all inputs: files by their paths, others at their addresses.

    Raises
    ------
    OutputError
        One does not; the message names it and what it lacks.
    """
    token = secrets.token_hex(8)
    mark: Path | None = None
    if isinstance(out, Path):
        mark = out / STATE / f"probe.{token}"
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(token, encoding="ascii")
    place = str(out if mark is None else mark)
    remotes = [remote.identity for each in sources if (remote := remote_of(each)) is not None]
    far = [(each.address, each.revision) for each in remotes]
    try:
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        waiting = {}
        for node in nodes:
            where = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            task = _look.options(scheduling_strategy=where, num_cpus=0, max_retries=0)
            waiting[task.remote(place, token, list(inputs), far, dict(current().options))] = node
        pending = list(waiting)
        ends = time.monotonic() + _PROBE_SECONDS
        while pending and time.monotonic() < ends:
            done, pending = ray.wait(pending, timeout=STEP_SECONDS)
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
def _look(
    mark: str, token: str, inputs: list[str], far: list[tuple[str, str]], options: dict[str, str]
) -> str:
    """What a node does not see; empty if it sees all."""
    with storage(options):
        try:
            if is_address(mark):
                sink = open_sink(mark)
                if sink is not None:
                    sink.head()
            else:
                with open(mark, encoding="ascii") as file:
                    if file.read() != token:
                        return f"another `{os.path.dirname(mark)}`"
        except OSError as error:
            if isinstance(error, Error):
                return f"not the output: {error.message}"
            return f"not the output folder `{os.path.dirname(os.path.dirname(mark))}` ({error.strerror})"
        return _missing(inputs) or _unlike(far)


def _unlike(far: list[tuple[str, str]]) -> str:
    """What a node finds of inputs at addresses that is not as the driver has seen it."""
    for address, revision in far:
        try:
            found = reach(address, None, lambda _, __: "", lambda _, remote: remote.identity.revision)
        except Error as error:
            return f"not the input `{address}`: {error.message}"
        if found != revision:
            return f"another state of the input `{address}`"
    return ""


def _missing(inputs: list[str]) -> str:
    """What a node does not find of inputs in folders, or cannot look at."""
    for path in inputs:
        try:
            if not look.exists(path):
                return f"not the input `{path}`"
        except Error as error:
            return f"not the input `{path}`: {error.message}"
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
            "put models and output on a file system that all nodes mount under one path, or at addresses "
            "that every node reaches, with credentials in its environment or by --storage-option",
        )


def _has_gone(node: dict[str, Any]) -> bool:
    """Whether the cluster notices, within its heartbeat, that a node has died."""
    ends = time.monotonic() + _NOTICE_SECONDS
    while time.monotonic() < ends:
        if not any(each["Alive"] for each in ray.nodes() if each["NodeID"] == node["NodeID"]):
            return True
        time.sleep(STEP_SECONDS)
    return False


def _name(node: dict[str, Any]) -> str:
    return f"`{node['NodeManagerHostname']}` ({node['NodeManagerAddress']})"
