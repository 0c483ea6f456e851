"""Folders whose names are on the disk before anything is put into them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from taskvec.files.place import make_folders, sync_folders


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """The folders that are made and flushed, in order."""
    found: list[tuple[str, Path]] = []
    mkdir, fsync = os.mkdir, os.fsync

    def noted_mkdir(path: os.PathLike[str], *more: int) -> None:
        mkdir(path, *more)
        found.append(("made", Path(path)))

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        found.append(("flushed", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))

    monkeypatch.setattr(os, "mkdir", noted_mkdir)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    return found


def test_each_name_is_flushed_before_the_next_folder(tmp_path: Path, calls: list[tuple[str, Path]]) -> None:
    one, two, three = tmp_path / "one", tmp_path / "one/two", tmp_path / "one/two/three"
    make_folders(three)
    assert calls == [
        ("made", one), ("flushed", tmp_path),
        ("made", two), ("flushed", one),
        ("made", three), ("flushed", two),
    ]  # fmt: skip
    calls.clear()
    make_folders(three)
    make_folders(two)
    assert calls == []


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folders(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        make_folders(tmp_path / "file" / "below")


@pytest.mark.parametrize(("number", "is_told"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_that_flushes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_told: bool
) -> None:
    def refused(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refused)
    for work in (lambda: make_folders(tmp_path / "new"), lambda: sync_folders(tmp_path, [])):
        if is_told:
            with pytest.raises(OSError, match=r".+"):
                work()
        else:
            work()
    assert (tmp_path / "new").exists() is not is_told
