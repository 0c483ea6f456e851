"""A sweep on a real Ray cluster of two nodes on this machine: the records and the report of a local one."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.command_line import spawn
from support.evaluation_models import merge_with_torch, small, tiny
from support.evaluation_records import arms_of
from support.ray_cluster import two_nodes
from taskvec.errors import EvaluationError
from taskvec.evaluation.sweep.events import Event
from taskvec.evaluation.sweep.sweep import run_sweep

pytestmark = pytest.mark.timeout(900)

FEW: dict[str, Any] = {
    "alphas": [1],
    "perturb": [],
    "controls": {"random": 1, "permuted": 0},
    "base": None,
}


def report_of(out: Path) -> dict[str, Any]:
    report = json.loads((out / "report.json").read_text())
    return {key: report[key] for key in ("comparisons", "conclusions")}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes() as made:
        yield made


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweep") / "out"
    whole = small(**FEW)
    run_sweep(whole, out, merge=merge_with_torch(whole))
    return out


def sweep(out: Path, cluster: Any, **more: Any) -> list[Event]:
    whole, events = small(**FEW), list[Event]()
    run_sweep(whole, out, merge=merge_with_torch(whole), ray=cluster.address, progress=events.append, **more)
    return events


def test_arms_on_two_nodes_are_one_sweep(one: Path, cluster: Any, tmp_path: Path) -> None:
    events = sweep(tmp_path / "out", cluster)
    assert arms_of(tmp_path / "out") == arms_of(one)
    assert report_of(tmp_path / "out") == report_of(one)
    assert sum(event.kind == "done" for event in events) == len(arms_of(one))
    assert any(event.kind == "progress" for event in events)
    assert not (tmp_path / "out" / ".taskvec").exists()
    again = sweep(tmp_path / "out", cluster)
    assert {event.arm for event in again if event.kind == "known"} == set(arms_of(one))


def test_a_worker_that_is_killed_is_replaced(one: Path, cluster: Any, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill() -> None:
        """The first process of the cluster that is at an arm."""
        ends = time.monotonic() + 300
        while time.monotonic() < ends and not killed:
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    title = (process / "cmdline").read_bytes()
                except OSError:
                    continue
                if title.startswith(b"ray::_evaluate"):
                    os.kill(int(process.name), signal.SIGKILL)
                    killed.append(int(process.name))
                    break
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    sweep(tmp_path / "out", cluster)
    thread.join()
    assert killed
    assert arms_of(tmp_path / "out") == arms_of(one)
    assert report_of(tmp_path / "out") == report_of(one)


def test_an_interrupt_stops_and_the_same_call_goes_on_at_the_arm(
    one: Path, cluster: Any, tmp_path: Path
) -> None:
    whole, out = small(**FEW), tmp_path / "out"

    def stop(event: Event) -> None:
        if event.kind == "done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(whole, out, merge=merge_with_torch(whole), ray=cluster.address, progress=stop)
    done = set(arms_of(out))
    assert done
    assert not (out / "report.json").exists()
    events = sweep(out, cluster)
    assert {event.arm for event in events if event.kind == "known"} >= done
    assert arms_of(out) == arms_of(one)
    assert report_of(out) == report_of(one)


def test_what_cannot_be_is_said(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="excludes"):
        run_sweep(small(**FEW), tmp_path / "out", ray=cluster.address, jobs=2)
    file = tmp_path / "sweep.yaml"
    file.write_text(small(**FEW).to_yaml())
    outcome = spawn(["sweep", file, "-o", tmp_path / "out", "--ray", "127.0.0.1:1"])
    assert (outcome.code, "cannot be reached" in outcome.err) == (2, True)


def test_arms_in_place_and_parts_of_the_vector_are_those_of_one_machine(cluster: Any, tmp_path: Path) -> None:
    """Each node makes the arms in its own target; parts are merged by the driver into the shared folder."""
    evaluation = {"device": "cpu", "batch_size": 32, "include_path": str(tiny().tasks), "limit": 6}
    whole = small(**{**FEW, "parts": {"groups": 2, "sign": True}, "evaluation": evaluation})
    events: list[Event] = []
    run_sweep(whole, tmp_path / "here")
    run_sweep(whole, tmp_path / "there", ray=cluster.address, progress=events.append)
    assert arms_of(tmp_path / "there") == arms_of(tmp_path / "here")
    assert report_of(tmp_path / "there") == report_of(tmp_path / "here")
    arms = set(arms_of(tmp_path / "there"))
    assert {"alpha=1", "random-1"} <= arms
    assert "sign" in {arm.partition("@")[0] for arm in arms}
    merged = ",".join(event.arm for event in events if event.kind == "merge")
    assert "sign" in merged
    assert "alpha=1" not in merged.split(",")  # it was made in place
