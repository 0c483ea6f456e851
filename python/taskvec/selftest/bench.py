"""Merge throughput on this machine, next to the machine's own floor and memcpy.

The floor reads every input byte and writes one output of the same size, on the same threads, with no
arithmetic: what no merge that starts from files can beat. Runs of both are interleaved, because a machine's
speed drifts; the first round is discarded, because fresh memory is slower than memory that has been used.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from taskvec import host
from taskvec._core import write_atomic
from taskvec.arguments import number
from taskvec.arguments import threads as hold_threads
from taskvec.errors import NotFoundError, OutputError, RecipeError
from taskvec.files import look
from taskvec.report.tables import Tabled
from taskvec.selftest.scratch import HEADROOM, workspace
from taskvec.shown import said

if TYPE_CHECKING:
    from taskvec.models.model import Model

    ModelLike = str | os.PathLike[str] | Model

Size = Literal["0.1b", "0.5b", "1.5b"]

RECORD_SCHEMA = 1
ALPHA = 0.8  # neither 0 nor 1, whose arithmetic could be skipped
MEMCPY_BYTES = 256_000_000  # and as much to copy to: over the caches


@dataclass(frozen=True, slots=True)
class Measure:
    """Repeated runs of one job: seconds of each, and the bytes that one run moves."""

    runs: tuple[float, ...]
    bytes_moved: int

    @property
    def seconds(self) -> float:
        """The median run."""
        return statistics.median(self.runs)

    @property
    def bytes_per_second(self) -> float:
        """Bytes read and written over the median run."""
        return self.bytes_moved / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "seconds": self.seconds,
            "runs": list(self.runs),
            "bytes_moved": self.bytes_moved,
            "gigabytes_per_second": self.bytes_per_second / 1e9,
        }


@dataclass(frozen=True, slots=True, repr=False)
class BenchResult(Tabled):
    """The outcome of a benchmark.

    Attributes
    ----------
    machine : dict
        Processor, cores, memory, file system, versions.
    workload : dict
        What was merged: size, parameters, bytes read and written, alpha.
    transfer : Measure
        ``transfer`` as a library call: open, check, plan, merge, survival, digests, manifest.
    engine : Measure
        The part of it that the engine took.
    floor : Measure
        Reading the same files and writing one of them, with no arithmetic.
    memcpy : float
        Bytes copied from memory to memory per second on the same threads, each counted once (median).
    date : str
        When, in UTC.
    """

    machine: dict[str, Any]
    workload: dict[str, Any]
    transfer: Measure
    engine: Measure
    floor: Measure
    memcpy: float
    date: str

    @property
    def ratio(self) -> float:
        """Time of the transfer over the time in which the floor moves as many bytes."""
        return self.floor.bytes_per_second / self.transfer.bytes_per_second

    def _facts(self) -> dict[str, str]:
        return {
            "transfer": f"{self.transfer.bytes_per_second / 1e9:.2f} GB/s",
            "floor": f"{self.floor.bytes_per_second / 1e9:.2f} GB/s",
            "time over the floor's": f"{self.ratio:.2f}",
            "memcpy": f"{self.memcpy / 1e9:.2f} GB/s",
            "processor": str(self.machine["cpu"]),
        }

    def _tables(self) -> Mapping[str, Any]:
        def runs() -> list[dict[str, Any]]:
            measures = {"transfer": self.transfer, "engine": self.engine, "floor": self.floor}
            return [
                {"job": job, "run": number, "seconds": seconds, "bytes": measure.bytes_moved}
                for job, measure in measures.items()
                for number, seconds in enumerate(measure.runs)
            ]

        return {"runs": runs}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as ``--json`` prints it and ``--record`` writes it."""
        return {
            "date": self.date,
            "machine": self.machine,
            "workload": self.workload,
            "transfer": self.transfer.to_dict(),
            "engine": self.engine.to_dict(),
            "floor": self.floor.to_dict(),
            "memcpy_gigabytes_per_second": self.memcpy / 1e9,
            "transfer_over_floor": self.ratio,
        }

    def record(self, folder: str | os.PathLike[str]) -> Path:
        """Write the result to ``folder/<processor>/<date>.json``; an earlier record is never replaced."""
        name = re.sub(r"[^a-z0-9]+", "-", str(self.machine["cpu"]).lower()).strip("-")
        home = Path(folder) / name
        try:
            home.mkdir(parents=True, exist_ok=True)
            for number in range(1, 1000):
                path = home / (f"{self.date[:10]}.json" if number == 1 else f"{self.date[:10]}-{number}.json")
                if not look.exists(path, follow_links=False):
                    text = json.dumps({"schema": RECORD_SCHEMA, **self.to_dict()}, indent=2)
                    write_atomic(path, text.encode() + b"\n")
                    return path
        except OSError as error:
            words = f"the record cannot be written to `{home}`: {error.strerror or error}"
            raise OutputError(words, look.way_out(error)) from error
        raise OutputError(f"`{home}` holds 999 records of {self.date[:10]}", "name another folder")


def bench(
    target: ModelLike | None = None,
    *,
    donor: ModelLike | None = None,
    reference: ModelLike | None = None,
    size: Size = "0.5b",
    directory: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    runs: int = 5,
    progress: Callable[[str], object] | bool | None = None,
) -> BenchResult:
    """Measure a transfer next to the floor of the same machine.

    Parameters
    ----------
    target, donor, reference : str, path or Checkpoint, optional
        Local checkpoints to measure with: all three, or none to have them made.
    size : {"0.1b", "0.5b", "1.5b"}
        Parameters of the checkpoints that are made.
    directory : str or path, optional
        Where checkpoints and outputs go; memory (``/dev/shm``) if it has room, else the temporary folder.
        What was made is removed.
    threads : int, optional
        Worker threads of the transfer, the floor and memcpy; all cores by default.
    runs : int
        Measured rounds, after one that is discarded.
    progress : callable or bool, optional
        Called with a line of text at each step; ``True`` writes them to the standard error.

    Raises
    ------
    RecipeError
        One or two models are given, or `runs` is below one.
    OutputError
        There is not enough room.
    """
    given = [model for model in (target, donor, reference) if model is not None]
    if len(given) not in (0, 3):
        raise RecipeError(
            f"{len(given)} of the three checkpoints {'is' if len(given) == 1 else 'are'} given",
            "name target, donor and reference, or none of them to have checkpoints made",
        )
    threads = hold_threads(threads)
    if number(runs, "runs", least=1) is None:
        raise RecipeError("`runs` is a whole number, found nothing", "leave it out: it is 5")
    say = said(progress)
    with workspace(directory, _room(given, size)) as folder:
        if not given:
            given = _make(folder, size, say)
        return _measure(folder, given, "given" if target is not None else size, threads, runs, say)


def _open(models: list[Any]) -> list[Model]:
    from taskvec.resolve.open import open as open_model

    opened = [open_model(model) for model in models]
    for checkpoint in opened:
        if checkpoint.path is None:
            raise NotFoundError(
                f"`{checkpoint.spec}` is not on this machine", "download it first, or name a folder"
            )
    return opened


def _room(given: list[Any], size: Size) -> int:
    """Bytes that checkpoints and one output take."""
    if given:
        return _open(given)[0].total_bytes + HEADROOM
    from taskvec.selftest.synthetic import SHAPES

    if size not in SHAPES:
        raise RecipeError(f"no checkpoints of size `{size}` can be made", "choose 0.1b, 0.5b or 1.5b")
    return 4 * SHAPES[size].total_bytes + HEADROOM


def _make(folder: Path, size: Size, say: Callable[[str], object]) -> list[Any]:
    from taskvec.selftest.synthetic import SHAPES, write_checkpoint

    shape = SHAPES[size]
    members: list[Any] = []
    for member in ("instruct", "grpo", "sft"):
        say(f"making {member}: {shape.parameters / 1e6:.0f} M parameters")
        write_checkpoint(folder / member, shape, member)
        members.append(folder / member)
    return members


def _triples(opened: list[Model]) -> list[list[str | os.PathLike[str]]]:
    """Weight files of target, donor and reference to read side by side, the largest first.

    Where the three are sharded alike, these are all files; else as much of them as runs side by side.
    """
    columns = []
    for checkpoint in opened:
        by_size = sorted(checkpoint.file_sizes.items(), key=lambda item: -item[1])
        columns.append([str((checkpoint.path or Path()) / name) for name, _ in by_size])
    return [list(files) for files in zip(*columns, strict=False)]


def _shortest(files: list[str | os.PathLike[str]]) -> int:
    return min(os.path.getsize(file) for file in files)


def _measure(
    folder: Path, models: list[Any], size: str, threads: int | None, runs: int, say: Callable[[str], object]
) -> BenchResult:
    from taskvec._core import __version__, memcpy_rate
    from taskvec._core import floor as engine_floor
    from taskvec.api import transfer

    opened = _open(models)
    paths = [checkpoint.path for checkpoint in opened if checkpoint.path is not None]
    target, donor, reference = paths
    triples = _triples(opened)
    workers = threads or host.cores()
    transfers, engines, floors, copies = [], [], [], []
    bytes_read = bytes_written = 0
    level = ""
    for round_number in range(runs + 1):
        say(f"round {round_number} of {runs}" if round_number else "warming up")
        floor = 0.0
        for files in triples:
            floor += engine_floor(files, str(folder / "floor"), threads=workers)
            (folder / "floor").unlink()
        begun = time.perf_counter()
        # the inputs are digested once, by the first run over them
        report = transfer(
            target, donor, reference, folder / "out", alpha=ALPHA, threads=workers, input_digests=False
        )
        seconds = time.perf_counter() - begun
        shutil.rmtree(folder / "out")
        copy = memcpy_rate(MEMCPY_BYTES, threads=workers)
        bytes_read, bytes_written, level = report.bytes_read, report.bytes_written, report.cpu_level
        if round_number:
            transfers.append(seconds)
            engines.append(report.seconds)
            floors.append(floor)
            copies.append(copy)
    moved = bytes_read + bytes_written
    return BenchResult(
        machine={
            "cpu": host.cpu_name(),
            "cores": host.cores(),
            "threads": workers,
            "cpu_level": level,
            "memory_bytes": host.memory_total(),
            "file_system": host.file_system(folder),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
            "taskvec": __version__,
        },
        workload={
            "size": size,
            "parameters": opened[0].total_parameters,
            "tensors": len(opened[0].tensors),
            "alpha": ALPHA,
            "bytes_read": bytes_read,
            "bytes_written": bytes_written,
        },
        transfer=Measure(tuple(transfers), moved),
        engine=Measure(tuple(engines), moved),
        floor=Measure(tuple(floors), sum(4 * _shortest(files) for files in triples)),
        memcpy=statistics.median(copies),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
