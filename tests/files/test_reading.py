"""Reads that are not ready: tried again, an error where that does not help; never an empty or short file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import taskvec as tv
from support.models import Trio
from taskvec.errors import OutputError, RecipeError
from taskvec.files import reading
from taskvec.files.json import read_bytes
from taskvec.files.lfs import is_pointer_file
from taskvec.recipe.parse import read

DATA = bytes(range(256)) * 9000  # more than is read at once


@pytest.fixture
def unready(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Call to let a file be not ready so many times before each piece, of half the size; gives all reads."""

    def arm(times: int) -> list[int]:
        genuine, left, calls = os.read, [times], []

        def faulty(descriptor: int, size: int) -> bytes:
            calls.append(size)
            if left[0]:
                left[0] -= 1
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            left[0] = times
            return genuine(descriptor, max(1, size // 2))

        monkeypatch.setattr(os, "read", faulty)
        monkeypatch.setattr(reading, "_PAUSES", (0.0, 0.0, 0.0))
        return calls

    return arm


@pytest.mark.parametrize("times", [0, 1, 3])
def test_all_bytes_arrive(tmp_path: Path, unready: Callable[[int], list[int]], times: int) -> None:
    (tmp_path / "file").write_bytes(DATA)
    calls = unready(times)
    assert read_bytes(tmp_path / "file") == DATA
    assert reading.read_up_to(tmp_path / "file", 1000) == DATA[:1000]
    reading.copy(tmp_path / "file", tmp_path / "copy")
    assert len(calls) > 3 * (times + 1)
    assert (tmp_path / "copy").read_bytes() == DATA


def test_a_file_that_stays_so_is_an_error(tmp_path: Path, unready: Callable[[int], list[int]]) -> None:
    (tmp_path / "recipe.yaml").write_text("merge_method: linear\n")
    unready(1 << 30)
    with pytest.raises(OutputError, match="cannot be looked at: Resource temporarily unavailable"):
        read_bytes(tmp_path / "recipe.yaml")
    with pytest.raises(OutputError, match="temporarily unavailable"):
        is_pointer_file(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="temporarily unavailable"):
        read(tmp_path / "recipe.yaml")
    with pytest.raises(BlockingIOError):
        reading.copy(tmp_path / "recipe.yaml", tmp_path / "copy")


@pytest.mark.parametrize("times", [1, 2])
def test_a_transfer_over_such_files_is_the_same(
    trio: Trio, tmp_path: Path, unready: Callable[[int], list[int]], times: int
) -> None:
    tv.transfer(*trio, tmp_path / "quiet", alpha=0.5)
    unready(times)
    tv.transfer(*trio, tmp_path / "unready", alpha=0.5)
    for path in (tmp_path / "quiet").iterdir():
        if path.name != "taskvec.json":
            assert path.read_bytes() == (tmp_path / "unready" / path.name).read_bytes(), path.name


def test_a_pointer_is_one_by_its_first_bytes(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    (tmp_path / "pointer").write_bytes(pointer)
    (tmp_path / "long").write_bytes(pointer.ljust(1024, b" "))
    os.mkfifo(tmp_path / "fifo")
    found = {name: is_pointer_file(tmp_path / name) for name in ("pointer", "long", "fifo", "nothing")}
    assert found == {"pointer": True, "long": False, "fifo": False, "nothing": False}


def test_a_copy_never_goes_into_a_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    os.link(tmp_path / "file", tmp_path / "second")
    with pytest.raises(FileExistsError):
        reading.copy(tmp_path / "file", tmp_path / "second")
    assert (tmp_path / "file").read_bytes() == DATA


def test_a_link_that_is_made_and_reported_as_failed(
    trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tv.transfer(*trio, tmp_path / "quiet", alpha=[0.25, 0.5, 1.0])
    genuine, made = os.link, []

    def link(source: Path, target: Path) -> None:
        genuine(source, target)
        made.append(target)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr("taskvec.run.publish._reflink", lambda *_: False)
    tv.transfer(*trio, tmp_path / "out", alpha=[0.25, 0.5, 1.0])
    assert made
    for path in (tmp_path / "quiet").rglob("*"):
        if path.is_file() and path.name != "taskvec.json":
            other = tmp_path / "out" / path.relative_to(tmp_path / "quiet")
            assert path.read_bytes() == other.read_bytes(), path
