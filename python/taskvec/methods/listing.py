"""The catalogue as plain data: what ``taskvec methods`` prints, and :func:`taskvec.list_methods` gives."""

from __future__ import annotations

from typing import Any

from taskvec.methods.catalogue import METHODS, get
from taskvec.methods.method import Parameter


def table() -> list[dict[str, Any]]:
    """One row per method: name, summary, formula, parameters (as text), models, base, paper."""
    return [
        {
            "name": method.name,
            "summary": method.summary,
            "formula": method.formula,
            "parameters": ", ".join(
                _short(p) for p in method.parameters if not p.ignored and p.name != "int8_mask"
            ),
            "models": method.models,
            "base": method.base,
            "paper": method.paper,
        }
        for method in METHODS.values()
    ]


def _short(parameter: Parameter) -> str:
    if parameter.required:
        return f"{parameter.name} (required)"
    default = parameter.default
    text = "none" if default is None else str(default).lower() if isinstance(default, bool) else f"{default}"
    return f"{parameter.name} ({text})"


def explain(name: str) -> dict[str, Any]:
    """Everything about one method: the row of :func:`table`, parameters in full, notes, a recipe.

    Raises
    ------
    RecipeError
        There is no such method.
    """
    method = get(name)
    return {
        "name": method.name,
        "title": method.title,
        "summary": method.summary,
        "formula": method.formula,
        "models": method.models,
        "base": method.base,
        "random": method.random,
        "mergekit": method.mergekit,
        "parameters": [
            {
                "name": p.name,
                "type": p.kind,
                "scope": p.scope,
                "required": p.required,
                "default": p.default,
                "range": p.range,
                "text": p.text,
                "ignored": p.ignored,
            }
            for p in method.parameters
        ],
        "paper": method.paper,
        "url": method.url,
        "notes": list(method.notes),
        "recipe": method.example,
    }
