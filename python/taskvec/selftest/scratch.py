"""The scratch folder of a benchmark: in memory where there is room, removed at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskvec import host
from taskvec.errors import Error, OutputError
from taskvec.files import look

HEADROOM = 500_000_000  # bytes left free where the checkpoints are made


@contextmanager
def workspace(directory: str | os.PathLike[str] | None, need: int) -> Iterator[Path]:
    """A scratch folder with room for `need` bytes, removed at the end.

    Raises
    ------
    OutputError
        There is not so much room, or the folder cannot be written to.
    """
    place = directory or tempfile.gettempdir()
    try:
        parent = _parent(directory, need)
        folder = Path(tempfile.mkdtemp(prefix="taskvec-bench-", dir=parent))
        place = folder
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        if isinstance(error, Error):
            raise
        words = f"`{os.fspath(place)}` cannot be worked in: {error.strerror or error}"
        raise OutputError(words, look.way_out(error)) from error


def _parent(directory: str | os.PathLike[str] | None, need: int) -> Path:
    """The folder that the scratch folder is made in: the one that is named, memory, or the temporary one."""
    shared = Path("/dev/shm")
    if directory is not None:
        parent = Path(directory)
        parent.mkdir(parents=True, exist_ok=True)
    elif os.access(shared, os.W_OK) and _free(shared) >= need:
        parent = shared
    else:
        parent = Path(tempfile.gettempdir())
    if _free(parent) < need:
        raise OutputError(
            f"`{parent}` has {_free(parent) / 1e9:.1f} GB free, the benchmark needs {need / 1e9:.1f} GB",
            "name a folder with more room with --dir, or a smaller --size",
        )
    return parent


def _free(path: Path) -> int:
    """Bytes that can be written to `path`; on tmpfs, which is memory, not more than is available."""
    free = shutil.disk_usage(path).free
    available = host.memory_available()
    if host.file_system(path) in ("tmpfs", "ramfs") and available is not None:
        free = min(free, available - HEADROOM)
    return free
