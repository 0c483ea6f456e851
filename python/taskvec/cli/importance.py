"""``taskvec importance``: what the elements of a model matter, as a map that recipes name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskvec.cli.console import Console
from taskvec.cli.eval_options import setting
from taskvec.cli.eval_output import following
from taskvec.cli.options import argument, option, storage_options, talk_options, verb
from taskvec.evaluation.settings import key_of
from taskvec.text import printable, size

EXAMPLES = """
What 200 problems of gsm8k say about a model:
  taskvec importance math-model --tasks gsm8k --limit 200 -o importance/math

The answers drawn from the model instead of the task's own:
  taskvec importance math-model --tasks gsm8k --labels model -o importance/math

Into a bucket, from which recipes name it too:
  taskvec importance math-model --tasks gsm8k -o s3://maps/math

In half the space, on a GPU:
  taskvec importance math-model --tasks gsm8k --dtype bfloat16 --device cuda -o importance/math
"""

_SETTINGS = ("tasks", "limit", "seed", "chat_template", "include_path", "data", "device", "model_args")


@verb("importance", examples=EXAMPLES)
@argument("model", metavar="MODEL", help="The model to measure.")
@setting("tasks")
@setting("include_path")
@setting("data")
@setting("limit")
@option("--labels", type=click.Choice(["reference", "model"]), default="reference", show_default=True,
        section="Evaluation",
        help="Answers: the task's own, or drawn from the model token by token.")  # fmt: skip
@setting("chat_template")
@setting("seed")
@option("-o", "--out", metavar="OUT", required=True, type=click.Path(file_okay=False), section="Output",
        help="Folder of the map; or hf://org/name, s3://bucket/prefix, gs://, az://.")  # fmt: skip
@option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True,
        section="Output", help="Type of the map.")  # fmt: skip
@option("--overwrite", is_flag=True, section="Output", help="Replace an output that is there.")
@option("--no-resume", "resume", is_flag=True, flag_value=False, default=True, section="Output",
        help="Begin again instead of going on with an unfinished run.")  # fmt: skip
@option("--dry-run", is_flag=True, section="Checks", help="Say what memory it takes; load no weights.")
@setting("device")
@setting("model_args")
@storage_options
@talk_options("importance")
def command(console: Console, model: str, out: str, dry_run: bool, **options: Any) -> int:
    """Write what each element of MODEL matters on some tasks: the diagonal of its Fisher information.

    The mean over the documents of the squared gradient of log p(answer | prompt), one document at a time.
    Recipes name the folder by `importance:` (methods fisher and sar). A stopped run goes on where it was.
    Weights, gradients and the map are in memory: twelve bytes an element. The path of the output goes to
    stdout.
    """
    from taskvec.evaluation.importance.make import forecast, importance
    from taskvec.run.sinks import hold_local, is_address

    hold_local(out)
    given = {key_of(name): options.pop(key_of(name)) for name in _SETTINGS}
    given = {key: value for key, value in given.items() if value is not None}
    facts = forecast(model, **given)
    console.step(
        f"importance of {model}: {facts['elements']:,} elements, {size(facts['memory'])} of memory for "
        "weights, gradients and the map, and that of one document's activations"
    )
    if dry_run:
        console.emit({"dry_run": True, "out": out, **facts})
        return 0
    with following(console, "importance") as progress:
        report = importance(model, out, progress=progress, **options, **given)
    for line in report.lines():
        console.step("already done" if report.already_done else line)
        if report.already_done:
            break
    page = console.data()
    page.line(printable(report.out if is_address(out) else Path(out)))
    console.show(page)
    console.emit({"out": out, "report": report.to_dict()})
    return 0
