"""Files and folders flushed, so that their bytes and names outlive a power cut."""

from __future__ import annotations

import errno
import os
from pathlib import Path

# How file systems that have nothing to flush, or cannot flush a folder (network and user-space ones), say so,
# in every run: that is not a disk that fails.
_NOT_OFFERED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})


def flush(descriptor: int) -> None:
    """Flush an open file or folder, where its file system can.

    Raises
    ------
    OSError
        It cannot be written to the disk.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise


def flush_path(path: Path) -> None:
    """Flush the file or the folder at a path; errors are those of :func:`flush`."""
    kind = getattr(os, "O_DIRECTORY", 0) if path.is_dir() else 0
    descriptor = os.open(path, os.O_RDONLY | kind)
    try:
        flush(descriptor)
    finally:
        os.close(descriptor)
