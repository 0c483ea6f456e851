"""Patterns of paths: what glob.glob finds, and an error where that finds nothing because it may not look."""

from __future__ import annotations

import errno
import glob
import os
from pathlib import Path

import pytest

from taskvec.errors import OutputError
from taskvec.files.matching import matching

PATTERNS = (
    *("run/*", "run/checkpoint-*", "*/checkpoint-?", "*/*", "run/checkpoint-[12]*", "run/[!c]*", "run/*/"),
    *("*", "r?n/checkpoint-1/*.safetensors", "run/.*", "*/.hidden", "run/checkpoint-1/model.safetensors"),
    *("absent/*", "run/checkpoint-1/model.safetensors/*", "run/link*", "run/[[]odd[]]", "./run/*", "run//*"),
)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("checkpoint-1", "checkpoint-2", "checkpoint-30", ".hidden", "[odd]", "logs"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-1" / "model.safetensors").touch()
    (tmp_path / "run" / "link").symlink_to("nowhere")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("pattern", PATTERNS)
def test_as_glob_finds_them(tree: Path, pattern: str) -> None:
    assert matching(pattern) == sorted(glob.glob(pattern))
    assert matching(f"{tree}/{pattern}") == sorted(glob.glob(f"{tree}/{pattern}"))


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.ENOMEM, errno.EMFILE])
def test_a_folder_that_cannot_be_listed(tree: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = os.listdir

    def listdir(path: str = ".") -> list[str]:
        if os.path.basename(path) == "run":
            raise OSError(number, os.strerror(number), path)
        return genuine(path)

    monkeypatch.setattr(os, "listdir", listdir)
    for pattern in ("run/checkpoint-*", "*/checkpoint-*", f"{tree}/run/*"):
        with pytest.raises(OutputError, match=os.strerror(number)) as caught:
            matching(pattern)
        assert caught.value.hint
