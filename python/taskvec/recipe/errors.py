"""Errors of pydantic in the words of the recipe, with its lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from taskvec.errors import RecipeError
from taskvec.methods.catalogue import METHODS, PARAMETERS, owners
from taskvec.methods.values import SettingError
from taskvec.recipe.document import Document, dotted
from taskvec.text import Key, kind_of, nearest, shown

EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}
_INSTEAD = {
    "lora": "write `model: MODEL+ADAPTER`",
    "residual_weight": "remove it: mergekit reads it and does nothing with it",
}

# How alike an unknown key has to be to a known one to be taken for a typo of it: `gate_mode` is none of
# `base_model`, at 0.74.
_ALIKE = 0.75


def first_error(document: Document, form: type[BaseModel], error: ValidationError) -> RecipeError:
    """The error that stands first in the file, in the words of the recipe."""

    def order(details: Any) -> tuple[int, int]:
        # An unknown key explains a missing one, and a list whose entries are wrong also counts as empty.
        rank = {"extra_forbidden": 0, "too_short": 2}.get(details["type"], 1)
        line = document.place(_path(document, details["loc"]), key=rank == 0).rpartition(":")[2]
        return rank, int(line) if line.isdigit() else 0

    details = min(error.errors(include_url=False), key=order)
    path = _path(document, details["loc"])
    context = details.get("ctx", {})
    kind, cause = details["type"], context.get("error")
    where = f" in `{dotted(path[:-1])}`" if len(path) > 1 else ""
    if kind == "extra_forbidden":
        return _unknown_key(document, form, path)
    if isinstance(cause, SettingError):
        return document.error((*path, *cause.path), f"`{dotted(path)}`: {cause.message}", cause.hint)
    if isinstance(cause, RecipeError):
        return document.error(path, f"`{dotted(path)}`: {cause}", cause.hint)
    key = shown(str(details["loc"][-1]) if details["loc"] else "")
    if kind == "missing":
        return document.error(path, f"`{key}` is missing{where}", _missing_hint(key) or _meaning(form, path))
    found = kind_of(details["input"])
    if kind == "literal_error":
        choices = context["expected"].replace("'", "`")
        near = nearest(str(details["input"]), [word for word in choices.split("`") if word.isprintable()])
        return document.error(
            path, f"`{dotted(path)}` is {choices}, found {found}", f"did you mean `{near}`?" if near else None
        )
    bound = bound_words(details)
    if bound is not None:
        return document.error(path, f"`{dotted(path)}` is out of range: {found}", bound)
    if kind in ("too_short", "string_too_short"):
        return document.error(path, f"`{dotted(path)}` is empty", "name at least one, or remove the key")
    expected = EXPECTED.get(kind, "another kind of value")
    hint = _form_hint(path, details) or _meaning(form, path)
    return document.error(path, f"`{dotted(path)}` is {expected}, found {found}", hint)


def bound_words(details: Any) -> str | None:
    """What a number has to be, in plain words, where pydantic found it out of range."""
    if details["type"] not in _BOUNDS:
        return None
    name, words = _BOUNDS[details["type"]]
    return f"it is {words} {details['ctx'][name]:g}"


def _path(document: Document, location: tuple[Key, ...]) -> tuple[Key, ...]:
    """A location of pydantic as a path of the document: without the names of union members."""
    path: list[Key] = []
    node = document.root
    for number, step in enumerate(location):
        below = node.below(step)
        if below is not None:
            node = below
            path.append(step)
        elif number == len(location) - 1 and isinstance(step, str) and isinstance(node.value, dict):
            path.append(step)
    return tuple(path)


def _form_hint(path: Sequence[Key], details: Any) -> str | None:
    """What a value of another kind would be written as."""
    value = details["input"]
    key = next((step for step in reversed(path) if isinstance(step, str)), "")
    if key in ("models", "sources") and details["type"] == "model_type" and isinstance(value, str):
        return f"write `- model: {shown(value)}`"
    if key == "tokenizer" and value in ("base", "union"):
        return f"write `tokenizer_source: {value}`"
    return _FORMS.get(key)


_LAYERS = "{model: org/a, layer_range: [0, 24]}"
_FORMS = {
    "models": "each model is an entry of a list: `- model: org/name`",
    "sources": f"each source is an entry of a list: `- {_LAYERS}`",
    "slices": f"each slice is an entry of a list: `- sources: [{_LAYERS}]`",
    "modules": "each module has a name: `modules: {text_decoder: {models: [...]}}`",
    "parameters": "write them by name: `parameters: {weight: 0.5}`",
    "tokenizer": "write `tokenizer: {source: union}`",
    "merge_method": "`taskvec methods` lists the methods",
}


def _missing_hint(key: str) -> str | None:
    return {
        "merge_method": "`merge_method: linear`; `taskvec methods` lists them",
        "layer_range": "every source of a slice has one: `layer_range: [0, 24]`",
        "sources": "a slice lists its models under `sources`",
    }.get(key)


def _unknown_key(document: Document, form: type[BaseModel], path: tuple[Key, ...]) -> RecipeError:
    key, parent = str(path[-1]), path[:-1]
    where = f" in `{dotted(parent)}`" if parent else ""
    message = f"unknown key `{shown(key)}`{where}"
    if key != key.strip():
        hint = "indent with plain spaces: this key has other white space, as texts from a web page have"
        return document.error(path, message, hint, key=True)
    if key in _INSTEAD:
        return document.error(path, message, _INSTEAD[key], key=True)
    known = _keys_at(form, parent)
    near = nearest(key, known, _ALIKE)
    parameter = nearest(key, PARAMETERS, _ALIKE)
    if near is None and parameter is not None and (not parent or "parameters" in known):
        return document.error(path, message, _parameter_hint(document, key, parameter), key=True)
    hint = f"did you mean `{near}`?" if near else "known here: " + ", ".join(f"`{each}`" for each in known)
    return document.error(path, message, hint, key=True)


def _parameter_hint(document: Document, key: str, parameter: str) -> str:
    """Where a parameter at the top belongs, or that the method does not have it."""
    node = document.root.below("merge_method")
    method = METHODS.get(node.value) if node is not None and isinstance(node.value, str) else None
    if method is not None and method.parameter(parameter) is None:
        others = ", ".join(f"`{each}`" for each in owners(parameter)[:4])
        return f"remove it: `{parameter}` is a parameter of {others}, and `{method.name}` does not have it"
    return f"{'it' if parameter == key else f'`{parameter}`'} belongs under `parameters`"


def _keys_at(form: type[BaseModel], path: Sequence[Key]) -> list[str]:
    """The keys that may stand at a path of the recipe."""
    for step in path:
        field = form.model_fields.get(str(step))
        form = (field and _form_in(field.annotation)) or form
    return list(form.model_fields)


def _meaning(form: type[BaseModel], path: Sequence[Key]) -> str | None:
    """What the key at a path means, as the reference of recipes has it."""
    keys = [step for step in path if isinstance(step, str)]
    for key in keys[:-1]:
        field = form.model_fields.get(key)
        form = (field and _form_in(field.annotation)) or form
    field = form.model_fields.get(keys[-1]) if keys else None
    return f"`{keys[-1]}`: {field.description}" if field is not None and field.description else None


def _form_in(annotation: Any) -> type[BaseModel] | None:
    """The form of a mapping, or of those in a list or mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_form_in, get_args(annotation))), None)
