"""Changing single values of a JSON text and leaving every other byte as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from taskvec.regex import regex

_SPACE = regex(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class Member(NamedTuple):
    """A key of an object and the span of its value in the text."""

    key: str
    start: int
    end: int


def edited(text: str, changes: Mapping[str, Any]) -> str:
    """The text of a config.json with some keys changed, added or (``None``) taken out, and no other byte.

    ``changes`` are keys and values as :class:`taskvec.Plan` has them, nested keys as ``text_config.dtype``.
    """
    for key, value in changes.items():
        path = tuple(key.split("."))
        text = remove(text, path) if value is None else replace(text, path, value)
    return text


def members(text: str, at: int = 0) -> Iterator[Member]:
    """The members of the object that begins at or after `at`; the text is valid JSON."""
    at = _skip(text, _skip(text, at) + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        _, end = _DECODER.raw_decode(text, start)
        yield Member(key, start, end)
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


def replace(text: str, path: tuple[str, ...], value: Any) -> str:
    """Give the member at `path` another value; the text is unchanged where it has that value already.

    A key that does not exist is added after the last member of its object, indented as that one is.
    """
    start = 0
    for key in path[:-1]:
        start = next(member.start for member in members(text, start) if member.key == key)
    last: Member | None = None
    for member in members(text, start):
        if member.key == path[-1]:
            if _is_same(json.loads(text[member.start : member.end]), value):
                return text
            return text[: member.start] + json.dumps(value) + text[member.end :]
        last = member
    added = f"{json.dumps(path[-1])}: {json.dumps(value)}"
    if last is None:
        brace = _skip(text, start)
        return f"{text[: brace + 1]}{added}{text[brace + 1 :]}"
    brace = _skip(text, start)
    indent = text[brace + 1 : _skip(text, brace + 1)]
    return f"{text[: last.end]},{indent or ' '}{added}{text[last.end :]}"


def remove(text: str, path: tuple[str, ...]) -> str:
    """Take the member at `path` out, with its comma; the text is unchanged where there is none."""
    start = 0
    for key in path[:-1]:
        found = next((member for member in members(text, start) if member.key == key), None)
        if found is None:
            return text
        start = found.start
    before = first = _skip(text, start) + 1  # after the brace, or after the value of the member before
    for member in members(text, start):
        if member.key == path[-1]:
            comma = _skip(text, member.end)
            end = comma + 1 if before == first and text[comma] == "," else member.end
            return text[:before] + text[end:]
        before = member.end
    return text


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _is_same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b
