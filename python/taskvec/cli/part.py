"""One part of a run, and what is printed of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskvec.cli.console import Console
from taskvec.cli.job import write_report
from taskvec.plan.part import Part
from taskvec.run.dispatch import run_part as run_one
from taskvec.run.sinks import absolute
from taskvec.settings import Settings
from taskvec.text import duration, plural, printable, size

if TYPE_CHECKING:
    from taskvec.lazy.plan import Plan
    from taskvec.report.report import Report
    from taskvec.run.parts import PartReport


def run_part(console: Console, plan: Plan, out: str, part: str, settings: Settings) -> Report | None:
    """Run one part and print its outcome; that of the whole run, if this was the last one."""
    number = Part.parse(part)
    with console.progress() as progress:
        done = run_one(plan, out, number, settings=settings, progress=progress)
    if done.report is not None:
        if done.shards:
            console.say(f"part {number}: {_written(done)}; it was the last one")
        is_conversion = plan.recipe["verb"] == "convert"
        write_report(console, done.report, out, plan.findings, settings=settings, is_conversion=is_conversion)
        return done.report
    page = console.talk()
    page.line()
    page.fact(f"part {number}", _written(done), fg="green", bold=True)
    page.fact("all parts", f"{done.done} of {plural(done.total, 'weight file')} are in place")
    console.say(page)
    console.show(printable(out))
    console.emit({"dry_run": False, "out": absolute(out), **done.to_dict()})
    return None


def _written(done: PartReport) -> str:
    kept = f", {done.kept} were there already" if done.kept else ""
    if not done.shards:
        return f"nothing left to write{kept}"
    files = plural(len(done.shards), "weight file")
    return f"{files} written ({size(done.bytes_written)} in {duration(done.seconds)}){kept}"
