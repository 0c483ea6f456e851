"""Pointers of git-lfs: the few lines that lie in the place of a file that was not pulled."""

from __future__ import annotations

from pathlib import Path

from taskvec.files import look
from taskvec.files.reading import read_up_to

# The specification allows a pointer less than 1024 bytes; the second is its name of 2015.
_MAXIMUM = 1024
_BEGINNINGS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
PULL = "run `git lfs pull` in its folder, or download it again"


def is_pointer(data: bytes) -> bool:
    """Whether the bytes of a file are those of a pointer."""
    return len(data) < _MAXIMUM and data.startswith(_BEGINNINGS)


def is_pointer_file(path: Path) -> bool:
    """Whether a file is a pointer; one that does not exist is none.

    Raises
    ------
    OutputError
        It cannot be looked at.
    """
    return is_pointer(beginning(path))


def ending(path: Path) -> bytes:
    """The last bytes of a file, as many as :func:`beginning` gives of its first; errors as there."""
    status = look.stamp(path)
    try:
        return b"" if status is None else read_up_to(path, _MAXIMUM, max(0, status.size - _MAXIMUM))
    except OSError as error:
        look.hold_absent(path, error)
        return b""


def beginning(path: Path) -> bytes:
    """The first bytes of a file, as many as a pointer may have; none of one that does not exist.

    Raises
    ------
    OutputError
        It cannot be looked at.
    """
    try:
        return read_up_to(path, _MAXIMUM)
    except OSError as error:
        look.hold_absent(path, error)
        return b""
