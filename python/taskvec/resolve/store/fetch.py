"""Files fetched in pieces, several at a time, each under its own name only when it is whole.

A killed run leaves parts, which the next one begins again; what is whole is kept. A second process that wants
the same files waits for the first.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from taskvec.files import look
from taskvec.progress import Callback, Progress
from taskvec.resolve.threads import each

# Eight of them are in memory at a time.
PIECE = 8 << 20
# Below the folder, where it counts as none of its files.
_WORK = Path(".cache", "taskvec")


class Piece(NamedTuple):
    """A range of bytes of one file."""

    name: str
    start: int
    stop: int


def fetch_files(
    read: Callable[[str, int, int], bytes],
    sizes: Mapping[str, int],
    folder: Path,
    progress: Callback | None = None,
) -> None:
    """Fetch files into a folder under their names, in their order.

    Parameters
    ----------
    read : callable
        Bytes of a file from a first offset up to, and without, a second one; called from several threads.
    sizes : mapping
        The bytes of each file.
    folder : path
        Made if it is not there.
    progress : callable, optional
        Told the bytes of phase ``"download"``.

    Raises
    ------
    OSError
        The folder cannot be written; what `read` raises comes through as it is.
    """
    begin, total, done = time.monotonic(), sum(sizes.values()), 0

    def report(count: int) -> None:
        if progress is not None:
            progress(Progress("download", count, total, time.monotonic() - begin))

    report(0)
    if not sizes:
        return
    with _alone(folder):
        missing = {name: size for name, size in sizes.items() if not look.exists(folder / name)}
        done = total - sum(missing.values())
        for name, size in missing.items():
            _make(folder, name, size)
        pieces = [piece for name, size in missing.items() for piece in _pieces(name, size)]
        left = Counter(piece.name for piece in pieces)
        for piece, _ in each(lambda piece: _put(read, folder, piece), pieces):
            done += piece.stop - piece.start
            left[piece.name] -= 1
            if not left[piece.name]:
                _place(folder, piece.name)
            report(done)


def _pieces(name: str, size: int) -> Iterator[Piece]:
    yield from (Piece(name, at, min(at + PIECE, size)) for at in range(0, max(size, 1), PIECE))


def _make(folder: Path, name: str, size: int) -> None:
    """An empty part of the right size; a disk that is too small shows here where the system can tell."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    _part(folder, name).parent.mkdir(parents=True, exist_ok=True)
    with open(_part(folder, name), "wb") as part:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(part.fileno(), 0, size)


def _put(read: Callable[[str, int, int], bytes], folder: Path, piece: Piece) -> None:
    data = read(*piece)
    # opened for each piece: a thread that was left behind must not write to a number that another file got
    descriptor = os.open(_part(folder, piece.name), os.O_WRONLY)
    try:
        at = 0
        while at < len(data):
            at += os.pwrite(descriptor, memoryview(data)[at:], piece.start + at)
    finally:
        os.close(descriptor)


def _place(folder: Path, name: str) -> None:
    part = _part(folder, name)
    descriptor = os.open(part, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(part, folder / name)


def _part(folder: Path, name: str) -> Path:
    return folder / _WORK / f"{name}.part"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The only process that fetches into a folder."""
    import fcntl

    (folder / _WORK).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _WORK / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
