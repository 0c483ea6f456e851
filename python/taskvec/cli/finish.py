"""``taskvec finish``: the end of a run in parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskvec.cli.console import Console
from taskvec.cli.job import write_report
from taskvec.cli.options import argument, storage_options, talk_options, threads_option, verb
from taskvec.files.manifest import read
from taskvec.files.names import MANIFEST
from taskvec.run.sinks import open_sink

EXAMPLES = """
After parts of which the last one was killed at its end:
  taskvec finish out
  taskvec finish s3://bucket/out
"""


@verb("finish", examples=EXAMPLES)
@argument("out", metavar="OUT", help="The folder or address that the parts were written to.")
@threads_option
@storage_options
@talk_options("finish")
def command(console: Console, out: str, threads: int | None) -> int:
    """Write index, model card and manifest of OUT, once the parts have written all of its weights.

    The part that ends last does this by itself. Where weight files are missing, they are named, with the
    parts that write them, and nothing is done. An output that is complete is left as it is. The path of the
    output goes to stdout.
    """
    from taskvec.lazy.part import finish

    with console.progress() as progress:
        report = finish(out, threads=threads, progress=progress)
    is_conversion = _recipe(report.outputs[0].folder)["verb"] == "convert"
    write_report(console, report, out, is_conversion=is_conversion)
    return 0


def _recipe(out: str) -> Mapping[str, Any]:
    """What was asked for, as the manifest of an output has it."""
    sink = open_sink(out)
    if sink is None:
        return read(Path(out))["recipe"]
    return json.loads(sink.finished([MANIFEST])[MANIFEST])["recipe"]
