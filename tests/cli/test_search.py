"""``taskvec search``: the plan, a whole run, and every mistake on one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from support.command_line import invoke
from support.search_spaces import transfer_space


def written(folder: Path, **more: object) -> Path:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(transfer_space(**more)))
    return path


def test_a_dry_run_says_what_will_be_run_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(capsys, "search", written(tmp_path), "-o", tmp_path / "out", "--dry-run")
    assert done.code == 0, done.err
    assert "alpha[0]    number  0 to 2  1" in done.out
    assert "13 models" in done.out
    assert "8 candidates of the search, 2 of random search" in done.out
    assert "not measured" in done.out
    assert "held out" in done.out
    assert not (tmp_path / "out").exists()
    done = invoke(
        capsys, "search", written(tmp_path), "-o", tmp_path / "out", "--dry-run", "--json", "--budget", 40
    )
    found = json.loads(done.out)
    assert found["forecast"]["candidates"] == 40
    assert found["forecast"]["seconds"] is None
    assert found["space"]["free"][0] == {
        "name": "alpha[0]", "kind": "number", "low": 0.0, "high": 2.0, "log": False, "start": 1.0,
    }  # fmt: skip


def test_a_search_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = written(tmp_path, compare={"random": 0, "alphas": [1]}), tmp_path / "out"
    done = invoke(capsys, "search", path, "-o", out, "--budget", 2)
    assert done.code == 0, done.err
    assert "candidate-0002: score " in done.err
    assert "(4 of 4)" in done.err
    assert "verdict" in done.out
    assert f"{out}/best.yaml" in done.out
    again = invoke(capsys, "search", out / "space.yaml", "-o", out, "--budget", 2, "--json")
    assert again.code == 0, again.err
    assert "4 candidates evaluated before" in again.err
    report = json.loads(again.out)["report"]
    assert [row["name"] for row in report["trace"]] == ["candidate-0001", "candidate-0002"]
    measured = invoke(capsys, "search", path, "-o", out, "--dry-run", "--json")
    assert json.loads(measured.out)["forecast"]["measured"] == 4
    merged = invoke(capsys, "merge", out / "best.yaml", tmp_path / "merged")
    assert merged.code == 0, merged.err
    other = invoke(capsys, "search", path, "-o", out, "--seed", 5)
    assert other.code == 2
    assert "of another search: optimiser differs" in other.err
    assert "--overwrite" in other.err


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (["absent.yaml", "-o", "out"], "`absent.yaml` is not found", ""),
        (["space.yaml", "-o", "s3://bucket/out"], "a search goes to a folder", "give a folder"),
        (["space.yaml", "-o", "out", "--part", "0/2"], "no such option `--part`", ""),
        (["space.yaml", "-o", "out", "--strict"], "no such option `--strict`", ""),
        (["space.yaml", "-o", "out", "--budget", "0"], "--budget", ""),
        (["space.yaml", "-o", "out", "--force", "nonsense"], "nonsense", ""),
        (["space.yaml", "-o", "out", "--tasks", "none_such"], "none_such", ""),
        (["space.yaml"], "missing option `--out`", ""),
        (["space.yaml", "-o", "out", "--ray", "--jobs", "2"], "`ray` excludes", "the cluster"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    options: list[str], message: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    done = invoke(capsys, "search", *options)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert message in done.err
    assert hint in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_an_option_of_other_verbs_is_not_taken_for_a_slip(capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, "search", "space.yaml", "-o", "out", "--strict")
    assert done.code == 2
    assert "no such option `--strict`" in done.err
    assert "did you mean" not in done.err
    slip = invoke(capsys, "search", "space.yaml", "-o", "out", "--budgte", "3")
    assert "did you mean `--budget`?" in slip.err
