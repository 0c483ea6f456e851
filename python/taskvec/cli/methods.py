"""``taskvec methods``: the catalogue of merge methods."""

from __future__ import annotations

import json
from typing import Any

import click

from taskvec.cli.console import Console, Page, UsageError
from taskvec.cli.options import argument, option, talk_options, verb
from taskvec.methods.listing import explain, table

EXAMPLES = """
All methods with formula, parameters and defaults:
  taskvec methods

One of them, with a recipe to copy:
  taskvec methods ties

The schema of a recipe, for editors that complete and check YAML:
  taskvec methods --schema > recipe.schema.json
"""


@verb("methods", examples=EXAMPLES)
@argument("name", metavar="[METHOD]", required=False, help="A merge method; without it all are listed.")
@option(
    "--schema", is_flag=True, section="Output", help="Print the JSON schema of a recipe, and nothing else."
)
@talk_options("methods")
def command(console: Console, name: str | None, schema: bool) -> int:
    """List the merge methods, or explain METHOD.

    Parameters are named as mergekit names them; a default follows in brackets.
    """
    if schema:
        if name is not None:
            raise UsageError("`--schema` is of all methods together", "leave out the method")
        from taskvec.recipe.json_schema import schema as recipe_schema

        click.echo(json.dumps(recipe_schema(), indent=2))
        return 0
    page = console.data()
    if name is not None:
        explained = explain(name)
        _write_one(page, explained)
        console.show(page)
        console.emit({"method": explained})
        return 0
    rows = table()
    for row in rows:
        _write_row(page, row)
    page.words("`taskvec methods METHOD` explains one, with a recipe to copy")
    console.show(page)
    console.emit({"methods": rows})
    return 0


def _models(row: dict[str, Any]) -> str:
    base = {"required": "and a base", "optional": "a base is optional", "input": "no base"}[row["base"]]
    return f"{row['models']}; {base}" if row["base"] != "required" else f"{row['models']} {base}"


def _write_row(page: Page, row: dict[str, Any]) -> None:
    page.line(page.paint(row["name"], bold=True))
    page.fact(" ", row["summary"], columns=2)
    for label, text in (
        ("formula", row["formula"]),
        ("parameters", row["parameters"]),
        ("models", _models(row)),
        ("paper", row["paper"]),
    ):
        if text:
            page.fact(f"  {label}", text, columns=14)
    page.line()


def _write_one(page: Page, method: dict[str, Any]) -> None:
    page.line(f"{page.paint(method['name'], bold=True)}  {method['title']}")
    page.line()
    page.fact(" ", method["summary"], columns=2)
    page.line()
    page.fact("formula", method["formula"])
    page.fact("models", _models(method))
    if method["random"]:
        page.fact("random", "draws depend on the seed and the tensor's name alone")
    if method["paper"]:
        page.fact("paper", f"{method['paper']}  {method['url']}".rstrip())
    page.line()
    page.line(page.paint("parameters", bold=True))
    width = max((len(parameter["name"]) for parameter in method["parameters"]), default=0) + 4
    for parameter in method["parameters"]:
        default = "required" if parameter["required"] else f"default {_literal(parameter['default'])}"
        scope = "of each model" if parameter["scope"] == "model" else "of the merge"
        text = f"{parameter['text']} ({parameter['range']}; {default}; {scope})"
        page.fact(f"  {parameter['name']}", text, columns=width)
    for note in method["notes"]:
        page.line()
        page.fact("note", note)
    page.line()
    page.line(page.paint("recipe", bold=True))
    for line in method["recipe"].splitlines():
        page.line(f"  {line}")


def _literal(value: Any) -> str:
    """A value as YAML writes it."""
    return "none" if value is None else json.dumps(value) if not isinstance(value, str) else value
