"""An output whose files Python writes: its state is noted as the engine notes that of a run.

Whoever looks at the folder then finds an unfinished run, and the same command goes on with it. An output
that is replaced stays until the new one is whole.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from taskvec._core import write_atomic
from taskvec.errors import OutputError
from taskvec.files import look
from taskvec.files.json import read_bytes
from taskvec.files.names import NEW, PLAN, STATE
from taskvec.files.place import sync_folders
from taskvec.host import free_space
from taskvec.run.locked import place_of
from taskvec.text import size

_LOCK = "lock"


def begin(folder: Path, plan: bytes, *, resume: bool) -> Path:
    """Note in a locked folder that a run of this plan writes to it.

    Parameters
    ----------
    folder : path
        The output folder, of which :func:`taskvec.run.locked.locked` has found that it may be written to.
    plan : bytes
        The plan's own.
    resume : bool
        Go on with an unfinished run of this plan.

    Returns
    -------
    path
        Where the files are to be written: the folder, or one in its state folder where an output is replaced.

    Raises
    ------
    OutputError
        The state cannot be written.
    """
    try:
        is_begun = _plan_of(folder) == plan and resume
        if not is_begun:
            _clear(folder / STATE, keep=NEW if resume and _plan_of(folder / STATE / NEW) == plan else None)
        place = place_of(folder, not is_begun and _holds_files(folder))
        os.makedirs(place / STATE, exist_ok=True)
        if _plan_of(place) != plan:
            write_atomic(place / STATE / PLAN, plan)
        # A folder whose own name is lost in a power cut takes with it that there is a run to go on with.
        sync_folders(folder, [(place / STATE / PLAN).relative_to(folder).as_posix()])
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"the state of the run in `{folder}` cannot be written: {error.strerror or error}",
            "check permissions and free space, then run the same command again",
        ) from error
    return place


def hold_space(folder: Path, needed: int) -> None:
    """Return if there is room for so many bytes.

    Raises
    ------
    OutputError
        There is not, or it cannot be looked at.
    """
    try:
        available = free_space(folder)
    except OSError as error:
        raise look.unanswered(folder, error) from error
    if available is not None and available < needed:
        raise OutputError(
            f"too little space for `{folder}`: {size(needed)} needed, {size(available)} available",
            f"free {size(needed - available)} on that file system or choose another output folder",
        )


def _plan_of(folder: Path) -> bytes | None:
    """The plan of the unfinished run in a folder."""
    path = folder / STATE / PLAN
    return read_bytes(path) if look.is_file(path) else None


def _clear(state: Path, keep: str | None) -> None:
    """Remove what earlier runs have left in the state of a folder."""
    for name in look.listing(state) if look.is_folder(state) else ():
        is_link = (state / name).is_symlink()
        if name == _LOCK or (name == keep and not is_link):
            continue
        if look.is_folder(state / name) and not is_link:
            shutil.rmtree(state / name)
        else:
            (state / name).unlink()


def _holds_files(folder: Path) -> bool:
    """Whether a folder holds more than its state and empty folders."""
    return any(
        level.files or level.links_to_folders for level in look.walk(folder, without=frozenset({STATE}))
    )
