"""The target's other files, which come along to an output byte for byte; config.json where a fact changed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec import jsonedit
from taskvec.errors import OutputError

if TYPE_CHECKING:
    from taskvec.checkpoint import Checkpoint

CONFIG = "config.json"
CARD = "README.md"
MANIFEST = "taskvec.json"
STATE = ".taskvec"
_FICLONE = 0x40049409  # <linux/fs.h>: share all extents of a file


def companions(base: Checkpoint) -> list[str]:
    """The files of `base` that come along unchanged, as relative POSIX names.

    Its model card, its config.json and what an earlier run of taskvec left beside it are none of them.
    """
    return [name for name in base.other_files if name != CONFIG and not is_own(name)]


def is_own(name: str) -> bool:
    """Whether an output has a file of its own by this name, so that the target's is not copied."""
    first = name.split("/", 1)[0]
    return name.lower() == CARD.lower() or name == MANIFEST or first == STATE


def copy(base: Checkpoint, name: str, out: Path) -> None:
    """Copy one file; its blocks are shared where the file system can."""
    place = out / name
    with _writing(place) as part:
        if base.path is None:
            part.write_bytes(base.read_file(name))
        elif not _reflink(base.path / name, part):
            shutil.copyfile(base.path / name, part)


def share(source: Path, place: Path) -> None:
    """Give the output at `place` the same file as another output: reflinked, hard-linked, or else copied."""
    with _writing(place) as part:
        if _reflink(source, part):
            return
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)


def edited_config(text: str, changes: Mapping[str, Any]) -> str:
    """The text of a config.json with some keys changed or added, and every other byte as it was.

    ``changes`` are keys and values as :class:`taskvec.Plan` has them, nested keys as ``text_config.dtype``.
    """
    for key, value in changes.items():
        text = jsonedit.replace(text, tuple(key.split(".")), value)
    return text


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[Path]:
    """A file beside `place` that takes its name once it is on the disk, or goes if that fails."""
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        yield part
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, place)
        _sync_folder(place.parent)
    except OSError as error:
        raise OutputError(
            f"writing `{place}` failed: {error.strerror or error}",
            "free space, check permissions, then run the same command again",
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reflink(source: Path, place: Path) -> bool:
    try:
        import fcntl

        with open(source, "rb") as old, open(place, "xb") as new:
            fcntl.ioctl(new, _FICLONE, old.fileno())
    except (ImportError, OSError):
        place.unlink(missing_ok=True)
        return False
    return True
