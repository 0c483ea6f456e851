"""``taskvec demo``: the main job on an embedded default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from taskvec.cli.console import EXIT_FAILED, Console, Page, UsageError
from taskvec.cli.job import write_survival
from taskvec.cli.options import argument, option, talk_options, verb
from taskvec.compat.findings import findings_summary
from taskvec.text import amount, duration, plural, printable, size

if TYPE_CHECKING:
    from taskvec.selftest.demo import DemoResult

EXAMPLES = """
See the whole job run, in a temporary folder:
  taskvec demo

Keep the checkpoints and the result, to look at and to try the other commands on:
  taskvec demo tryout
  taskvec inspect tryout/merged

The paper in miniature: train four small models, run its experiment with the controls, report:
  taskvec demo --paper

The same with other models, trained from another seed; and with models that are trained already:
  taskvec demo --paper second --seed 2
  taskvec demo --paper third --pretrained miniature.zip
"""

PAPER_ONLY = ("seed", "pretrained", "jobs")
JOB_ONLY = ("overwrite", "threads")


@verb("demo", examples=EXAMPLES)
@argument(
    "folder",
    metavar="[DIR]",
    required=False,
    type=click.Path(file_okay=False),
    help="Folder for the checkpoints, which are kept there; without it they are removed at the end.",
)
@option("--overwrite", is_flag=True, section="Output", help="Replace an earlier demo in DIR.")
@option("--threads", type=int, metavar="N", section="Machine", help="Worker threads.  [default: all cores]")
@option("--paper", is_flag=True, section="Evaluation",
        help="Train small models and run the paper's experiment on them; needs extra `eval`.")  # fmt: skip
@option("--seed", type=click.IntRange(0, 2**31), metavar="N", section="Evaluation",
        help="Of the models and problems of --paper; each is another experiment.  [default: 1]")  # fmt: skip
@option("--pretrained", metavar="ARCHIVE", section="Evaluation",
        help="Take the models of --paper from this archive instead of training them.")  # fmt: skip
@option("--jobs", type=click.IntRange(1), metavar="N", section="Evaluation",
        help="Processes that evaluate for --paper; they do not change the result.  "
             "[default: a core each, at most 4]")  # fmt: skip
@talk_options("demo")
def command(console: Console, folder: str | None, paper: bool, **options: Any) -> int:
    """Make three small sharded checkpoints, check, transfer and verify them.

    Needs no network and no torch. Without DIR everything happens in a temporary folder, which is removed at
    the end. Exit code 1 if the result does not match its manifest, or is not what the same arithmetic in
    NumPy gives.

    With --paper, the experiment of the paper instead, end to end and offline: a base model is trained from
    nothing, from it an instruct model (target) and an SFT model (reference), from that a donor by GRPO; then
    the sweep with its controls through lm-eval on generated problems, and the report. DIR keeps models and
    report, `taskvec-paper` in the current folder if it is not named. It takes minutes; interrupted, the same
    command goes on. The exit code does not depend on the outcome: the vector may well turn out to carry
    nothing.
    """
    idle = JOB_ONLY if paper else PAPER_ONLY
    for name in idle:
        if options[name] not in (None, False):
            raise UsageError(
                f"`--{name}` is not for the demo with `--paper`" if paper else f"`--{name}` needs `--paper`",
                "`taskvec demo --help` explains the options",
            )
    for name in idle:
        del options[name]
    if paper:
        from taskvec.cli.paper import run_paper

        if options["seed"] is not None and options["pretrained"] is not None:
            raise UsageError(
                "`--seed` goes with training", "leave it out: the archive's models have their own"
            )
        return run_paper(console, folder, **options)
    from taskvec.selftest.demo import demo

    result = demo(folder, progress=console.step, **options)
    page = console.data()
    write_result(page, result)
    console.show(page)
    console.emit(result.to_dict())
    return 0 if result.ok else EXIT_FAILED


def write_result(page: Page, result: DemoResult) -> None:
    """The outcome: what was made, checked, written and verified."""
    page.fact(
        "made",
        f"instruct (target), grpo (donor), sft (reference): {amount(result.parameters)} parameters, bf16, "
        f"{size(result.bytes_each)} in {plural(result.shards, 'shard')} each",
    )
    page.fact("checked", findings_summary(result.findings))
    report = result.report
    page.fact(
        "merged",
        f"instruct + 0.8 * (grpo - sft): {size(report.bytes_written)} written in {duration(report.seconds)} "
        f"({report.cpu_level}, {plural(report.threads, 'thread')})",
    )
    if report.survival is not None:
        write_survival(page, report.survival)
    state = "every file matches its manifest" if result.verification.ok else "FILES DIFFER FROM THE MANIFEST"
    page.fact("verified", state)
    page.fact("numpy", f"{result.equal} of {result.tensors} tensors are equal, bit for bit")
    if result.kept:
        page.fact("kept", printable(result.folder))
        page.fact("next", f"taskvec inspect {printable(result.folder / 'merged')}")
    word = (
        page.paint("demo passed", fg="green", bold=True)
        if result.ok
        else page.paint("demo failed", fg="red", bold=True)
    )
    page.words(f"{word} in {duration(result.seconds)}")
