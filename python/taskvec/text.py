"""Text for people: sizes, amounts, lists of names, and the nearest of some words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any


# --- words and figures
def size(count: float) -> str:
    """Bytes in decimal units, three figures: ``988 MB``, ``2.96 GB``."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB", "PB"))


def amount(count: float) -> str:
    """A count in words of a thousand: ``494 M``."""
    return _scaled(count, ("", "k", "M", "G", "T")).rstrip()


def _scaled(count: float, units: Sequence[str]) -> str:
    value, unit = float(count), 0
    while abs(value) >= 999.5 and unit + 1 < len(units):
        value, unit = value / 1000, unit + 1
    if unit == 0:
        return f"{int(value)} {units[0]}"
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {units[unit]}"


def duration(seconds: float) -> str:
    """``0.42 s``, ``12.3 s``, ``4 min 05 s``, ``2 h 04 min``."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent(share: float) -> str:
    """A share of one in words; never `0%` or `100%` where it is not exactly so."""
    value = 100 * share
    for digits in (1, 2, 3):
        text = f"{value:.{digits}f}"
        if value in (0.0, 100.0):
            return f"{value:.0f}%"
        if 0 < float(text) < 100:
            return f"{text}%"
    return "<0.001%" if value < 50 else ">99.999%"


def plural(count: int, noun: str) -> str:
    """``1 shard``, ``3 shards``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def minus(text: str) -> str:
    """A number's text with a minus sign where it has a hyphen."""
    return text.replace("-", "−")


def printable(text: object) -> str:
    """A name from a file, safe to show: control characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def listed(names: Sequence[str] | Collection[str], limit: int = 3) -> str:
    """The first names in backticks, and how many more there are."""
    shown = [f"`{name}`" for _, name in zip(range(limit), names, strict=False)]
    more = len(names) - len(shown)
    if more > 0:
        return f"{', '.join(shown)} and {more:,} more"
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1]))) if shown else "none"


def roles(names: Sequence[str]) -> str:
    """``donor``, ``donor and reference``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""


Key = str | int


def alike(word: str, words: Iterable[str], n: int = 3, cutoff: float = 0.6) -> list[str]:
    """The `n` of `words` at most that are most like `word`, the most alike first; 1 is equal."""
    import difflib  # mistakes alone need it

    return difflib.get_close_matches(word, list(words), n=n, cutoff=cutoff)


def nearest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of `words` that `word` is probably meant to be: at least so alike, 1 being equal."""
    near = alike(str(word)[:64], words, n=1, cutoff=cutoff)
    return near[0] if near else None


def shown(value: Any) -> str:
    """A value as messages show it: on one line, at most 60 characters, control characters escaped."""
    text = str(value) if isinstance(value, str) else _text_of(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")[:60]


def _text_of(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    return repr(value)


def kind_of(value: Any) -> str:
    """The kind of a value, in the words of a recipe."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the truth value `{shown(value)}`"
    import numbers  # errors alone need it

    if isinstance(value, numbers.Real):
        return f"the number `{shown(value)}`"
    if isinstance(value, str):
        return f"the text `{shown(value)}`"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, Sequence) else f"`{shown(value)}`"
