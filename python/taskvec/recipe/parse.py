"""YAML as recipes are written in: strict, safe against hostile files, and every value knows its line.

PyYAML's own loaders keep the last of two equal keys, expand aliases without limit and forget lines, so the
tree is built here from the parser's events.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from taskvec.errors import NotFoundError, RecipeError
from taskvec.recipe.document import MAXIMUM_DEPTH, MAXIMUM_NODES, Document, Node
from taskvec.text import kind_of, nearest, shown

MAXIMUM_BYTES = 1 << 20
MAXIMUM_DOCUMENTS = 256

_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVERS: dict[str, list[tuple[str, Any]]] = yaml.SafeLoader.yaml_implicit_resolvers
_CONSTRUCTOR = yaml.constructor.SafeConstructor()
_CORE = "tag:yaml.org,2002:"
# Longer numbers are kept as text: Python's conversion of a million digits takes minutes.
_LONGEST_NUMBER = 64


def read(path: str | os.PathLike[str]) -> tuple[str, list[Document]]:
    """The text and the documents of a recipe file.

    Raises
    ------
    NotFoundError
        There is no such file.
    RecipeError
        The file is too large, not UTF-8, or not strict YAML; the message names the line.
    """
    name = os.fspath(path)
    try:
        if not Path(name).is_file():
            missing = not Path(name).exists()
            raise NotFoundError(
                f"recipe `{name}` {'is not there' if missing else 'is not a file'}",
                "give the path of a YAML file; `taskvec methods NAME` prints one to start from",
            )
        with open(name, "rb") as file:
            data = file.read(MAXIMUM_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, NotFoundError):
            raise
        raise RecipeError(f"recipe `{shown(name)}` cannot be read: {error}") from None
    if len(data) > MAXIMUM_BYTES:
        raise RecipeError(
            f"recipe `{name}` is larger than {MAXIMUM_BYTES >> 20} MiB", "a recipe is a few kilobytes of YAML"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{name}:{line}: not UTF-8 text", "save the file as UTF-8") from None
    return text, parse(text, name)


def parse(text: str, source: str) -> list[Document]:
    """The documents of a YAML text; empty ones between separators are left out.

    Raises
    ------
    RecipeError
        Not strict YAML, too much of it, no document, or one that is not a mapping.
    """
    if len(text) > MAXIMUM_BYTES:
        raise RecipeError(f"{source}: larger than {MAXIMUM_BYTES >> 20} MiB")
    documents = []
    for root in parse_nodes(text, source):
        if root.value is None:
            continue
        if not isinstance(root.value, dict):
            raise RecipeError(
                f"{source}:{root.origin}: a recipe is a mapping of keys, found {kind_of(root.plain())}",
                "start with `merge_method: …`",
            )
        if len(documents) == MAXIMUM_DOCUMENTS:
            raise RecipeError(f"{source}:{root.origin}: more than {MAXIMUM_DOCUMENTS} documents")
        documents.append(Document(root, source))
    if not documents:
        raise RecipeError(
            f"{source}: the recipe is empty", "`taskvec methods linear` prints one to start from"
        )
    return documents


@dataclass(slots=True)
class _Frame:
    """A list or mapping under construction."""

    line: int
    anchor: str | None
    items: list[Node] | None
    pairs: dict[str, Node]
    lines: dict[str, int]
    key: str | None = None


class _Builder:
    """Events of the parser to nodes, without recursion and within limits."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.frames: list[_Frame] = []
        self.anchors: dict[str, Node] = {}
        self.open: set[str] = set()
        self.root: Node | None = None
        self.nodes = 0

    def fail(self, line: int, message: str, hint: str | None = None) -> RecipeError:
        return RecipeError(f"{self.source}:{line}: {message}", hint)

    def count(self, line: int, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAXIMUM_NODES:
            raise self.fail(
                line,
                f"more than {MAXIMUM_NODES} keys and values, aliases followed",
                "write out what is needed; a recipe of this size is not meant to be merged",
            )

    def alias(self, name: str, line: int) -> None:
        if name in self.open:
            raise self.fail(line, f"alias `*{shown(name)}` stands inside of what it refers to")
        if name not in self.anchors:
            near = nearest(name, self.anchors)
            raise self.fail(
                line,
                f"alias `*{shown(name)}` has no anchor before it",
                f"did you mean `*{near}`?" if near else None,
            )
        node = self.anchors[name]
        self.count(line, node.size)
        self.add(replace(node, origin=line), line)

    def scalar(self, event: Any, line: int) -> None:
        self.count(line, 1)
        frame = self.frames[-1] if self.frames else None
        if frame is not None and frame.items is None and frame.key is None:
            if event.anchor is not None:
                raise self.fail(line, "a key with an anchor", "put the anchor on the value")
            self.key(frame, event.value, line)
            return
        node = Node(_value(event, lambda message, hint: self.fail(line, message, hint)), line)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        self.add(node, line)

    def key(self, frame: _Frame, text: str, line: int) -> None:
        if text in frame.lines:
            raise self.fail(
                line,
                f"key `{shown(text)}` is there twice, first on line {frame.lines[text]}",
                "keep one of them",
            )
        frame.key = text
        frame.lines[text] = line

    def start(self, event: Any, line: int) -> None:
        if self.frames and self.frames[-1].items is None and self.frames[-1].key is None:
            raise self.fail(line, "a key has to be text, found a list or mapping")
        sequence = isinstance(event, yaml.SequenceStartEvent)
        if event.tag not in (None, "!", _CORE + ("seq" if sequence else "map")):
            raise self.fail(line, f"tag `{shown(event.tag)}` has no meaning in a recipe", "remove it")
        if len(self.frames) >= MAXIMUM_DEPTH:
            raise self.fail(line, f"nested more than {MAXIMUM_DEPTH} levels deep")
        self.count(line, 1)
        if event.anchor is not None:
            self.open.add(event.anchor)
        self.frames.append(_Frame(line, event.anchor, [] if sequence else None, {}, {}))

    def end(self) -> None:
        frame = self.frames.pop()
        if frame.items is not None:
            value: Any = frame.items
            children: Iterable[Node] = frame.items
        else:
            value = self.merged(frame)
            children = value.values()
        sizes = [(child.size, child.depth) for child in children]
        depth = 1 + max((depth for _, depth in sizes), default=0)
        if depth > MAXIMUM_DEPTH:
            raise self.fail(frame.line, f"nested more than {MAXIMUM_DEPTH} levels deep, aliases followed")
        node = Node(value, frame.line, frame.lines or None, 1 + sum(size for size, _ in sizes), depth)
        if frame.anchor is not None:
            self.open.discard(frame.anchor)
            self.anchors[frame.anchor] = node
        self.add(node, frame.line)

    def merged(self, frame: _Frame) -> dict[str, Node]:
        """A mapping with its ``<<`` filled in: its own keys win, then earlier mappings before later ones."""
        pairs = frame.pairs
        base = pairs.pop("<<", None)
        if base is None:
            return pairs
        line = frame.lines.pop("<<")
        for mapping in base.value if isinstance(base.value, list) else [base]:
            if not isinstance(mapping.value, dict):
                raise self.fail(line, "`<<` takes a mapping, or a list of mappings")
            for key, node in mapping.value.items():
                if key not in pairs:
                    self.count(line, node.size)
                    pairs[key] = node
                    frame.lines[key] = line
        return pairs

    def add(self, node: Node, line: int) -> None:
        if not self.frames:
            self.root = node
            return
        frame = self.frames[-1]
        if frame.items is not None:
            frame.items.append(node)
        elif frame.key is None:
            raise self.fail(line, "a key has to be text, found an alias")
        else:
            frame.pairs[frame.key] = node
            frame.key = None


def parse_nodes(text: str, source: str) -> Iterator[Node]:
    """The root of every document, empty ones included."""
    builder = _Builder(source)
    try:
        for event in yaml.parse(text, Loader=_PARSER):
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.ScalarEvent):
                builder.scalar(event, line)
            elif isinstance(event, yaml.AliasEvent):
                builder.alias(str(event.anchor), line)
            elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
                builder.start(event, line)
            elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
                builder.end()
            elif isinstance(event, yaml.DocumentEndEvent):
                if builder.root is not None:
                    yield builder.root
                # Anchors end with their document; the count of values goes on.
                builder.root, builder.anchors = None, {}
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, source) from None


def _syntax_error(error: yaml.YAMLError, text: str, source: str) -> RecipeError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        position = getattr(error, "position", None)
        line = text.count("\n", 0, position) + 1 if isinstance(position, int) else 1
        reason = getattr(error, "reason", None) or "not YAML"
        return RecipeError(f"{source}:{line}: {reason}", "remove control characters; save the file as UTF-8")
    line = mark.line + 1
    lines = text.splitlines()
    content = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in content[: len(content) - len(content.lstrip())]:
        return RecipeError(f"{source}:{line}: a tab in the indentation", "indent with spaces")
    problem = getattr(error, "problem", None) or "not YAML"
    return RecipeError(f"{source}:{line}: not valid YAML: {problem}", _syntax_hint(content, problem))


def _syntax_hint(content: str, problem: str) -> str:
    if "mapping values are not allowed" in problem:
        return "check the indentation, and put quotes around text that has a colon"
    if "cannot start any token" in problem:
        return "put quotes around text that starts with a special character"
    return "check indentation, brackets and quotes" + (
        f" in `{shown(content.strip())}`" if content.strip() else ""
    )


def _value(event: Any, fail: Any) -> Any:
    """A scalar as YAML 1.1 reads it; dates stay text, since a folder may be called 2024-05-01."""
    text: str = event.value
    tag = event.tag
    if tag in (None, "!"):
        if tag == "!" or not event.implicit[0]:
            return text
        tag = next(
            (tag for tag, pattern in _RESOLVERS.get(text[:1], []) if pattern.match(text)), _CORE + "str"
        )
        explicit = False
    else:
        explicit = True
    kind = tag.removeprefix(_CORE)
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in yaml.constructor.SafeConstructor.bool_values:
        return yaml.constructor.SafeConstructor.bool_values[text.lower()]
    if kind in ("int", "float") and len(text) <= _LONGEST_NUMBER:
        node = yaml.ScalarNode(tag, text)
        make = _CONSTRUCTOR.construct_yaml_int if kind == "int" else _CONSTRUCTOR.construct_yaml_float
        try:
            return make(node)
        except (ValueError, IndexError):
            raise fail(f"`{shown(text)}` is no number", "put quotes around it if it is text") from None
    if explicit and kind != "str":
        raise fail(f"tag `{shown(event.tag)}` has no meaning in a recipe", "remove it")
    return text
