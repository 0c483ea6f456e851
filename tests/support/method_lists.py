"""The places outside of the catalogue that list the methods: a stub, and a table of the page on recipes."""

from __future__ import annotations

import json
from pathlib import Path

import taskvec
from taskvec.lazy.methods import keyword
from taskvec.methods.catalogue import FUNCTIONS, METHODS
from taskvec.methods.method import Method, Parameter

STUB = Path(taskvec.__file__).parent / "lazy" / "methods.pyi"
PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
BEGIN, END = "<!-- methods: written from the catalogue -->\n", "<!-- end of methods -->\n"


def stub() -> str:
    """``lazy/methods.pyi``: a function for each method, with the types of its parameters."""
    listed = "".join(f'    "{name}",\n' for name in FUNCTIONS)
    functions = "".join(_function(METHODS[name]) for name in FUNCTIONS)
    return f"""import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from taskvec.lazy.recipe import RecipeMerge
from taskvec.models.model import Model

__all__ = [
{listed}]

_Model: TypeAlias = str | os.PathLike[str] | Model
# Of the whole merge: one value, a gradient over the layers, or values by filters on tensor names.
_Filters: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any]]
_Float: TypeAlias = float | Sequence[float] | _Filters
_Int: TypeAlias = int | Sequence[int] | _Filters
_Bool: TypeAlias = bool | Sequence[bool] | _Filters
# Of each model: one value for all, or a list with one for each, each of them as above.
_Floats: TypeAlias = _Float | Sequence[_Float]
_Ints: TypeAlias = _Int | Sequence[_Int]
_Bools: TypeAlias = _Bool | Sequence[_Bool]

{functions}"""


_ALIASES = {"float": "_Float", "int": "_Int", "bool": "_Bool"}


def _function(method: Method) -> str:
    base = "base: _Model" if method.base == "required" else "base: _Model | None = None"
    rows = ["models: Sequence[_Model]", "*", base, *map(_typed, method.parameters)]
    if method.importance:
        rows.append("importance: Sequence[_Model]")
    rows.append("dtype: str | None = None")
    return f"def {method.name}(\n" + "".join(f"    {row},\n" for row in rows) + ") -> RecipeMerge: ...\n"


def _typed(parameter: Parameter) -> str:
    if parameter.kind == "choice":
        kind = f"Literal[{', '.join(json.dumps(choice) for choice in parameter.choices)}]"
    else:
        kind = _ALIASES[parameter.kind] + ("s" if parameter.scope == "model" else "")
    name = keyword(parameter.name)
    if parameter.required:
        return f"{name}: {kind}"
    default = parameter.default
    value = json.dumps(default) if isinstance(default, str) else repr(default)
    return f"{name}: {kind}{' | None' if default is None else ''} = {value}"


def table() -> str:
    """The methods as a table in Markdown."""
    rows = [f"| {_linked(method)} | {method.summary} |\n" for method in METHODS.values()]
    return "\n| method | what it does |\n|---|---|\n" + "".join(rows) + "\n"


def _linked(method: Method) -> str:
    return f"[`{method.name}`]({method.url})" if method.url else f"`{method.name}`"
