"""Bytes of a file, as many as were asked for: a read that is not ready is neither the end nor an empty file.

Python's own readers give ``None``, or what they have so far, where a read answers EAGAIN, as network and
user-space file systems may; what comes out then is taken for an empty or a short file.
"""

from __future__ import annotations

import os
import time

_Path = str | os.PathLike[str]

_PIECE = 1 << 20
# Seconds between one read and the next where a file is not ready: about a second in all.
_PAUSES = (0.0, *(0.001 * 2**number for number in range(10)))


def read_up_to(path: _Path, size: int, start: int = 0) -> bytes:
    """`size` bytes of a file from byte `start` on, or as many as there are; a FIFO does not block.

    Raises
    ------
    OSError
        It cannot be opened or read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if start:
            os.lseek(descriptor, start, os.SEEK_SET)
        return fill(descriptor, size)
    finally:
        os.close(descriptor)


def fill(descriptor: int, size: int) -> bytes:
    """The next `size` bytes, or as many as there are until the end.

    Raises
    ------
    OSError
        They cannot be read, or not in time.
    """
    data = bytearray()
    while len(data) < size:
        part = some(descriptor, min(size - len(data), _PIECE))
        if not part:
            break
        data += part
    return bytes(data)


def some(descriptor: int, size: int) -> bytes:
    """The next bytes, one at least and `size` at most; none at the end. Raises as :func:`fill`."""
    for pause in _PAUSES:
        try:
            return os.read(descriptor, size)
        except BlockingIOError:
            time.sleep(pause)
    return os.read(descriptor, size)


def copy(source: _Path, target: _Path) -> None:
    """Write the bytes of a file to a new one, never into one that is there, which may be the same file.

    Raises
    ------
    OSError
        One of them cannot be opened, read or written, or the target is there.
    """
    descriptor = os.open(source, os.O_RDONLY)
    try:
        with open(target, "xb") as file:
            while part := some(descriptor, _PIECE):
                file.write(part)
    finally:
        os.close(descriptor)
