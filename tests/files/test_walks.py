"""Folders of which a copy or an output is made: one that cannot be listed is an error, and not left out."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.command_line import invoke
from support.models import Trio
from taskvec.errors import OutputError
from taskvec.resolve import stage
from taskvec.resolve.repository import has_weights
from taskvec.run.shadow import Shadow

FAILURES = (errno.EIO, errno.EACCES, errno.ESTALE, errno.ENOMEM)
Failing = Callable[[str, int], None]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """Call to let every listing and every look at what has this name fail."""

    def fail(name: str, number: int) -> None:
        for call in ("listdir", "scandir", "stat"):
            genuine = getattr(os, call)

            def faulty(path="", *rest, genuine=genuine, **more):  # type: ignore[no-untyped-def]
                if os.path.basename(os.fspath(path) if not isinstance(path, int) else "") == name:
                    raise OSError(number, os.strerror(number), path)
                return genuine(path, *rest, **more)

            monkeypatch.setattr(os, call, faulty)

    return fail


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with companions in a folder of their own."""
    base = tmp_path / "base"
    (base / "sub" / "deep").mkdir(parents=True)
    (base / "config.json").write_text("{}")
    (base / "sub" / "deep" / "notes.txt").write_text("notes")
    (base / "sub" / "more.txt").write_text("more")
    return base


def shadow(place: Path) -> Shadow:
    return Shadow([""], SimpleNamespace(address="s3://bucket/out"), place)  # type: ignore[arg-type]


def test_what_goes_to_an_address(folder: Path) -> None:
    (folder / ".taskvec").mkdir()
    (folder / ".taskvec" / "plan.json").write_text("{}")
    (folder / "model.safetensors").touch()
    found = dict(shadow(folder).others(["model.safetensors"]))
    assert found == {name: folder / name for name in ("config.json", "sub/deep/notes.txt", "sub/more.txt")}


@pytest.mark.parametrize("number", FAILURES)
@pytest.mark.parametrize("name", ["sub", "deep"])
def test_what_cannot_be_listed_and_goes_to_an_address(
    folder: Path, name: str, number: int, failing: Failing
) -> None:
    failing(name, number)
    with pytest.raises(OutputError, match=os.strerror(number)):
        shadow(folder).others([])


def test_a_staged_model(folder: Path, tmp_path: Path) -> None:
    (folder / ".cache").mkdir()
    (folder / ".cache" / "other").touch()
    stage._lay_out(folder, tmp_path / "made", {})
    found = {
        path.relative_to(tmp_path / "made").as_posix(): path for path in (tmp_path / "made").rglob("*.*")
    }
    assert {name: path.read_text() for name, path in found.items()} == {
        "config.json": "{}",
        "sub/deep/notes.txt": "notes",
        "sub/more.txt": "more",
    }


@pytest.mark.parametrize("number", FAILURES)
@pytest.mark.parametrize("name", ["base", "sub", "deep"])
def test_a_staged_model_that_cannot_be_listed(
    folder: Path, tmp_path: Path, name: str, number: int, failing: Failing
) -> None:
    failing(name, number)
    with pytest.raises(OutputError, match=os.strerror(number)):
        stage._lay_out(folder, tmp_path / "made", {})


@pytest.mark.parametrize("number", FAILURES)
def test_a_snapshot_of_the_cache_that_cannot_be_looked_at(trio: Trio, number: int, failing: Failing) -> None:
    assert has_weights(trio.target)
    assert not has_weights(trio.target / "absent")
    failing("model_index.json", number)
    with pytest.raises(OutputError, match=os.strerror(number)):
        has_weights(trio.target)


@pytest.mark.parametrize("number", FAILURES)
def test_the_folder_of_a_plan(
    trio: Trio, tmp_path: Path, number: int, failing: Failing, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plans").mkdir()
    failing("plans", number)
    roles = ["--target", trio.target, "--donor", trio.donor, "--reference", trio.reference]
    found = invoke(capsys, "plan", "transfer", *roles, "-o", tmp_path / "plans" / "plan.json")
    assert found.code == 2
    assert os.strerror(number) in found.err
    assert "there is no folder" not in found.err
