"""The progress of a run, as a callback gets it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from taskvec.errors import warn

Phase = Literal["download", "prepare", "approximate", "merge", "publish", "verify", "compare"]


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of one phase of a run.

    Attributes
    ----------
    phase : {"download", "prepare", "approximate", "merge", "publish", "verify", "compare"}
        What is being done.
    done_bytes, total_bytes : int
        Of this phase; ``publish`` counts files, and ``approximate`` the terms of rows that are computed.
    seconds : float
        Since this phase began.
    notice : str or None
        What a user should know before it is done, such as that an old output is removed first; without bytes.
    """

    phase: Phase
    done_bytes: int
    total_bytes: int
    seconds: float
    notice: str | None = None


Callback = Callable[[Progress], object]


def meter(callback: Callback | None, phase: Phase) -> Callable[[int, int], None] | None:
    """A callback of two byte counts, as the engine wants it, that reports one phase."""
    if callback is None:
        return None
    begin = time.monotonic()

    def tell(done: int, total: int) -> None:
        callback(Progress(phase, done, total, time.monotonic() - begin))

    return tell


def heard(callback: Callback | None) -> Callable[[str], None]:
    """A callback of words, as the engine wants it: they go to `callback`, or are a warning without one."""

    def tell(words: str) -> None:
        if callback is None:
            warn(words)
        else:
            callback(Progress("prepare", 0, 0, 0.0, words))

    return tell
