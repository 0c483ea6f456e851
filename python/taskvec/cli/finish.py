"""``taskvec finish``: the end of a run in parts."""

from __future__ import annotations

from pathlib import Path

import click

from taskvec.cli.console import Console
from taskvec.cli.job import write_report
from taskvec.cli.options import storage_options, talk_options, threads_option, verb
from taskvec.files.manifest import read

EXAMPLES = """
After parts of which the last one was killed at its end:
  taskvec finish out
"""


@verb("finish", examples=EXAMPLES)
@click.argument("out", metavar="OUT")
@threads_option
@storage_options
@talk_options("finish")
def command(console: Console, out: str, threads: int | None) -> int:
    """Write index, model card and manifest of OUT, once the parts have written all of its weights.

    The part that ends last does this by itself. Where weight files are missing, they are named, with the
    parts that write them, and nothing is done. The path of the output goes to stdout.
    """
    from taskvec.lazy.part import finish

    with console.progress() as progress:
        report = finish(out, threads=threads, progress=progress)
    recipe = read(Path(report.outputs[0].folder))["recipe"]
    is_conversion = recipe["verb"] == "convert"
    write_report(console, report, out, is_conversion=is_conversion)
    return 0
