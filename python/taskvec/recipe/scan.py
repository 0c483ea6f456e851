"""A first look at YAML, event by event: its limits, and what a recipe does not have.

libyaml composes nested values by recursion, and an alias is one more reference to what it stands for: depth
and size have to be known before.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import yaml

from taskvec.errors import RecipeError
from taskvec.recipe.document import MAXIMUM_DEPTH, MAXIMUM_NODES
from taskvec.text import nearest, shown

CORE = "tag:yaml.org,2002:"
SCALARS = tuple(f"{CORE}{kind}" for kind in ("null", "bool", "int", "float", "str"))
# The tags that a recipe may write.
_TAGS: dict[type, Collection[str]] = {
    yaml.ScalarEvent: SCALARS,
    yaml.SequenceStartEvent: (f"{CORE}seq",),
    yaml.MappingStartEvent: (f"{CORE}map",),
}


def error_at(source: str, line: int, message: str, hint: str | None = None) -> RecipeError:
    """An error on a line of a file."""
    return RecipeError(f"{source}:{line}: {message}", hint)


@dataclass(slots=True)
class _Part:
    """A value so far; the parts of a list or mapping are added up until it ends."""

    line: int
    anchor: str | None = None
    size: int = 1
    depth: int = 0
    is_mapping: bool = False
    children: int = 0
    keys: dict[str, int] = field(default_factory=dict)
    """Of a mapping, with their lines."""


class Scan:
    """The events of a file, held against the limits before anything is built of them."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.open: list[_Part] = []
        self.anchors: dict[str, _Part] = {}
        self.lines: dict[str, int] = {}
        self.nodes = 0
        self.aliases: list[int] = []
        """The line of each alias: the tree has only what it stands for."""

    def event(self, event: Any, line: int) -> None:
        """Take the next event."""
        if isinstance(event, yaml.DocumentStartEvent):
            # Anchors end with their document; the count of values goes on.
            self.anchors, self.lines = {}, {}
        elif isinstance(event, yaml.AliasEvent):
            self.alias(str(event.anchor), line)
        elif isinstance(event, yaml.CollectionEndEvent):
            self.add(self.open.pop())
        elif isinstance(event, yaml.NodeEvent):
            self.value(event, line)

    def value(self, event: Any, line: int) -> None:
        """A scalar, or the start of a list or mapping."""
        is_scalar = isinstance(event, yaml.ScalarEvent)
        if self.is_key():
            self.key(event, line)
        if event.tag not in (None, "!") and event.tag not in _TAGS[type(event)]:
            raise error_at(
                self.source, line, f"tag `{shown(event.tag)}` has no meaning in a recipe", "remove it"
            )
        part = _Part(line, event.anchor, is_mapping=isinstance(event, yaml.MappingStartEvent))
        self.count(line, 1)
        self.name(event.anchor, line)
        if is_scalar:
            self.add(part)
            return
        if len(self.open) >= MAXIMUM_DEPTH:
            raise error_at(
                self.source,
                line,
                f"nested more than {MAXIMUM_DEPTH} levels deep",
                "a recipe needs fewer than ten",
            )
        self.open.append(part)

    def key(self, event: Any, line: int) -> None:
        """A key: text, without an anchor, and once in its mapping."""
        if not isinstance(event, yaml.ScalarEvent):
            raise error_at(
                self.source,
                line,
                "a key has to be text, found a list or mapping",
                "write keys as plain text, such as `weight:`",
            )
        if event.anchor is not None:
            raise error_at(self.source, line, "a key with an anchor", "put the anchor on the value")
        keys = self.open[-1].keys
        if event.value in keys:
            message = f"key `{shown(event.value)}` is written twice, first on line {keys[event.value]}"
            raise error_at(self.source, line, message, "keep one of them")
        keys[event.value] = line

    def alias(self, name: str, line: int) -> None:
        """An alias, which counts as much as what it stands for."""
        if self.is_key():
            raise error_at(self.source, line, "a key has to be text, found an alias", "write the key out")
        if any(part.anchor == name for part in self.open):
            raise error_at(
                self.source,
                line,
                f"alias `*{shown(name)}` stands inside of what it refers to",
                "write the value out",
            )
        if name not in self.anchors:
            near = nearest(name, self.anchors)
            hint = f"did you mean `*{near}`?" if near else None
            raise error_at(self.source, line, f"alias `*{shown(name)}` has no anchor before it", hint)
        part = self.anchors[name]
        self.count(line, part.size)
        self.aliases.append(line)
        self.add(_Part(line, None, part.size, part.depth))

    def add(self, part: _Part) -> None:
        """A value that is complete, to the list or mapping that it is in."""
        if part.depth > MAXIMUM_DEPTH:
            message = f"nested more than {MAXIMUM_DEPTH} levels deep, aliases followed"
            raise error_at(self.source, part.line, message)
        if part.anchor is not None:
            self.anchors[part.anchor] = part
        if self.open:
            outer = self.open[-1]
            outer.size += 0 if self.is_key() else part.size
            outer.depth = max(outer.depth, part.depth + 1)
            outer.children += 1

    def is_key(self) -> bool:
        """Whether the next value is a key."""
        return bool(self.open) and self.open[-1].is_mapping and self.open[-1].children % 2 == 0

    def name(self, anchor: str | None, line: int) -> None:
        """An anchor, which a document has once: so PyYAML, and with it mergekit, wants it."""
        if anchor in self.lines:
            message = f"anchor `&{shown(anchor)}` is written twice, first on line {self.lines[anchor]}"
            raise error_at(self.source, line, message, "rename one of them")
        if anchor is not None:
            self.lines[anchor] = line

    def count(self, line: int, nodes: int) -> None:
        """So many keys and values more."""
        self.nodes += nodes
        if self.nodes > MAXIMUM_NODES:
            raise error_at(
                self.source,
                line,
                f"more than {MAXIMUM_NODES} keys and values, aliases followed",
                "write out what is needed; a recipe of this size is not meant to be merged",
            )
