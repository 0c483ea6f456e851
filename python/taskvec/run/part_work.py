"""The files of one part of a run: computed in a folder of its process, put in place with a record each."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from taskvec._core import extract as engine_extract
from taskvec._core import run as engine_run
from taskvec.errors import OutputError
from taskvec.files.json import read_bytes
from taskvec.files.names import INPUTS, JOURNAL, STATE
from taskvec.files.place import sync_folders
from taskvec.models.state_dict import buffers_of
from taskvec.plan.part import of_piece, of_shards
from taskvec.plan.plan import PlanRecord
from taskvec.progress import Callback, Progress, heard
from taskvec.run import pipeline, shared_state
from taskvec.run.inputs import Inputs
from taskvec.run.shared_state import Records
from taskvec.run.supply import Brought, Supply, scratch_limit
from taskvec.settings import Settings

Unit = tuple[int, ...]
# Output that is computed before its files are put in place: what a kill can cost.
_AT_ONCE = 512 << 20
# The only file of a vector that is not divided.
_VECTOR = "vector.safetensors"


class Work(ABC):
    """A part at work.

    Attributes
    ----------
    written : int
        Bytes of the files that it has put in place.
    """

    def __init__(
        self,
        plan: PlanRecord,
        out: Path,
        inputs: Inputs,
        supply: Supply,
        records: Records,
        settings: Settings,
        progress: Callback | None,
        missing: Sequence[Unit],
    ) -> None:
        self.plan, self.out = plan, out
        self.inputs, self.records, self.settings = inputs, records, settings
        self.notice, self.supply, self.missing = heard(progress), supply, missing
        self.tell = _meter(progress, [self._bytes(unit) for unit in missing])
        self.written = 0

    @abstractmethod
    def write(self, batch: Sequence[Unit], paths: Sequence[str]) -> int:
        """Compute some units and put them in place; the bytes that were read."""

    def write_all(self) -> int:
        """Compute all units and put them in place; the bytes that were read."""
        if not self.supply.is_staged:
            return sum(self.write(batch, self.supply.paths) for batch in self._batches())
        supply, read = self.supply, []
        room = pipeline.Room(scratch_limit(supply, self.missing, self.settings))
        stopped = threading.Event()

        def told(_: int) -> None:
            if stopped.is_set():
                raise InterruptedError("the run is stopped")

        steps = pipeline.Steps[Unit, Brought, None](
            fetch=lambda unit, take: supply.bring(unit, take, told),
            compute=lambda unit, brought: read.append(self.write([unit], brought.paths)),
            release=supply.let_go,
            send=lambda _unit, _made: None,  # what is written stays
            stop=stopped.set,
        )
        pipeline.run(self.missing, steps, room, lambda unit: (supply.bytes_in(unit), 0))
        return sum(read)

    def _batches(self) -> Iterator[list[Unit]]:
        batch: list[Unit] = []
        filled = 0
        for unit in self.missing:
            batch.append(unit)
            filled += self._bytes(unit) * len(self.plan.outputs)
            if filled >= _AT_ONCE:
                yield batch
                batch, filled = [], 0
        if batch:
            yield batch

    def _put(self, made: Sequence[Path], names: Sequence[str], lines: dict[str, list[str]]) -> None:
        """Put files of these names in place, one of each from every folder, and note them."""
        seen = self.records.see(self.supply.states(read_bytes(made[0] / STATE / INPUTS)))
        for folder, source in zip(self.records.folders, made, strict=True):
            with _writing(folder):
                if self.plan.kind == "checkpoint":
                    folder.mkdir(parents=True, exist_ok=True)
                for name in names:
                    if "/" in name:
                        (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(source / name, folder / name)
            sync_folders(folder, list(names))
        for name in names:
            self.records.write(name, lines[name], seen)
            self.written += sum(json.loads(line)["size"] for line in lines[name])

    def _bytes(self, unit: Unit) -> int:
        return sum(self.records.files[number].bytes for number in unit)


class Shards(Work):
    """Weight files of a checkpoint."""

    def write(self, batch: Sequence[Unit], paths: Sequence[str]) -> int:
        """See :meth:`Work.write`; the engine computes them in one pass."""
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
                    memories=buffers_of(self.plan.checkpoints),
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
            journal = read_bytes(folder / STATE / JOURNAL).decode().splitlines()[1:]
            for line in journal:
                lines[json.loads(line)["shard"]].append(line)
        self._put(made, names, lines)


class Pieces(Work):
    """Pieces of a vector; the record of each has what is stored of its tensors."""

    def write(self, batch: Sequence[Unit], paths: Sequence[str]) -> int:
        """See :meth:`Work.write`; the engine extracts one after the other."""
        return sum(self._write(number, paths) for unit in batch for number in unit)

    def _write(self, number: int, paths: Sequence[str]) -> int:
        piece, place = self.records.files[number], shared_state.place(self.out)
        try:
            report = json.loads(
                engine_extract(
                    of_piece(self.plan, number),
                    place,
                    threads=self.settings.threads or 0,
                    progress=self.tell(piece.bytes),
                    allow_non_finite="non-finite" in self.settings.force,
                    notice=self.notice,
                    paths=paths,
                )
            )
            self.inputs.hold()
            (made,) = report["shards"]
            line = {"shard": piece.name, "size": made["size"], "digest": made["digest"]}
            line["extra"] = report["tensors"]
            with _writing(place):
                os.replace(place / _VECTOR, place / piece.name)
            self._put([place], [piece.name], {piece.name: [json.dumps(line)]})
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return int(report["bytes_read"])


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise shared_state.not_written(folder, error) from error


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
