"""Arguments of calls from Python: one of another kind than the call takes is an error that names it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from taskvec.errors import RecipeError
from taskvec.text import kind_of

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


def function(value: Any, name: str) -> Any:
    """What can be called, or nothing; raises as :func:`path`."""
    if value is not None and not callable(value):
        raise RecipeError(f"`{name}` is a function, found {kind_of(value)}", "give one, or leave it out")
    return value
