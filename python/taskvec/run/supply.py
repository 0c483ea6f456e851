"""The inputs of a run while it goes over its weight files: here as a whole, or brought range by range."""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from taskvec._core import ranges as engine_ranges
from taskvec.errors import OutputError
from taskvec.host import free_space
from taskvec.models.adapter import WEIGHTS, Adapter
from taskvec.plan.part import as_checkpoint, files_of
from taskvec.plan.plan import PlanRecord
from taskvec.plan.rows import encode
from taskvec.progress import Callback
from taskvec.resolve import storage
from taskvec.resolve.remote import materialised
from taskvec.resolve.stage import Ranges, Staged, bring, bytes_of, let_go, remote_of, stage
from taskvec.resolve.threads import THREADS
from taskvec.run.inputs import Source
from taskvec.run.locked import engine_paths
from taskvec.settings import Settings
from taskvec.text import size

Unit = tuple[int, ...]
# The share of what is free on the scratch folder's file system that is left so where no limit is given.
_SPARE = 0.1
# How many times the bytes of bfloat16 a piece of a vector has at most: its values are in float32, or in
# float64 where a model is wider than bfloat16. Few are: what a tensor needs is known when it has been read.
_WIDEST, _WIDEST_OF_WIDE = 2, 4
_WIDE = frozenset({"F32", "F64"})


class Brought(NamedTuple):
    """Where each source lies for one unit, and the folder that goes afterwards, if there is one."""

    paths: list[str]
    place: Path | None


def _without_memory(plan: PlanRecord, paths: Sequence[str]) -> tuple[bytes, list[str]]:
    """A plan without the tensors that are made of what lies in memory, of which nothing is fetched."""
    document, sources = plan.document, plan.document["sources"]
    held = {number for number, source in enumerate(sources) if source["kind"] == "memory"}
    if not held:
        return plan.json, list(paths)
    rows = [row for row in document["tensors"] if not any(source in held for source, _ in row[5])]
    # numbers stay what they are: no row that is left names the source that stands in for one in memory
    kept = [0 if number in held else number for number in range(len(sources))]
    reduced = {**document, "sources": [sources[number] for number in kept], "tensors": rows}
    return encode(reduced), [paths[number] for number in kept]


class Supply:
    """The inputs of a plan, for one weight file after another.

    Attributes
    ----------
    sources : sequence of Model, SavedVector or Adapter
        As the run takes them: headers and small files are here in any case.
    """

    def __init__(self, plan: PlanRecord, staged: Sequence[Staged], place: Path) -> None:
        self.plan, self.staged, self.place = plan, staged, place
        self.sources: list[Source] = [each.source for each in staged]
        self.paths = engine_paths(self.sources)
        self.is_staged = any(each.remote is not None for each in staged)
        self.files = files_of(plan)
        self._ranges = self._of_files() if self.is_staged else None
        self._count = itertools.count(1)
        self._requests = threading.BoundedSemaphore(THREADS)

    def _of_files(self) -> list[list[Ranges]]:
        """Of each weight file, or piece of a vector, the ranges of each source that is not here."""
        if self.plan.kind == "vector":
            every = engine_ranges(as_checkpoint(self.plan), self.paths)
        else:
            every = engine_ranges(*_without_memory(self.plan, self.paths))
        return [self._by_source(found) for found in every]

    def _by_source(self, found: Mapping[str, Sequence[tuple[int, int]]]) -> list[Ranges]:
        """Ranges by paths as those of each source, by names in it."""
        folders = [os.path.realpath(each.folder) if each.remote is not None else None for each in self.staged]
        return [
            {
                os.path.relpath(path, folder): parts
                for path, parts in found.items()
                if folder is not None and os.path.realpath(path).startswith(folder + os.sep)
            }
            for folder in folders
        ]

    def of_unit(self, unit: Unit) -> list[Ranges]:
        """The ranges of each source that some weight files read together."""
        if self._ranges is None:
            return [{} for _ in self.staged]
        return [
            _joined([self._ranges[shard][number] for shard in unit]) for number in range(len(self.staged))
        ]

    def bytes_in(self, unit: Unit) -> int:
        """Bytes that are fetched for a unit."""
        return bytes_of(self.of_unit(unit))

    def bytes_out(self, unit: Unit) -> int:
        """Bytes of a unit's files, all outputs together; of pieces of a vector the most that they have."""
        size = sum(self.files[number].bytes for number in unit)
        if self.plan.kind != "vector":
            return size * len(self.plan.outputs)
        types = {info.dtype for each in self.staged for info in each.source.tensors.values()}
        return size * (_WIDEST_OF_WIDE if types & _WIDE else _WIDEST)

    def bring(self, unit: Unit, take: Callable[[int], None], told: Callable[[int], None]) -> Brought:
        """Fetch what a unit reads; see :func:`taskvec.resolve.stage.bring`."""
        if self._ranges is None:
            return Brought(self.paths, None)
        place = self.place / "inputs" / str(next(self._count))
        place.mkdir(parents=True)
        folders = bring(self.staged, self.of_unit(unit), place, take, told, self._requests)
        paths = [
            path if each.remote is None else str(_lying(each, folder, path))
            for each, folder, path in zip(self.staged, folders, self.paths, strict=True)
        ]
        return Brought(paths, place)

    def states(self, inputs: bytes) -> bytes:
        """The states of the inputs as the engine has noted them; of what is staged its identity instead."""
        if not self.is_staged:
            return inputs
        rows = [row for row in json.loads(inputs) if not Path(row["path"]).is_relative_to(self.place)]
        for source in (each for each in self.plan.checkpoints if remote_of(each) is not None):
            rows += [
                {"path": f"{source.spec}/{name}", "size": size, "sample": source.revision, "modified": 0}
                for name, size in source.file_sizes.items()
            ]
        return json.dumps(rows).encode()

    def let_go(self, brought: Brought) -> None:
        """Remove what was fetched for a unit."""
        if brought.place is not None:
            let_go(brought.place)


def _lying(staged: Staged, folder: Path, path: str) -> Path:
    """The folder, or in it the file, that stands for a path in the folder of headers."""
    if isinstance(staged.source, Adapter):
        return folder / WEIGHTS
    return folder / Path(path).relative_to(staged.folder)


def _joined(parts: Sequence[Ranges]) -> Ranges:
    """Ranges of several weight files, apart from each other again."""
    if len(parts) == 1:
        return parts[0]
    together: dict[str, list[tuple[int, int]]] = {}
    for name in {name for each in parts for name in each}:
        found = sorted(part for each in parts for part in each.get(name, ()))
        joined: list[tuple[int, int]] = []
        for start, stop in found:
            if joined and start <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(stop, joined[-1][1])
            else:
                joined.append((start, stop))
        together[name] = joined
    return together


def is_to_be_staged(plan: PlanRecord, settings: Settings, *, goes_away: bool) -> bool:
    """Whether inputs are brought range by range: asked for, or the output is at an address, or no room."""
    if plan.kind == "adapter" or not any(remote_of(each) for each in plan.checkpoints):
        return False
    if settings.stream or goes_away:
        return True
    folder = storage.current().folder
    free = free_space(folder)
    return free is not None and free < plan.download


def supply_of(
    plan: PlanRecord, settings: Settings, place: Path, progress: Callback | None, *, goes_away: bool
) -> Supply:
    """The inputs of a plan: fetched as a whole, or their headers laid out below `place`."""
    if is_to_be_staged(plan, settings, goes_away=goes_away):
        staged = [stage(source, place / "headers" / str(n)) for n, source in enumerate(plan.checkpoints)]
    else:
        here = [materialised(source, progress) for source in plan.checkpoints]
        staged = [Staged(source, source.location, None) for source in here]
    return Supply(plan, staged, place)


def scratch_limit(supply: Supply, units: Sequence[Unit], settings: Settings) -> int:
    """Bytes that fetched ranges and finished files may take together.

    Raises
    ------
    OutputError
        One weight file needs more; the message has the number.
    """
    need = max((supply.bytes_in(unit) + supply.bytes_out(unit) for unit in units), default=0)
    given = settings.scratch_size
    free = free_space(supply.place)
    limit = given if given is not None else sys.maxsize if free is None else int(free * (1 - _SPARE))
    if need > limit:
        what = "`--scratch-size` allows" if given is not None else f"`{supply.place.parent}` has"
        raise OutputError(
            f"one weight file needs {size(need)} of scratch ({need:,} bytes), and {what} {size(limit)}",
            f"give `--scratch-size {need}` or more, a larger disk by --scratch, or smaller weight files by "
            "--max-shard-size",
        )
    return limit
