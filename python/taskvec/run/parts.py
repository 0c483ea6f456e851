"""One part of a run: its weight files, written by as many processes and machines as there are parts.

Every part computes in a folder of its own, which no other one touches, and then puts its files in place with
a record each: whatever runs at once, twice, or is killed, a file that has a record is whole and of this plan.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec._core import FolderLock
from taskvec.errors import NotFoundError, OutputError, RecipeError
from taskvec.files import look
from taskvec.files.names import MANIFEST, PARTS, PLAN, STATE
from taskvec.models.model import Model
from taskvec.models.state_dict import is_fleeting
from taskvec.plan.part import Part, dealt, files_of
from taskvec.plan.plan import PlanRecord, Shard
from taskvec.progress import Callback
from taskvec.report.report import Report
from taskvec.report.tables import Tabled
from taskvec.run import shared_state
from taskvec.run.awaited import ended_meanwhile, lacks_its_end_alone
from taskvec.run.execute import looked_through
from taskvec.run.finish import end_assembled, finish_if_complete, folders_of, is_assembled
from taskvec.run.finished import finished_run, is_of_another
from taskvec.run.inputs import Inputs, Source, input_rows
from taskvec.run.locked import paths_of
from taskvec.run.part_work import Pieces, Shards, Unit
from taskvec.run.publish import Publisher
from taskvec.run.scratch import scratch
from taskvec.run.shared_state import Records
from taskvec.run.supply import Supply, is_to_be_staged, supply_of
from taskvec.settings import Settings
from taskvec.text import duration


@dataclass(frozen=True, slots=True, repr=False)
class PartReport(Tabled):
    """The outcome of one part of a run.

    Attributes
    ----------
    part : Part
        Its number, counted from zero, and how many parts there are.
    shards : tuple of Shard
        The weight files that this call has written, into each output; of a vector its pieces, whose bytes are
        those of dense bfloat16.
    kept : int
        Those of the part that were there already.
    done, total : int
        Weight files of the whole run that are in place, and all of them.
    bytes_read, bytes_written : int
        By this call.
    seconds : float
        That it took.
    report : Report or None
        That of the whole run, where this call has ended it or found it ended.
    """

    part: Part
    shards: tuple[Shard, ...]
    kept: int
    done: int
    total: int
    bytes_read: int
    bytes_written: int
    seconds: float
    report: Report | None

    def _subject(self) -> str:
        return f"{self.part.number}/{self.part.total}"

    def _facts(self) -> dict[str, str]:
        facts = {
            "weight files": f"{len(self.shards)} written, {self.kept} kept",
            "whole run": f"{self.done} of {self.total} files in place",
            "time": duration(self.seconds),
        }
        return facts if self.report is None else {**facts, "run": "complete"}

    def _tables(self) -> Mapping[str, Any]:
        return {"shards": lambda: [shard._asdict() for shard in self.shards]}

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        report = self.report.to_dict() if self.report is not None else None
        return {
            "part": self.part.number,
            "parts": self.part.total,
            "shards": [shard.name for shard in self.shards],
            "kept": self.kept,
            "done": self.done,
            "total": self.total,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "seconds": self.seconds,
            "complete": report is not None,
            "report": report,
        }


def hold_divisible(plan: PlanRecord, settings: Settings) -> None:
    """Return if a run can be done in parts.

    Raises
    ------
    RecipeError
        It cannot; the message says why.
    """
    if plan.request is not None:
        raise RecipeError(
            "a recipe of several documents is run as a whole", "make a recipe of its own of each document"
        )
    if plan.kind == "adapter":
        raise RecipeError(
            "an adapter is one file, which one process writes", "run it without `--part` and `--ray`"
        )
    if plan.tokens is not None:
        raise RecipeError(
            "the rows for another tokenizer are computed by one process",
            "run it without `--part` and `--ray`",
        )
    if any(map(is_fleeting, plan.checkpoints)):
        raise RecipeError(
            "the plan reads tensors of the process that made it",
            "run it without `--part`, or save the models",
        )
    if settings.overwrite:
        raise RecipeError(
            "`--overwrite` in a part would remove what other parts have written",
            "remove the output folder before the first part begins, or choose another one",
        )
    if not settings.resume:
        raise RecipeError(
            "`--no-resume` in a part, or with streamed models, would begin again what others have written",
            "remove the output before the first part begins, or choose another one",
        )


def execute_part(
    plan: PlanRecord,
    out: str | os.PathLike[str],
    part: Part,
    *,
    units: Sequence[Unit] | None = None,
    settings: Settings | None = None,
    progress: Callback | None = None,
    is_last: bool = True,
) -> PartReport:
    """Write the weight files of one part, and end the run where no other part is missing.

    Parameters
    ----------
    plan : PlanRecord
    out : str or path
        The output folder, which all parts share: new, empty, or with what other parts of this plan have left.
    part : Part
        Which part this is.
    units : sequence of tuple of int, optional
        The weight files, by number and as they belong together, where they are not those that the plan deals
        to this part.
    settings : Settings, optional
        ``threads``, ``max_memory``, ``rehash`` and ``force`` matter here.
    progress : callable, optional
        Called with a :class:`taskvec.Progress` of this part.
    is_last : bool
        Whether to end the run where no other part is missing.

    Raises
    ------
    RecipeError
        The run cannot be divided.
    OutputError
        The folder holds something else, or cannot be written to.
    FormatError, NonFiniteError
        As :func:`taskvec.run.execute.execute`.
    KeyboardInterrupt
        Stopped; the same call goes on where it was.
    """
    settings, begin = settings or Settings(), time.monotonic()
    hold_divisible(plan, settings)
    out = Path(out)
    folders = folders_of(plan, out)
    finished = finished_run(plan, folders, input_rows(plan.checkpoints), settings)
    if finished is not None:
        shared_state.clear_ended(out, folders)
        return _ended(plan, part, finished, begin)
    mine = dealt(plan, part.total)[part.number] if units is None else list(units)
    own_ends: list[bool] = []
    begins = functools.partial(own_ends.append, True)
    try:
        return _supplied(plan, out, folders, part, mine, settings, progress, is_last, begins)
    except (OutputError, NotFoundError) as error:
        # the same part elsewhere may have been the last one meanwhile: what this one shared with it has gone
        is_own = bool(own_ends) and isinstance(error, OutputError) and not is_of_another(error)
        finished = ended_meanwhile(plan, out, settings, progress, error, is_own=is_own)
        if finished is None:
            raise
        return _ended(plan, part, finished, begin)


def _supplied(
    plan: PlanRecord,
    out: Path,
    folders: Sequence[Path],
    part: Part,
    mine: Sequence[Unit],
    settings: Settings,
    progress: Callback | None,
    is_last: bool,
    begins: Callable[[], object],
) -> PartReport:
    """One part, with a scratch folder where its inputs are brought range by range."""
    begin = time.monotonic()
    is_staged = is_to_be_staged(plan, settings, goes_away=False)
    with scratch() if is_staged else contextlib.nullcontext(Path()) as place:
        supply = supply_of(plan, settings, place, progress, goes_away=False)
        plan = looked_through(plan, supply.sources, settings)
        if lacks_its_end_alone(plan, out, folders):
            staged = supply.sources if supply.is_staged else None
            begins()
            return _ended(plan, part, end_assembled(plan, out, staged, settings, progress), begin)
        return _execute_part(plan, out, part, mine, supply, settings, progress, is_last, begins)


def _execute_part(
    plan: PlanRecord,
    out: Path,
    part: Part,
    mine: Sequence[Unit],
    supply: Supply,
    settings: Settings,
    progress: Callback | None,
    is_last: bool,
    begins: Callable[[], object],
) -> PartReport:
    begin = time.monotonic()
    folders, checkpoints = folders_of(plan, out), supply.sources
    inputs = Inputs(checkpoints)
    base = checkpoints[0]
    if plan.kind == "checkpoint":
        assert isinstance(base, Model)
        Publisher(plan, base, settings, inputs, None).foresee()
    admit(plan, out, folders, checkpoints, part)
    records = Records(plan, out, folders)
    is_missing = not is_assembled(folders)
    missing = [unit for unit in mine if is_missing and not records.has(unit, rehash=settings.rehash)]
    make = Pieces if plan.kind == "vector" else Shards
    work = make(plan, out, inputs, supply, records, settings, progress, missing)
    read = work.write_all()
    staged = supply.is_staged
    report = (
        finish_if_complete(plan, out, supply.sources, settings, progress, is_staged=staged, begins=begins)
        if is_last
        else None
    )
    shards = tuple(records.files[number] for unit in missing for number in unit)
    total = len(records.files)
    return PartReport(
        part,
        shards,
        sum(map(len, mine)) - len(shards),
        total if report is not None else records.count(),
        total,
        read,
        work.written,
        time.monotonic() - begin,
        report,
    )


def _ended(plan: PlanRecord, part: Part, report: Report, begin: float) -> PartReport:
    total = len(files_of(plan))
    return PartReport(part, (), 0, total, total, 0, 0, time.monotonic() - begin, report)


def admit(
    plan: PlanRecord, out: Path, folders: Sequence[Path], checkpoints: Sequence[Source], part: Part
) -> None:
    """Make the state of a run in parts, or return if that of this plan is there.

    Raises
    ------
    OutputError
        The folder holds something else, or touches an input.
    """
    if look.exists(out / STATE / PARTS):
        shared_state.hold_same(out, plan)
        return
    if any(look.exists(folder / STATE / PLAN) for folder in folders):
        raise OutputError(
            f"`{out}` holds an unfinished run that was begun as a whole",
            "go on without `--part`, or choose another output folder",
        )
    for folder in {out, *folders}:
        found = [name for name in look.listing(folder) if name != STATE and folder / name not in folders]
        if found:
            what = "a finished output" if MANIFEST in found else f"files such as `{found[0]}`"
            raise OutputError(
                f"the output folder `{folder}` holds {what}",
                "remove it, or choose another output folder: parts begin in a new or empty one",
            )
    shared_state.clear_abandoned(out)
    # takes the lock and gives it back: refuses a folder that touches an input, and makes nothing
    with FolderLock(shared_state.place(out), inputs=paths_of(checkpoints)):
        shared_state.begin(out, plan, part)
