"""``progress=True``: a bar in a notebook or on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from taskvec.arguments import watcher
from taskvec.bar import INTERVAL, PATIENCE, Bar, Lines, Pace, label_of, words_of
from taskvec.errors import warn
from taskvec.progress import Callback, Progress

# What the callback of an evaluation gets is an event of another kind: kind, arm, task, done, total.
Watcher = Callable[[Any], Any]
Counter = Callable[[str, int, int], Any]


@contextmanager
def shown(progress: Callback | bool | None) -> Iterator[Callback | None]:
    """The callback that an argument ``progress`` stands for.

    Parameters
    ----------
    progress : callable, bool or None
        ``True`` draws what is reported.

    Raises
    ------
    RecipeError
        It is something else.
    """
    watcher(progress, "progress")
    if not isinstance(progress, bool):
        yield progress
        return
    if not progress:
        yield None
        return
    with _drawing() as draw:

        def tell(event: Progress) -> None:
            if event.notice:
                warn(event.notice)
            else:
                draw(event)

        yield tell


@contextmanager
def watched(progress: Watcher | bool | None) -> Iterator[Watcher | None]:
    """The same of the events of an evaluation."""
    with _counting(progress) as line:
        if line is None:
            yield None if isinstance(progress, bool) else progress
            return

        def tell(event: Any) -> None:
            if event.kind == "progress":
                line.draw(f"{event.arm}: {event.task}", "requests", event.done, event.total)
            elif event.kind == "note":
                warn(event.arm)
            elif event.kind in ("start", "done", "known"):
                line.draw("arms", "done", event.done, event.total)

        yield tell


@contextmanager
def counted(progress: Counter | bool | None) -> Iterator[Counter | None]:
    """The same of documents, by the name of their task."""
    with _counting(progress) as line:
        if line is None:
            yield None if isinstance(progress, bool) else progress
        else:
            yield lambda task, done, total: line.draw(task, "documents", done, total)


def said(progress: Callable[[str], object] | bool | None) -> Callable[[str], object]:
    """The same of work that says its steps in words: with ``True`` they go to the standard error."""
    watcher(progress, "progress")
    if callable(progress):
        return progress
    return _to_stderr if progress else lambda _: None


def in_notebook() -> bool:
    """Whether a notebook shows what is displayed: code runs in a kernel of IPython's."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


@contextmanager
def _counting(progress: Any) -> Iterator[_Line | None]:
    watcher(progress, "progress")
    if progress is not True:
        yield None
        return
    line = _Line()
    try:
        yield line
    finally:
        line.close()


@contextmanager
def _drawing() -> Iterator[Callback]:
    if in_notebook():
        cell = _Cell()
        phase, begun = "", time.monotonic()

        def draw(event: Progress) -> None:
            nonlocal phase, begun
            if event.phase != phase:
                phase, begun = event.phase, time.monotonic()
            done, total = event.done_bytes, event.total_bytes
            words = words_of(phase, done, total, time.monotonic() - begun)
            cell.draw(label_of(phase), "  ".join(words), done, total)

        try:
            yield draw
        finally:
            cell.close()
    elif _is_terminal():
        with Bar() as bar:
            yield bar
    else:
        yield Lines(_to_stderr)


class _Cell:
    """A bar below a cell of a notebook, drawn over in place; it stays as it was last."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._drawn_at = 0.0
        self._handle: Any = None
        self._last: tuple[str, str, int, int] | None = None

    def draw(self, label: str, words: str, done: int, total: int) -> None:
        """Draw how far it is, unless it has just begun or been drawn."""
        now, self._last = time.monotonic(), (label, words, done, total)
        if now - self._begun >= PATIENCE and now - self._drawn_at >= INTERVAL:
            self._drawn_at = now
            self._show()

    def close(self) -> None:
        """Leave what was drawn as it is at the end."""
        if self._handle is not None:
            self._show()

    def _show(self) -> None:
        from html import escape  # its tables take a millisecond, of every start

        from IPython.display import HTML, display

        assert self._last is not None
        label, words, done, total = self._last
        extent = f"value='{min(done, total)}' max='{total}'" if total > 0 else ""
        text = escape(f"{label} {words}".strip())
        page = HTML(f"<div style='font-size:90%'><progress {extent}></progress> {text}</div>")
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)


class _Line:
    """How far something is that is counted: in a notebook a bar, on a terminal a line, else plain lines."""

    def __init__(self) -> None:
        self._cell = _Cell() if in_notebook() else None
        self._terminal = self._cell is None and _is_terminal()
        self._pace, self._label, self._drawn = Pace(), "", False

    def draw(self, label: str, noun: str, done: int, total: int) -> None:
        """Draw that so many of something are done."""
        words = f"{done:,} of {total:,} {noun}"
        if self._cell is not None:
            self._cell.draw(label, words, done, total)
            return
        if label != self._label:
            self._label = label
            self._pace.begin()
        if self._terminal:
            self._drawn = True
            _write(f"\r\x1b[K{label}: {words}")
        elif self._pace.is_due(done, total):
            _to_stderr(f"{label}: {words}")

    def close(self) -> None:
        """Take the line away, or leave the bar."""
        if self._cell is not None:
            self._cell.close()
        elif self._drawn:
            _write("\r\x1b[K")


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # it is closed
        return False


def _to_stderr(text: str) -> None:
    _write(f"{text}\n")


def _write(text: str) -> None:
    with suppress(OSError, ValueError, AttributeError):  # a reader that has gone stops no work
        sys.stderr.write(text)
        sys.stderr.flush()
