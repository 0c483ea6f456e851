"""Data sets fetched from a local hub in the schemas of the public one, and used without a network."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import data_hub, paper_tasks
from support.evaluation_models import tiny
from support.hub_server import Hub
from taskvec.cli import run as command_line
from taskvec.errors import EvaluationError, HubError, NotFoundError
from taskvec.evaluation.backend.evaluate import document_hashes
from taskvec.evaluation.experiment import experiment
from taskvec.evaluation.settings import PAPER_TASKS, Settings
from taskvec.evaluation.sweep.single import evaluate_model
from taskvec.evaluation.sweep.sweep import run_sweep
from taskvec.evaluation.tasks import served
from taskvec.evaluation.tasks.fetch import fetch
from taskvec.evaluation.tasks.fetched import LIST

PAPER = ("gsm8k", "humaneval", "sciq", "bbh")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has the paper's data sets, and an empty cache."""
    from huggingface_hub import constants

    with Hub() as server:
        server.repos.update(data_hub.repositories())
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No connection, and nothing in any cache: a machine that has the folder alone."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something asks for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setattr(served, "_loaded", {})


def settings(data: Path, *tasks: str, **more: Any) -> Settings:
    return Settings(
        tasks=tasks or PAPER_TASKS, data=data, device="cpu", allow_unsafe_code=True, max_gen_toks=8,
        batch_size=8, limit=2, **more,
    )  # fmt: skip


def test_every_file_arrives_and_none_comes_twice(hub: Hub, tmp_path: Path) -> None:
    arrived = fetch(PAPER, tmp_path / "data")
    assert [each.repository for each in arrived] == [
        data_hub.GSM8K, data_hub.HUMANEVAL, data_hub.CODE_EVAL, data_hub.SCIQ, data_hub.BBH,
    ]  # fmt: skip
    for repository, repo in hub.repos.items():
        for name, content in repo.files.items():
            is_data = name.endswith((".parquet", ".py") if repository == data_hub.CODE_EVAL else ".parquet")
            path = tmp_path / "data" / repository / name
            assert path.is_file() == (is_data or name == "README.md"), path
            assert not path.is_file() or path.read_bytes() == content
    assert not list((tmp_path / "data").rglob(".cache"))
    hub.requests.clear()
    again = fetch(PAPER, tmp_path / "data")
    assert not hub.requests
    assert [(each.repository, each.came) for each in again] == [(each.repository, 0) for each in arrived]


def test_the_paper_s_tasks_run_in_every_arm_from_the_folder_alone(
    hub: Hub, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    fetch(PAPER, tmp_path / "data")
    hub.__exit__()
    request.getfixturevalue("away")
    models = tiny()
    whole = experiment(
        {
            "target": str(models.target), "donor": str(models.donor), "reference": str(models.reference),
            "base": str(models.target), "alphas": [1], "tasks": list(PAPER_TASKS), "think": True,
            "development": 0.5, "controls": {"random": 1, "permuted": 1},
            "evaluation": {
                "device": "cpu", "batch_size": 16, "max_gen_toks": 4, "data": str(tmp_path / "data"),
                "confirm_run_unsafe_code": True,
            },
        }
    )  # fmt: skip
    report = run_sweep(whole, tmp_path / "out")
    assert {record.kind for record in report.records} == {
        "baseline", "vector", "donor", "reference", "sft", "whole", "random", "permuted",
    }  # fmt: skip
    assert set(report.tasks) == set(PAPER_TASKS)
    for record in report.records:
        assert set(record.scores) == set(PAPER_TASKS), record.name


@pytest.mark.usefixtures("hub")
def test_the_folder_gives_the_documents_of_the_hub(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    fetch(("gsm8k", "sciq"), tmp_path / "data")
    request.getfixturevalue("away")
    with pytest.MonkeyPatch.context() as patch:
        paper_tasks.install(patch)
        expected = document_hashes(Settings(tasks=("gsm8k", "sciq"), device="cpu"))
    found = document_hashes(Settings(tasks=("gsm8k", "sciq"), device="cpu", data=tmp_path / "data"))
    assert found == expected


@pytest.mark.usefixtures("hub")
def test_a_fetched_folder_is_taken_as_hf_datasets_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    fetch(["sciq"], tmp_path / "data")
    request.getfixturevalue("away")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "data"))
    report = evaluate_model(
        str(tiny().target),
        Settings(tasks=("sciq",), device="cpu", limit=2),
        tmp_path / "out",
        kind="baseline",
    )
    assert report.records[0].scores["sciq"]


# --- interruptions and damage
def test_an_interrupted_fetch_goes_on_with_what_is_right(hub: Hub, tmp_path: Path) -> None:
    hub.faults.status["main/test-00000-of-00001.parquet"] = 500
    with pytest.raises(HubError, match="500"):
        fetch(["gsm8k"], tmp_path / "data")
    assert not (tmp_path / "data" / LIST).exists()
    hub.faults.status.clear()
    hub.requests.clear()
    (arrived,) = fetch(["gsm8k"], tmp_path / "data")
    assert 0 < arrived.came < arrived.files


def test_an_update_of_the_hub_in_between_does_not_mix_two_states(hub: Hub, tmp_path: Path) -> None:
    fetch(["sciq"], tmp_path / "data")
    first = json.loads((tmp_path / "data" / LIST).read_text())["repositories"][data_hub.SCIQ]["commit"]
    old = hub.repos[data_hub.SCIQ]
    new = data_hub.repositories(rows=7)[data_hub.SCIQ]
    new.commit, new.branches = "f" * 40, {"old": (old.commit, old.files)}
    hub.repos[data_hub.SCIQ] = new
    (tmp_path / "data" / data_hub.SCIQ / "data/test-00000-of-00001.parquet").unlink()
    (arrived,) = fetch(["sciq"], tmp_path / "data")
    assert (arrived.commit, arrived.came) == (first, 1)


def test_a_file_that_is_not_as_listed_is_refused_and_not_kept(hub: Hub, tmp_path: Path) -> None:
    name = "data/test-00000-of-00001.parquet"
    hub.faults.content[name] = hub.repos[data_hub.SCIQ].files[name][:-1] + b"?"
    with pytest.raises(HubError, match=r"not the file that the hub lists|could not be fetched|Consistency"):
        fetch(["sciq"], tmp_path / "data")
    assert not (tmp_path / "data" / data_hub.SCIQ / name).exists()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("how", ["changed", "missing"])
def test_a_folder_that_has_changed_is_not_evaluated_with(how: str, tmp_path: Path) -> None:
    fetch(["sciq"], tmp_path / "data")
    path = tmp_path / "data" / data_hub.SCIQ / "data/test-00000-of-00001.parquet"
    if how == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    else:
        path.unlink()
    with pytest.raises(EvaluationError, match=r"changed since it was fetched|is missing") as caught:
        document_hashes(settings(tmp_path / "data", "sciq"))
    assert "tasks fetch" in caught.value.hint


# --- refusals
@pytest.mark.usefixtures("hub")
def test_data_that_are_not_in_the_folder_are_named(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    fetch(["sciq"], tmp_path / "data")
    request.getfixturevalue("away")
    with pytest.raises(EvaluationError, match="`datasets/openai/gsm8k` are not in") as caught:
        document_hashes(settings(tmp_path / "data", "gsm8k"))
    assert "tasks fetch" in caught.value.hint
    # the metric comes first where lm-eval's module of the task has not been imported yet
    first = "`(spaces/evaluate-metric/code_eval|datasets/openai/openai_humaneval)` are not in"
    with pytest.raises(EvaluationError, match=first):
        document_hashes(settings(tmp_path / "data", "humaneval"))


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not a folder"):
        document_hashes(settings(tmp_path / "none", "sciq"))
    with pytest.raises(EvaluationError, match="holds no fetched data"):
        document_hashes(settings(tmp_path, "sciq"))


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        ("gsm8", "no data set is known for `gsm8`", "gsm8k"),
        ("zzzz", "no data set is known for `zzzz`", "taskvec tasks"),
    ],
)
def test_an_unknown_task_is_refused_before_anything_is_asked(
    names: str, message: str, hint: str, hub: Hub, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match=message) as caught:
        fetch(["sciq", names], tmp_path / "data")
    assert hint in caught.value.hint
    assert not hub.requests
    assert not (tmp_path / "data").exists()


def test_a_gated_data_set_and_no_network_have_their_way_out(hub: Hub, tmp_path: Path) -> None:
    hub.repos[data_hub.SCIQ].gated = True
    with pytest.raises(HubError, match="access to `datasets/allenai/sciq` is gated") as caught:
        fetch(["sciq"], tmp_path / "data")
    assert "licence" in caught.value.hint
    hub.__exit__()
    with pytest.raises(HubError, match="could not be fetched") as caught:
        fetch(["gsm8k"], tmp_path / "data")
    assert "connection" in caught.value.hint


@pytest.mark.usefixtures("hub")
def test_the_command_lists_and_fetches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["tasks", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tasks"]
    assert [row["name"] for row in rows] == list(PAPER)
    assert command_line(["tasks", "fetch", "sciq,bbh_cot_fewshot", "-o", str(tmp_path / "d")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "d")
    assert command_line(["tasks", "fetch", "sciq", "-o", str(tmp_path / "d"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fetched"][0]["came"] == 0
    assert command_line(["tasks", "fetch", "sciq"]) == 2
    assert command_line(["tasks", "get", "sciq"]) == 2
