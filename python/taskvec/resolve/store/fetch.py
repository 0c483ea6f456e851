"""Files fetched in pieces, several at a time, each under its own name only when it is whole.

What is whole is kept, whatever happens to the rest, which the next run begins again. A second process that
wants the same files waits for the first.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from taskvec.errors import OutputError
from taskvec.files import look
from taskvec.files.flush import flush_path
from taskvec.files.lock import lock
from taskvec.host import free_space
from taskvec.progress import Callback, Progress
from taskvec.resolve.threads import each
from taskvec.text import size as size_of

# As many of them are in memory at a time as there are requests on their way.
PIECE = 8 << 20
# Below the folder, where it counts as none of its files.
_WORK = Path(".cache", "taskvec")
_LOCK = "lock"


# Bytes of a file, or an object that lends them, from a first offset up to, and without, a second one.
Read = Callable[[str, int, int], Any]


class Piece(NamedTuple):
    """A range of bytes of one file."""

    name: str
    start: int
    stop: int


def fetch_files(
    read: Read,
    sizes: Mapping[str, int],
    folder: Path,
    progress: Callback | None = None,
    hold: Callable[[str, Path], None] = lambda _name, _path: None,
) -> None:
    """Fetch files into a folder under their names, in their order.

    Parameters
    ----------
    read : callable
        Bytes of a file from a first offset up to, and without, a second one; called from several threads.
    sizes : mapping
        The bytes of each file.
    folder : path
        Made if it does not exist.
    progress : callable, optional
        Told the bytes of phase ``"download"``.
    hold : callable, optional
        Raises if the file at a path is not what its name stands for; called from several threads.

    Raises
    ------
    OSError
        The folder cannot be written; what `read` and `hold` raise comes through as it is.
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
        _hold_space(folder, sum(missing.values()))
        for count in _fetched(read, hold, missing, folder):
            done += count
            report(done)


def _fetched(
    read: Read,
    hold: Callable[[str, Path], None],
    sizes: Mapping[str, int],
    folder: Path,
) -> Iterator[int]:
    """The bytes of each piece, once it is here."""
    pieces = [piece for name, size in sizes.items() for piece in _pieces(name, size)]
    left = _Left(pieces)
    with _parts(folder) as parts:
        for name, size in sizes.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (parts / name).parent.mkdir(parents=True, exist_ok=True)
            with open(parts / name, "wb") as part:
                part.truncate(size)

        def work(piece: Piece) -> None:
            _put(read, parts, piece)
            if left.is_last(piece.name):
                hold(piece.name, parts / piece.name)
                _place(parts / piece.name, folder / piece.name)

        for piece, _ in each(work, pieces):
            yield piece.stop - piece.start


class _Left:
    """How many pieces of each file are still to come."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._count = Counter(piece.name for piece in pieces)
        self._lock = threading.Lock()

    def is_last(self, name: str) -> bool:
        """Whether the piece that has come was the last one of its file."""
        with self._lock:
            self._count[name] -= 1
            return not self._count[name]


def _pieces(name: str, size: int) -> Iterator[Piece]:
    yield from (Piece(name, at, min(at + PIECE, size)) for at in range(0, max(size, 1), PIECE))


def _hold_space(folder: Path, need: int) -> None:
    free = free_space(folder)
    if free is not None and free < need:
        raise OutputError(
            f"`{folder}` has {size_of(free)} free, and {size_of(need)} are to be fetched",
            "free space there, or choose a folder on a larger disk by --scratch",
        )


def _put(read: Read, parts: Path, piece: Piece) -> None:
    data = read(*piece)
    # opened for each piece: a thread that was left behind must not write to a number that another file got
    descriptor = os.open(parts / piece.name, os.O_WRONLY)
    try:
        at = 0
        while at < len(data):
            at += os.pwrite(descriptor, memoryview(data)[at:], piece.start + at)
    finally:
        os.close(descriptor)


def _place(part: Path, file: Path) -> None:
    flush_path(part)
    os.replace(part, file)


@contextmanager
def _parts(folder: Path) -> Iterator[Path]:
    """A folder for the parts of this call: a thread that an earlier one left behind finds its own gone."""
    work = folder / _WORK
    for name in look.listing(work):
        if name != _LOCK:  # of a killed process
            shutil.rmtree(work / name, ignore_errors=True)
    parts = Path(tempfile.mkdtemp(prefix="parts-", dir=work))
    try:
        yield parts
    finally:
        shutil.rmtree(parts, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The only process that fetches into a folder."""
    (folder / _WORK).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _WORK / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)
