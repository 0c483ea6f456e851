"""A folder that becomes another one when it is whole; what a killed process has left goes with the next."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from taskvec.files import look
from taskvec.files.lock import lock

_LOCK = ".lock"


@contextlib.contextmanager
def part_of(folder: Path) -> Iterator[Path]:
    """The name of a folder next to `folder`, gone at the end unless it was renamed.

    A lock of the system, which ends with the process, tells folders that are being written to from those
    that a killed process has left: these are removed first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(folder.parent)
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    mark = part.with_name(part.name + _LOCK)
    descriptor = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        lock(descriptor, wait=False)
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        mark.unlink(missing_ok=True)
        os.close(descriptor)


def _remove_left(parent: Path) -> None:
    for name in look.listing(parent):
        if not (name.startswith(".") and name.endswith(_LOCK)):
            continue
        with contextlib.suppress(OSError):  # another process is at work there, or may not be looked at
            descriptor = os.open(parent / name, os.O_RDWR)
            try:
                if lock(descriptor, wait=False):
                    shutil.rmtree(parent / name.removesuffix(_LOCK), ignore_errors=True)
                    (parent / name).unlink()
            finally:
                os.close(descriptor)
