"""Output folders that hold results of other models: refused, and nothing of them is lost."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.evaluation_models import small, tiny, write_model, write_neighbour
from taskvec.errors import CompatibilityError, EvaluationError, RecipeError
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.sweep.events import Event
from taskvec.evaluation.sweep.single import evaluate_model
from taskvec.evaluation.sweep.sweep import run_sweep

FEW: dict[str, Any] = {
    "alphas": [1],
    "perturb": [],
    "controls": {"random": 0, "permuted": 0},
    "base": None,
}
EVALUATION = {"device": "cpu", "include_path": str(tiny().tasks)}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("role", ["target", "donor", "reference"])
def test_a_sweep_of_other_models_does_not_replace_results(role, tmp_path):
    out = tmp_path / "out"
    run_sweep(small(**FEW), out)
    before = contents(out)
    other = write_neighbour(tmp_path / "other", tiny().reference, seed=9, step=0.03)
    with pytest.raises(EvaluationError, match=f"holds the sweep of another {role}") as error:
        run_sweep(small(**{**FEW, role: str(other)}), out)
    assert "-o" in (error.value.hint or "")
    assert contents(out) == before


def test_a_sweep_that_cannot_be_read_is_not_replaced(tmp_path, monkeypatch):
    out = tmp_path / "out"
    run_sweep(small(**FEW), out)
    before, opened = contents(out), os.open

    def refused(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if str(path) == str(out / "experiment.yaml") and not flags & os.O_WRONLY:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, flags, *rest, **more)

    other = write_neighbour(tmp_path / "other", tiny().reference, seed=9, step=0.03)
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(RecipeError, match="cannot be read"):
        run_sweep(small(**{**FEW, "donor": str(other)}), out)
    monkeypatch.undo()
    assert contents(out) == before


def test_models_at_another_place_are_the_same_models(tmp_path):
    out, events = tmp_path / "out", list[Event]()
    run_sweep(small(**FEW), out)
    moved = shutil.copytree(tiny().donor, tmp_path / "moved")
    run_sweep(small(**{**FEW, "donor": str(moved)}), out, progress=events.append)
    assert {event.kind for event in events} == {"plan", "known"}


def test_a_model_that_changed_under_its_name_is_evaluated_again(tmp_path):
    out, events = tmp_path / "out", list[Event]()
    donor = write_neighbour(tmp_path / "donor", tiny().reference, seed=9, step=0.03)
    run_sweep(small(**{**FEW, "donor": str(donor)}), out)
    shutil.rmtree(donor)
    write_neighbour(donor, tiny().reference, seed=10, step=0.03)
    run_sweep(small(**{**FEW, "donor": str(donor)}), out, progress=events.append)
    assert {event.arm for event in events if event.kind == "done"} == {"donor", "alpha=1"}


def test_a_second_model_of_the_same_name_does_not_replace_the_first(tmp_path):
    out = tmp_path / "out"
    settings = Settings(tasks=("tiny_choice",), include_path=tiny().tasks, limit=4, device="cpu")
    one = shutil.copytree(tiny().target, tmp_path / "one" / "checkpoint-10")
    two = shutil.copytree(tiny().donor, tmp_path / "two" / "checkpoint-10")
    evaluate_model(one, settings, out)
    before = contents(out)
    with pytest.raises(EvaluationError, match="is of another model") as error:
        evaluate_model(two, settings, out)
    assert "--name" in (error.value.hint or "")
    assert contents(out) == before
    report = evaluate_model(two, settings, out, name="second")
    assert [(record.name, record.kind) for record in report.records] == [
        ("checkpoint-10", "baseline"),
        ("second", "vector"),
    ]
    assert ("second", "checkpoint-10") in {(c.arm, c.against) for c in report.comparisons}
    # one that was trained further under its name is evaluated again
    shutil.rmtree(one)
    shutil.copytree(tiny().reference, one)
    again = evaluate_model(one, settings, out)
    assert again.records[0].weights not in {record.weights for record in report.records}


def test_two_baselines_are_refused_before_the_second_is_asked(tmp_path):
    out, events = tmp_path / "out", list[Event]()
    settings = Settings(tasks=("tiny_choice",), include_path=tiny().tasks, limit=4, device="cpu")
    evaluate_model(tiny().target, settings, out)
    with pytest.raises(EvaluationError, match="both are baselines") as error:
        evaluate_model(tiny().donor, settings, out, kind="baseline", progress=events.append)
    assert "--as vector" in (error.value.hint or "")
    assert events == []
    evaluate_model(tiny().donor, settings, out, kind="donor")
    # another part in the experiment does not change an answer
    report = evaluate_model(tiny().donor, settings, out, kind="vector", alpha=1.0, progress=events.append)
    assert [event.kind for event in events] == ["known"]
    assert [(record.kind, record.alpha) for record in report.records] == [("baseline", None), ("vector", 1.0)]
    # neither does another order, and what a model was called stays where nothing else is asked for
    first = evaluate_model(tiny().target, settings, out)
    assert [record.kind for record in first.records] == ["baseline", "vector"]
    again = evaluate_model(tiny().donor, settings, out)
    assert [(record.kind, record.alpha) for record in again.records] == [("baseline", None), ("vector", 1.0)]


def test_what_fails_before_its_first_arm_leaves_no_folder(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = Settings(tasks=("tiny_choice",), include_path=tiny().tasks, limit=4, device="cuda")
    with pytest.raises(EvaluationError, match="no GPU"):
        evaluate_model(tiny().target, settings, tmp_path / "eval")
    with pytest.raises(EvaluationError, match="none is in the development part"):
        run_sweep(
            small(
                **{**FEW, "alphas": [0.5, 1], "evaluation": {"include_path": str(tiny().tasks), "limit": 1}}
            ),
            tmp_path / "sweep",
        )
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(EvaluationError, match="no GPU"):
        evaluate_model(tiny().target, settings, tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()


@pytest.mark.parametrize("arms", ["place", "merged"])
@pytest.mark.parametrize(
    ("role", "said"),
    [
        ("rivals", "`rival-narrow` adds donor − reference, here `.*narrow` − `.*reference`"),
        ("base", "`sft` adds donor − reference, here `.*reference` − `.*narrow`"),
        ("also", "`other` adds `.*narrow` − `.*reference`"),
    ],
)
def test_every_vector_is_seen_to_fit_before_the_first_arm(role, said, arms, tmp_path):
    narrow, events = write_model(tmp_path / "narrow", hidden=16), list[Event]()
    given = {"rivals": [str(narrow)], "base": str(narrow), "also": str(narrow)}[role]
    more = {"parts": {"also": given}} if role == "also" else {role: given}
    with pytest.raises(CompatibilityError, match=said) as error:
        run_sweep(small(**{**FEW, **more, "arms": arms}), tmp_path / "out", progress=events.append)
    assert any(finding.id == "shape" for finding in error.value.findings)
    assert not {event.kind for event in events} & {"start", "merge"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"parts": {"groups": 3}}, "3 groups are asked for, and the vector has 2 layers"),
        (
            {"parts": {"modules": True}, "merge": {"include": ["self_attn"]}},
            "arm `all-but-attention` adds no tensor",
        ),
    ],
)
def test_groups_without_tensors_are_seen_before_the_first_arm(more, said, tmp_path):
    with pytest.raises((EvaluationError, RecipeError), match=said):
        run_sweep(small(**{**FEW, **more}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
