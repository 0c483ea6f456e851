"""The progress of work that lasts long enough to be watched: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from taskvec.text import duration, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# Seconds before the bar appears: a shorter job should neither flicker nor pay for importing rich.
PATIENCE = 0.3
# Seconds between two updates: the engine may report far more often than eyes can follow.
INTERVAL = 0.1

# Without a terminal: a line for each tenth of the work, and after this time where a tenth takes longer.
TENTHS = 10
PAUSE = 30.0
# Seconds before the first of them, where nobody asked for lines.
LINES_PATIENCE = 2.0

PHASE_LABELS = {
    "download": "downloading",
    "prepare": "preparing",
    "approximate": "computing rows",
    "merge": "merging",
    "publish": "finishing",
    "verify": "verifying",
    "compare": "comparing",
}


class Bar:
    """A callback that draws what the library reports; use as a context manager."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._last = 0.0
        self._phase: str = ""
        self._phase_begun = self._begun
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, event: Any) -> None:
        now = time.monotonic()
        if event.phase != self._phase:
            self._phase, self._phase_begun, self._last = event.phase, now, 0.0
            if self._progress is not None and self._task is not None:
                self._progress.remove_task(self._task)
                self._task = None
        if now - self._begun < PATIENCE or now - self._last < INTERVAL:
            return
        self._last = now
        progress = self._progress or self._start()
        if self._task is None:
            self._task = progress.add_task(label_of(self._phase), total=None, detail="")
        done, total = event.done_bytes, event.total_bytes
        detail = "  ".join(words_of(self._phase, done, total, now - self._phase_begun))
        progress.update(self._task, completed=done, total=total or None, detail=detail, refresh=True)

    def _start(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[detail]}"),
            console=Console(file=sys.stderr),
            transient=True,
            auto_refresh=False,  # which takes a thread, and the system may have no more
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._progress.start()
        return self._progress


class Pace:
    """When the next plain line is due.

    Parameters
    ----------
    patience : float
        Seconds before the first.
    """

    def __init__(self, patience: float = LINES_PATIENCE) -> None:
        self._patience = patience
        self.begin()

    def begin(self) -> None:
        """Something else is being done from now on."""
        self.begun = self._last = time.monotonic()
        self._tenth = 0

    def is_due(self, done: int, total: int) -> bool:
        """Whether it is time for a line, which is then taken to be written."""
        now = time.monotonic()
        tenth = TENTHS * done // total if total > 0 else 0
        is_far = self._tenth < tenth < TENTHS
        if now - self.begun < self._patience or not (is_far or now - self._last >= PAUSE):
            return False
        self._last, self._tenth = now, tenth
        return True


class Lines:
    """A callback that says in plain lines what the library reports.

    Parameters
    ----------
    say : callable
        Gets each line.
    patience : float
        Seconds before the first line of each phase.
    """

    def __init__(self, say: Callable[[str], None], patience: float = LINES_PATIENCE) -> None:
        self._say, self._pace, self._phase = say, Pace(patience), ""

    def __call__(self, event: Any) -> None:
        if event.phase != self._phase:
            self._phase = event.phase
            self._pace.begin()
        done, total = event.done_bytes, event.total_bytes
        if self._pace.is_due(done, total):
            words = words_of(event.phase, done, total, time.monotonic() - self._pace.begun)
            share = f"{100 * done // total} %" if total > 0 else ""
            label = label_of(event.phase)
            self._say(f"{label}: " + ", ".join(filter(None, (share, *words))))


def label_of(phase: str) -> str:
    """What is being done, in a word."""
    return PHASE_LABELS.get(phase, phase)


def words_of(phase: str, done: int, total: int, elapsed: float) -> list[str]:
    """Amount, rate and time left; nothing where nothing has been done yet."""
    if done <= 0 or elapsed <= 0:
        return []
    if phase == "publish":  # counts files
        return [f"{done} of {total} files"]
    if phase == "approximate":  # counts terms
        words = [f"{done:,} of {total:,} terms"]
    else:
        words = [f"{size(done)} of {size(total)}", f"{done / elapsed / 1e9:.2f} GB/s"]
    if elapsed > 1 and total > done:
        words.append(f"{duration(elapsed * (total - done) / done)} left")
    return words
