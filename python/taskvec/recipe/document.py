"""A recipe as a tree of values that know where they were written, and the words that messages use."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskvec.errors import RecipeError
from taskvec.text import kind_of

if TYPE_CHECKING:
    from taskvec.text import Key

MAXIMUM_NODES = 30_000
"""Keys and values, aliases followed. A recipe that sets everything layer by layer has about 8 000."""
MAXIMUM_DEPTH = 40


@dataclass(frozen=True, slots=True)
class Node:
    """A scalar, a list of nodes or a mapping of text to nodes, and where it was written."""

    value: Any
    origin: int | str | None = None
    """A line number, or the words of the command line that set it."""
    keys: Mapping[str, int] | None = None
    """Lines of a mapping's keys."""

    def below(self, step: Key) -> Node | None:
        """The node under a key or at an index."""
        if isinstance(self.value, dict):
            return self.value.get(step)
        if isinstance(self.value, list) and isinstance(step, int) and 0 <= step < len(self.value):
            return self.value[step]
        return None

    def plain(self) -> Any:
        """The value as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a recipe.

    Parameters
    ----------
    root : Node
        Always a mapping.
    source : str
        What messages call the recipe: its file as the user wrote it, or ``recipe``.
    """

    root: Node
    source: str

    def plain(self) -> dict[str, Any]:
        """The document as plain dicts, lists and scalars."""
        return self.root.plain()

    def place(self, path: Sequence[Key] = (), *, key: bool = False) -> str:
        """Where a value is written (``recipe.yaml:7``); with `key`, where its key is."""
        node, origin = self.root, self.root.origin
        for step in path:
            below = node.below(step)
            if below is None:
                break
            line = node.keys.get(str(step)) if key and node.keys else None
            node, origin = below, next((o for o in (line, below.origin) if o is not None), origin)
        if isinstance(origin, str):
            return origin
        return self.source if origin is None else f"{self.source}:{origin}"

    def error(
        self, path: Sequence[Key], message: str, hint: str | None = None, *, key: bool = False
    ) -> RecipeError:
        """An error about the value at `path`."""
        return RecipeError(f"{self.place(path, key=key)}: {message}", hint)


def dotted(path: Iterable[Key]) -> str:
    """A path as messages and ``--set`` write it: ``models.1.parameters.weight``."""
    return ".".join(str(step) for step in path)


def from_python(value: Any, source: str = "recipe") -> Document:
    """A recipe given as dicts and lists.

    Raises
    ------
    RecipeError
        Not a mapping, a key that is not text, or nested too deeply.
    """
    if not isinstance(value, Mapping):
        raise RecipeError(
            f"{source}: a recipe is a mapping of keys, found {kind_of(value)}",
            "begin with `merge_method: ...`",
        )
    return Document(_node(value, source, [0], 0), source)


def _node(value: Any, source: str, count: list[int], depth: int) -> Node:
    count[0] += 1
    if depth > MAXIMUM_DEPTH or count[0] > MAXIMUM_NODES:
        raise RecipeError(
            f"{source}: nested more than {MAXIMUM_DEPTH} levels deep, or more than {MAXIMUM_NODES} values",
            "a recipe needs fewer: is it the right file?",
        )
    if isinstance(value, Mapping):
        pairs = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise RecipeError(
                    f"{source}: a key has to be text, found {kind_of(key)}",
                    "write keys as plain text, such as `weight:`",
                )
            pairs[key] = _node(item, source, count, depth + 1)
        return Node(pairs)
    if isinstance(value, list | tuple):
        return Node([_node(item, source, count, depth + 1) for item in value])
    if isinstance(value, bool | str) or value is None:
        return Node(value)
    if isinstance(value, numbers.Integral):
        return Node(int(value))
    if isinstance(value, numbers.Real):
        return Node(float(value))
    if isinstance(value, os.PathLike):
        return Node(os.fspath(value))
    return Node(value)
