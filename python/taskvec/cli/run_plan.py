"""``taskvec run``: a plan from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskvec.cli.console import Console, UsageError
from taskvec.cli.execute import execute
from taskvec.cli.job import settings_of
from taskvec.cli.options import (
    argument,
    declared_option,
    dry_run_option,
    option,
    part_option,
    storage_options,
    talk_options,
    together,
    verb,
)
from taskvec.files.json import read_bytes
from taskvec.option import options_of
from taskvec.settings import Settings
from taskvec.text import printable

EXAMPLES = """
All of it:
  taskvec run plan.json -o out

One of four parts, which any machine may run that has the models and the output folder:
  taskvec run plan.json -o out --part 0/4

As a SLURM array of sixteen (`sbatch --array=0-15`):
  taskvec run plan.json -o out --part $SLURM_ARRAY_TASK_ID/16
"""

# What a run may choose that a plan does not.
NAMES = (
    "threads",
    "max_memory",
    "scratch_size",
    "stream",
    "public",
    "force",
    "overwrite",
    "resume",
    "rehash",
)


@verb("run", examples=EXAMPLES)
@argument(
    "path", metavar="PLAN", type=click.Path(path_type=str), help="A file that `taskvec plan` has written."
)
@option("-o", "--out", type=click.Path(path_type=str), section="Output", metavar="OUT",
        help="Folder to write; that of the plan by default.")  # fmt: skip
@together(*(declared_option(name, options_of(Settings)[name]) for name in NAMES), part_option, dry_run_option)
@storage_options
@talk_options("run")
def command(console: Console, path: str, out: str | None, **options: Any) -> int:
    """Run PLAN, a file that `taskvec plan` has written.

    The models are looked for under the names that the plan has for them, and must be the very ones that it
    was made for. Parts may run in any order, at once, twice, or be killed and started again; the one that
    ends last completes the output. The path of the output goes to stdout.
    """
    from taskvec.lazy.plan import Plan
    from taskvec.plan.document import from_file

    saved = from_file(read_bytes(Path(path)), path)
    place = out or saved.out
    if place is None:
        raise UsageError("the plan names no output folder", "give one with `-o`")
    plan, title = Plan.of(saved.plan), f"{saved.plan.recipe['verb']} of {printable(path)}"
    chosen = saved.settings(Settings.of(settings_of(options)))
    execute(console, plan, place, title, options, chosen)
    return 0
