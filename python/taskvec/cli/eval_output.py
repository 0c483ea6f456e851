"""Progress and results of ``taskvec eval`` and ``taskvec sweep``: a line per arm, the table, the claims."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.cli.console import Console, Page
from taskvec.cli.live import Live
from taskvec.text import amount, duration, plural, printable

if TYPE_CHECKING:
    from taskvec.evaluation.analysis.power import Power
    from taskvec.evaluation.report.report import Report
    from taskvec.evaluation.sweep.costs import Cost
    from taskvec.evaluation.sweep.events import Event
    from taskvec.evaluation.sweep.forecast import Forecast


@contextmanager
def watching(console: Console) -> Iterator[Any]:
    """A callback that follows an evaluation on stderr."""
    watch = _Watch(console)
    try:
        yield watch
    finally:
        watch.close()


@contextmanager
def following(console: Console, name: str) -> Iterator[Any]:
    """A callback that follows the documents of some tasks on stderr, where that is a terminal."""
    watch = _Watch(console)
    try:
        yield lambda task, done, total: watch.documents(name, task, done, total)
    finally:
        watch.close()


class _Watch:
    """One line per arm; on a terminal also how far the arm has come."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console)
        self._begun: dict[str, float] = {}
        self._trained: set[str] = set()

    def __call__(self, event: Event) -> None:
        if event.kind == "start":
            self._begun[event.arm] = time.monotonic()
        elif event.kind == "progress":
            self._begun.setdefault(event.arm, time.monotonic())
            self._live.draw(
                f"{event.arm}: {event.task} {event.done:,} of {plural(event.total, 'request')}",
                f"{event.arm} {event.task}", event.done, event.total,
            )  # fmt: skip
            return
        self._live.clear()
        if event.kind == "plan":
            self._console.step(f"arms: {event.arm.replace(',', ', ')}")
        elif event.kind == "note":
            page = self._console.talk()
            page.level("warning", event.arm)
            self._console.say(page)
        elif event.kind == "merge":
            self._console.step(f"merging {event.arm.replace(',', ', ')}")
        elif event.kind == "known":
            self._console.step(f"{event.arm}: evaluated before under the same settings")
        elif event.kind == "done":
            taken = time.monotonic() - self._begun.get(event.arm, time.monotonic())
            self._console.step(
                f"{event.arm}: done in {duration(taken)} ({event.done} of {plural(event.total, 'arm')})"
            )

    def documents(self, name: str, task: str, done: int, total: int) -> None:
        """A document that is done."""
        self._live.draw(
            f"{name}: {task}, {done:,} of {plural(total, 'document')}", f"{name} {task}", done, total
        )

    def training(self, name: str, done: int, most: int) -> None:
        """A step of the training of a model."""
        if name not in self._trained:
            self._trained.add(name)
            self._live.clear()
            self._console.step(f"training {name}: at most {plural(most, 'step')}")
        self._live.draw(f"{name}: {done} of at most {plural(most, 'step')}", name, done, most)

    def close(self) -> None:
        """Take the line that is drawn over away."""
        self._live.clear()


def show(console: Console, report: Report, out: Path) -> None:
    """Print a finished report: the table of arms, the conclusions, the place of the files."""
    page = console.data()
    _table(page, report)
    show_conclusions(page, report)
    page.fact("report", printable(out / "report.html"))
    console.show(page)
    console.emit({"out": str(out), "report": report.to_json()})
    show_warnings(console, report)


def _table(page: Page, report: Report) -> None:
    """The arms of a report, their scores and their differences to the baseline."""
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
             _verdict(row), tokens, cut]
        )  # fmt: skip
    shift = int(several)
    page.table(header, rows, right=(1 + shift, 2 + shift, 3 + shift, 5 + shift, 6 + shift))


def _verdict(row: dict[str, Any]) -> str:
    """A verdict with the number of documents that it is of."""
    return f"{row['verdict']}, n = {row['comparison'].n:,}" if row["verdict"] else ""


def show_warnings(console: Console, report: Report) -> None:
    """Warn on stderr of all that makes scores doubtful."""
    from taskvec.evaluation.report.labels import arms_label

    warnings = console.talk()
    for records, text in report.warnings():
        arms = arms_label([record.name for record in records], len(report.records))
        warnings.level("warning", f"{arms}: {text}")
    for check in report.checks:
        if check.different:
            warnings.level(
                "warning",
                f"{check.arm}: {check.different} of {plural(check.samples, 'sample')} differ from "
                f"{check.against}; none should",
            )
    console.say(warnings)


def show_conclusions(page: Page, report: Report) -> None:
    """The chosen alpha, how it was chosen, and the claims."""
    if report.choice is not None and report.choice.scores:
        page.line()
        page.words(f"{report.choice.in_words}; scores and tests are of the other documents")
    if report.conclusions:
        page.line()
        for item in report.conclusions:
            page.fact("claim", item.text)
    page.line()


def show_forecast(page: Page, found: Forecast) -> None:
    """The smallest differences that a sweep shows with a probability of 80 %, in points."""
    from taskvec.evaluation.analysis.power import MORE

    if found.rows:
        page.line()
        page.words(
            f"smallest differences, in points, that show with a probability of 80 %: of donor over reference "
            f"at p < 0.01 on all documents (gate), between two alphas (choice), of +v over another arm at "
            f"p < 0.05 after correction for {plural(found.tests, 'primary test')} (claim)"
        )
        page.table(
            ["task", "documents", "disagree", "gate", "choice", "claim",
             *(f"{times} × documents" for times in MORE), "undivided"],
            [_power_row(row) for row in found.rows], right=tuple(range(1, 7 + len(MORE))),
        )  # fmt: skip
        page.words(
            "2 ×, 4 × documents and undivided: gate / claim; the share of documents on which two arms "
            "disagree is assumed, as in published runs"
        )
        page.line()
    for task, why in found.unknown.items():
        page.fact("power", f"of {task} is not known: {why}")


def show_costs(page: Page, costs: Sequence[Cost]) -> None:
    """What every arm will cost, and all of them; `not measured` where no sample was."""
    page.line()
    measured = [cost for cost in costs if cost.tokens is not None and cost.seconds is not None]
    if not measured:
        page.fact("cost", f"of {plural(len(costs), 'arm')}: not measured")
        page.fact("", "the same command with --limit 20 instead of --dry-run measures a sample in OUT")
        return
    page.words(
        "what the arms cost in new tokens and time, scaled from the arms measured in OUT; merging not counted"
    )
    rows = [_cost_row(cost) for cost in costs]
    left = [cost for cost in measured if cost.source != "done"]
    unknown = len(costs) - len(measured)
    rest = f"{unknown} not measured" if unknown else ""
    total = (
        "still to do",
        *_cost_words(sum(c.tokens or 0 for c in left), sum(c.seconds or 0 for c in left)),
        rest,
    )
    page.table(["arm", "tokens", "time", "from"], [*rows, total], right=(1, 2))
    page.line()


def _cost_row(cost: Cost) -> tuple[str, str, str, str]:
    if cost.tokens is None or cost.seconds is None:
        return cost.arm, "not measured", "not measured", ""
    source = "done" if cost.source == "done" else f"{cost.source}, n = {cost.sample:,}"
    return (cost.arm, *_cost_words(cost.tokens, cost.seconds), source)


def _cost_words(tokens: float, seconds: float) -> tuple[str, str]:
    return amount(tokens), duration(seconds)


def _power_row(row: Power) -> list[str]:
    def points(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f}"

    pairs = [*row.more.values(), (row.gate_whole, row.claim_whole)]
    parts = f"{row.development:,} + {row.report:,}" if row.report < row.documents else f"{row.documents:,}"
    return [
        row.task,
        parts,
        f"{100 * row.discordant:.0f} %",
        *map(points, (row.gate, row.choice, row.claim)),
        *(f"{points(gate)} / {points(claim)}" for gate, claim in pairs),
    ]
