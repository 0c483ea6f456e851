"""A scratch folder in memory: an engine that takes the weights of arms from a folder waits for no disk."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from taskvec.evaluation.sweep.scratch import take_away
from taskvec.files import look
from taskvec.host import file_system, memory_available

RAM = Path("/dev/shm")
SPARE = 4  # models that have to fit into what is free: two merged ones, and room for who else needs it


@contextlib.contextmanager
def ram_folder(out: Path, model_bytes: int) -> Iterator[Path | None]:
    """A folder in memory for the merged models of an output folder, gone afterwards; None without the room.

    Its name follows from the output folder: a run that goes on after a kill finds what the killed one left,
    and removes it.
    """
    if not has_room(model_bytes):
        yield None
        return
    name = hashlib.blake2b(str(out.absolute()).encode(), digest_size=8).hexdigest()
    folder = RAM / f"taskvec-sweep-{name}"
    try:
        yield folder
    finally:
        take_away(folder)


def has_room(model_bytes: int) -> bool:
    """Whether there is a folder in memory, and room in it."""
    if not look.is_folder(RAM) or file_system(RAM) != "tmpfs":
        return False
    available = memory_available()
    free = shutil.disk_usage(RAM).free
    return free >= SPARE * model_bytes and available is not None and available >= SPARE * model_bytes


def is_in_memory(folder: Path) -> bool:
    """Whether a folder, which need not be there yet, lies in memory."""
    return file_system(folder) in ("tmpfs", "ramfs")
