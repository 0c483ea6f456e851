"""Models at addresses that are never here as a whole: their headers, and for each piece of work its ranges.

A staged source is a folder with the small files and, for each weight file, a file of its size that has the
header and holes. Nothing reads the holes: for each piece of work a second folder gets the byte ranges that it
reads, in files of the right sizes, and goes when it is done.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

from taskvec._core import Checkpoint as Reader
from taskvec.errors import HubError
from taskvec.files import folder as folders
from taskvec.files import look
from taskvec.models.adapter import Adapter
from taskvec.models.adapter_config import CONFIG as ADAPTER_CONFIG
from taskvec.models.model import Model, Remote
from taskvec.models.saved_vector import SavedVector
from taskvec.resolve.headers import headers
from taskvec.resolve.ranged import RangedWeights
from taskvec.resolve.remote import needed_files
from taskvec.resolve.sub_models import reader_of
from taskvec.resolve.threads import each

Source = Model | SavedVector | Adapter
# Bytes of one request; as many of them are in memory at a time as there are requests on their way.
PIECE = 8 << 20
# By the file's path below a staged folder: the ranges of its bytes.
Ranges = Mapping[str, Sequence[tuple[int, int]]]


class Staged(NamedTuple):
    """A source of which headers and small files are in a folder.

    Attributes
    ----------
    source : Model, SavedVector or Adapter
        As a run takes it, lying in the folder.
    folder : path
    remote : Remote or None
        Where its weights are; ``None`` for a source that is here, which then is itself.
    """

    source: Source
    folder: Path
    remote: Remote | None


def remote_of(source: Source) -> Remote | None:
    """Where the weights of a source are, if they are not here."""
    if isinstance(source, SavedVector):
        return remote_of(source.stored)
    if isinstance(source, Model) and source.path is not None:
        return None
    return source.remote


def stage(source: Source, folder: Path) -> Staged:
    """Lay out headers and small files of a source in a new folder.

    Raises
    ------
    HubError
        The address refuses, cannot be reached, or has other headers than before.
    """
    remote = remote_of(source)
    if remote is None:
        return Staged(source, source.location, None)
    folder.mkdir(parents=True)
    weights = list(source.file_sizes)
    remote.fetch(_small(source, remote), folder)
    for name, header in headers(remote, weights).items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(place, "wb") as file:
            file.write(header)
            file.truncate(remote.size(name))
    is_adapter = isinstance(source, Adapter)
    reader = Reader(str(folder / weights[0])) if is_adapter else reader_of(source, folder)
    if reader.fingerprint != source.fingerprint:
        raise HubError(
            f"the weights of `{source.spec}` have other headers than those read before",
            "run the same command again when nothing writes to the address",
        )
    return Staged(_lying_in(source, folder, remote), folder, remote)


def _small(source: Source, remote: Remote) -> list[str]:
    """The files besides the weights that a run needs."""
    if isinstance(source, Adapter):
        return [ADAPTER_CONFIG]
    stored = source.stored if isinstance(source, SavedVector) else source
    modules = filter(folders.is_weight, stored.other_files)
    names = needed_files(remote.list(), (), modules, stored.sub_models)
    return [name for name in names if name not in source.file_sizes]


def _lying_in(source: Source, folder: Path, remote: Remote) -> Source:
    if isinstance(source, Adapter):
        return replace(source, path=folder, remote=None, download_bytes=0)
    if isinstance(source, SavedVector):
        return replace(source, stored=cast(Model, _lying_in(source.stored, folder, remote)))
    weights = RangedWeights(remote, folder, source)
    return replace(source, path=folder, weights=weights, remote=None, download_bytes=0)


def bytes_of(ranges: Iterable[Ranges]) -> int:
    """Bytes of all ranges together."""
    return sum(stop - start for each in ranges for parts in each.values() for start, stop in parts)


def bring(
    sources: Sequence[Staged],
    ranges: Sequence[Ranges],
    place: Path,
    take: Callable[[int], None],
    told: Callable[[int], None],
    requests: AbstractContextManager[object] | None = None,
) -> list[Path]:
    """Fetch the ranges of each source that a piece of work reads.

    Parameters
    ----------
    sources : sequence of Staged
    ranges : sequence of mapping
        Of each source, by the names of its files.
    place : path
        A new folder for them.
    take : callable
        Told the bytes of each request before it is made, by the thread that makes it; returns when there is
        room for them.
    told : callable
        Told the bytes of each request that has been answered. What these two raise ends the fetching.
    requests : context manager, optional
        Entered for each request: several calls at a time have no more of them on their way together.

    Returns
    -------
    list of path
        Where each source lies for this work.
    """
    found, pieces = [], []
    for number, (source, wanted) in enumerate(zip(sources, ranges, strict=True)):
        if source.remote is None or not wanted:
            found.append(source.folder)
            continue
        folder = place / str(number)
        _lay_out(source.folder, folder, wanted)
        found.append(folder)
        pieces += [(source.remote, folder, piece) for piece in _pieces(wanted)]

    def fetch(work: tuple[Remote, Path, tuple[str, int, int]]) -> int:
        remote, folder, (name, start, stop) = work
        with requests or nullcontext():
            take(stop - start)
            (data,) = remote.read(name, [(start, stop)])
            _put(folder / name, data, start)
        return stop - start

    for _, count in each(fetch, pieces):
        told(count)
    return found


def _pieces(wanted: Ranges) -> Iterator[tuple[str, int, int]]:
    for name, parts in wanted.items():
        for start, stop in parts:
            yield from ((name, at, min(at + PIECE, stop)) for at in range(start, stop, PIECE))


def _lay_out(base: Path, folder: Path, wanted: Ranges) -> None:
    """The files of a staged source; those of which something is fetched are copies: headers and holes."""
    for level in look.walk(base):
        relative = Path(level.path)
        if relative.parts[:1] == (".cache",):
            continue
        (folder / relative).mkdir(parents=True, exist_ok=True)
        for name in level.files:
            path = (relative / name).as_posix()
            if path in wanted:
                _copy_header(base / path, folder / path)
            else:
                os.symlink(base / path, folder / path)


def _copy_header(file: Path, copy: Path) -> None:
    with open(file, "rb") as data, open(copy, "wb") as made:
        head = data.read(8)
        made.write(head)
        made.write(data.read(int.from_bytes(head, "little")))
        made.truncate(os.fstat(data.fileno()).st_size)


def _put(path: Path, data: bytes, start: int) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        view, at = memoryview(data), 0
        while at < len(view):
            at += os.pwrite(descriptor, view[at:], start + at)
    finally:
        os.close(descriptor)


def let_go(place: Path) -> None:
    """Remove what was fetched for a piece of work."""
    shutil.rmtree(place, ignore_errors=True)


def scratch_folder(root: Path, prefix: str) -> Path:
    """A new folder for one process below the folder for fetched files."""
    root.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=root))
