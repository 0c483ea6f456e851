"""Where a plan is run to: a local folder, or an address; as a whole, or a part of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from taskvec.arguments import function, path
from taskvec.errors import OutputError, RecipeError
from taskvec.files import look
from taskvec.files.names import MANIFEST, PARTS, STATE
from taskvec.models.state_dict import is_fleeting
from taskvec.plan.part import Part
from taskvec.plan.plan import PlanRecord
from taskvec.progress import Callback
from taskvec.report.report import Report
from taskvec.run.execute import execute
from taskvec.run.sinks import hold_output, is_address
from taskvec.settings import Settings

if TYPE_CHECKING:
    from taskvec.run.parts import PartReport


def run_plan(
    plan: PlanRecord,
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    progress: Callback | None = None,
) -> Report:
    """Run all of a plan; where parts of it have been at work, what they have left open."""
    settings = settings or Settings()
    path(out, "out")
    function(progress, "progress")
    hold_output(out, settings)
    if is_address(out):
        from taskvec.run.deliver import deliver  # which local runs do without
        from taskvec.run.deliver_whole import deliver_whole

        is_in_memory = any(map(is_fleeting, plan.checkpoints))
        if plan.kind != "checkpoint" or is_in_memory or plan.tokens is not None:
            return deliver_whole(plan, str(out), settings=settings, progress=progress)
        report = deliver(plan, str(out), settings=settings, progress=progress).report
        return _ended(report, out)
    if plan.tokens is not None:
        return execute(plan, out, settings=settings, progress=progress)
    is_streamed = _is_streamed(plan, settings)
    if is_streamed and settings.overwrite:
        if look.exists(Path(out) / MANIFEST):
            raise RecipeError(
                f"the output in `{os.fspath(out)}` cannot be replaced by one of streamed models, which are "
                "written file by file",
                "remove the output folder first, or choose another one",
            )
        settings = replace(settings, overwrite=False)
    if is_streamed and not settings.resume and not look.exists(Path(out) / STATE):
        settings = replace(settings, resume=True)  # there is nothing to go on with
    if is_streamed or look.exists(Path(out) / STATE / PARTS):
        return _ended(run_part(plan, out, Part(0, 1), settings=settings, progress=progress).report, out)
    return execute(plan, out, settings=settings, progress=progress)


def _is_streamed(plan: PlanRecord, settings: Settings) -> bool:
    if not plan.download or plan.request is not None or (settings.overwrite and not settings.stream):
        return False
    from taskvec.run.supply import is_to_be_staged  # threads and temporary files, which local models need not

    return is_to_be_staged(plan, settings, goes_away=False)


def _ended(report: Report | None, out: str | os.PathLike[str]) -> Report:
    if report is None:
        raise OutputError(
            f"another process is about to end the run in `{os.fspath(out)}`",
            "wait for it; `taskvec finish` ends a run whose process has died",
        )
    return report


def run_part(
    plan: PlanRecord,
    out: str | os.PathLike[str],
    part: Part,
    *,
    units: Sequence[tuple[int, ...]] | None = None,
    settings: Settings | None = None,
    progress: Callback | None = None,
    is_last: bool = True,
) -> PartReport:
    """Run one part of a plan; see :func:`taskvec.run.parts.execute_part`, which has the same parameters."""
    from taskvec.run.parts import execute_part, hold_divisible  # which whole runs do without

    hold_output(out, settings or Settings())
    if not is_address(out):
        with look.told(out):
            return execute_part(
                plan, out, part, units=units, settings=settings, progress=progress, is_last=is_last
            )
    from taskvec.run.deliver import deliver

    hold_divisible(plan, settings or Settings())
    return deliver(
        plan, str(out), part=part, chosen=units, settings=settings, progress=progress, is_last=is_last
    )
