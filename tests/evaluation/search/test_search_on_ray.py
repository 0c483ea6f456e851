"""A search on a real Ray cluster of two nodes on this machine: the trace of a local one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from support.ray_cluster import two_nodes
from support.search_spaces import transfer_space
from taskvec.evaluation.sweep.events import Event

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes() as made:
        yield made


def report_of(out: Path) -> dict[str, Any]:
    report = json.loads((out / "report.json").read_text())
    rows = [*report["trace"], *report["random"], *report["plain"], report["baseline"]]
    trace = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return {"trace": trace, "verdicts": report["verdicts"]}


def test_candidates_on_two_nodes_are_one_search(cluster: Any, tmp_path: Path) -> None:
    tv.search(transfer_space(), tmp_path / "local")
    events: list[Event] = []
    tv.search(transfer_space(), tmp_path / "out", ray=cluster.address, progress=events.append)
    assert report_of(tmp_path / "out") == report_of(tmp_path / "local")
    assert (tmp_path / "out" / "best.yaml").read_bytes() == (tmp_path / "local" / "best.yaml").read_bytes()
    assert sum(event.kind == "done" for event in events) == 13
