"""One part of a run: its weight files, written by as many processes and machines as there are parts.

Every part computes in a folder of its own, which no other one touches, and then puts its files in place with
a record each: whatever runs at once, twice, or is killed, a file that has a record is whole and of this plan.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec._core import FolderLock
from taskvec._core import run as engine_run
from taskvec.errors import OutputError, RecipeError
from taskvec.files import look
from taskvec.files.json import read_bytes
from taskvec.files.names import INPUTS, JOURNAL, MANIFEST, PARTS, PLAN, STATE
from taskvec.files.place import sync_folders
from taskvec.models.model import Model
from taskvec.plan.part import Part, dealt, of_shards
from taskvec.plan.plan import PlanRecord, Shard
from taskvec.progress import Callback, Progress, heard
from taskvec.report.report import Report
from taskvec.run import pipeline, shared_state
from taskvec.run.execute import looked_through
from taskvec.run.finish import end_assembled, finish_if_complete, folders_of, is_assembled
from taskvec.run.finished import finished_run
from taskvec.run.inputs import Inputs, Source, input_rows
from taskvec.run.locked import paths_of
from taskvec.run.publish import Publisher
from taskvec.run.scratch import scratch
from taskvec.run.shared_state import Records
from taskvec.run.supply import Brought, Supply, is_to_be_staged, scratch_limit, supply_of
from taskvec.settings import Settings

Unit = tuple[int, ...]
# Output that is computed before its files are put in place: what a kill can cost.
_AT_ONCE = 512 << 20


@dataclass(frozen=True, slots=True)
class PartReport:
    """The outcome of one part of a run.

    Attributes
    ----------
    part : Part
        Its number, counted from zero, and how many parts there are.
    shards : tuple of Shard
        The weight files that this call has written, into each output.
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
    if plan.kind == "vector":
        raise RecipeError(
            "a vector is extracted as a whole: the sizes of its files follow from all of them",
            "run it without `--part`",
        )
    if plan.request is not None:
        raise RecipeError(
            "a recipe of several documents is run as a whole", "make a recipe of its own of each document"
        )
    if any(isinstance(each, Model) and each.kind == "memory" for each in plan.checkpoints):
        raise RecipeError(
            "the plan reads tensors of the process that made it",
            "run it without `--part`, or save the models",
        )
    if settings.overwrite:
        raise RecipeError(
            "`--overwrite` in a part would remove what other parts have written",
            "remove the output folder before the first part begins, or choose another one",
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
        Of a checkpoint.
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
        return _ended(plan, part, finished, begin)
    with contextlib.ExitStack() as held:
        supply = _supplied(plan, settings, held, progress)
        plan = looked_through(plan, supply.sources, settings)
        if _lacks_its_end_alone(plan, out, folders):
            staged = supply.sources if supply.is_staged else None
            return _ended(plan, part, end_assembled(plan, out, staged, settings, progress), begin)
        return _execute_part(plan, out, part, units, supply, settings, progress, is_last)


def _supplied(
    plan: PlanRecord, settings: Settings, held: contextlib.ExitStack, progress: Callback | None
) -> Supply:
    """The inputs of a part, with a scratch folder where they are brought range by range."""
    if not is_to_be_staged(plan, settings, goes_away=False):
        return supply_of(plan, settings, Path(), progress, goes_away=False)
    return supply_of(plan, settings, held.enter_context(scratch()), progress, goes_away=False)


def _execute_part(
    plan: PlanRecord,
    out: Path,
    part: Part,
    units: Sequence[Unit] | None,
    supply: Supply,
    settings: Settings,
    progress: Callback | None,
    is_last: bool,
) -> PartReport:
    begin = time.monotonic()
    folders, checkpoints = folders_of(plan, out), supply.sources
    inputs = Inputs(checkpoints)
    base = checkpoints[0]
    assert isinstance(base, Model)
    Publisher(plan, base, settings, inputs, None).foresee()
    admit(plan, out, folders, checkpoints, part)
    records = Records(plan, out, folders)
    mine = dealt(plan, part.total)[part.number] if units is None else list(units)
    is_missing = not is_assembled(folders)
    missing = [unit for unit in mine if is_missing and not records.has(unit, rehash=settings.rehash)]
    work = _Work(plan, out, folders, inputs, supply, records, settings, progress, missing)
    read = work.write_all()
    staged = supply.is_staged
    report = (
        finish_if_complete(plan, out, checkpoints, settings, progress, is_staged=staged) if is_last else None
    )
    shards = tuple(plan.shards[number] for unit in missing for number in unit)
    total = len(plan.shards)
    return PartReport(
        part,
        shards,
        sum(map(len, mine)) - len(shards),
        total if report is not None else records.count(),
        total,
        read,
        sum(shard.bytes for shard in shards) * len(folders),
        time.monotonic() - begin,
        report,
    )


def _ended(plan: PlanRecord, part: Part, report: Report, begin: float) -> PartReport:
    total = len(plan.shards)
    return PartReport(part, (), 0, total, total, 0, 0, time.monotonic() - begin, report)


def _lacks_its_end_alone(plan: PlanRecord, out: Path, folders: Sequence[Path]) -> bool:
    """Whether a part was killed when nothing was missing any more but the files beside the weights."""
    if look.exists(out / STATE / PARTS) or not is_assembled(folders):
        return False
    journals = [read_bytes(folder / STATE / JOURNAL) for folder in folders]
    return all(journal.count(b"\n") > len(plan.shards) for journal in journals)


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


def _batches(plan: PlanRecord, units: Sequence[Unit]) -> Iterator[list[Unit]]:
    batch: list[Unit] = []
    filled = 0
    for unit in units:
        batch.append(unit)
        filled += sum(plan.shards[number].bytes for number in unit) * len(plan.outputs)
        if filled >= _AT_ONCE:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch


class _Work:
    """A part at work."""

    def __init__(
        self,
        plan: PlanRecord,
        out: Path,
        folders: Sequence[Path],
        inputs: Inputs,
        supply: Supply,
        records: Records,
        settings: Settings,
        progress: Callback | None,
        missing: Sequence[Unit],
    ) -> None:
        self.plan, self.out, self.folders = plan, out, folders
        self.inputs, self.records, self.settings = inputs, records, settings
        self.notice, self.supply, self.missing = heard(progress), supply, missing
        self.fetched = 0
        self.tell = _meter(progress, [self._bytes(unit) for unit in missing])

    def write_all(self) -> int:
        """Compute all units and put them in place; the bytes that were read."""
        if not self.supply.is_staged:
            return sum(self.write(batch, self.supply.paths) for batch in _batches(self.plan, self.missing))
        supply, read = self.supply, []
        room = pipeline.Room(scratch_limit(supply, self.missing, self.settings))
        stopped = threading.Event()

        def told(_: int) -> None:
            if stopped.is_set():
                raise InterruptedError("the run is stopped")

        steps = pipeline.Steps[Unit, Brought, None](
            fetch=lambda unit: supply.bring(unit, told),
            compute=lambda unit, brought: read.append(self.write([unit], brought.paths)),
            release=supply.let_go,
            send=lambda _unit, _made: None,  # what is written stays
            stop=stopped.set,
        )
        pipeline.run(self.missing, steps, room, lambda unit: (supply.bytes_in(unit), 0))
        return sum(read)

    def write(self, batch: Sequence[Unit], paths: Sequence[str]) -> int:
        """Compute some units and put them in place; the bytes that were read."""
        shards = sorted(number for unit in batch for number in unit)
        place = shared_state.place(self.out)
        try:
            report = json.loads(
                engine_run(
                    of_shards(self.plan, shards),
                    place,
                    threads=self.settings.threads or 0,
                    max_memory=self.settings.max_memory,
                    progress=self.tell(sum(self._bytes(unit) for unit in batch)),
                    allow_non_finite="non-finite" in self.settings.force,
                    notice=self.notice,
                    paths=paths,
                )
            )
            self.inputs.hold()
            self._publish(place, [self.plan.shards[number].name for number in shards])
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return int(report["bytes_read"])

    def _publish(self, place: Path, names: Sequence[str]) -> None:
        made = [place / output.folder if output.folder else place for output in self.plan.outputs]
        lines: dict[str, list[str]] = {name: [] for name in names}
        for folder in made:
            journal = (folder / STATE / JOURNAL).read_text(encoding="utf-8").splitlines()[1:]
            for line in journal:
                lines[json.loads(line)["shard"]].append(line)
        seen = self.records.see(self.supply.states((made[0] / STATE / INPUTS).read_bytes()))
        for folder, source in zip(self.folders, made, strict=True):
            with _writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                for name in names:
                    os.replace(source / name, folder / name)
            sync_folders(folder, list(names))
        for name in names:
            self.records.write(name, lines[name], seen)

    def _bytes(self, unit: Unit) -> int:
        return sum(self.plan.shards[number].bytes for number in unit)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"writing to `{folder}` failed: {error.strerror or error}",
            "free space, check permissions, then run the same part again",
        ) from error


Tell = Callable[[int, int], None]


def _meter(callback: Callback | None, sizes: Sequence[int]) -> Callable[[int], Tell | None]:
    """Progress of one part over several passes of the engine, each weighted by the bytes that it writes."""
    begin, total, before = time.monotonic(), sum(sizes), 0

    def of_pass(size: int) -> Tell | None:
        nonlocal before
        start, before = before, before + size
        given = callback
        if given is None:
            return None

        def tell(done: int, of: int) -> None:
            at = start + (size * done // of if of else 0)
            given(Progress("merge", at, total, time.monotonic() - begin))

        return tell

    return of_pass
