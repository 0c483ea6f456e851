"""Files put in place: written under another name, flushed, renamed; and folders flushed with their names.

The other name lies in the state folder of the run, which goes when the run ends, and with it whatever a
killed one has left there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from taskvec.errors import OutputError
from taskvec.files.flush import flush_path
from taskvec.files.names import STATE


@contextlib.contextmanager
def placing(out: Path, name: str) -> Iterator[Path]:
    """A file that becomes `name` in the folder `out` once it is on the disk, or goes if that fails.

    Parameters
    ----------
    out : path
        An output folder, which is there and on one file system with its state folder.
    name : str
        Relative, with ``/`` between its parts; folders on the way are made.

    Yields
    ------
    path
        Where to write it.

    Raises
    ------
    OutputError
        It could not be written, or the folder has gone.
    """
    state = out / STATE
    part = state / f"copy.{os.getpid()}.part"
    try:
        for folder in (state, *_between(out, name)):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
        yield part
        flush_path(part)
        os.replace(part, out / name)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"writing `{out / name}` failed: {error.strerror or error}",
            "free space, check permissions, then run the same command again",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def sync_folders(out: Path, names: list[str]) -> None:
    """Flush the folders that hold these files, and `out`, so that their names outlive a power cut.

    Raises
    ------
    OutputError
        One of them cannot be flushed.
    """
    folders = dict.fromkeys(folder for name in names for folder in _between(out, name))
    for folder in (*reversed(folders), out):
        try:
            flush_path(folder)
        except OSError as error:
            raise OutputError(
                f"flushing the folder `{folder}` failed: {error.strerror or error}",
                "check the disk, then run the same command again",
            ) from error


def make_folders(folder: Path) -> None:
    """Make a folder and those that lead to it, so that their names outlive a power cut.

    What is flushed in a folder whose own name was not is lost with it.

    Raises
    ------
    OSError
        One cannot be made or flushed, or a file has its name.
    """
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise
        return
    except FileNotFoundError:
        if folder.parent == folder:
            raise
        make_folders(folder.parent)
        make_folders(folder)
        return
    try:
        flush_path(folder.parent)
    except OSError:
        with contextlib.suppress(OSError):  # or the next call would find it, and not flush
            os.rmdir(folder)
        raise


def _between(out: Path, name: str) -> list[Path]:
    """The folders below `out` that lead to a file, outermost first."""
    return [out / folder for folder in reversed(PurePosixPath(name).parents[:-1])]
