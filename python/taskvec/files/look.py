"""Looking for files: a missing one is an answer, anything else that the file system says is an error.

``Path.exists``, ``Path.is_dir`` and ``os.path.lexists`` answer "no" to some or all of permission denied, a
faulty disk and a stale network mount, and a model that is there would be called missing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from taskvec.errors import Error, OutputError

_Path = str | os.PathLike[str]

# A link that leads to itself (ELOOP) leads nowhere, as one to a missing file does.
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_WAYS_OUT = {
    errno.EACCES: "check the permissions of it and of the folders above it",
    errno.EPERM: "check the permissions of it and of the folders above it",
    errno.ESTALE: "the network file system has changed: mount it again, then run the same command again",
    errno.EIO: "the disk or its connection is faulty: look at the system's log, or use a copy elsewhere",
    errno.ENOSPC: "free space on that file system, then run the same command again",
    errno.EDQUOT: "free space on that file system, then run the same command again",
    errno.EROFS: "choose a folder on a file system that can be written to",
    errno.EINTR: "run the same command again",
    errno.EMFILE: "allow more open files (`ulimit -n`), then run the same command again",
    errno.ENFILE: "close other programs' files, then run the same command again",
    errno.ENOMEM: "free memory, then run the same command again",
    errno.ENAMETOOLONG: "check the path",
}


class Stamp(NamedTuple):
    """The state of a file, by which a change of it shows: bytes, nanoseconds since 1970, and inode."""

    size: int
    modified: int
    changed: int
    inode: int


class Level(NamedTuple):
    """One folder of a walk: its path below the first one, and the sorted names of its entries by kind."""

    path: str
    folders: list[str]
    links_to_folders: list[str]
    files: list[str]


def exists(path: _Path, *, follow_links: bool = True) -> bool:
    """Whether there is a file, folder or anything else of this name.

    Parameters
    ----------
    path : str or path
        Where to look.
    follow_links : bool
        Whether a link counts by what it leads to; otherwise a broken link is there too.

    Raises
    ------
    OutputError
        The file system does not answer, or refuses to.
    """
    return _mode(path, follow_links) is not None


def is_folder(path: _Path) -> bool:
    """Whether this is a folder, or a link to one; raises as :func:`exists`."""
    return stat.S_ISDIR(_mode(path, True) or 0)


def is_file(path: _Path) -> bool:
    """Whether this is a regular file, or a link to one; raises as :func:`exists`."""
    return stat.S_ISREG(_mode(path, True) or 0)


def listing(path: _Path) -> list[str]:
    """The sorted names in a folder, none if there is no folder; raises as :func:`exists`."""
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        hold_absent(path, error)
        return []


def stamp(path: _Path) -> Stamp | None:
    """The state of a regular file, or of the one that a link leads to; raises as :func:`exists`."""
    status = _status(path, True)
    if status is None or not stat.S_ISREG(status.st_mode):
        return None
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def is_same(one: _Path, other: _Path) -> bool:
    """Whether two names lead to one file that is there; raises as :func:`exists`."""
    found = [_status(path, True) for path in (one, other)]
    return None not in found and len({(each.st_dev, each.st_ino) for each in found if each}) == 1


def resolved(path: _Path) -> Path:
    """The path without links of something that is there; raises as :func:`exists`, and if it is not."""
    try:
        return Path(path).resolve(strict=True)
    except OSError as error:
        raise unanswered(path, error) from error


def walk(folder: _Path, *, without: frozenset[str] = frozenset()) -> Iterator[Level]:
    """A folder that is there and those below it; links to folders are told, not followed.

    ``os.walk`` takes an entry that cannot be looked at for a file, and a folder that cannot be listed for an
    empty one.

    Parameters
    ----------
    folder : str or path
        Where to begin.
    without : frozenset of str
        Names of folders that are left out at every level.

    Raises
    ------
    OutputError
        A folder or an entry cannot be looked at, or went away meanwhile.
    """
    waiting = [""]
    while waiting:
        path = waiting.pop()
        level = Level(path, [], [], [])
        here = os.path.join(folder, path) if path else os.fspath(folder)
        try:
            with os.scandir(here) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if _leads_to_folder(entry):
                        if entry.name not in without:
                            (level.links_to_folders if entry.is_symlink() else level.folders).append(
                                entry.name
                            )
                    else:
                        level.files.append(entry.name)
        except OSError as error:
            raise unanswered(error.filename or here, error) from error
        waiting += [os.path.join(path, name) for name in reversed(level.folders)]
        yield level


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    return is_folder(entry.path) if entry.is_symlink() else entry.is_dir(follow_symlinks=False)


def unanswered(path: _Path, error: OSError) -> OutputError:
    """The error for a path that could not be looked at, with the way out."""
    return OutputError(f"`{os.fspath(path)}` cannot be looked at: {error.strerror or error}", way_out(error))


@contextlib.contextmanager
def told(path: _Path) -> Iterator[None]:
    """Around work in a folder: an error of the file system that nothing else has named is named here.

    Raises
    ------
    OutputError
        In its place, with the file that it is about, or else this folder, and the way out.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, Error) or not error.errno:
            raise
        where = error.filename or os.fspath(path)
        raise OutputError(f"`{where}`: {error.strerror or error}", way_out(error)) from error


def way_out(error: OSError) -> str:
    """What to do about an error of the file system: its own hint, or what its number suggests."""
    own = error.hint if isinstance(error, OutputError) else None
    return own or _WAYS_OUT.get(error.errno or 0, "look at the file system that it lies on")


def hold_absent(path: _Path, error: OSError) -> None:
    """Return if an error says that nothing is there.

    Raises
    ------
    OutputError
        It says anything else.
    """
    if error.errno not in _ABSENT:
        raise unanswered(path, error) from error


def _mode(path: _Path, follow_links: bool) -> int | None:
    status = _status(path, follow_links)
    return None if status is None else status.st_mode


def _status(path: _Path, follow_links: bool) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=follow_links)
    except ValueError:  # a zero byte, which no name has
        return None
    except OSError as error:
        hold_absent(path, error)
        return None
