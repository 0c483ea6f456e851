"""The output of the command line: data to stdout, talk to stderr, one shape for JSON, errors and progress.

Every verb makes one :class:`Console` and prints through it. Words carry the meaning; colour only helps, and
is off where ``NO_COLOR`` is set, or the stream is not a terminal and ``FORCE_COLOR`` is not set.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import click

from taskvec.cli.log import is_logged, log
from taskvec.errors import Error
from taskvec.files import look
from taskvec.files.json import jsonable
from taskvec.regex import regex
from taskvec.text import printable

SCHEMA = 1  # version of every JSON object that a command prints
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

LEVEL_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan", "hint": "green"}

# what Python says where the system gives it no thread, or no memory for what one needs
_NO_THREAD = frozenset({"can't start new thread", "can't allocate lock", "can't allocate read lock"})
# and where a call in C has failed without an exception, which is mostly an allocation
_UNSAID = ("error return without exception set", "returned NULL without setting an exception")
_MORE_THREADS = "end other programs, or raise the limit of processes (`ulimit -u`, `pids.max` of a container)"

FIGURE = regex(r"(\d) ([kMGTP]?B|[kMGT]|s|min)\b")
LABEL = 11  # columns of a label before its text
_FIRST = 16  # columns of a table's first cell below which nothing can be told from it
WIDEST = 120  # columns: longer lines are hard to read


class UsageError(Error):
    """The command line cannot be understood."""


# --- the streams
def has_colour(stream: TextIO | None) -> bool:
    """Whether `stream` may be coloured: a terminal, or anything where ``FORCE_COLOR`` says so."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return stream is not None
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def is_terminal(stream: TextIO | None) -> bool:
    """Whether `stream` is a terminal; a closed or missing stream is not."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


class Page:
    """Lines for one stream: painted and wrapped on a terminal, plain and unwrapped elsewhere."""

    def __init__(self, stream: TextIO | None) -> None:
        self.colour = has_colour(stream)
        self.width: int | None = None
        if is_terminal(stream):
            import shutil

            self.width = shutil.get_terminal_size((80, 24)).columns
        self.lines: list[str] = []

    def paint(self, text: str, **style: Any) -> str:
        """`text` in a click style, or as it is.

        Not in rich's, which draws the progress bar: importing rich's styles and text takes 40 ms.
        """
        return click.style(text, **style) if self.colour else text

    def line(self, text: str = "") -> None:
        """One line as it is."""
        self.lines.append(text)

    def words(self, text: str) -> None:
        """A sentence, wrapped as the rest is."""
        self._hang("", text, 0)

    def fact(self, label: str, text: str, *, columns: int = LABEL, **style: Any) -> None:
        """A labelled line, its text wrapped under itself."""
        self._hang(f"{label:<{columns - 1}} ", text, columns, **(style or {"dim": True}))

    def level(self, level: str, text: str) -> None:
        """`level: text`, as errors, warnings, notes and hints are written."""
        head = f"  {level}: " if level == "hint" else f"{level}: "
        self._hang(head, text, min(len(head), 9), fg=LEVEL_COLOURS.get(level.partition("[")[0]), bold=True)

    def _hang(self, head: str, text: str, indent: int, **style: Any) -> None:
        """`head` painted and `text` after it; on a terminal wrapped, its further lines indented."""
        first, *rest = [head + text]
        if self.width is not None:
            import textwrap

            room = max(30, min(self.width, WIDEST))
            lines = textwrap.wrap(
                FIGURE.sub("\\1\u00a0\\2", head + text),  # a figure and its unit stay on one line
                room,
                subsequent_indent=" " * indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
            first, *rest = [line.replace("\u00a0", " ") for line in lines] or [head]
        self.lines.append((self.paint(head, **style) + first[len(head) :]).rstrip())
        self.lines.extend(rest)

    def table(
        self, header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()
    ) -> None:
        """Aligned columns; on a terminal the first is elided in its middle where lines would be too long, and
        where that does not suffice each row is a list of its cells."""
        body = [tuple(map(str, row)) for row in rows]
        widths = [max(len(row[i]) for row in [tuple(header), *body]) for i in range(len(header))]
        if self.width is not None:
            room = self.width - sum(widths[1:]) - 2 * (len(widths) - 1)
            if room < min(_FIRST, widths[0]):
                self._records(header, body)
                return
            widths[0] = min(widths[0], room)
        right = frozenset(right)
        for number, row in enumerate([tuple(header), *body]):
            cells = [elide(row[0], widths[0]), *row[1:]]
            text = "  ".join(
                cell.rjust(width) if i in right else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            self.lines.append(self.paint(text, bold=True) if number == 0 else text)

    def _records(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table on a narrow terminal: the first cell of a row, and below it the others with their names."""
        assert self.width is not None
        columns = max(map(len, header[1:]), default=0)
        for row in rows:
            self.lines.append(self.paint(elide(row[0], self.width), bold=True))
            for name, cell in zip(header[1:], row[1:], strict=True):
                if cell:
                    self._hang(f"  {name:<{columns}}  ", cell, min(columns + 4, self.width // 2), dim=True)

    def text(self) -> str:
        """Everything so far."""
        return "\n".join(self.lines)


def elide(text: str, width: int) -> str:
    """`text` in at most `width` columns, its middle left out."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


class Console:
    """The printer of one command.

    Parameters
    ----------
    command : str
        The verb, as JSON names it.
    as_json, quiet, verbose : bool
        ``--json``, ``--quiet`` (nothing on stderr but errors), ``--verbose`` (more of it).
    progress : {"auto", "bar", "plain", "none"}
        How progress is shown: ``auto`` is a bar on a terminal and plain lines elsewhere.

    Attributes
    ----------
    has_failed : bool
        Whether a check has failed after the work was done: the exit code is 1 then.
    """

    def __init__(
        self,
        command: str,
        *,
        as_json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        progress: str = "auto",
    ) -> None:
        self.command = command
        self.shows = "none" if quiet else _shown(progress)
        self.patience = {"patience": 0.0} if progress == "plain" else {}
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose and not quiet
        self.has_failed = False

    def talk(self) -> Page:
        """An empty page for stderr."""
        return Page(sys.stderr)

    def say(self, page: Page | str) -> None:
        """Print to stderr unless ``--quiet``; a reader that has gone away never stops the work."""
        text = page if isinstance(page, str) else page.text()
        if self.quiet:
            log(text)
        elif text:
            _to_stderr(text)

    def step(self, text: str) -> None:
        """Say what is being done now; a callback for the library."""
        page = self.talk()
        page.line(page.paint(text, dim=True))
        self.say(page)

    def data(self) -> Page:
        """An empty page for stdout."""
        return Page(sys.stdout)

    def show(self, page: Page | str) -> None:
        """Print the result to stdout; silent with ``--json``, when :meth:`emit` prints it."""
        if not self.as_json:
            text = page if isinstance(page, str) else page.text()
            click.echo(text, color=has_colour(sys.stdout) or None)

    def emit(self, payload: Mapping[str, Any]) -> None:
        """Print the JSON object of this command to stdout, if ``--json`` asked for it."""
        if self.as_json:
            click.echo(_dump({"schema": SCHEMA, "command": self.command, **payload}))

    def findings(self, findings: Iterable[Any], page: Page | None = None) -> None:
        """Print findings: to `page`, or to stderr; notes only where ``--verbose`` or `page` asks for them."""
        target = page or self.talk()
        for finding in findings:
            if page is not None or finding.level != "note" or self.verbose:
                write_finding(target, finding)
        if page is None:
            self.say(target)

    @contextmanager
    def progress(self) -> Iterator[Callable[[Any], None]]:
        """A callback for the library that shows the progress as `shows` says, and prints notices."""
        if self.shows == "none" and not is_logged():
            yield self._notice
            return
        from taskvec.bar import Bar, Lines

        if self.shows != "bar":
            lines = Lines(self.say, **self.patience) if self.shows == "plain" else Lines(log)
            yield lambda event: self._notice(event) if event.notice else lines(event)
            return
        logged = Lines(log)
        with Bar() as bar:

            def tell(event: Any) -> None:
                if event.notice:
                    self._notice(event)
                    return
                bar(event)
                logged(event)

            yield tell

    def _notice(self, event: Any) -> None:
        if event.notice:
            page = self.talk()
            page.level("warning", printable(event.notice))
            self.say(page)


def _shown(progress: str) -> str:
    """How progress is shown where it is left to the stream."""
    if progress != "auto":
        return progress
    return "bar" if is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb" else "plain"


def write_finding(page: Page, finding: Any) -> None:
    """One finding: level, identifier, subject, what was expected and found, and the fix as a hint."""
    page.level(f"{finding.level}[{finding.id}]", printable(finding.message))
    if finding.fix:
        page.level("hint", printable(finding.fix))


def _to_stderr(text: str) -> None:
    log(text)
    with suppress(OSError, ValueError):
        click.echo(text, err=True, color=has_colour(sys.stderr) or None)


def _dump(payload: Mapping[str, Any]) -> str:
    return json.dumps(jsonable(payload), indent=2, ensure_ascii=True, allow_nan=False)


def fail(error: BaseException, code: int, *, command: str | None, as_json: bool, verbose: bool) -> int:
    """Print `error` with its way out to stderr, and as JSON to stdout if asked; give the exit code back."""
    message, hint = _explain(error)
    findings: tuple[Any, ...] = tuple(getattr(error, "findings", ()))
    errors = [finding for finding in findings if finding.level == "error"]
    if verbose and code < EXIT_INTERRUPTED and not isinstance(error, UsageError):
        import traceback

        _to_stderr("".join(traceback.format_exception(error)).rstrip())
    page = Page(sys.stderr)
    alone = errors[0] if len(errors) == 1 else None  # then the message is the finding's own
    for finding in findings:
        if finding is not alone and (finding.level != "note" or verbose):
            write_finding(page, finding)
    first, *rest = message.splitlines() or [""]
    lines = (hint or "").splitlines()
    if len(errors) > 1:  # each has been printed, with its way out
        lines = [line.removeprefix("or ") for line in lines if not line.startswith("[")]
        first, rest = first.rstrip(":"), []
    page.level(f"error[{alone.id}]" if alone is not None else "error", printable(first))
    for line in rest:
        page.line(printable(line))
    for line in lines:
        page.level("hint", printable(line))
    _to_stderr(page.text())
    if as_json:
        record = {"type": type(error).__name__, "message": message, "hint": hint, "exit_code": code}
        if findings:
            record["findings"] = [finding.to_dict() for finding in findings]
        with suppress(OSError, ValueError):
            click.echo(_dump({"schema": SCHEMA, "command": command, "error": record}))
    return code


def _explain(error: BaseException) -> tuple[str, str | None]:
    """Message and way out of any exception."""
    if isinstance(error, Error):
        return str(error), error.hint
    if isinstance(error, OSError) and error.strerror:
        where = f": `{error.filename}`" if error.filename is not None else ""
        return f"{error.strerror.lower()}{where}", look.way_out(error)
    if isinstance(error, MemoryError):
        return "out of memory", "limit it with --max-memory, or use fewer --threads"
    if isinstance(error, RuntimeError) and str(error) in _NO_THREAD:
        return "no further thread can be started", _MORE_THREADS
    if isinstance(error, SystemError) and str(error).endswith(_UNSAID):
        return (
            f"Python failed without saying why ({error}), as it does where memory is refused",
            "free memory, then run the same command again; if it fails again, report it",
        )
    detail = f": {error}" if str(error) else ""
    return (
        f"internal error: {type(error).__name__}{detail}",
        "this is a defect in taskvec; run the command again with --verbose for the traceback, and report it",
    )
