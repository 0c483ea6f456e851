"""The page on the manifest's members, written from its JSON schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from taskvec.files.manifest_schema import schema

_ABOUT = """# The manifest

`taskvec.json` says what made a folder and what is in it. It is written last, so that a folder that has one
is whole. The table follows from its JSON schema (draft 2020-12). All members but `run` are the same wherever
and however often the same merge is made. `[]` stands for each element of a list, `{}` for each value of a
mapping."""


def manifest() -> str:
    """The page, in Markdown."""
    rows = [f"| {name} | {kind} | {meaning} |" for name, kind, meaning in members(schema())]
    return "\n".join([_ABOUT, "", "| member | type | meaning |", "|---|---|---|", *rows, ""])


def members(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, str, str]]:
    """Each member with its path, its type and what it means."""
    for name, member in node.get("properties", {}).items():
        place = f"{path}.{name}" if path else name
        optional = "" if name in node.get("required", ()) else "optional; "
        meaning = (optional + member.get("description", "")).strip("; ")
        yield f"`{place}`", kind(member), meaning.replace("|", "&#124;")
        yield from below(member, place)


def below(node: dict[str, Any], place: str) -> Iterator[tuple[str, str, str]]:
    """The members of what a member holds."""
    yield from members(node, place)
    if isinstance(node.get("items"), dict):
        yield from below(node["items"], f"{place}[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from below(node["additionalProperties"], f"{place}{{}}")
    for choice in node.get("anyOf", ()):
        yield from below(choice, place)


def kind(node: dict[str, Any]) -> str:
    """The type of a member in words."""
    if "const" in node:
        return f"`{node['const']!r}`".replace("'", '"').replace("True", "true")
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(kind(choice) for choice in node["anyOf"]))
    found = node.get("type", "any")
    words = [found] if isinstance(found, str) else found
    named = {"array": "list", "object": "mapping", "integer": "whole number", "string": "text"}
    text = " or ".join(named.get(word, word) for word in words)
    return "64 hexadecimal digits" if "pattern" in node else text
