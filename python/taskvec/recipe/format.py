"""How the form of a recipe is written down: what each key may hold, for the validator and for editors.

A form is a dataclass whose fields are made by :func:`key`. pydantic-core, the engine of pydantic, checks the
values; pydantic's own layer, which would make the same schemas from annotations, took 0.07 s to import and to
build them, at the start of every merge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, field, fields
from typing import Any, NamedTuple

Schema = dict[str, Any]


class Kind(NamedTuple):
    """What a key may hold."""

    core: Schema
    """As pydantic-core is told."""
    json: Schema
    """As an editor is told, in the words of JSON schema."""
    form: type[Any] | None = None
    """The form of the mapping that it is, or of those that it holds."""


def key(kind: Kind, text: str = "", *, default: Any = None, required: bool = False) -> Any:
    """A field of a form: a key of the recipe, and what editors say of it."""
    return field(default=MISSING if required else default, metadata={"kind": kind, "text": text})


def keys_of(form: type[Any]) -> Iterator[tuple[Field[Any], Kind]]:
    """The keys of a form, in the order in which they are checked."""
    return ((each, each.metadata["kind"]) for each in fields(form) if "kind" in each.metadata)


# --- kinds ------------------------------------------------------------------------------------------------
def read_by(read: Callable[[Any], Any], core: Schema, json: Schema) -> Kind:
    """What `read` makes of a value, which has to be of the kind `core` then."""
    return Kind({"type": "function-before", "function": _calling(read), "schema": core}, json)


def one_of(*words: str) -> Kind:
    """One of these words."""
    return Kind({"type": "literal", "expected": list(words)}, {"enum": list(words), "type": "string"})


def optional(kind: Kind) -> Kind:
    """That, or nothing."""
    return Kind(
        {"type": "nullable", "schema": kind.core}, {"anyOf": [kind.json, {"type": "null"}]}, kind.form
    )


def several(kind: Kind) -> Kind:
    """A list of at least one."""
    return Kind(
        {**tuple_of(kind.core), "min_length": 1},
        {"items": kind.json, "minItems": 1, "type": "array"},
        kind.form,
    )


def by_name(kind: Kind) -> Kind:
    """A mapping of at least one name to that."""
    return Kind(
        {"type": "dict", "keys_schema": TEXT.core, "values_schema": kind.core, "min_length": 1},
        {"additionalProperties": kind.json, "minProperties": 1, "type": "object"},
        kind.form,
    )


def made_of(form: type[Any]) -> Kind:
    """A mapping of the keys of a form."""

    def make(values: dict[str, Any]) -> Any:
        return form(**values)

    core = {"type": "function-after", "function": _calling(make), "schema": mapping_of(form)}
    return Kind(core, {"$ref": f"#/$defs/{form.__name__}"}, form)


def mapping_of(form: type[Any]) -> Schema:
    """For pydantic-core: the keys of a form, no others."""
    return {
        "type": "typed-dict",
        "config": {"strict": True, "extra_fields_behavior": "forbid"},
        "fields": {
            each.name: {"type": "typed-dict-field", "schema": kind.core, "required": each.default is MISSING}
            for each, kind in keys_of(form)
        },
    }


def tuple_of(core: Schema) -> Schema:
    """For pydantic-core: a list, kept as a tuple."""
    return {"type": "tuple", "items_schema": [core], "variadic_item_index": 0, "strict": False}


def _calling(function: Callable[[Any], Any]) -> Schema:
    return {"type": "no-info", "function": function}


TEXT = Kind({"type": "str"}, {"type": "string"})
