"""YAML as recipes are written in: strict, safe against hostile files, and every value knows its line.

PyYAML composes the tree and marks its lines, once :mod:`taskvec.recipe.scan` has found nothing wrong. Its
constructors, which keep the last of two equal keys and forget lines, make scalars alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import yaml

from taskvec.arguments import path as path_of
from taskvec.errors import Error, NotFoundError, RecipeError
from taskvec.files import look
from taskvec.files.reading import read_up_to
from taskvec.recipe.document import Document, Node
from taskvec.recipe.scan import CORE, Scan, error_at
from taskvec.text import kind_of, shown, size

MAXIMUM_BYTES = 1 << 20
MAXIMUM_DOCUMENTS = 256
STANDARD_INPUT = "-"

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONSTRUCTOR = yaml.constructor.SafeConstructor()
# Scalars that are not text, by the tag that a loader resolves or the recipe writes.
_MAKES: dict[str, Callable[[Any], Any]] = {
    f"{CORE}null": _CONSTRUCTOR.construct_yaml_null,
    f"{CORE}bool": _CONSTRUCTOR.construct_yaml_bool,
    f"{CORE}int": _CONSTRUCTOR.construct_yaml_int,
    f"{CORE}float": _CONSTRUCTOR.construct_yaml_float,
}
_LONGEST_NUMBER = 64


class Sort(NamedTuple):
    """A sort of YAML file: what messages call it, and how one is begun."""

    name: str
    begin: str
    example: str


RECIPE = Sort("recipe", "start with `merge_method: …`", "`taskvec methods linear` prints one to start from")


def read(path: str | os.PathLike[str], sort: Sort = RECIPE) -> tuple[str, list[Document]]:
    """The text and the documents of a file, by default of a recipe.

    Raises
    ------
    NotFoundError, RecipeError
        As :func:`read_text` and :func:`parse`.
    """
    text = read_text(path, sort)
    return text, parse(text, source_of(path), sort)


def read_text(path: str | os.PathLike[str], sort: Sort = RECIPE) -> str:
    """The text of a file, or of standard input where its name is ``-``.

    Raises
    ------
    NotFoundError
        There is no such file.
    RecipeError
        The file is too large, or not UTF-8; the message names the line.
    """
    name = os.fspath(path_of(path, sort.name))
    try:
        if name == STANDARD_INPUT:
            stream = getattr(sys.stdin, "buffer", None)  # closed, or a notebook's
            if stream is None:
                raise NotFoundError("there is no standard input", "give the path of a YAML file")
            return _text(stream.read(MAXIMUM_BYTES + 1), source_of(name), sort)
        if not look.is_file(name):
            missing = not look.exists(name)
            raise NotFoundError(
                f"{sort.name} `{name}` {'is not found' if missing else 'is not a file'}",
                f"give the path of a YAML file; {sort.example}"
                if missing or look.is_folder(name)
                else "give what comes through a pipe as `-`, by standard input",
            )
        data = read_up_to(name, MAXIMUM_BYTES + 1)
    except OSError as error:
        if isinstance(error, Error):
            raise
        words = f"{sort.name} `{shown(name)}` cannot be read: {error.strerror or error}"
        raise RecipeError(words, look.way_out(error)) from None
    return _text(data, name, sort)


def source_of(path: str | os.PathLike[str]) -> str:
    """What messages call a recipe: its path, or that it came through standard input."""
    name = os.fspath(path)
    return "standard input" if name == STANDARD_INPUT else name


def _text(data: bytes, name: str, sort: Sort) -> str:
    if len(data) > MAXIMUM_BYTES:
        raise RecipeError(
            f"{sort.name} `{name}` is larger than {size(MAXIMUM_BYTES)}",
            f"a {sort.name} is a few kilobytes of YAML",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{name}:{line}: not UTF-8 text", "save the file as UTF-8") from None


def parse(text: str, source: str, sort: Sort = RECIPE) -> list[Document]:
    """The documents of a YAML text; empty ones between separators are left out.

    Raises
    ------
    RecipeError
        Not strict YAML, too much of it, no document, or one that is not a mapping.
    """
    if len(text) > MAXIMUM_BYTES:
        raise RecipeError(
            f"{source}: larger than {size(MAXIMUM_BYTES)}",
            f"a {sort.name} is a short text: is it the right file?",
        )
    documents = []
    for root in parse_nodes(text, source):
        if root.value is None:
            continue
        if not isinstance(root.value, dict):
            raise RecipeError(
                f"{source}:{root.origin}: a {sort.name} is a mapping of keys, found {kind_of(root.plain())}",
                sort.begin,
            )
        if len(documents) == MAXIMUM_DOCUMENTS:
            raise RecipeError(
                f"{source}:{root.origin}: more than {MAXIMUM_DOCUMENTS} documents",
                "write some of them into another file",
            )
        documents.append(Document(root, source))
    if not documents:
        raise RecipeError(f"{source}: the {sort.name} is empty", sort.example)
    return documents


def parse_nodes(text: str, source: str) -> Iterator[Node]:
    """The root of every document, empty ones included."""
    try:
        scan = Scan(source)
        for event in yaml.parse(text, Loader=_LOADER):
            scan.event(event, event.start_mark.line + 1 if event.start_mark else 1)
        aliases = iter(scan.aliases)
        for root in yaml.compose_all(text, Loader=_LOADER):
            yield _Tree(source, aliases).node(root)
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, source) from None


# --- the tree ---------------------------------------------------------------------------------------------
class _Tree:
    """Nodes of PyYAML to ours, each with the line where it is written; an alias has its own."""

    def __init__(self, source: str, aliases: Iterator[int]) -> None:
        self.source = source
        self.aliases = aliases
        self.made: dict[int, Node] = {}

    def node(self, node: yaml.Node) -> Node:
        """The value of a node; its depth is within the limit."""
        if id(node) in self.made:
            return replace(self.made[id(node)], origin=next(self.aliases))
        line = node.start_mark.line + 1
        if isinstance(node, yaml.ScalarNode):
            made = Node(_scalar(node, self.source), line)
        elif isinstance(node, yaml.SequenceNode):
            made = Node([self.node(item) for item in node.value], line)
        else:
            made = self.mapping(node.value, line)
        self.made[id(node)] = made
        return made

    def mapping(self, pairs: Sequence[tuple[yaml.Node, yaml.Node]], line: int) -> Node:
        """A mapping; its keys are text, and there once."""
        lines = {key.value: key.start_mark.line + 1 for key, _ in pairs}
        values = {key.value: self.node(value) for key, value in pairs}
        self.merge(values, lines)
        return Node(values, line, lines or None)

    def merge(self, values: dict[str, Node], lines: dict[str, int]) -> None:
        """Fill in ``<<``: a mapping's own keys win, then earlier mappings before later ones."""
        base = values.pop("<<", None)
        if base is None:
            return
        line = lines.pop("<<")
        for mapping in base.value if isinstance(base.value, list) else [base]:
            if not isinstance(mapping.value, dict):
                raise error_at(
                    self.source, line, "`<<` takes a mapping, or a list of mappings", "write `<<: *NAME`"
                )
            for key, node in mapping.value.items():
                if key not in values:
                    values[key] = node
                    lines[key] = line


def _scalar(node: yaml.ScalarNode, source: str) -> Any:
    """A scalar as YAML 1.1 reads it; dates stay text, since a folder may be called 2024-05-01."""
    text = node.value
    make = _MAKES.get(node.tag)
    # Python's conversion of a million digits takes minutes.
    if make is None or len(text) > _LONGEST_NUMBER:
        return text
    try:
        return make(node)
    except (ValueError, IndexError, KeyError):
        kind = "a truth value" if node.tag == f"{CORE}bool" else "a number"
        message = f"`{shown(text)}` is not {kind}"
        raise error_at(
            source, node.start_mark.line + 1, message, "put quotes around it if it is text"
        ) from None


# --- errors -----------------------------------------------------------------------------------------------
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
    if "unknown escape character" in problem:
        return "between double quotes a backslash begins an escape: write the path without quotes"
    if "cannot start any token" in problem:
        return "put quotes around text that starts with a special character"
    return "check indentation, brackets and quotes" + (
        f" in `{shown(content.strip())}`" if content.strip() else ""
    )
