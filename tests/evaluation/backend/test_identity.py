"""What results stand for: a folder that cannot be looked at has no identity, and is not an empty one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from taskvec.errors import OutputError
from taskvec.evaluation.backend.identity import resolve, settings_identity, weights_digest
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.sweep.sweep import model_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model/below/__pycache__").mkdir(parents=True)
    for name in ("config.json", "README.md", "below/task.yaml", "below/__pycache__/x.pyc"):
        (tmp_path / "model" / name).write_text(name)
    return tmp_path / "model"


def settings(folder: Path) -> Settings:
    return Settings(tasks=("t",), include_path=str(folder), device="cpu")


def test_files_that_change_nothing_do_not_count(folder: Path) -> None:
    weights, tasks = weights_digest(folder), settings_identity(settings(folder))["include_path"]
    (folder / "README.md").write_text("another")
    (folder / "below/__pycache__/x.pyc").write_text("another")
    assert weights_digest(folder) == weights
    assert settings_identity(settings(folder))["include_path"] != tasks  # its tasks may read any other file
    (folder / "README.md").write_text("README.md")
    assert settings_identity(settings(folder))["include_path"] == tasks
    (folder / "below/task.yaml").write_text("another")
    assert settings_identity(settings(folder))["include_path"] != tasks
    assert model_bytes(str(folder)) == sum(
        path.stat().st_size for path in folder.rglob("*") if path.is_file()
    )


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("call", ["stat", "listdir", "scandir"])
def test_a_folder_that_does_not_answer_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    genuine = getattr(os, call)

    def failing(path=".", *args, **kwargs):
        if isinstance(path, str | Path) and Path(path).name in ("model", "below"):
            raise OSError(number, os.strerror(number), os.fspath(path))
        return genuine(path, *args, **kwargs)

    reads = {
        "stat": (weights_digest, resolve, lambda path: model_bytes(str(path))),
        "listdir": (weights_digest, resolve),
        "scandir": (lambda path: model_bytes(str(path)), lambda path: settings_identity(settings(path))),
    }[call]
    monkeypatch.setattr(os, call, failing)
    for read in reads:
        with pytest.raises(OutputError, match="cannot be looked at"):
            read(folder)
