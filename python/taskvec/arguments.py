"""Arguments of calls from Python: one of another kind than the call takes is an error that names it."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from typing import Any

from taskvec.errors import RecipeError
from taskvec.text import kind_of, nearest

_NAME = {
    "model": "give a folder, `org/name` of the hub or an address",
    "recipe": "give the path of a YAML file; `taskvec methods NAME` prints one to start from",
    "checkpoints": "give folders of checkpoints, or a pattern in quotes",
    "path": "give the folder that taskvec wrote",
    "ray": "give the address of a Ray cluster, or `local` to start one here",
    "plan": "give the file that `taskvec plan` wrote",
}


def path(value: Any, name: str) -> str | os.PathLike[str]:
    """A text or a path.

    Raises
    ------
    RecipeError
        It is of another kind; `name` says which argument.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise RecipeError(
            f"`{name}` is a text or a path, found {kind_of(value)}", "give the path of a folder"
        )
    if not os.fspath(value).strip():
        raise RecipeError(f"`{name}` is an empty text", _NAME.get(name, "give the path of a folder"))
    return value


def texts(value: Any, name: str) -> tuple[str, ...]:
    """One text, or several; raises as :func:`path`."""
    if isinstance(value, str):
        return (value,)
    several = tuple(value) if isinstance(value, Iterable) else (value,)
    odd = [each for each in several if not isinstance(each, str)]
    if odd:
        raise RecipeError(
            f"`{name}` is a text or a list of texts, found {kind_of(odd[0])}", "give one, or a list"
        )
    return several


def number(value: Any, name: str, least: int | None = None) -> int | None:
    """A whole number, from `least` on, or nothing; raises as :func:`path`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        above = "" if least is None else f", {least} or more"
        raise RecipeError(
            f"`{name}` is a whole number{above}, found {kind_of(value)}", "give one, or leave it out"
        )
    return value


def between(value: Any, name: str, least: int, most: int, words: str) -> int:
    """A whole number of a range, which `words` names; raises as :func:`path`."""
    hint = f"give a whole number from {words}"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise RecipeError(f"`{name}` is a whole number, found {kind_of(value)}", hint)
    whole = operator.index(value)  # of NumPy's too
    if not least <= whole <= most:
        raise RecipeError(f"{name} `{whole}` is out of range", hint)
    return whole


def threads(value: Any) -> int | None:
    """A number of threads, or nothing for all cores; raises as :func:`path`."""
    return None if value is None else between(value, "threads", 1, 1024, "1 to 1024")


def one_of(value: Any, name: str, words: Iterable[str]) -> str:
    """One of some words; raises as :func:`path`."""
    words = tuple(words)
    if value not in words:
        near = nearest(value, words) if isinstance(value, str) else None
        known = f"{', '.join(words[:-1])} or {words[-1]}"
        raise RecipeError(
            f"`{name}` is {known}, found {kind_of(value)}", f"did you mean `{near}`?" if near else None
        )
    return str(value)


def switch(value: Any, name: str) -> bool:
    """True or false; raises as :func:`path`, for a text such as `no` would count as true."""
    if not isinstance(value, bool):
        raise RecipeError(f"`{name}` is true or false, found {kind_of(value)}", "give True or False")
    return value


def function(value: Any, name: str) -> Any:
    """What can be called, or nothing; raises as :func:`path`."""
    if value is not None and not callable(value):
        raise RecipeError(f"`{name}` is a function, found {kind_of(value)}", "give one, or leave it out")
    return value


def watcher(value: Any, name: str) -> Any:
    """What can be called, true to see it drawn, false, or nothing; raises as :func:`path`."""
    if value is not None and not isinstance(value, bool) and not callable(value):
        raise RecipeError(
            f"`{name}` is true, false or a function, found {kind_of(value)}",
            f"give `{name}=True` to see it drawn",
        )
    return value
