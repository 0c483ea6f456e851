"""``taskvec merge``: run a recipe."""

from __future__ import annotations

import os
from typing import Any

from taskvec.cli.console import Console
from taskvec.cli.execute import execute, is_planning
from taskvec.cli.job import settings_of, write_report
from taskvec.cli.options import argument, option, run_options, storage_options, talk_options, verb
from taskvec.text import printable

EXAMPLES = """
Run a recipe, mergekit's or your own:
  taskvec merge ties.yaml out

Say what would happen, and write nothing:
  taskvec merge ties.yaml out --dry-run

Replace a value of the recipe:
  taskvec merge ties.yaml out --set models.1.parameters.weight=0.3

See what a method does, with a recipe to copy:
  taskvec methods ties
"""


@verb("merge", examples=EXAMPLES)
@argument("recipe", metavar="RECIPE", help="A YAML file as mergekit takes it; `-` is standard input.")
@argument(
    "out",
    metavar="OUT",
    help="Folder to write, created if it does not exist; or hf://org/name, s3://bucket/prefix, gs://, az://.",
)
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
def command(console: Console, recipe: str, out: str, overrides: tuple[str, ...], **options: Any) -> int:
    """Run a merge recipe, in mergekit's YAML format, and write the result to OUT.

    Unknown keys, parameters that the method does not have and values out of range are errors that name the
    line. Several documents with `name:` build on each other and are run in order; their results are removed
    at the end. What the recipe says of output type, rounding and seed goes before the options here.
    """
    from taskvec.lazy.recipe import open_recipe

    merge = open_recipe(recipe, overrides=overrides, **settings_of(options))
    console.findings(merge.file.remarks)
    final = merge.file.final
    if options["dry_run"] or options["part"] or options["ray"] or is_planning():
        execute(console, merge.plan(), out, _title(final.merge_method, recipe), options)
        return 0
    steps = len(merge.file.steps)
    report = merge.finished(out)
    if report is not None:
        merge.clear(out)
        write_report(console, report, out)
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
