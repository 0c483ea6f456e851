"""A plan that a command has made: printed, written to a file, run, or run in part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from taskvec.cli.console import Console, Page, UsageError
from taskvec.cli.job import free_bytes, settings_of, write_plan, write_report
from taskvec.cli.plan_file import PLANNING, write
from taskvec.run.sinks import absolute, hold_output, is_address
from taskvec.settings import Settings
from taskvec.text import size

if TYPE_CHECKING:
    from taskvec.lazy.plan import Plan
    from taskvec.report.report import Report


def is_planning() -> bool:
    """Whether `taskvec plan` runs the command for its plan alone."""
    context = click.get_current_context(silent=True)
    return context is not None and PLANNING in context.meta


def execute(
    console: Console,
    plan: Plan,
    out: str,
    title: str,
    options: Mapping[str, Any],
    settings: Settings | None = None,
) -> Report | None:
    """Print the plan, run it unless ``--dry-run`` is given, print the outcome.

    ``settings`` are those of the options by default. With ``--part`` one part of it is run; ``taskvec plan``
    has it written to a file instead.
    """
    threads = options["threads"]
    if is_planning():
        return write(console, plan, title, threads)
    chosen = settings or Settings.of(settings_of(options))
    hold_output(out, chosen)
    if options["dry_run"]:
        page = console.data()
        write_plan(page, plan, title, out, threads)
        console.findings(plan.findings, page)
        page.line()
        moved = _moves(page, plan, out, chosen)
        page.fact("dry run", "nothing was written")
        console.show(page)
        facts = {**plan.to_dict(), "memory": plan.memory(threads), "free_space": free_bytes(out), **moved}
        console.emit({"dry_run": True, "out": absolute(out), "plan": facts})
        return None
    page = console.talk()
    write_plan(page, plan, title, out, threads)
    console.say(page)
    console.findings(plan.findings)
    if options.get("part") and options.get("ray"):
        raise UsageError("`--part` and `--ray` exclude each other", "`--ray` divides the run by itself")
    if options.get("part"):
        from taskvec.cli.part import run_part  # which most runs do without

        return run_part(console, plan, out, options["part"], chosen)
    with console.progress() as progress:
        if options.get("ray"):
            report = plan.run_on_ray(out, address=options["ray"], settings=chosen, progress=progress)
        else:
            report = plan.run(out, settings=chosen, progress=progress)
    is_conversion = plan.recipe["verb"] == "convert"
    write_report(console, report, out, plan.findings, settings=chosen, is_conversion=is_conversion)
    return report


def _moves(page: Page, plan: Plan, out: str, settings: Settings) -> dict[str, Any]:
    """Write what a run moves over the network; nothing where it moves nothing."""
    if not plan.download and not is_address(out):
        return {}
    from taskvec.run.moves import moves  # which local runs do without

    moved = moves(plan, settings, goes_away=is_address(out))
    sent = f", sends {size(moved.send)}" if moved.send else ""
    page.fact("network", f"fetches {size(moved.fetch)}{sent}; at least {size(moved.scratch)} of scratch")
    return {"moves": moved._asdict()}
