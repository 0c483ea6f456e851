"""``taskvec report``: finished sweeps side by side, and pooled."""

from __future__ import annotations

from pathlib import Path

import click

from taskvec.cli.console import Console
from taskvec.cli.options import argument, option, talk_options, verb
from taskvec.text import printable

EXAMPLES = """
The miniature on several seeds, as a Markdown table and pooled verdicts:
  taskvec report seed-11 seed-12 seed-13

With a page and forest plots:
  taskvec report sweeps/* -o pooled
"""


@verb("report", examples=EXAMPLES)
@argument("results", metavar="RESULTS...", nargs=-1, required=True, type=click.Path(path_type=Path),
          help="Output folders of finished sweeps.")  # fmt: skip
@option("-o", "--out", metavar="OUT", type=click.Path(file_okay=False), section="Output",
        help="Folder for report.html, report.md, report.json and forest plots.")  # fmt: skip
@talk_options("report")
def command(console: Console, results: tuple[Path, ...], out: str | None) -> int:
    """Put finished sweeps side by side, and pool what they found.

    RESULTS are output folders of `taskvec sweep` or `taskvec demo --paper`, of other tasks, seeds or models.
    Every task of every result is a row; what +v at the chosen alpha did against the baseline, the controls
    and the rivals is pooled by random effects, whatever each result shows by itself. Nothing is evaluated.
    """
    from taskvec.evaluation.backend.evaluate import require_extra
    from taskvec.evaluation.report.pooling import pool_results
    from taskvec.evaluation.report.several import read_results
    from taskvec.evaluation.report.several_page import hold_apart, to_markdown, write_several
    from taskvec.run.sinks import hold_folder

    if out is not None:
        hold_folder(out, "a report")
    require_extra()
    found = read_results(results)
    if out is not None:
        hold_apart(Path(out))
    several = pool_results(found)
    page = console.data()
    for line in to_markdown(several).rstrip().splitlines():
        page.line(line)
    if out is not None:
        write_several(several, Path(out))
        page.line()
        page.fact("report", printable(Path(out) / "report.html"))
    console.show(page)
    console.emit({"out": out, "report": several.to_json()})
    return 0
