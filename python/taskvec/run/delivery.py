"""A run whose output goes to an address, at work: units computed and sent, and the end of it all."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskvec._core import assemble_output, blake3_hex
from taskvec._core import run as engine_run
from taskvec.errors import Error, FormatError, RecipeError
from taskvec.files.json import read_bytes
from taskvec.files.names import INPUTS, JOURNAL, STATE
from taskvec.models.model import Model
from taskvec.models.state_dict import buffers_of
from taskvec.plan.document import to_file
from taskvec.plan.part import Part, files_of, identity, of_shards, units
from taskvec.plan.plan import PlanRecord
from taskvec.progress import Callback, heard
from taskvec.report.manifest import with_id
from taskvec.report.report import Report
from taskvec.resolve.store.written import PIECES
from taskvec.run import pipeline
from taskvec.run.execute import execute
from taskvec.run.inputs import InputRow, Inputs
from taskvec.run.locked import paths_of
from taskvec.run.moved import Meter
from taskvec.run.publish import Publisher
from taskvec.run.shadow import Shadow, named
from taskvec.run.sink import Head, Sent, Sink
from taskvec.run.supply import Brought, Supply, scratch_limit
from taskvec.settings import Settings

Unit = tuple[int, ...]
ALL = Part(0, 1)


class Delivery:
    """A run to an address at work.

    Attributes
    ----------
    files : sequence of Shard
        What is sent: the weight files, or the pieces of a vector.
    written : int
        Bytes of them that this process has computed.
    """

    def __init__(
        self,
        plan: PlanRecord,
        sink: Sink,
        supply: Supply,
        place: Path,
        settings: Settings,
        progress: Callback | None,
    ) -> None:
        self.plan, self.sink, self.supply, self.place = plan, sink, supply, place
        self.settings, self.progress = settings, progress
        self.identity = identity(plan)
        self.files, self.names = files_of(plan), names_of(plan)
        self.inputs = Inputs(supply.sources)
        self.marks: set[str] = set()
        self.written = 0
        self.tell = Meter(progress, supply, ())

    def begin(self, part: Part) -> Mapping[str, Sent]:
        """Take the address; the weight files that are there."""
        self._foresee()
        scratch_limit(self.supply, units(self.plan), self.settings)
        folders = tuple(output.folder for output in self.plan.outputs)
        head = Head(self.identity, part.total, saved(self.plan), folders)
        is_whole = part == ALL
        overwrite = self.settings.overwrite and is_whole
        done = self.sink.begin(head, overwrite=overwrite, resume=self.settings.resume or not is_whole)
        if self.settings.rehash:
            folder = self.place / "reread"
            done = {name: sent for name, sent in done.items() if self.sink.reread(sent, folder)}
        self.marks |= self._marks_of(done)
        return done

    def _foresee(self) -> None:
        """Return if the files besides the weights can be made."""
        base = self.supply.sources[0]
        assert isinstance(base, Model)
        Publisher(self.plan, base, self.settings, self.inputs, None).foresee()

    def _marks_of(self, done: Mapping[str, Sent]) -> set[str]:
        """The states of the inputs that the files were computed from which are there."""
        names = {name for own in self.names for name in own}
        return {one.inputs for name, one in done.items() if name in names}

    def has(self, unit: Unit, done: Mapping[str, Sent]) -> bool:
        """Whether all files of a unit are there."""
        return all(name in done for number in unit for name in self.names[number])

    def count(self) -> int:
        """How many weight files are there, in every output."""
        done = self.sink.sent()
        return sum(self.has((number,), done) for number in range(len(self.files)))

    def write(self, missing: Sequence[Unit]) -> int:
        """Compute units and send them; the bytes that were read."""
        supply = self.supply
        self.tell = Meter(self.progress, supply, missing)
        read: list[int] = []

        def compute(unit: Unit, brought: Brought) -> list[Sent]:
            made, count = self._compute(unit, brought)
            read.append(count)
            self.written += self._bytes(unit, made)
            return made

        steps = pipeline.Steps[Unit, Brought, list[Sent]](
            fetch=lambda unit, take: supply.bring(unit, take, self.tell.fetched),
            compute=compute,
            release=supply.let_go,
            send=self._send,
            stop=self._stop,
        )
        room = pipeline.Room(scratch_limit(supply, missing, self.settings))
        pipeline.run(missing, steps, room, lambda unit: (supply.bytes_in(unit), supply.bytes_out(unit)))
        return sum(read)

    def _bytes(self, unit: Unit, made: Sequence[Sent]) -> int:  # noqa: ARG002
        """Of the tensors of a unit, in every output."""
        return sum(self.files[number].bytes for number in unit) * len(self.plan.outputs)

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
                memories=buffers_of(self.plan.checkpoints),
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
        """End the run if no weight file is missing; of several processes that do so at once one does it."""
        done = self.sink.sent()
        if not all(self.has((number,), done) for number in range(len(self.files))):
            return None
        hold_one_state(self._marks_of(done), self.sink.address)
        try:
            return self._ended(shadow, done)
        except Error:
            # another part has ended it: that is as good
            finished = None if is_whole else shadow.finished(self.plan, rows, self.settings)
            if finished is None:
                raise
            return finished

    def _ended(self, shadow: Shadow, done: Mapping[str, Sent]) -> Report:
        report, manifests = self._assembled(shadow, done)
        self.sink.finish(shadow.others({shard.name for shard in self.plan.shards}), manifests)
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


def names_of(plan: PlanRecord) -> list[list[str]]:
    """The names at an address of each file that parts write: in every output, or as a piece of a vector."""
    if plan.kind == "vector":
        return [[f"{PIECES}/{piece.name}"] for piece in files_of(plan)]
    return [[named(output.folder, shard.name) for output in plan.outputs] for shard in plan.shards]


def mark_of(plan: PlanRecord, supply: Supply, rows: Sequence[Mapping[str, Any]]) -> str:
    """Digest of the states of the inputs: identities of addresses, samples of files, wherever these lie."""
    states: list[Any] = []
    named = list(zip(plan.checkpoints, supply.paths, strict=True))
    # what is fetched may lie below the folder of a local input
    fetched = [Path(path).resolve() for checkpoint, path in named if checkpoint.repository is not None]
    rows = [row for row in rows if not any(Path(row["path"]).is_relative_to(place) for place in fetched)]
    for checkpoint, path in named:
        if checkpoint.repository is not None:
            states.append([checkpoint.repository, checkpoint.revision])
            continue
        # a source in memory has an empty path, which as a folder would be the current one
        own = [row for row in rows if path and Path(row["path"]).is_relative_to(Path(path).resolve())]
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


def saved(plan: PlanRecord) -> bytes:
    """The plan as a file; nothing where it cannot be run elsewhere."""
    try:
        return to_file(plan)
    except RecipeError:
        return b""
