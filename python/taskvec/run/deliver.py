"""A plan whose outputs go to an address: one weight file after the other is computed here and sent off.

While one is computed, what the next one reads is fetched and the last one is sent; of the models and of the
output no more lies here than the scratch folder is to hold. When all weight files are there, the rest of the
output is made as that of a local run, in a folder where files of the right sizes stand for the weights: the
same report, card and index.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taskvec._core import assemble_output, blake3_hex
from taskvec._core import run as engine_run
from taskvec.errors import Error, FormatError, RecipeError
from taskvec.files.json import read_bytes
from taskvec.files.names import INPUTS, JOURNAL, STATE
from taskvec.models.model import Model
from taskvec.plan.document import to_file
from taskvec.plan.part import Part, dealt, identity, of_shards, units
from taskvec.plan.plan import PlanRecord, Request
from taskvec.progress import Callback, Progress, heard
from taskvec.report.manifest import with_id
from taskvec.report.report import Report
from taskvec.resolve.threads import each
from taskvec.run import pipeline
from taskvec.run.execute import execute, looked_through
from taskvec.run.finish import incomplete
from taskvec.run.finished import finished_report, manifests_of_request
from taskvec.run.inputs import InputRow, Inputs, input_rows
from taskvec.run.locked import paths_of
from taskvec.run.parts import PartReport
from taskvec.run.publish import Publisher
from taskvec.run.scratch import kept_folder, scratch
from taskvec.run.shadow import Shadow, named
from taskvec.run.sink import Head, Sent, Sink
from taskvec.run.sinks import open_sink
from taskvec.run.supply import Brought, Supply, scratch_limit, supply_of
from taskvec.settings import Settings, format_alpha

Unit = tuple[int, ...]
ALL = Part(0, 1)


def deliver(
    plan: PlanRecord,
    address: str,
    *,
    part: Part = ALL,
    chosen: Sequence[Unit] | None = None,
    settings: Settings | None = None,
    progress: Callback | None = None,
    is_last: bool = True,
) -> PartReport:
    """Write the weight files of a plan, or of one part of it, to an address, and end the run there.

    Parameters
    ----------
    plan : PlanRecord
        Of a checkpoint whose sources lie in files.
    address : str
        New, empty, or with what other parts or an unfinished run of this plan have left.
    part : Part
        Which part; all of it by default.
    chosen : sequence of tuple of int, optional
        The weight files, where they are not those that the plan deals to this part.
    settings : Settings, optional
    progress : callable, optional
        Called with a :class:`taskvec.Progress`; the bytes are those fetched, computed and sent.
    is_last : bool
        Whether to end the run where no weight file is missing.

    Raises
    ------
    OutputError
        The address holds something else, another run has ended there first, or the scratch folder is too
        small.
    HubError
        An address refuses, or cannot be reached.
    FormatError, NonFiniteError, CompatibilityError
        As :func:`taskvec.run.execute.execute`.
    KeyboardInterrupt
        Stopped, and uploads given up; the same call goes on where it was.
    """
    settings, begin = settings or Settings(), time.monotonic()
    sink = open_sink(address)
    assert sink is not None
    with scratch() as place, _closing(sink):
        shadow = Shadow([output.folder for output in plan.outputs], sink, place / "out")
        rows = input_rows(plan.checkpoints) if plan.request is None else plan.request.inputs
        finished = shadow.finished(plan, rows, settings)
        if finished is not None:
            return PartReport(part, (), 0, len(plan.shards), len(plan.shards), 0, 0, 0.0, finished)
        supply = supply_of(plan, settings, place, progress, goes_away=True)
        plan = looked_through(plan, supply.sources, settings)
        job = _Delivery(plan, sink, supply, place, settings, progress)
        done = job.begin(part)
        mine = dealt(plan, part.total)[part.number] if chosen is None else list(chosen)
        missing = [unit for unit in mine if not job.has(unit, done)]
        read = job.write(missing)
        report = job.end(shadow, rows, is_whole=part == ALL) if is_last else None
        count = len(plan.shards) if report is not None else job.count()
        shards = tuple(plan.shards[number] for unit in missing for number in unit)
        written = sum(shard.bytes for shard in shards) * len(plan.outputs)
        kept = sum(map(len, mine)) - len(shards)
        if report is not None:
            kept_files = (len(plan.shards) - len(shards)) * len(plan.outputs)
            report = replace(report, seconds=time.monotonic() - begin, bytes_read=read, bytes_written=written,
                             resumed_shards=kept_files)  # fmt: skip
        return PartReport(part, shards, kept, count, len(plan.shards), read, written,
                          time.monotonic() - begin, report)  # fmt: skip


def finished_request(
    address: str, alphas: Sequence[float] | None, asked: Request, settings: Settings
) -> Report | None:
    """The report of a recipe of several documents that has been finished at an address; ``None`` otherwise.

    Parameters
    ----------
    address : str
    alphas : sequence of float, optional
        Where the output has a folder for each.
    asked : Request
        The recipe, and the states of its inputs.
    settings : Settings
    """
    if asked.inputs is None:
        return None
    outputs = [""] if alphas is None else [f"alpha={format_alpha(alpha)}" for alpha in alphas]
    sink, rows = open_sink(address), asked.inputs
    assert sink is not None
    with scratch() as place, _closing(sink):
        shadow = Shadow(outputs, sink, place / "out")

        def look() -> Report | None:
            manifests = manifests_of_request(asked.digest, shadow.folders)
            if not manifests:
                return None
            factors = [data["recipe"].get("alpha") for data in manifests]
            return finished_report(shadow.folders, manifests, rows, replace(settings, rehash=False), factors)

        return shadow.looked_at(settings, look)


def sent_at(plan: PlanRecord, address: str) -> Mapping[str, Sent]:
    """The weight files that an unfinished run of a plan has at an address, by name."""
    sink = open_sink(address)
    assert sink is not None
    return sink.begin(Head(identity(plan), 2, _saved(plan), tuple(output.folder for output in plan.outputs)))


def finish_at(
    plan: PlanRecord, address: str, parts: int, settings: Settings, progress: Callback | None = None
) -> Report:
    """End a run in parts at an address.

    Raises
    ------
    OutputError
        Weight files are missing; the message says which, and which parts write them.
    taskvec.Error
        As :func:`deliver`.
    """
    part = Part(0, max(parts, 2))
    done = deliver(plan, address, part=part, chosen=(), settings=settings, progress=progress)
    if done.report is not None:
        return done.report
    there = sent_at(plan, address)
    missing = [
        number
        for number, shard in enumerate(plan.shards)
        if not all(named(output.folder, shard.name) in there for output in plan.outputs)
    ]
    raise incomplete(plan, address, missing, parts)


def deliver_whole(
    plan: PlanRecord,
    address: str,
    *,
    settings: Settings | None = None,
    progress: Callback | None = None,
) -> Report:
    """Run a plan in the scratch folder, and send what it has written to an address.

    So it is with a vector, the sizes of whose files follow from all of them, and with tensors in memory. The
    scratch folder holds the whole output for a while; the same call goes on with it.

    Raises
    ------
    taskvec.Error
        As :func:`deliver`.
    """
    settings, begin = settings or Settings(), time.monotonic()
    sink = open_sink(address)
    assert sink is not None
    outputs = tuple(output.folder for output in plan.outputs)
    with scratch() as place, _closing(sink):
        shadow = Shadow(outputs, sink, place / "out")
        rows = input_rows(plan.checkpoints) if plan.request is None else plan.request.inputs
        finished = shadow.finished(plan, rows, settings)
        if finished is not None:
            return finished
        head = Head(identity(plan), 1, b"", outputs)
        sent = sink.begin(head, overwrite=settings.overwrite, resume=settings.resume)
        made = Shadow(outputs, sink, kept_folder(address, head.identity))
        made.place.parent.mkdir(parents=True, exist_ok=True)
        with made.told():
            report = execute(plan, made.place, settings=replace(settings, overwrite=True), progress=progress)
        _send_all(report, made, sink, sent, head.identity, progress)
        weights = {shard.name for output in report.outputs for shard in output.shards}
        run = secrets.token_hex(8)
        manifests = {name: with_id((made.place / name).read_bytes(), run) for name in made.manifests}
        sink.finish(made.others(weights), manifests)
        shutil.rmtree(made.place, ignore_errors=True)
        report = replace(report, seconds=time.monotonic() - begin, already_done=False)
        return made.as_sent(report)


def _send_all(
    report: Report,
    made: Shadow,
    sink: Sink,
    sent: Mapping[str, Sent],
    identifier: str,
    progress: Callback | None,
) -> None:
    """Send the weight files of outputs that lie here, those that are there left out."""
    files: list[Sent] = []
    for folder, output in zip(made.folders, report.outputs, strict=True):
        for shard in output.shards:
            name = (folder / shard.name).relative_to(made.place).as_posix()
            line = json.dumps({"shard": shard.name, "size": shard.size, "digest": shard.digest})
            files.append(Sent(name, shard.size, shard.digest, identifier, "", line))
    missing = [file for file in files if _digest_there(sent, file) != file.digest]
    begin, total, done = time.monotonic(), sum(file.size for file in missing), dict.fromkeys(files, 0)

    def send(file: Sent) -> None:
        def tell(count: int) -> None:
            done[file] = count
            if progress is not None:
                progress(Progress("merge", sum(done.values()), total, time.monotonic() - begin))

        sink.send(made.place / file.name, file, tell)

    for _ in each(send, missing, pipeline.SENDERS):
        pass


def _digest_there(sent: Mapping[str, Sent], file: Sent) -> str | None:
    """The digest of a file that is there."""
    return sent[file.name].digest if file.name in sent else None


@contextlib.contextmanager
def _closing(sink: Sink) -> Iterator[None]:
    try:
        yield
    except BaseException:
        sink.close(failed=True)
        raise
    sink.close()


@dataclass(slots=True)
class _Delivery:
    """A run to an address at work."""

    plan: PlanRecord
    sink: Sink
    supply: Supply
    place: Path
    settings: Settings
    progress: Callback | None
    identity: str = ""
    inputs: Any = None
    marks: set[str] = None  # type: ignore[assignment]
    count_made: int = 0
    tell: Any = None

    def begin(self, part: Part) -> Mapping[str, Sent]:
        """Take the address; the weight files that are there."""
        self.identity, self.marks = identity(self.plan), set()
        self.inputs = Inputs(self.supply.sources)
        base = self.supply.sources[0]
        assert isinstance(base, Model)
        Publisher(self.plan, base, self.settings, self.inputs, None).foresee()
        scratch_limit(self.supply, units(self.plan), self.settings)
        folders = tuple(output.folder for output in self.plan.outputs)
        head = Head(self.identity, part.total, _saved(self.plan), folders)
        is_whole = part == ALL
        overwrite = self.settings.overwrite and is_whole
        done = self.sink.begin(head, overwrite=overwrite, resume=self.settings.resume or not is_whole)
        if self.settings.rehash:
            folder = self.place / "reread"
            done = {name: sent for name, sent in done.items() if self.sink.reread(sent, folder)}
        self.marks |= {one.inputs for one in done.values()}
        return done

    def has(self, unit: Unit, done: Mapping[str, Sent]) -> bool:
        """Whether all files of a unit are there."""
        return all(name in done for number in unit for name in self._names(number))

    def _names(self, number: int) -> list[str]:
        return [named(output.folder, self.plan.shards[number].name) for output in self.plan.outputs]

    def count(self) -> int:
        """How many weight files are there, in every output."""
        done = self.sink.sent()
        return sum(self.has((number,), done) for number in range(len(self.plan.shards)))

    def write(self, missing: Sequence[Unit]) -> int:
        """Compute units and send them; the bytes that were read."""
        supply = self.supply
        self.tell = _Meter(self.progress, supply, missing)
        read: list[int] = []

        def compute(unit: Unit, brought: Brought) -> list[Sent]:
            made, count = self._compute(unit, brought)
            read.append(count)
            return made

        steps = pipeline.Steps[Unit, Brought, list[Sent]](
            fetch=lambda unit: supply.bring(unit, self.tell.fetched),
            compute=compute,
            release=supply.let_go,
            send=self._send,
            stop=lambda: self._stop(),
        )
        room = pipeline.Room(scratch_limit(supply, missing, self.settings))
        pipeline.run(missing, steps, room, lambda unit: (supply.bytes_in(unit), supply.bytes_out(unit)))
        return sum(read)

    def _stop(self) -> None:
        self.tell.is_stopped = True

    def _made_at(self, unit: Unit) -> Path:
        return self.place / "made" / "-".join(map(str, unit[:8]))

    def _compute(self, unit: Unit, brought: Brought) -> tuple[list[Sent], int]:
        place = self._made_at(unit)
        place.parent.mkdir(exist_ok=True)
        report = json.loads(
            engine_run(
                of_shards(self.plan, unit),
                place,
                threads=self.settings.threads or 0,
                max_memory=self.settings.max_memory,
                progress=self.tell.of_unit(unit),
                notice=heard(self.progress),
                allow_non_finite="non-finite" in self.settings.force,
                paths=brought.paths,
            )
        )
        self.inputs.hold()
        folders = [place / output.folder if output.folder else place for output in self.plan.outputs]
        mark = self._mark(json.loads((folders[0] / STATE / INPUTS).read_bytes()))
        sent = []
        for output, folder in zip(self.plan.outputs, folders, strict=True):
            for line in (folder / STATE / JOURNAL).read_text(encoding="utf-8").splitlines()[1:]:
                known = json.loads(line)
                name = named(output.folder, known["shard"])
                sent.append(Sent(name, known["size"], known["digest"], self.identity, mark, line))
        return sent, int(report["bytes_read"])

    def _mark(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Digest of the states of the inputs; raises where it was another before."""
        mark = mark_of(self.plan, self.supply, rows)
        self.marks.add(mark)
        hold_one_state(self.marks, self.sink.address)
        return mark

    def _send(self, unit: Unit, made: Sequence[Sent]) -> None:
        place = self._made_at(unit)
        try:
            for sent in made:
                self.sink.send(place / sent.name, sent, self.tell.of_file(sent.name))
                (place / sent.name).unlink()
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def end(self, shadow: Shadow, rows: Sequence[InputRow] | None, *, is_whole: bool) -> Report | None:
        """End the run if no weight file is missing; of several processes that do so at once one wins."""
        done = self.sink.sent()
        if not all(self.has((number,), done) for number in range(len(self.plan.shards))):
            return None
        hold_one_state({one.inputs for one in done.values()}, self.sink.address)
        report, manifests = self._assembled(shadow, done)
        try:
            self.sink.finish(shadow.others({shard.name for shard in self.plan.shards}), manifests)
        except Error:
            # another part has ended it: that is as good
            finished = None if is_whole else shadow.finished(self.plan, rows, self.settings)
            if finished is None:
                raise
            return finished
        return report

    def _assembled(self, shadow: Shadow, done: Mapping[str, Sent]) -> tuple[Report, dict[str, bytes]]:
        plan, sources = self.plan, self.supply.sources
        shutil.rmtree(shadow.place, ignore_errors=True)
        shadow.fill({name: sent.size for name, sent in done.items()})
        settings = replace(self.settings, overwrite=False, resume=True, rehash=False)
        with shadow.told():
            for output, folder in zip(plan.outputs, shadow.folders, strict=True):
                lines = [done[named(output.folder, shard.name)].line for shard in plan.shards]
                assemble_output(folder, paths_of(sources), plan.json, lines)
            mark = mark_of(plan, self.supply, json.loads(read_bytes(shadow.folders[0] / STATE / INPUTS)))
            hold_one_state({mark, *(one.inputs for one in done.values())}, self.sink.address)
            report = execute(
                plan, shadow.place, settings=settings, progress=self.progress, checkpoints=sources
            )
        run = secrets.token_hex(8)
        found = {name: with_id((shadow.place / name).read_bytes(), run) for name in shadow.manifests}
        return shadow.as_sent(report), found


def mark_of(plan: PlanRecord, supply: Supply, rows: Sequence[Mapping[str, Any]]) -> str:
    """Digest of the states of the inputs: identities of addresses, samples of files, wherever these lie."""
    states: list[Any] = []
    for checkpoint, path in zip(plan.checkpoints, supply.paths, strict=True):
        if checkpoint.repository is not None:
            states.append([checkpoint.repository, checkpoint.revision])
            continue
        own = [row for row in rows if Path(row["path"]).is_relative_to(Path(path).resolve())]
        states.append(sorted([Path(row["path"]).name, row["size"], str(row.get("sample"))] for row in own))
    return blake3_hex(json.dumps(states).encode())


def hold_one_state(marks: set[str], address: str) -> None:
    """Return if all weight files are of the same inputs.

    Raises
    ------
    FormatError
        They are not.
    """
    if len(marks) > 1:
        raise FormatError(
            f"an input changed since the run in `{address}` was begun",
            "begin again with --overwrite when nothing writes to the inputs",
        )


def _saved(plan: PlanRecord) -> bytes:
    """The plan as a file; nothing where it cannot be run elsewhere."""
    try:
        return to_file(plan)
    except RecipeError:
        return b""


class _Meter:
    """Progress over what is fetched, computed and sent."""

    def __init__(self, progress: Callback | None, supply: Supply, missing: Sequence[Unit]) -> None:
        self.progress, self.supply = progress, supply
        self.begin, self.is_stopped = time.monotonic(), False
        into, out = sum(map(supply.bytes_in, missing)), sum(map(supply.bytes_out, missing))
        self.total = into + 2 * out
        self._fetched = self._computed = 0
        self._sent: dict[str, int] = {}

    def fetched(self, count: int) -> None:
        """More bytes have come."""
        self._hold_on()
        self._fetched += count
        self._say()

    def of_unit(self, unit: Unit) -> Any:
        """The engine's callback while it computes a unit."""
        before, size = self._computed, self.supply.bytes_out(unit)

        def tell(done: int, total: int) -> None:
            self._computed = before + (size * done // total if total else 0)
            self._say()

        return tell

    def of_file(self, name: str) -> Any:
        """A sink's callback while it sends a file."""

        def tell(count: int) -> None:
            self._hold_on()
            self._sent[name] = count
            self._say()

        return tell

    def _hold_on(self) -> None:
        """Return while the run goes on; what is raised ends a request or an upload."""
        if self.is_stopped:
            raise InterruptedError("the run is stopped")

    def _say(self) -> None:
        if self.progress is not None:
            done = self._fetched + self._computed + sum(list(self._sent.values()))
            self.progress(Progress("merge", min(done, self.total), self.total, time.monotonic() - self.begin))
