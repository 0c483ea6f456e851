"""The help of a command at any width: terms and explanations, in one column where two have no room."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable

import click

WIDEST = 100  # columns: longer lines are hard to read
LEAST = 30
NARROW = 60  # columns below which an explanation stands under its term
TERM = 30  # columns of a term, at most


class HelpFormatter(click.HelpFormatter):
    """click's formatter for the width that the terminal has; click's own has 50 columns at least."""

    def __init__(self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None):
        width = width or shutil.get_terminal_size((80, 24)).columns
        super().__init__(indent_increment, width=max(LEAST, min(width, max_width or WIDEST) - 2))

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        """The usage; a command of a long name has its arguments below it."""
        if self.width >= NARROW:
            super().write_usage(prog, args, prefix)
            return
        lines = textwrap.wrap(
            f"Usage: {prog} {args}", self.width, subsequent_indent=" " * 4, break_on_hyphens=False
        )
        self.write("\n".join(lines) + "\n")

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = TERM, col_spacing: int = 2) -> None:
        """Terms with their explanations."""
        if self.width >= NARROW:
            super().write_dl(rows, col_max, col_spacing)
            return
        for term, text in rows:
            self.write(f"{'':{self.current_indent}}{term.rstrip()}\n")
            indent = " " * (self.current_indent + 4)
            words = textwrap.TextWrapper(
                self.width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
            )
            self.write("".join(f"{line}\n" for line in words.wrap(text)))


class Context(click.Context):
    """A context whose help has this format."""

    formatter_class = HelpFormatter
