"""What ``taskvec eval`` and ``taskvec sweep`` share: options, progress, and the table of arms."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskvec.cli.console import Console, Page, is_terminal
from taskvec.cli.options import option, split_names, together
from taskvec.text import duration, printable

if TYPE_CHECKING:
    from taskvec.evaluation.report.report import Report
    from taskvec.evaluation.sweep.events import Event

# as in taskvec.evaluation.settings, whose import --help does not wait for
THINK = "Think step by step."
PERTURBATIONS = ("typo", "distractor", "order", "numbers")


def pairs(_ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` options as a dict."""
    found = {}
    for value in values:
        key, sign, text = value.partition("=")
        if not sign or not key:
            raise click.BadParameter(f"`{value}` is not KEY=VALUE", param=param)
        found[key] = text
    return found


class BatchSize(click.ParamType):
    """A number, or ``auto``."""

    name = "n|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto" or isinstance(value, int):
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"`{value}` is neither a number nor `auto`", param, ctx)


def names_of(known: Sequence[str]) -> Any:
    """A callback for comma-separated names out of a few."""

    def check(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
        names = split_names(ctx, param, values)
        for name in names:
            if name not in known:
                raise click.BadParameter(f"`{name}` is not one of {', '.join(known)}", param=param)
        return names

    return check


task_options = together(
    option("--tasks", multiple=True, callback=split_names, metavar="NAME[,NAME...]", section="Evaluation",
           help="Tasks or groups of lm-eval, or of YAML tasks in --include-path."),
    option("--paper", is_flag=True, section="Evaluation",
           help="The paper's tasks: gsm8k, humaneval, sciq, bbh_cot_fewshot, with room for reasoning."),
    option("--include-path", metavar="DIR", type=click.Path(file_okay=False), section="Evaluation",
           help="Folder of local YAML tasks."),
    option("--think", metavar="[TEXT]", is_flag=False, flag_value=THINK, section="Evaluation",
           help=f"Ask for reasoning in the prompt.  [without TEXT: {THINK}]"),
    option("--perturb", multiple=True, callback=names_of(PERTURBATIONS), metavar="KIND[,KIND...]",
           section="Evaluation", help=f"Perturbed questions as further arms: {', '.join(PERTURBATIONS)}."),
    option("--chat-template", is_flag=True, default=None, section="Evaluation",
           help="Put prompts through the tokenizer's chat template."),
    option("--max-gen-toks", type=click.IntRange(1), metavar="N", section="Evaluation",
           help="New tokens for every generating task.  [default: per task, long enough to reason]"),
    option("--limit", type=float, metavar="N", section="Evaluation",
           help="The first N documents of each task; below 1 a share of them."),
    option("--seed", type=int, metavar="N", section="Evaluation",
           help="For worked examples, sampling, perturbations and the development part.  [default: 1234]"),
    option("--metric", "metrics", multiple=True, callback=pairs, metavar="TASK=METRIC", section="Evaluation",
           help="The metric to compare for a task (repeatable)."),
    option("--confirm-run-unsafe-code", is_flag=True, default=None, section="Evaluation",
           help="Consent to tasks that run code which the model writes, on this machine."),
)  # fmt: skip

backend_options = together(
    option("--backend", type=click.Choice(["hf", "vllm"]), section="Machine",
           help="lm-eval's model class.  [default: hf]"),
    option("--device", metavar="NAME", section="Machine",
           help="cpu, cuda, cuda:1 or a GPU's number.  [default: the GPU if there is one]"),
    option("--batch-size", type=BatchSize(), metavar="N|auto", section="Machine",
           help="Requests at once; halved where memory does not suffice.  [default: 16, vllm: auto]"),
    option("--model-arg", "model_args", multiple=True, callback=pairs, metavar="KEY=VALUE", section="Machine",
           help="A further argument of the backend, such as dtype=bfloat16 (repeatable)."),
)  # fmt: skip


def count_or_share(limit: float | None) -> int | float | None:
    """A limit as the library takes it: a whole number is a count."""
    return int(limit) if limit is not None and limit >= 1 and float(limit).is_integer() else limit


@contextmanager
def watching(console: Console) -> Iterator[Any]:
    """A callback that says on stderr what an evaluation is doing."""
    watch = _Watch(console)
    try:
        yield watch
    finally:
        watch.close()


class _Watch:
    """One line per arm; on a terminal also how far the arm has come."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = is_terminal(sys.stderr) and not console.quiet
        self._begun: dict[str, float] = {}
        self._trained: set[str] = set()
        self._drawn = False

    def __call__(self, event: Event) -> None:
        if event.kind == "start":
            self._begun[event.arm] = time.monotonic()
        elif event.kind == "progress":
            self._begun.setdefault(event.arm, time.monotonic())
            self._draw(f"{event.arm}: {event.task} {event.done:,} of {event.total:,} requests")
            return
        self._clear()
        if event.kind == "plan":
            self._console.step(f"arms: {event.arm.replace(',', ', ')}")
        elif event.kind == "merge":
            self._console.step(f"merging {event.arm.replace(',', ', ')}")
        elif event.kind == "known":
            self._console.step(f"{event.arm}: evaluated before under the same settings")
        elif event.kind == "done":
            taken = time.monotonic() - self._begun.get(event.arm, time.monotonic())
            self._console.step(f"{event.arm}: done in {duration(taken)} ({event.done} of {event.total} arms)")

    def training(self, name: str, done: int, most: int) -> None:
        """A step of the training of a model."""
        if name not in self._trained:
            self._trained.add(name)
            self._clear()
            self._console.step(f"training {name}: at most {most} steps")
        self._draw(f"{name}: {done} of at most {most} steps")

    def close(self) -> None:
        """Take the line that is drawn over away."""
        self._clear()

    def _draw(self, text: str) -> None:
        if self._live:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
            self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False


def show(console: Console, report: Report, out: Path) -> None:
    """Print a finished report: the table of arms, what may be concluded, where the files are."""
    page = console.data()
    _table(page, report)
    show_conclusions(page, report)
    page.fact("report", printable(out / "report.html"))
    console.show(page)
    console.emit({"out": str(out), "report": report.to_json()})
    show_warnings(console, report)


def _table(page: Page, report: Report) -> None:
    """The arms of a report, their scores and what they differ from the baseline by."""
    from taskvec.evaluation.report.render import arm_rows

    several = len(report.tasks) > 1
    header = [
        "arm",
        *(["task"] if several else []),
        "score",
        "difference",
        "p (Holm)",
        "verdict",
        "tokens",
        "cut",
    ]
    rows = []
    for row in arm_rows(report):
        tokens = "–" if row["tokens"] is None else f"{row['tokens']:.0f}"
        cut = "–" if row["cut"] is None else f"{100 * row['cut']:.1f} %"
        name = row["arm"].name
        rows.append(
            [name, *([row["task"]] if several else []), row["score"], row["difference"], row["p_holm"],
             row["verdict"], tokens, cut]
        )  # fmt: skip
    shift = int(several)
    page.table(header, rows, right=(1 + shift, 2 + shift, 3 + shift, 5 + shift, 6 + shift))


def show_warnings(console: Console, report: Report) -> None:
    """Say on stderr what is to be known before the scores are believed."""
    warnings = console.talk()
    for record in report.records:
        for text in record.warnings:
            warnings.level("warning", f"{record.name}: {text}")
    for check in report.checks:
        if check.different:
            warnings.level(
                "warning",
                f"{check.arm}: {check.different} of {check.samples} samples differ from {check.against}; "
                "none should",
            )
    console.say(warnings)


def show_conclusions(page: Page, report: Report) -> None:
    """Which alpha was chosen how, and what may be claimed."""
    if report.choice is not None and report.choice.scores:
        page.line()
        chosen = f"alpha = {report.choice.alpha:g} was {report.choice.how}"
        page.line(f"{chosen}; scores and tests are of the other documents")
    if report.conclusions:
        page.line()
        for item in report.conclusions:
            page.fact("claim", item.text)
    page.line()
