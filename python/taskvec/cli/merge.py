"""``taskvec merge``: run a recipe."""

from __future__ import annotations

import os
from typing import Any

import click
from click.core import ParameterSource

from taskvec.cli.console import Console, UsageError
from taskvec.cli.execute import execute, is_planning
from taskvec.cli.job import settings_of, write_report
from taskvec.cli.options import argument, option, run_options, storage_options, talk_options, verb
from taskvec.cli.place import place_options
from taskvec.report.recipe_file import merge_documents
from taskvec.settings import Settings
from taskvec.text import printable

EXAMPLES = """
Run a recipe, mergekit's or your own:
  taskvec merge ties.yaml out

Say what would happen, and write nothing:
  taskvec merge ties.yaml out --dry-run

Replace a value of the recipe:
  taskvec merge ties.yaml out --set models.1.parameters.weight=0.3

Make an output again, of whatever command it is:
  taskvec merge out/taskvec.json -o again

See what a method does, with a recipe to copy:
  taskvec methods ties
"""


@verb("merge", examples=EXAMPLES)
@argument(
    "recipe",
    metavar="RECIPE",
    help="A YAML file as mergekit takes it, or the taskvec.json or taskvec_recipe.yaml of an output, which "
    "is made again; `-` is standard input.",
)
@place_options("merge")
@option(
    "--set",
    "overrides",
    multiple=True,
    section="Arithmetic",
    metavar="PATH=VALUE",
    help="Replace a value of the recipe: `models.1.parameters.weight=0.3` (repeatable).",
)
@run_options
@storage_options
@talk_options("merge")
def command(
    console: Console,
    recipe: str,
    out: str,
    overrides: tuple[str, ...],
    **options: Any,
) -> int:
    """Run a merge recipe, in mergekit's YAML format, and write the result to OUT.

    Unknown keys, parameters that the method does not have and values out of range are errors that name the
    line. RECIPE may also be the taskvec.json or the taskvec_recipe.yaml of an output of any command, which is
    made again with the options that were recorded and those given here.

    Several documents with `name:` build on each other and are run in order; their results are removed at the
    end. What the recipe says of output type, rounding and seed goes before the options here.
    """
    from taskvec.again import recorded
    from taskvec.lazy.recipe import open_recipe

    found = recorded(recipe)
    if found is not None and not (found["verb"] == "merge" and overrides):
        return _repeat(console, found, recipe, out, overrides, options)
    merge = open_recipe(
        recipe if found is None else merge_documents(found), overrides=overrides, **settings_of(options)
    )
    return _run(console, merge, recipe, out, options)


def _repeat(
    console: Console,
    found: dict[str, Any],
    name: str,
    out: str,
    overrides: tuple[str, ...],
    options: dict[str, Any],
) -> int:
    """Make the output of a recorded recipe again; options that are given go before the recorded ones."""
    from taskvec.again import opened
    from taskvec.again import settings_of as recorded_settings
    from taskvec.lazy.plan import Plan

    if overrides:
        raise UsageError(
            f"`--set` changes values of a merge recipe, and `{printable(name)}` records `{found['verb']}`",
            "change the file, or run the command itself with other options",
        )
    given = {key: value for key, value in settings_of(options).items() if _is_given(key)}
    made = opened(found, name, **given)
    if found["verb"] == "merge":
        return _run(console, made, name, out, options)
    plan = made if isinstance(made, Plan) else made.plan()
    title = f"{found['verb']} again, as {printable(name)} says"
    execute(console, plan, out, title, options, recorded_settings(found, given))
    return 0


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP, None)


def _run(console: Console, merge: Any, recipe: str, out: str, options: dict[str, Any]) -> int:
    console.findings(merge.file.remarks)
    final = merge.file.final
    if options["dry_run"] or options["part"] or options["ray"] or is_planning():
        execute(console, merge.plan(), out, _title(final.merge_method, recipe), options)
        return 0
    steps = len(merge.file.steps)
    report = merge.finished(out)
    if report is not None:
        merge.clear(out)
        write_report(console, report, out, settings=Settings.of(settings_of(options)))
        return 0
    for number, (plan, place) in enumerate(merge.plans(out), 1):
        if number < steps:
            console.say(f"document {number} of {steps}: {printable(os.path.basename(place))}")
            with console.progress() as progress:
                merge.run_document(plan, place, out, progress)
        else:
            settings = merge.settings_of(plan, place, out)
            execute(console, plan, out, _title(final.merge_method, recipe), options, settings)
    merge.clear(out)
    return 0


def _title(method: Any, recipe: str) -> str:
    return f"{method} of {printable(recipe)}"
