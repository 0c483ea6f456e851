"""``taskvec tasks``: the data sets that can be fetched for a machine without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskvec.cli.console import Console, UsageError
from taskvec.cli.options import argument, option, talk_options, verb
from taskvec.text import plural, printable, size

EXAMPLES = """
What is known:
  taskvec tasks

The paper's four, on a machine with a connection:
  taskvec tasks fetch gsm8k,humaneval,sciq,bbh -o data

And on one without:
  taskvec eval model --tasks gsm8k,sciq --data data
"""


@verb("tasks", examples=EXAMPLES)
@argument("action", metavar="[fetch]", required=False,
          help="Fetch data sets; without it the known tasks are listed.")  # fmt: skip
@argument("names", metavar="[NAME[,NAME...]]", required=False,
          help="The tasks whose data sets are fetched, separated by commas.")  # fmt: skip
@option("-o", "--out", metavar="DIR", type=click.Path(file_okay=False), section="Output",
        help="Folder of the files, which --data of other verbs takes.")  # fmt: skip
@talk_options("tasks")
def command(console: Console, action: str | None, names: str | None, out: str | None) -> int:
    """List the data sets that are known, or fetch some of them from the hub.

    Files that are there and right are not fetched again, so the same command goes on after an interruption;
    each file is compared with the digest that the hub lists. HF_TOKEN and HF_ENDPOINT hold as everywhere. The
    path of the folder goes to stdout.
    """
    if action is None:
        return _list(console)
    if action != "fetch":
        raise UsageError(f"`{action}` is not something that tasks does", "`taskvec tasks fetch NAME -o DIR`")
    if names is None or out is None:
        missing = "names of tasks" if names is None else "the folder"
        raise UsageError(f"missing {missing}", "`taskvec tasks fetch gsm8k,sciq -o DIR`")
    return _fetch(console, [name.strip() for name in names.split(",") if name.strip()], Path(out))


def _list(console: Console) -> int:
    from taskvec.evaluation.tasks.known import KNOWN

    page = console.data()
    for name, row in KNOWN.items():
        page.fact(name, row.text)
        page.fact(" ", f"tasks: {', '.join((name, *row.tasks))}")
        page.fact(" ", f"from: {', '.join(row.repositories)}")
    page.words("`taskvec tasks fetch NAME[,NAME...] -o DIR` fetches them; --data DIR evaluates with them")
    console.show(page)
    rows = [
        {"name": name, "text": row.text, "tasks": [name, *row.tasks], "repositories": list(row.repositories)}
        for name, row in KNOWN.items()
    ]
    console.emit({"tasks": rows})
    return 0


def _fetch(console: Console, names: list[str], out: Path) -> int:
    from taskvec.evaluation.tasks.fetch import fetch

    arrived = fetch(names, out, lambda name, done, total: console.step(f"{name}: file {done} of {total}"))
    page = console.talk()
    for each in arrived:
        what = f"{each.came} fetched, {each.files - each.came} there already" if each.came else "all there"
        page.fact(
            each.repository,
            f"{plural(each.files, 'file')}, {size(each.nbytes)}, at {each.commit[:12]}; {what}",
        )
    console.say(page)
    console.show(printable(out))
    rows: list[dict[str, Any]] = [
        {"repository": a.repository, "commit": a.commit, "files": a.files, "bytes": a.nbytes, "came": a.came}
        for a in arrived
    ]
    console.emit({"out": str(out), "fetched": rows})
    return 0
