"""Looking for files: a missing one is an answer, anything else that the file system says is an error.

``Path.exists``, ``Path.is_dir`` and ``os.path.lexists`` answer "no" to some or all of permission denied, a
faulty disk and a stale network mount, and a model that is there would be called missing.
"""

from __future__ import annotations

import errno
import os
import stat

from taskvec.errors import OutputError

_Path = str | os.PathLike[str]

# A link that leads to itself (ELOOP) leads nowhere, as one to a missing file does.
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_WAYS_OUT = {
    errno.EACCES: "check the permissions of it and of the folders above it",
    errno.EPERM: "check the permissions of it and of the folders above it",
    errno.ESTALE: "the network file system has changed: mount it again, then run the same command again",
    errno.EIO: "the disk or its connection is faulty: look at the system's log, or use a copy elsewhere",
    errno.ENAMETOOLONG: "check the path",
}


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


def hold_absent(path: _Path, error: OSError) -> None:
    """Return if an error says that nothing is there.

    Raises
    ------
    OutputError
        It says anything else.
    """
    if error.errno not in _ABSENT:
        raise OutputError(
            f"`{os.fspath(path)}` cannot be looked at: {error.strerror or error}",
            _WAYS_OUT.get(error.errno or 0, "look at the file system that it lies on"),
        ) from error


def _mode(path: _Path, follow_links: bool) -> int | None:
    try:
        return os.stat(path, follow_symlinks=follow_links).st_mode
    except ValueError:  # a zero byte, which no name has
        return None
    except OSError as error:
        hold_absent(path, error)
        return None
