"""Folders that appear when they are complete, and are looked at when they are found again.

Which files a folder holds, and their digests, is listed in a file next to it: weights that were zeroed by a
power cut load as well as any others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskvec._core import digest_file
from taskvec.errors import OutputError
from taskvec.evaluation.record import write_whole, writing
from taskvec.evaluation.sweep.scratch import take_away
from taskvec.files import look
from taskvec.files.place import sync_folders


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path | None]:
    """A sibling folder that takes the name when it is complete; None if the name is taken already.

    Raises
    ------
    OutputError
        The folder that has the name holds other files than were written into it.
    """
    if is_whole(folder):
        yield None
        return
    unfinished = folder.with_name(f".{folder.name}.part")
    take_away(unfinished)  # of a run that was killed
    try:
        with writing(folder):
            unfinished.mkdir()
            yield unfinished
            for name in look.listing(unfinished):
                with (unfinished / name).open("rb") as file:
                    os.fsync(file.fileno())
            sync_folders(unfinished, [])
            write_whole(_list(folder), json.dumps(_found(unfinished)) + "\n")
            unfinished.rename(folder)
            sync_folders(folder.parent, [])
    finally:
        take_away(unfinished)


def is_whole(folder: Path) -> bool:
    """Whether there is such a folder; one from before there were lists is taken as it is.

    Raises
    ------
    OutputError
        It holds other files than its list says.
    """
    if not look.exists(folder):
        return False
    if not look.exists(_list(folder)):
        return True
    try:
        content = json.loads(_list(folder).read_text(encoding="utf-8"))
    except OSError as error:
        raise look.unanswered(_list(folder), error) from error
    except ValueError:
        content = None
    if content != _found(folder):
        raise OutputError(
            f"`{folder}` is not as it was written, by the list in `{_list(folder).name}`: it is damaged, or "
            "was changed",
            f"remove `{folder}`, and the same command makes it again",
        )
    return True


def _list(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.files.json")


def _found(folder: Path) -> dict[str, str]:
    """The digests of the files of a folder."""
    paths = {name: folder / name for name in look.listing(folder)}
    return {name: digest_file(path)[1] for name, path in paths.items() if look.is_file(path)}
