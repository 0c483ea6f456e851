"""Locks between processes, on open files; they go with the process."""

from __future__ import annotations

import errno

# How file systems without locks say so (network and user-space ones).
_NOT_OFFERED = frozenset({errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})


def lock(descriptor: int, *, wait: bool) -> bool:
    """Take the lock of an open file; false where system or file system have none.

    Raises
    ------
    BlockingIOError
        Another process has it, and it is not waited for.
    OSError
        The file system fails.
    """
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in _NOT_OFFERED:
            return False
        raise
    return True
