"""How far an evaluation has come: one line that is drawn over on a terminal, and plain lines elsewhere."""

from __future__ import annotations

import sys

from taskvec.bar import Pace
from taskvec.cli.console import Console
from taskvec.cli.log import log


class Live:
    """The line of one command."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace, self._what, self._drawn = Pace(**console.patience), "", False

    def draw(self, text: str, what: str = "", done: int = 0, total: int = 0) -> None:
        """Say how far something is.

        Parameters
        ----------
        text : str
            The whole line.
        what : str
            The thing that is counted: elsewhere than on a terminal each has tenths of its own.
        done, total : int
            How far it is; a line for each tenth of it.
        """
        if what != self._what:
            self._what = what
            self._pace.begin()
        is_due = self._pace.is_due(done, total)
        if self._console.shows == "bar":
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
            self._drawn = True
        if is_due and self._console.shows == "plain":
            self._console.step(text)
        elif is_due:
            log(text)

    def clear(self) -> None:
        """Take the line that is drawn over away."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False
