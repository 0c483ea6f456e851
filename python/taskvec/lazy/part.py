"""Parts of a plan as the user has them: plain data that can be sent to another process, and run there."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from taskvec.arguments import path
from taskvec.arguments import threads as hold_threads
from taskvec.errors import NotFoundError, RecipeError
from taskvec.files import look
from taskvec.files.names import PARTS, PLAN, STATE
from taskvec.plan.document import from_file, to_file
from taskvec.plan.part import Part as Number
from taskvec.resolve.stage import remote_of
from taskvec.run import finish as ending
from taskvec.run import shared_state
from taskvec.run.dispatch import run_part
from taskvec.run.parts import PartReport, hold_divisible
from taskvec.run.sinks import absolute, is_address, open_sink
from taskvec.settings import Settings
from taskvec.shown import shown

if TYPE_CHECKING:
    from taskvec.plan.plan import PlanRecord
    from taskvec.progress import Callback
    from taskvec.report.report import Report


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a plan, counted from zero; made by :meth:`taskvec.Plan.part`.

    It can be pickled, and holds no weights and no open file: the models are opened where it is run.

    Attributes
    ----------
    number, count : int
        Which part it is, of how many.
    plan : bytes
        The plan as a file.
    out : str or None
        The output folder that the plan was made for.
    """

    number: int
    count: int
    plan: bytes = field(repr=False)
    out: str | None = None

    @classmethod
    def of(cls, plan: PlanRecord, number: int, count: int, out: str | os.PathLike[str] | None = None) -> Part:
        """A part of a plan; raises ``RecipeError`` where there is none, or the run cannot be divided."""
        Number.of(number, count)
        hold_divisible(plan, Settings())
        place = None if out is None else absolute(out)
        return cls(number, count, to_file(plan, place), place)

    def run(
        self,
        out: str | os.PathLike[str] | None = None,
        *,
        settings: Settings | None = None,
        progress: Callback | bool | None = None,
    ) -> PartReport:
        """Write the weight files of this part, and end the run where no other part is missing.

        Raises
        ------
        RecipeError
            Neither the plan nor ``out`` says where to.
        taskvec.Error
            As :meth:`taskvec.Plan.run`.
        """
        place = self.out if out is None else os.fspath(path(out, "out"))
        if place is None:
            raise RecipeError("the part has no output folder", 'write `part.run("out")`')
        saved = from_file(self.plan, "the plan of this part")
        part = Number.of(self.number, self.count)
        with shown(progress) as tell:
            return run_part(saved.plan, place, part, settings=saved.settings(settings), progress=tell)


def finish(
    out: str | os.PathLike[str],
    *,
    threads: int | None = None,
    progress: Callback | bool | None = None,
) -> Report:
    """End a run in parts: write index, card and manifest, once all weight files are there.

    The last part does it by itself; this is for a run whose last part was killed at its end. Where the run
    has ended already, and all files have the sizes that the manifest lists, nothing is done, and the report
    says ``already_done``.

    Parameters
    ----------
    out : str or path
        The output folder of the parts.
    threads : int, optional
        All cores by default.
    progress : callable or bool, optional
        Called with a :class:`taskvec.Progress`; ``True`` draws a bar.

    Raises
    ------
    NotFoundError
        The folder holds no run in parts.
    OutputError
        Weight files are missing; the message says which, and which parts write them.
    """
    path(out, "out")
    threads = hold_threads(threads)
    with shown(progress) as tell:
        if is_address(out):
            return _finish_at(str(out), threads, tell)
        return _finish_in(Path(out), threads, tell)


def _finish_in(out: Path, threads: int | None, progress: Callback | None) -> Report:
    """The same in a folder."""
    if not look.exists(out / STATE / PARTS):
        return _ended(out)
    saved = from_file(shared_state.saved_plan(out), str(out / STATE / PARTS))
    plan = saved.plan
    settings = saved.settings(Settings(threads=threads))
    with look.told(out):
        if not any(remote_of(checkpoint) for checkpoint in plan.checkpoints):
            return ending.finish(plan, out, plan.checkpoints, settings, progress)
        from taskvec.run.scratch import scratch
        from taskvec.run.supply import supply_of

        with scratch() as place:  # nothing is computed: headers and small files are enough
            supply = supply_of(plan, replace(settings, stream=True), place, progress, goes_away=False)
            staged = supply.is_staged
            return ending.finish(plan, out, supply.sources, settings, progress, is_staged=staged)


def _ended(out: Path) -> Report:
    """The report of a run that has ended here.

    Raises
    ------
    NotFoundError
        None has; the message says what to do instead.
    FormatError, OutputError
        The output is not as its manifest says.
    """
    from taskvec.run.ended import ended_in  # which an end that there is to make does without

    folders = (out, *(out / name for name in look.listing(out)))
    if any(look.exists(folder / STATE / PLAN) for folder in folders):
        raise NotFoundError(
            f"`{out}` holds an unfinished run that is not one in parts",
            "give the command of that run again: it goes on there",
        )
    report = ended_in(out)
    if report is None:
        raise NotFoundError(f"`{out}` holds no run in parts", "give the output folder of the parts")
    return report


def _finish_at(out: str, threads: int | None, progress: Callback | None) -> Report:
    """The same at an address."""
    from taskvec.run.deliver import finish_at  # which local runs do without

    sink = open_sink(out)
    assert sink is not None
    head = sink.head()
    if head is None or not head.plan:
        from taskvec.run.ended import ended_at

        report = ended_at(out) if head is None else None
        if report is not None:
            return report
        raise NotFoundError(
            f"`{out}` holds no run in parts",
            "give the address of the parts; `taskvec verify` reads an output",
        )
    saved = from_file(head.plan, f"the plan of the run in {out}")
    return finish_at(saved.plan, out, head.parts, saved.settings(Settings(threads=threads)), progress)
