"""What a run has left in its folders, as plain values: compared, and looked at once where it is the same.

A fault is tried at thousands of calls, and most of them leave one of a few states: what a state leads to, and
whether an output is what its manifest says, is found out once for each.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import taskvec as tv
from taskvec.files.names import MANIFEST, STATE
from taskvec.files.seal import seal_of

Contents = dict[str, bytes | None]


def contents(folder: Path) -> Contents:
    """Every file below a folder by its path in it, and every folder, as None."""
    return dict(_walk(os.fspath(folder), ""))


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, bytes | None]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        name = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            yield name, None
            yield from _walk(entry.path, f"{name}/")
        else:
            with open(entry.path, "rb") as file:
                yield name, file.read()


def settled(folder: Path) -> Contents:
    """Contents without what a manifest says of the run, which is never the same."""
    found = contents(folder)
    for name, data in found.items():
        if os.path.basename(name) == MANIFEST and data:
            with contextlib.suppress(ValueError):
                found[name] = _settled(data)
    return found


def _settled(data: bytes) -> bytes:
    manifest = json.loads(data)
    told = {key: value for key, value in manifest.items() if key not in ("run", "seal")}
    return json.dumps([told, seal_of(data, manifest)]).encode()


class Whole:
    """The folders that look complete, of which each state is verified once.

    The seal of a manifest is looked at every time: of two runs it is never the same.
    """

    def __init__(self) -> None:
        self._verified: set[bytes] = set()

    def __call__(self, root: Path) -> list[Path]:
        """The folders below `root` that have a manifest, all of which are what it says."""
        found = contents(root)
        names = [
            name for name in found if os.path.basename(name) == MANIFEST and STATE not in name.split("/")
        ]
        for name in names:
            self._verify(root, os.path.dirname(name), found)
        return [root / os.path.dirname(name) for name in names]

    def _verify(self, root: Path, folder: str, found: Contents) -> None:
        prefix = f"{folder}/" if folder else ""
        own = {name[len(prefix) :]: data for name, data in found.items() if name.startswith(prefix)}
        data = own.pop(MANIFEST)
        assert data is not None
        assert seal_of(data, json.loads(data)) == "sealed"
        key = digest({**own, MANIFEST: _settled(data)})
        if key not in self._verified:
            assert tv.verify(root / folder).ok
            self._verified.add(key)


class Continued:
    """What a run is gone on from, once for each state that it has left.

    Parameters
    ----------
    state : callable
        What there is now, as plain data, without what differs from run to run and decides nothing.
    """

    def __init__(self, state: Callable[[], object]) -> None:
        self._state = state
        self._seen: set[bytes] = set()

    def __call__(self, go_on: Callable[[], object]) -> bool:
        """Go on from a state that is new, and say whether it was."""
        key = hashlib.blake2b(repr(self._state()).encode()).digest()
        if key in self._seen:
            return False
        go_on()
        self._seen.add(key)
        return True


def digest(found: Contents) -> bytes:
    """One value for some files and folders."""
    state = hashlib.blake2b()
    for name, data in sorted(found.items()):
        head: tuple[Any, ...] = (name, None if data is None else len(data))
        state.update(repr(head).encode() + (data or b""))
    return state.digest()
