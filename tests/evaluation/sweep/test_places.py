"""Sweeps with arms in place and with merged arms: one result, whatever begins it and whatever ends it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import taskvec as tv
from support.evaluation_models import small, tiny, write_neighbour
from support.evaluation_records import arms_of
from taskvec.errors import OutputError
from taskvec.evaluation.sweep.events import Event
from taskvec.evaluation.sweep.merge import Merger
from taskvec.evaluation.sweep.sweep import run_sweep

TASKS = ["tiny_gen", "tiny_choice"]
CONTENT: dict[str, Any] = {"tasks": TASKS, "alphas": [0, 0.5, 1], "controls": {"random": 1, "permuted": 1}}


def swept(out: Path, **more: Any) -> list[Event]:
    run = {key: more.pop(key) for key in ("devices", "scratch", "budget") if key in more}
    events: list[Event] = []
    run_sweep(small(**{**CONTENT, **more}), out, progress=events.append, **run)
    return events


def report(out: Path) -> dict[str, Any]:
    content = json.loads((out / "report.json").read_text())
    content.pop("commands")
    for arm in content["arms"]:
        arm.pop("seconds")
    return content


def alike(one: Any, other: Any) -> bool:
    """Equal but for the last of six digits, which a sum in another order may have otherwise."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == (pytest.approx(other, rel=2e-5) if isinstance(one, float) else other)


def facts(out: Path) -> dict[str, Any]:
    """What was measured of each merge, but for where it lay and the words of its findings."""
    found = {path.stem: json.loads(path.read_text()) for path in (out / "merges").glob("*.json")}
    for content in found.values():
        content.pop("folder")
        content["findings"] = [each["id"] for each in content["findings"]]
    return found


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "out"
    events = swept(out, arms="merged")
    assert any(event.kind == "merge" for event in events)
    return out


def test_arms_in_place_have_the_samples_of_merged_ones(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("nothing is to be merged")

    monkeypatch.setattr(Merger, "__call__", refuse)
    out = tmp_path / "out"
    # no room for a single merged model is asked for
    events = swept(out, scratch=tmp_path / "scratch", budget=10)
    notes = [event.arm for event in events if event.kind in ("merge", "note")]
    assert not [note for note in notes if "lie in memory" not in note]  # where tests write to memory
    assert not (tmp_path / "scratch").exists()
    assert arms_of(out) == arms_of(merged)
    assert alike(report(out), report(merged))
    assert alike(facts(out), facts(merged))


def test_rivals_in_place_have_the_samples_and_norms_of_merged_ones(tmp_path: Path) -> None:
    rival = write_neighbour(tmp_path / "more", tiny().reference, seed=5, step=0.05)
    few = {"tasks": ["tiny_choice"], "alphas": [0.5], "perturb": [], "controls": {"random": 0, "permuted": 0}}
    outs = [tmp_path / arms for arms in ("merged", "place")]
    for out in outs:
        events = swept(out, **few, arms=out.name, rivals=[str(rival)], sft_alphas=[-1, 0.25])
        assert not [event.arm for event in events if event.kind == "note"]
        assert any(event.kind == "merge" for event in events) is (out.name == "merged")
    made = {"sft", "sft@-1", "sft@0.25", "sft@norm", "whole", "rival-more", "rival-more@norm", "alpha=0.5"}
    assert set(arms_of(outs[1])) == made | {"baseline", "donor", "reference"}
    assert arms_of(outs[1]) == arms_of(outs[0])
    assert facts(outs[1]).keys() == made
    assert alike(facts(outs[1]), facts(outs[0]))
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny().reference, rival))
    for name, norm in facts(outs[1])["rival-more@norm"]["norms"].items():
        assert norm == pytest.approx(np.linalg.norm(after[name].astype(np.float64) - before[name]), rel=1e-4)


def test_a_rival_that_is_not_plain_is_merged_and_a_note_says_so(tmp_path: Path) -> None:
    rival = write_neighbour(tmp_path / "more", tiny().reference, seed=5, step=0.05)
    tv.convert(rival, tmp_path / "packed", out_dtype="int8-channel")
    few = {"tasks": ["tiny_choice"], "alphas": [1], "perturb": [], "base": None}
    out = tmp_path / "out"
    events = swept(
        out, **few, controls={"random": 0, "permuted": 0}, rivals=[str(tmp_path / "packed")],
        merge={"force": ["quantised-mixed"]},
    )  # fmt: skip
    rivals = ["rival-packed", "rival-packed@norm"]
    assert [event.arm.split("`")[1] for event in events if event.kind == "note"] == rivals
    assert [event.arm for event in events if event.kind == "merge"] == rivals
    assert facts(out).keys() == {"alpha=1", *rivals}
    assert all(each["norms"] for each in facts(out).values())


def test_workers_make_arms_in_place(merged: Path, tmp_path: Path) -> None:
    events = swept(tmp_path / "out", devices=("cpu", "cpu"))
    assert not [event for event in events if event.kind == "merge"]
    assert arms_of(tmp_path / "out") == arms_of(merged)


def test_parts_of_the_vector_are_merged_and_all_else_is_made_in_place(tmp_path: Path) -> None:
    parts = {"sign": True, "groups": 2, "between": [0.5]}
    few = {"tasks": ["tiny_gen"], "alphas": [1], "perturb": [], "parts": parts}
    evaluation = {"device": "cpu", "batch_size": 32, "include_path": str(tiny().tasks), "samples": 2}
    given = {**few, "controls": {"random": 1, "permuted": 0}, "evaluation": evaluation}
    events = swept(tmp_path / "place", **given)
    words = "8 parts of the vector: merged into a folder, one by one"
    assert words in [event.arm for event in events if event.kind == "note"]
    merges = {name for event in events if event.kind == "merge" for name in event.arm.split(",")}
    assert merges >= {"sign@1", "only-outside@1", "between=0.5"}
    assert "alpha=1" not in merges
    swept(tmp_path / "merged", **given, arms="merged")
    assert arms_of(tmp_path / "place") == arms_of(tmp_path / "merged")
    assert alike(report(tmp_path / "place"), report(tmp_path / "merged"))
    found = report(tmp_path / "place")
    assert found["parts"]["tests"] == 16  # 7 parts and a point between, against two arms each
    assert {row["arm"] for row in found["draws"]} >= {"baseline", "alpha=1", "random-1"}
    assert not (tmp_path / "place" / "scratch").exists()


def test_a_budget_below_one_part_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="scratch budget"):
        swept(tmp_path / "out", parts={"sign": True}, budget=10)
    assert not arms_of(tmp_path / "out")


@pytest.mark.parametrize(("first", "then"), [("place", "merged"), ("merged", "place")])
def test_a_sweep_that_was_begun_one_way_goes_on_the_other(
    first: str, then: str, merged: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    # another alpha is chosen in it, whose perturbed arm would stay
    swept(out, arms=first, alphas=[0, 1], controls={"random": 0, "permuted": 0}, perturb=[])
    events = swept(out, arms=then)
    assert "alpha=1" in {event.arm for event in events if event.kind == "known"}
    assert arms_of(out) == arms_of(merged)
    assert alike(report(out), report(merged))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"merge": {"out_dtype": "bfloat16"}}, "--out-dtype"),
        ({"merge": {"rounding": "stochastic"}}, "rounding is stochastic"),
        ({"evaluation": {"model_args": {"trust_remote_code": False}}}, "--model-arg trust_remote_code"),
    ],
)
def test_what_is_not_known_to_be_safe_is_merged(more: dict[str, Any], why: str, tmp_path: Path) -> None:
    settings = {"device": "cpu", "batch_size": 32, "include_path": str(tiny().tasks)}
    given = {**more, "evaluation": {**settings, **more.get("evaluation", {})}}
    few = {"tasks": ["tiny_choice"], "alphas": [1], "perturb": [], "base": None}
    events = swept(tmp_path / "out", **few, controls={"random": 0, "permuted": 0}, **given)
    assert [why in event.arm for event in events if event.kind == "note"] == [True]
    assert any(event.kind == "merge" for event in events)
    assert set(arms_of(tmp_path / "out")) == {"baseline", "donor", "reference", "alpha=1"}


KILLED = """
import sys, time
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
from pathlib import Path
from taskvec.evaluation.experiment import load_experiment
from taskvec.evaluation.sweep.sweep import run_sweep
done = []
def seen(event):
    if event.kind == "done":
        done.append(event)
    if len(done) == 3:
        time.sleep(600)  # until it is killed
run_sweep(load_experiment({experiment!r}), Path({out!r}), progress=seen)
"""


def test_a_killed_sweep_goes_on_in_place(merged: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "sweep.yaml").write_text(small(**CONTENT).to_yaml())
    script = KILLED.format(path=sys.path, experiment=str(tmp_path / "sweep.yaml"), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None and len(arms_of(out)) < 3:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert len(arms_of(out)) == 3 < len(arms_of(merged))
    swept(out)
    assert arms_of(out) == arms_of(merged)
