"""What a kill leaves: the folder as it was before each call on files of one undisturbed run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.file_faults import Injector

# By path in the folder: bytes and time of change of a file, None for a folder.
State = dict[str, tuple[bytes, int] | None]


class Snapshots(Injector):
    """Keeps every state of a folder that a run passes through, as far as Python's calls show it.

    Attributes
    ----------
    states : list of State
        Each once, in the order in which the run comes to it.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, monkeypatch)
        self.states: list[State] = []
        self._folder, self._last = folder, object()
        self._seen: set[tuple[tuple[str, bytes | None], ...]] = set()

    def tell(self, name: str, path: object) -> None:  # noqa: ARG002 - as every injector is told
        """A call is about to be made."""
        if self._at < 0 or not self._counts(path):
            return
        self.rest()
        signs = [(each.path, each.inode(), *_times(each)) for each in _entries(self._folder)]
        if signs != self._last:
            self._last = signs
            self._take()
        self._at = 0

    def _take(self) -> None:
        state = taken(self._folder)
        key = tuple((name, None if row is None else row[0]) for name, row in sorted(state.items()))
        if key not in self._seen:
            self._seen.add(key)
            self.states.append(state)


def taken(folder: Path) -> State:
    """A folder as it is."""
    found: State = {}
    for entry in _entries(folder):
        name = os.path.relpath(entry.path, folder)
        if entry.is_dir(follow_symlinks=False):
            found[name] = None
        else:
            with open(entry.path, "rb") as file:
                found[name] = file.read(), entry.stat(follow_symlinks=False).st_mtime_ns
    return found


def put_back(state: State, folder: Path) -> None:
    """Make a folder what it was."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, row in sorted(state.items()):
        path = folder / name
        if row is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row[0])
            os.utime(path, ns=(row[1], row[1]))


def _times(entry: os.DirEntry[str]) -> tuple[int, int]:
    status = entry.stat(follow_symlinks=False)
    return status.st_size, status.st_mtime_ns


def _entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    if not os.path.isdir(folder):
        return
    with os.scandir(folder) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(entry.path)
