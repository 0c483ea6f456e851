"""The files of an output that are not weights: copied, edited, indexed and put in place."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from taskvec._core import blake3_hex, digest_file, write_atomic
from taskvec.errors import OutputError
from taskvec.files import json_edit
from taskvec.files.folder import INDEX, SINGLE, index_of
from taskvec.files.manifest import File
from taskvec.files.names import CARD, CONFIG, MANIFEST, is_own
from taskvec.models.model import Model
from taskvec.plan.plan import PlanRecord
from taskvec.report import manifest
from taskvec.report.card import card
from taskvec.report.report import Output
from taskvec.settings import Settings

_FICLONE = 0x40049409  # <linux/fs.h>: share all extents of a file


def names(base: Model) -> list[str]:
    """The files of `base` that come along unchanged, as relative POSIX names.

    Its model card, its config.json and the files of an earlier run of taskvec are not among them.
    """
    return [name for name in base.other_files if name != CONFIG and not is_own(name)]


def copy(base: Model, name: str, out: Path) -> None:
    """Copy one file; its blocks are shared where the file system can."""
    place = out / name
    with _writing(place) as part:
        if base.path is None:
            part.write_bytes(base.read_file(name))
        elif not _reflink(base.path / name, part):
            shutil.copyfile(base.path / name, part)


def share(source: Path, place: Path) -> None:
    """Give the output at `place` the same file as another output: reflinked, hard-linked, or else copied."""
    with _writing(place) as part:
        if _reflink(source, part):
            return
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)


def edited_config(text: str, changes: Mapping[str, Any]) -> str:
    """The text of a config.json with some keys changed or added, and every other byte as it was.

    ``changes`` are keys and values as :class:`taskvec.Plan` has them, nested keys as ``text_config.dtype``.
    """
    for key, value in changes.items():
        text = json_edit.replace(text, tuple(key.split(".")), value)
    return text


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[Path]:
    """A file next to `place` that takes its name once it is on the disk, or goes if that fails."""
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        yield part
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, place)
        _sync_folder(place.parent)
    except OSError as error:
        raise OutputError(
            f"writing `{place}` failed: {error.strerror or error}",
            "free space, check permissions, then run the same command again",
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reflink(source: Path, place: Path) -> bool:
    try:
        import fcntl

        with open(source, "rb") as old, open(place, "xb") as new:
            fcntl.ioctl(new, _FICLONE, old.fileno())
    except (ImportError, OSError):
        place.unlink(missing_ok=True)
        return False
    return True


class Publisher:
    """Writes the other files of the outputs, which share what is the same in all where that can be."""

    def __init__(
        self,
        plan: PlanRecord,
        base: Model,
        settings: Settings,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.plan = plan
        self.base = base
        self.threads = settings.threads or 0
        self.progress = progress
        self.names = [name for name in names(base) if name not in plan.files]
        self.copied: dict[str, tuple[Path, File]] = {}
        self.done = 0

    def __call__(self, folder: Path, output: Output, run: dict[str, Any]) -> None:
        files = [File(*shard) for shard in output.shards]
        for name in self.names:
            files.append(self._unchanged(folder, name))
            self._tell()
        files += [self._write(folder, name, data) for name, data in self.plan.files.items()]
        facts = manifest.provenance(self.plan, output)
        files.append(self._write(folder, CARD, card(facts)))
        if CONFIG in self.base.other_files:
            files.append(self._write(folder, CONFIG, self._config()))
        if [shard.name for shard in self.plan.shards] != [SINGLE]:
            files.append(self._write(folder, self._index_name(), index(self.plan)))
        self._write(folder, MANIFEST, manifest.text(facts, files=files, run=run))

    def _unchanged(self, folder: Path, name: str) -> File:
        if name in self.copied:
            first, file = self.copied[name]
            share(first, folder / name)
            return file
        copy(self.base, name, folder)
        size, digest = digest_file(folder / name, threads=self.threads)
        self.copied[name] = folder / name, File(name, size, digest)
        return self.copied[name][1]

    def _write(self, folder: Path, name: str, data: bytes) -> File:
        write_atomic(folder / name, data)
        self._tell()
        return File(name, len(data), blake3_hex(data))

    def _index_name(self) -> str:
        """The target's own where its weight files keep their names."""
        is_kept = all(shard.name in self.base.file_sizes for shard in self.plan.shards)
        own = index_of(os.listdir(self.base.location)) if is_kept else None
        return own or INDEX

    def _config(self) -> bytes:
        data = self.base.read_file(CONFIG)
        if not self.plan.config:
            return data
        return edited_config(data.decode("utf-8"), self.plan.config).encode("utf-8")

    def _tell(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, (len(self.names) + len(self.plan.files) + 4) * len(self.plan.outputs))


def index(plan: PlanRecord) -> bytes:
    """The index of sharded weights, as transformers writes it."""
    metadata = {
        "total_parameters": plan.parameters,
        "total_size": sum(shard.bytes for shard in plan.shards),
    }
    head = json.dumps({"metadata": metadata}, indent=2).removesuffix("\n}")
    # with an indent, json makes several small strings for each tensor
    rows = (f"    {json.dumps(name)}: {json.dumps(file)}" for name, file in sorted(plan.weight_map.items()))
    weight_map = ",\n".join(rows)
    return f'{head},\n  "weight_map": {{\n{weight_map}\n  }}\n}}\n'.encode()
