"""``taskvec plan``: what another command would do, as a file for other processes and machines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from taskvec.cli.console import Console, UsageError
from taskvec.cli.job import write_plan
from taskvec.cli.options import argument, option, talk_options, verb
from taskvec.files import look
from taskvec.run.sinks import absolute
from taskvec.text import printable

if TYPE_CHECKING:
    from taskvec.lazy.plan import Plan

# Of a context in which a command is run for its plan alone: this console, the file, and the folder it is for.
PLANNING = "taskvec.planning"
VERBS = ("transfer", "apply", "extract", "merge", "moe", "average", "convert")
EXAMPLES = """
Plan where the network is, run where it is not, in four parts at once:
  taskvec plan transfer --target T --donor D --reference R --to out -o plan.json
  taskvec run plan.json --part 0/4

A recipe:
  taskvec plan merge ties.yaml --to out -o plan.json
"""


@verb("plan", examples=EXAMPLES)
@argument(
    "command_name",
    metavar="COMMAND",
    type=click.Choice(VERBS),
    help="The command to plan, such as `transfer` or `merge`.",
)
@argument(
    "arguments",
    metavar="[ARGS]...",
    nargs=-1,
    type=click.UNPROCESSED,
    help="Its arguments and options, without its output.",
)
@option("-o", "--out", "path", required=True, type=click.Path(path_type=str), section="Output",
        metavar="FILE", help="File to write the plan to.")  # fmt: skip
@option("--to", type=click.Path(path_type=str), section="Output", metavar="OUT",
        help="The output folder, which `taskvec run` then need not name.")  # fmt: skip
@talk_options("plan")
@click.pass_context
def command(
    context: click.Context,
    console: Console,
    command_name: str,
    arguments: tuple[str, ...],
    path: str,
    to: str | None,
) -> int:
    """Write the plan of COMMAND with its ARGS to a file; no weights are read.

    COMMAND is transfer, apply, extract, merge, moe, average or convert, with its own options but for the
    output folder, which is --to. The file holds names, states and fingerprints of the models, and no
    secrets; one that was edited is refused. `taskvec run` runs it, or a part of it, on any machine that has
    the models.
    """
    from taskvec import cli

    found = cli.cli.get_command(context, command_name)
    assert found is not None
    place = to or "out"
    given = [*arguments, "--out", place]
    context.meta[PLANNING] = (console, path, to)
    with found.make_context(command_name, given, parent=context) as inner:
        found.invoke(inner)
    return 0


command.context_settings["ignore_unknown_options"] = True


def write(_: Console, plan: Plan, title: str, threads: int | None) -> None:
    """Write the plan that a command has made to where `taskvec plan` was told."""
    from taskvec._core import write_atomic

    console, path, to = click.get_current_context().meta[PLANNING]
    page = console.talk()
    write_plan(page, plan, title, to or ".", threads)
    console.say(page)
    console.findings(plan.findings)
    folder = os.path.dirname(os.path.abspath(path))
    if not look.is_folder(folder):
        raise UsageError(
            f"there is no folder `{folder}` to write the plan to", "make it, or name another one"
        )
    write_atomic(path, plan.to_bytes(to))
    console.show(printable(path))
    facts: dict[str, Any] = {"path": os.path.abspath(path), "out": to and absolute(to)}
    console.emit({**facts, "plan": plan.to_dict()})
