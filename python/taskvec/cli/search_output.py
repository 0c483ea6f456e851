"""Progress and results of ``taskvec search``: a line per candidate, the verdicts, the best recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from taskvec.cli.console import Console
from taskvec.cli.live import Live
from taskvec.text import duration, plural, printable

if TYPE_CHECKING:
    from taskvec.evaluation.search.forecast import Forecast
    from taskvec.evaluation.search.result import SearchResult
    from taskvec.evaluation.search.space import Space
    from taskvec.evaluation.sweep.events import Event


@contextmanager
def follow(console: Console) -> Iterator[Any]:
    """A callback that follows a search on stderr."""
    watch = _Watch(console)
    try:
        yield watch
    finally:
        watch.clear()


class _Watch:
    """One line per candidate; on a terminal also how far it has come."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console)
        self._known = 0

    def __call__(self, event: Event) -> None:
        if event.kind in ("progress", "merge"):
            at = "merging" if event.kind == "merge" else f"{event.done:,} of {event.total:,} requests"
            self._live.draw(f"{event.arm}: {at}", event.arm, event.done, event.total)
            return
        self.clear()
        if event.kind == "known":
            self._known += 1
            return
        if self._known:
            self._console.step(f"{plural(self._known, 'candidate')} evaluated before")
            self._known = 0
        if event.kind == "note":
            page = self._console.talk()
            page.level("warning", event.arm)
            self._console.say(page)
        elif event.kind == "done":
            self._console.step(f"{event.arm}: {event.task} ({event.done:,} of {event.total:,})")
        elif event.kind == "held-out":
            self._console.step(f"{event.arm}: evaluated on the held-out part")

    def clear(self) -> None:
        """Take the line that is drawn over away."""
        self._live.clear()


def show(console: Console, result: SearchResult) -> None:
    """Print a finished search: scores on the held-out part, verdicts, the place of the files."""
    from taskvec.evaluation.report.labels import number
    from taskvec.evaluation.search.report import ROLES

    page = console.data()
    scale = 100 if result.is_share else 1
    page.table(
        ["model", "candidate", "held out", "development"],
        [
            [ROLES[row.role], row.trial.name, number(row.score, scale), number(row.trial.score, scale)]
            for row in result.held_out
        ],
        right=(2, 3),
    )
    page.line()
    for name, value in result.best.values.items():
        page.line(f"{name} = {value}")
    page.line()
    for verdict in result.verdicts:
        page.fact("verdict", verdict.text)
    if result.failed:
        page.fact("failed", f"{plural(result.failed, 'candidate')}, counted as the worst of all")
    if result.looks > 1:
        page.fact("held out", f"looked at {result.looks} times, after earlier ends of this search")
    page.fact("recipe", printable(result.recipe))
    page.fact("report", printable(result.report))
    console.show(page)
    console.emit({"out": str(result.report.parent), "report": result.to_json()})


def show_plan(console: Console, space: Space, found: Forecast) -> None:
    """Print what a search would do."""
    page = console.data()
    page.table(
        ["free value", "kind", "range", "start"],
        [[each.name, each.kind, each.range_text, each.text(each.start)] for each in space.free],
    )
    page.line()
    optimiser = space.optimiser
    page.fact("optimiser", f"{optimiser.name}, population {space.population}, seed {optimiser.seed}")
    page.fact(
        "evaluated",
        f"{plural(found.evaluations, 'model')}: the baseline {printable(found.baseline)}, "
        f"{len(found.plain)} plain ({', '.join(found.plain)}), {plural(found.candidates, 'candidate')} of "
        f"the search, {found.random} of random search; then the best of each on the held-out part",
    )
    for task, (inside, outside) in found.documents.items():
        page.fact("documents", f"{task}: {inside:,} development, {outside:,} held out")
    if found.unknown is not None:
        page.fact("documents", f"not known: {found.unknown}")
    if found.seconds is None:
        page.fact("time", "not measured: a few candidates (--budget 3) say how long one takes")
    else:
        page.fact(
            "time",
            f"about {duration(found.seconds * found.evaluations)} one after the other: "
            f"{duration(found.seconds)} each, the median of {found.measured} that were run here",
        )
    page.fact("dry run", "nothing was merged or evaluated")
    console.show(page)
    console.emit(
        {
            "dry_run": True,
            "space": space.to_json(),
            "forecast": found.to_json(),
        }
    )
