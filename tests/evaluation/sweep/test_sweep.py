"""Whole sweeps through real lm-eval on tiny models: arms, resuming, scratch, several workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taskvec as tv
from support.evaluation_models import merge_with_torch, small, tiny, write_neighbour
from support.evaluation_records import arms_of
from support.models import read_tensors
from taskvec.errors import EvaluationError, OutputError, RecipeError
from taskvec.evaluation.analysis.conclusions import Choice
from taskvec.evaluation.arms import Arm, at_norm
from taskvec.evaluation.record import read_record
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.sweep import workers
from taskvec.evaluation.sweep.events import Event
from taskvec.evaluation.sweep.scratch import locked
from taskvec.evaluation.sweep.single import evaluate_model
from taskvec.evaluation.sweep.sweep import model_bytes, planned_arms, run_sweep, waiting_arms

ARMS = [
    "baseline", "alpha=0", "alpha=0.5", "alpha=1", "donor", "reference", "sft", "whole",
    "baseline~typo", "alpha={}~typo", "random-1", "random-2", "permuted-1", "sft@norm",
]  # fmt: skip


FEW: dict[str, Any] = {
    "alphas": [1],
    "perturb": [],
    "controls": {"random": 0, "permuted": 0},
    "base": None,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, list[str], list[Event]]:
    out = tmp_path_factory.mktemp("sweep") / "out"
    made: list[str] = []
    events: list[Event] = []
    whole = small()
    run_sweep(whole, out, merge=merge_with_torch(whole, made=made), progress=events.append)
    return out, made, events


def test_a_sweep_runs_every_arm_and_reports(undisturbed):
    out, made, events = undisturbed
    report = json.loads((out / "report.json").read_text())
    alpha = report["alpha"]["alpha"]
    assert [arm["name"] for arm in report["arms"]] == [name.format(f"{alpha:g}") for name in ARMS]
    assert {arm["name"]: arm["alpha"] for arm in report["arms"]}["random-1"] == alpha
    assert report["checks"] == [{"arm": "alpha=0", "against": "baseline", "samples": 24, "different": 0}]
    assert report["settings"]["development"] == {"share": 0.3, "seed": 1234}
    assert [gate["task"] for gate in report["gate"]] == ["tiny_choice"]
    assert report["norms"]["layers"] == [0, 1]
    assert report["commands"] == [f"taskvec sweep {out / 'experiment.yaml'} -o {out}"]
    for name in ("report.html", "report.md", "experiment.yaml"):
        assert (out / name).stat().st_size > 100
    # the arms of one weights are merged once in each stage
    assert made[:5] == ["alpha=0", "alpha=0.5", "alpha=1", "sft", "whole"]
    assert made[5:] == [
        f"alpha={alpha:g}",
        *(f"{kind}@{alpha:g}" for kind in ("random-1", "random-2", "permuted-1")),
        "sft@norm",
    ]
    assert events[0].kind == "plan"
    assert events[-1] == Event("done", "sft@norm", "", len(ARMS), len(ARMS))
    assert any(event.kind == "progress" and event.task == "tiny_choice" for event in events)


def norm(folder: Path) -> float:
    """The L2 norm of what a merge added to the target."""
    target = read_tensors(tiny().target)
    steps = (array.astype(np.float64) - target[name] for name, array in read_tensors(folder).items())
    return float(np.sqrt(sum(np.sum(step**2) for step in steps)))


def test_rivals_are_arms_at_a_factor_of_one_and_at_the_norm_of_the_chosen_vector(tmp_path):
    more = write_neighbour(tmp_path / "more" / "sft", tiny().reference, seed=5, step=0.05)
    less = write_neighbour(tmp_path / "less" / "sft", tiny().reference, seed=6, step=0.01)
    whole = small(
        perturb=[], alphas=[0.5], rivals=[str(more), str(less)], sft_alphas=[0.25], base=str(tiny().target),
        controls={"random": 1, "permuted": 1},
    )  # fmt: skip
    out = tmp_path / "out"
    report = run_sweep(whole, out, keep=True)
    names = [record.name for record in report.records]
    assert names == [
        "baseline", "alpha=0.5", "donor", "reference", "sft", "sft@0.25", "whole", "rival-sft", "rival-sft-2",
        "random-1", "permuted-1", "sft@norm", "rival-sft@norm", "rival-sft-2@norm",
    ]  # fmt: skip
    scratch = out / "scratch"
    wanted = norm(scratch / "alpha=0.5")
    for name in ("sft@norm", "rival-sft@norm", "rival-sft-2@norm"):
        assert norm(scratch / name) == pytest.approx(wanted, rel=1e-3)
    rival = {
        n: a.astype(np.float64) - read_tensors(tiny().reference)[n] for n, a in read_tensors(more).items()
    }
    target = read_tensors(tiny().target)
    for name, array in read_tensors(scratch / "rival-sft").items():
        np.testing.assert_allclose(array.astype(np.float64) - target[name], rival[name], atol=3e-7)
    assert {c.against for c in report.primary} == {
        "baseline", "random-1", "permuted-1", "sft", "sft@0.25", "sft@norm", "rival-sft", "rival-sft-2",
        "rival-sft@norm", "rival-sft-2@norm",
    }  # fmt: skip
    assert read_record(out / "arms" / "rival-sft-2.json").origin == "sft-2"
    again: list[Event] = []
    run_sweep(whole, out, keep=True, progress=again.append)
    assert {event.kind for event in again} == {"plan", "known"}


def test_a_rival_that_is_donor_or_reference_is_refused_before_anything_is_merged(tmp_path):
    for role in ("donor", "reference"):
        whole = small(rivals=[str(getattr(tiny(), role))])
        with pytest.raises(EvaluationError, match=f"is the {role} itself"):
            run_sweep(whole, tmp_path / role, merge=None)
        assert not list((tmp_path / role).rglob("*.safetensors"))
        assert arms_of(tmp_path / role) == {}


def test_each_alpha_that_is_chosen_has_controls_of_its_own():
    choice = Choice(0.5, "chosen on the development part", {}, {"a": 0.5, "b": 1.0})
    whole = small(perturb=[], rivals=["more"])
    arms = [arm for arm in planned_arms(whole) if arm.kind in ("sft", "rival")]
    matched = {alpha: [at_norm(arm, 0.3, alpha) for arm in arms] for alpha in (0.5, 1.0)}
    waiting = waiting_arms(whole, choice, matched)
    assert [arm.name for arm in waiting] == [
        f"{name}{end}" for alpha in ("0.5", "1")
        for name, end in (
            ("random-1", f"@{alpha}"), ("random-2", f"@{alpha}"), ("permuted-1", f"@{alpha}"),
            ("sft@norm", f"-{alpha}"), ("rival-more@norm", f"-{alpha}"),
        )
    ]  # fmt: skip
    assert {arm.alpha for arm in waiting if arm.kind == "random"} == {0.5, 1.0}


def test_merged_models_are_removed_and_what_was_measured_stays(undisturbed):
    out, _, _ = undisturbed
    assert not (out / "scratch").exists()
    assert not list(out.rglob("*.partial.jsonl"))
    facts = json.loads((out / "merges" / "alpha=0.5.json").read_text())
    assert facts["norms"]
    assert facts["identity"].startswith("merge:")


def test_finished_arms_are_not_run_again(undisturbed):
    out, _, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in (out / "arms").iterdir()}
    events: list[Event] = []

    def merge(*_: Any) -> Any:
        raise AssertionError("nothing is left to merge")

    again = run_sweep(small(), out, merge=merge, progress=events.append)
    assert {event.kind for event in events} == {"plan", "known"}
    assert {path: path.stat().st_mtime_ns for path in (out / "arms").iterdir()} == before
    assert len(again.records) == len(ARMS)


def test_an_arm_cut_short_is_run_again(undisturbed):
    out, _, _ = undisturbed
    whole = arms_of(out)
    path = out / "arms" / "alpha=1.json"
    path.write_bytes(path.read_bytes()[:200])
    made: list[str] = []
    run_sweep(small(), out, merge=merge_with_torch(small(), made=made))
    assert made == ["alpha=1"]
    assert arms_of(out) == whole


def test_other_settings_are_other_arms(undisturbed, tmp_path):
    import shutil

    out = Path(shutil.copytree(undisturbed[0], tmp_path / "out"))
    fewer = small(
        **FEW, evaluation={"device": "cpu", "batch_size": 32, "include_path": str(tiny().tasks), "limit": 12}
    )
    events: list[Event] = []
    report = run_sweep(fewer, out, merge=merge_with_torch(fewer), progress=events.append)
    assert "known" not in {event.kind for event in events}
    assert all(record.tasks["tiny_choice"].documents <= 12 for record in report.records)


def test_a_seed_of_a_control_is_part_of_its_weights(undisturbed):
    out, _, _ = undisturbed
    one, other = (read_record(out / "arms" / f"random-{n}.json") for n in (1, 2))
    assert one.weights != other.weights
    assert one.identity != other.identity


def test_an_arm_that_fails_leaves_the_others(tmp_path):
    out, whole = tmp_path / "out", small(alphas=[0.5, 1], perturb=[], controls={"random": 0, "permuted": 0})
    merge = merge_with_torch(whole)

    def broken(arms: Any, folder: Path) -> Any:
        made = merge(arms, folder)
        (folder / "alpha=1" / "tokenizer.json").unlink()
        return made

    with pytest.raises(EvaluationError, match="has no tokenizer"):
        run_sweep(whole, out, merge=broken)
    assert {"baseline", "donor", "reference", "alpha=0.5"} <= set(arms_of(out))
    assert not (out / "report.json").exists()
    made: list[str] = []
    run_sweep(whole, out, merge=merge_with_torch(whole, made=made))
    assert made == ["alpha=1", "sft", "whole", "sft@norm"]
    assert (out / "report.json").exists()


# --- scratch


def test_a_budget_keeps_few_models_at_a_time(tmp_path):
    whole = small(**{**FEW, "alphas": [0, 0.5, 1]})
    size = model_bytes(whole.target)
    most, merge = [0], merge_with_torch(whole)

    def counted(arms: Any, folder: Path) -> Any:
        made = merge(arms, folder)
        most[0] = max(most[0], sum(path.is_dir() for path in folder.iterdir()))
        return made

    out = tmp_path / "out"
    run_sweep(whole, out, merge=counted, scratch=tmp_path / "scratch", budget=2 * size + 1)
    assert most == [2]
    assert not (tmp_path / "scratch").exists()


def test_a_budget_below_one_model_is_refused(tmp_path):
    with pytest.raises(OutputError, match="one merged model takes") as error:
        run_sweep(small(), tmp_path / "out", merge=merge_with_torch(small()), budget=1000)
    assert "--scratch-budget" in (error.value.hint or "")


def test_keep_leaves_the_merged_models(tmp_path):
    whole = small(**FEW)
    made: list[str] = []
    for _ in range(2):
        run_sweep(whole, tmp_path / "out", merge=merge_with_torch(whole, made=made), keep=True)
        for path in (tmp_path / "out" / "arms").glob("alpha*"):
            path.unlink()
    assert (tmp_path / "out" / "scratch" / "alpha=1" / "model.safetensors").exists()
    assert made == ["alpha=1"]


# --- one at a time, and several


def test_a_second_sweep_in_the_same_folder_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(EvaluationError, match="another evaluation is writing"):
        run_sweep(small(), tmp_path, merge=merge_with_torch(small()))


def test_an_output_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="cannot write into"):
        run_sweep(small(), tmp_path / "file" / "out", merge=merge_with_torch(small()))


def test_workers_give_the_same_samples(undisturbed, tmp_path):
    whole, out = small(**FEW), tmp_path / "out"
    events: list[Event] = []
    run_sweep(whole, out, merge=merge_with_torch(whole), devices=("cpu", "cpu"), progress=events.append)
    here, there = arms_of(out), arms_of(undisturbed[0])
    assert set(here) == {"baseline", "alpha=1", "donor", "reference"}
    for name, arm in here.items():
        assert arm["samples"] == there[name]["samples"]
        assert arm["identity"] == there[name]["identity"]
    assert sum(event.kind == "done" for event in events) == len(here)
    assert any(event.kind == "progress" for event in events)


@pytest.mark.gpu
def test_workers_on_a_gpu_give_every_arm(tmp_path):  # on the CPU: test_workers_give_the_same_samples
    evaluation = {"batch_size": 32, "include_path": str(tiny().tasks)}
    whole = small(**{**FEW, "alphas": [0]}, evaluation=evaluation)
    report = run_sweep(whole, tmp_path / "out", merge=merge_with_torch(whole), devices=("0",))
    assert {record.environment["device"] for record in report.records} == {"cuda:0"}
    assert [(check.samples, check.different) for check in report.checks] == [(24, 0)]


def test_a_worker_that_dies_is_named_and_the_rest_goes_on(tmp_path, monkeypatch):
    whole = small(**FEW)
    pools: list[workers.Pool] = []
    begin = workers.Pool.__init__

    def watched(self: workers.Pool, *arguments: Any) -> None:
        begin(self, *arguments)
        pools.append(self)

    monkeypatch.setattr(workers.Pool, "__init__", watched)
    killed: list[str] = []

    def kill(event: Event) -> None:
        if event.kind == "progress" and not killed:
            worker = next(w for w in pools[0]._workers if w.job is not None and w.job.arm.name == event.arm)
            killed.append(event.arm)
            os.kill(worker.process.pid, signal.SIGKILL)

    with pytest.raises(EvaluationError, match="ended \\(exit code -9\\) while it evaluated arm") as error:
        run_sweep(
            whole, tmp_path / "out", merge=merge_with_torch(whole), devices=("cpu", "cpu"), progress=kill
        )
    assert killed[0] in str(error.value)
    assert killed[0] not in arms_of(tmp_path / "out")
    assert len(arms_of(tmp_path / "out")) == 3  # every other arm
    run_sweep(whole, tmp_path / "out", merge=merge_with_torch(whole))
    assert set(arms_of(tmp_path / "out")) == {"baseline", "donor", "reference", "alpha=1"}


def _die_and_leave_a_child(pipe: Any, note: Path) -> None:
    """A worker that ends in the middle of a job, while a process that it started holds its pipe open."""
    pipe.recv()
    child = os.fork()
    if child == 0:
        time.sleep(600)
    note.write_text(str(child))
    os._exit(3)


def test_a_worker_is_missed_though_its_child_holds_the_pipe(tmp_path):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_die_and_leave_a_child, args=(theirs, tmp_path / "child"))
    process.start()
    theirs.close()
    pool = workers.Pool(["cpu"], small().settings(), tmp_path)
    pool._workers = [workers._Worker(process, ours, "cpu")]
    job = workers.Job(Arm("one", "baseline"), "nowhere", "", "nowhere")
    with pool, pytest.raises(EvaluationError, match="ended \\(exit code 3\\) while it evaluated arm `one`"):
        pool.run([job], lambda *_: None, lambda _: None)
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)  # it held the pipe all the time


KILLED = """
import sys, time
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
from pathlib import Path
from support.evaluation_models import small
from support.evaluation_models import merge_with_torch
from taskvec.evaluation.experiment import load_experiment
from taskvec.evaluation.sweep.sweep import run_sweep
whole = load_experiment({experiment!r})
done = []
def seen(event):
    if event.kind == "done":
        done.append(event)
    if len(done) == 5:
        time.sleep(600)  # until it is killed
run_sweep(whole, Path({out!r}), merge=merge_with_torch(whole), progress=seen)
"""


def test_a_killed_sweep_goes_on_and_ends_as_an_undisturbed_one(undisturbed, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "sweep.yaml").write_text(small().to_yaml())
    script = KILLED.format(path=sys.path, experiment=str(tmp_path / "sweep.yaml"), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None and len(arms_of(out)) < 5:
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read().decode()[-2000:]
    process.kill()
    process.wait()
    process.stderr.close()
    done = set(arms_of(out))
    assert len(done) == 5 < len(ARMS)
    assert not (out / "report.json").exists()
    events: list[Event] = []
    run_sweep(small(), out, merge=merge_with_torch(small()), progress=events.append)
    assert {event.arm for event in events if event.kind == "known"} == done
    assert arms_of(out) == arms_of(undisturbed[0])
    assert not (out / "scratch").exists()
    here, there = (json.loads((folder / "report.json").read_text()) for folder in (out, undisturbed[0]))
    assert here["comparisons"] == there["comparisons"]
    assert here["conclusions"] == there["conclusions"]


def test_a_report_goes_before_arms_that_it_lacks(tmp_path):
    out, few = tmp_path / "out", {"perturb": [], "controls": {"random": 0, "permuted": 0}, "base": None}
    one, two = small(**few, alphas=[1]), small(**few, alphas=[0.5, 1])
    run_sweep(one, out, merge=merge_with_torch(one))
    assert (out / "report.html").exists()

    def stop(event: Event) -> None:
        if event.kind == "done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(two, out, merge=merge_with_torch(two), progress=stop)
    assert not list(out.glob("report.*"))
    run_sweep(two, out, merge=merge_with_torch(two))
    arms = json.loads((out / "report.json").read_text())["arms"]
    assert {"alpha=0.5", "alpha=1"} <= {arm["name"] for arm in arms}


# --- a model by itself


def test_models_in_one_folder_are_compared(tmp_path):
    models, out = tiny(), tmp_path / "out"
    settings = Settings(tasks=("tiny_choice",), device="cpu", batch_size=32, include_path=models.tasks)
    first = evaluate_model(models.target, settings, out, perturb=("typo",))
    assert [record.name for record in first.records] == ["target", "target~typo"]
    second = evaluate_model(models.donor, settings, out, kind="donor")
    assert [record.name for record in second.records] == ["target", "target~typo", "donor"]
    assert ("donor", "target") in {(c.arm, c.against) for c in second.comparisons}
    fewer = Settings(tasks=("tiny_choice",), device="cpu", batch_size=32, include_path=models.tasks, limit=3)
    with pytest.raises(EvaluationError, match="limit is None there, 3 here"):
        evaluate_model(models.reference, fewer, out, kind="reference")
    assert {path.stem for path in (out / "arms").glob("*.json")} == {"target", "target~typo", "donor"}


# --- in one call


def test_a_sweep_from_a_notebook(undisturbed, tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(small(**FEW).to_yaml())
    out = tmp_path / "out"
    report = tv.sweep(file, out=out, alphas=[0.5])
    assert [record.name for record in report.records] == ["baseline", "alpha=0.5", "donor", "reference"]
    assert list(report.to_frame()["arm"]) == [record.name for record in report.records]
    assert arms_of(out)["baseline"]["samples"] == arms_of(undisturbed[0])["baseline"]["samples"]
    with pytest.raises(RecipeError, match="`alphass`: no such key"):
        tv.sweep(file, out=out, alphass=[1])
    with pytest.raises(RecipeError, match="a sweep goes to a folder"):
        tv.sweep(file, out="s3://bucket/out")
