"""Tensors that lie near another one by their names: in the same module, and in the modules of that.

Looking at a model takes time that grows with its number of tensors, however these are called: a module of
very many tensors is no layer, and of it only names that begin alike are near each other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

# Layers have a few dozen tensors at most. One that has more holds the tensors of many layers.
CROWDED = 128


class Neighbours:
    """The names of a model's tensors, by what lies near them.

    Parameters
    ----------
    names : iterable of str
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._all = list(names)
        self._below: defaultdict[str, list[str]] = defaultdict(list)
        for name in self._all:
            for parent in parents(name):
                self._below[parent].append(name)
        self._alike: dict[str, dict[str, list[str]]] = {}

    def of(self, name: str) -> list[str]:
        """Names near this one, those below it first; itself is among them."""
        stem = name.rpartition(".")[0]
        found = self._below.get(stem, []) if stem else self._all
        if len(found) > CROWDED:
            found = self._that_begin_alike(name, stem, found)
        below = self._below.get(name)
        return list(dict.fromkeys((*below, *found))) if below else found

    def _that_begin_alike(self, name: str, stem: str, found: list[str]) -> list[str]:
        """Those of a crowded module whose names begin as this one's does, up to the end of a word."""
        if stem not in self._alike:
            by_start: defaultdict[str, list[str]] = defaultdict(list)
            for each in found:
                for start in starts(each, len(stem) + 1 if stem else 0):
                    by_start[start].append(each)
            self._alike[stem] = by_start
        for start in starts(name, len(stem) + 1 if stem else 0):
            alike = self._alike[stem].get(start, [])
            if len(alike) > CROWDED:
                break
            if alike != [name]:
                return alike
        return [name]


def parents(name: str) -> Iterator[str]:
    """The two names above: of `q.weight.absmax` those of the layer and of its weight."""
    for _ in range(2):
        name = name.rpartition(".")[0]
        if name:
            yield name


def starts(name: str, after: int) -> Iterator[str]:
    """A name, and what it begins with at the end of each of its words, the longest first."""
    yield name
    for found in reversed(list(re.finditer("[._:]", name[after:]))):
        if found.start():
            yield name[: after + found.start()]
