"""The file of ``--log``: everything that a command says, each line with its time, however quiet it is."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TextIO

from taskvec.errors import OutputError
from taskvec.regex import regex

_PAINT = regex(r"\x1b\[[\d;?]*[A-Za-z]")

_open: list[TextIO] = []


def open_log(path: str) -> None:
    """Append what is said from now on to a file.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    close_log()
    try:
        _open.append(open(path, "a", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115 - closed below
    except OSError as error:
        raise OutputError(
            f"`--log`: `{path}`: {(error.strerror or str(error)).lower()}", "name a file that can be written"
        ) from None


def close_log() -> None:
    """Write no more."""
    while _open:
        with suppress(OSError):
            _open.pop().close()


def is_logged() -> bool:
    """Whether there is such a file."""
    return bool(_open)


def log(text: str) -> None:
    """Append lines; a disk that is full never stops the work."""
    for file in _open:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        with suppress(OSError, ValueError):
            file.writelines(f"{now} {line}\n" for line in _PAINT.sub("", text).splitlines() if line)
            file.flush()
