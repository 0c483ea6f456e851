"""The progress bar: shown on a terminal only, and only for work that lasts long enough to be watched."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from taskvec.text import duration, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# Seconds before the bar appears: a shorter job should neither flicker nor pay for importing rich.
PATIENCE = 0.3
# Seconds between two updates: the engine may report far more often than eyes can follow.
INTERVAL = 0.1

PHASE_LABELS = {
    "download": "downloading",
    "prepare": "preparing",
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
            self._task = progress.add_task(PHASE_LABELS.get(self._phase, self._phase), total=None, detail="")
        done, total = event.done_bytes, event.total_bytes
        detail = self._words(done, total, now - self._phase_begun)
        progress.update(self._task, completed=done, total=total or None, detail=detail, refresh=True)

    def _words(self, done: int, total: int, elapsed: float) -> str:
        """Amount, rate and time left; nothing where nothing has been done yet."""
        if done <= 0 or elapsed <= 0:
            return ""
        if self._phase == "publish":  # counts files
            return f"{done} of {total} files"
        left = duration(elapsed * (total - done) / done) if elapsed > 1 and total > done else ""
        rate = f"{done / elapsed / 1e9:.2f} GB/s"
        return f"{size(done)} of {size(total)}  {rate}" + (f"  {left} left" if left else "")

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
