"""Regular expressions that are compiled when they are first used.

Most of a start is loading modules, and a module full of patterns takes longer to compile them than to load. A
transfer needs a quarter of them.
"""

from __future__ import annotations

import re
from typing import Any, cast


def regex(text: str, flags: int = 0) -> re.Pattern[str]:
    """A regular expression as :func:`re.compile` gives it, made at the first use of one of its methods.

    Parameters
    ----------
    text : str
        A pattern of this package's own: a mistake in it is found at its first use. What others wrote is for
        :func:`re.compile`.
    flags : int
    """
    return cast("re.Pattern[str]", _Later(text, flags))


class _Later:
    def __init__(self, text: str, flags: int) -> None:
        self.pattern, self.flags = text, flags

    def __getattr__(self, name: str) -> Any:
        """A method of the compiled pattern; it stays here, so that the next call finds it at once."""
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(re.compile(self.pattern, self.flags), name)
        setattr(self, name, found)
        return found

    def __repr__(self) -> str:
        return f"regex({self.pattern!r})"
