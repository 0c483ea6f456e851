"""The files of an output that are not weights: copied, edited, indexed and put in place."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec._core import blake3_hex, digest_file, write_atomic
from taskvec.errors import OutputError
from taskvec.files import json_edit, look, reading
from taskvec.files.folder import INDEX, INDEX_SUFFIX, SINGLE, index_of
from taskvec.files.json import read_bytes
from taskvec.files.manifest import File
from taskvec.files.names import CARD, CONFIG, MANIFEST, PLAN, RECIPE, STATE
from taskvec.files.place import placing, sync_folders
from taskvec.files.sub_models import PIPELINE
from taskvec.files.variants import renamed
from taskvec.models.model import Model
from taskvec.models.source_contents import Contents
from taskvec.plan.plan import PlanRecord, Shard
from taskvec.report import manifest
from taskvec.report.card import card
from taskvec.report.recipe_file import recipe_file
from taskvec.report.report import Output
from taskvec.run.inputs import Inputs, companions
from taskvec.settings import Settings

_FICLONE = 0x40049409  # <linux/fs.h>: share all extents of a file


def copy(base: Model, name: str, out: Path, place: str | None = None) -> None:
    """Copy one file to the same or another place below `out`; its blocks are shared where that can be."""
    with placing(out, place or name) as part:
        if base.path is None:
            part.write_bytes(base.read_file(name))
        elif not _reflink(base.path / name, part):
            reading.copy(base.path / name, part)


def share(source: Path, out: Path, name: str) -> None:
    """Give the output `out` the same file as another output: reflinked, hard-linked, or else copied."""
    with placing(out, name) as part:
        if _reflink(source, part):
            return
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError:
            part.unlink(missing_ok=True)  # a link may have been made and reported as failed
            reading.copy(source, part)


def hold_complete(folder: Path, listed: Sequence[File]) -> None:
    """Return if a folder may be called complete: all files that its manifest will list are there.

    Raises
    ------
    OutputError
        A file is missing or has another size.
    """
    for file in listed:
        stamp = look.stamp(folder / file.name)
        if stamp is None or stamp.size != file.bytes:
            found = "is missing" if stamp is None else f"has {stamp.size} bytes, expected {file.bytes}"
            raise OutputError(
                f"`{folder / file.name}` {found}: something else changed the output during the run",
                "run the same command again when nothing else writes to the folder",
            )


def hold_or_hide(folder: Path, listed: Sequence[File]) -> None:
    """:func:`hold_complete`; a folder that is not loses what makes it look complete, manifest and index."""
    try:
        hold_complete(folder, listed)
    except OutputError:
        for name in (MANIFEST, *(file.name for file in listed)):
            if name == MANIFEST or name.endswith(INDEX_SUFFIX):
                with contextlib.suppress(OSError):
                    (folder / name).unlink()
        raise


def hold_ours(folder: Path, plan: bytes) -> None:
    """Return if the state in a folder is that of this plan's run, or has gone without another run's manifest.

    Raises
    ------
    OutputError
        Another run has taken the folder.
    """
    saved = folder / STATE / PLAN
    stamp = look.stamp(saved)
    if stamp is None:
        is_ours = not look.exists(folder / MANIFEST)
    else:
        is_ours = stamp.size == len(plan) and read_bytes(saved) == plan
    if not is_ours:
        raise OutputError(
            f"another run has taken the output folder `{folder}`",
            "choose another output folder, or run the same command again when the other run has ended",
        )


def _reflink(source: Path, place: Path) -> bool:
    try:
        import fcntl

        with open(source, "rb") as old, open(place, "xb") as new:
            fcntl.ioctl(new, _FICLONE, old.fileno())
    except (ImportError, OSError):
        place.unlink(missing_ok=True)
        return False
    return True


def config_of(base: Model, plan: PlanRecord) -> bytes:
    """The config.json of the outputs of a plan."""
    data = base.read_file(CONFIG)
    if not plan.config:
        return data
    return json_edit.edited(data.decode("utf-8"), plan.config).encode("utf-8")


class Publisher:
    """Writes the other files of the outputs, which share what is the same in all where that can be."""

    def __init__(
        self,
        plan: PlanRecord,
        base: Model,
        settings: Settings,
        inputs: Inputs,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.plan = plan
        self.base = base
        self.threads = settings.threads or 0
        self.progress = progress
        self.inputs = inputs
        self.names = [name for name in companions(base) if name not in (*plan.files, *plan.left)]
        self.copied: dict[str, tuple[Path, File]] = {}
        self.published: dict[Path, list[File]] = {}
        self.done = 0
        self.contents: Contents = ()
        self.tokens: dict[str, Any] | None = None
        """The figures of a model that is moved to another tokenizer."""

    def foresee(self) -> None:
        """Fail where the other files cannot be written as planned: what is in the folder is still there.

        Raises
        ------
        OutputError, FormatError
            A file cannot be read, or config.json not be changed.
        """
        for name in self.names if self.base.path is not None else ():
            try:
                open(self.base.location / name, "rb").close()
            except OSError as error:
                raise look.unanswered(self.base.location / name, error) from error
        if CONFIG in self.base.other_files:
            self._config()

    def __call__(self, folder: Path, output: Output, run: dict[str, Any]) -> None:
        files = [File(*shard) for shard in output.shards]
        for name in self.names:
            files.append(self._unchanged(folder, name))
            self._tell()
        config = self._config() if CONFIG in self.base.other_files else None
        self.inputs.hold()
        files += [self._write(folder, name, data) for name, data in self.plan.files.items()]
        facts = manifest.provenance(self.plan, output, tokens=self.tokens, contents=self.contents)
        files.append(self._write(folder, CARD, card(facts, _library(self.base))))
        files.append(self._write(folder, RECIPE, recipe_file(facts["recipe"])))
        hold_complete(folder, files)
        if config is not None:
            files.append(self._write(folder, CONFIG, config))
        for name, data in indices(self.plan, self.base).items():
            files.append(self._write(folder, name, data))
        sync_folders(folder, [file.name for file in files])
        hold_or_hide(folder, files)
        self._write(folder, MANIFEST, manifest.text(facts, files=files, run=run))
        self.published[folder] = files

    def hold(self) -> None:
        """Return if all outputs are whole when the last one is written; raises as :func:`hold_complete`."""
        for folder, files in self.published.items():
            hold_or_hide(folder, files)

    def _unchanged(self, folder: Path, name: str) -> File:
        hold_ours(folder, self.plan.json)
        if name in self.copied:
            first, file = self.copied[name]
            share(first, folder, name)
            return file
        copy(self.base, name, folder)
        size, digest = digest_file(folder / name, threads=self.threads)
        self.copied[name] = folder / name, File(name, size, digest)
        return self.copied[name][1]

    def _write(self, folder: Path, name: str, data: bytes) -> File:
        hold_ours(folder, self.plan.json)
        write_atomic(folder / name, data)
        self._tell()
        return File(name, len(data), blake3_hex(data))

    def _config(self) -> bytes:
        return config_of(self.base, self.plan)

    def _tell(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, (len(self.names) + len(self.plan.files) + 5) * len(self.plan.outputs))


def _library(base: Model) -> str:
    """What loads a model: of weights in several folders, what the file that names these is written by."""
    if not any(base.sub_models):
        return "transformers"
    return "diffusers" if PIPELINE in base.other_files else "sentence-transformers"


def indices(plan: PlanRecord, base: Model) -> dict[str, bytes]:
    """The indices of an output's weights by their names: none of a single file of the usual name."""
    if base.sub_models:
        return _indices_of_folders(plan, base)
    if [shard.name for shard in plan.shards] == [SINGLE]:
        return {}
    # the target's own where its weight files keep their names
    is_kept = all(shard.name in base.file_sizes for shard in plan.shards)
    own = index_of(look.listing(base.location)) if is_kept else None
    return {own or INDEX: index(plan.shards, plan.weight_map, plan.parameters)}


def _indices_of_folders(plan: PlanRecord, base: Model) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for folder, chosen in base.sub_models.items():
        shards = [shard for shard in plan.shards if shard.name.rpartition("/")[0] == folder.rstrip("/")]
        names = {shard.name for shard in shards}
        is_kept = names <= set(chosen.files)
        if not shards or (len(shards) == 1 and not (is_kept and chosen.index)):
            continue
        own = chosen.index if is_kept else None
        weight_map = {
            tensor.removeprefix(folder): file.removeprefix(folder)
            for tensor, file in plan.weight_map.items()
            if file in names
        }
        found[own or renamed(chosen, folder, len(shards))[1]] = index(
            shards, weight_map, sum(shard.parameters for shard in shards)
        )
    return found


def index(shards: Sequence[Shard], weights: Mapping[str, str], parameters: int) -> bytes:
    """The index of sharded weights, as transformers writes it."""
    metadata = {
        "total_parameters": parameters,
        "total_size": sum(shard.bytes for shard in shards),
    }
    head = json.dumps({"metadata": metadata}, indent=2).removesuffix("\n}")
    # with an indent, json makes several small strings for each tensor
    rows = (f"    {json.dumps(name)}: {json.dumps(file)}" for name, file in sorted(weights.items()))
    weight_map = ",\n".join(rows)
    return f'{head},\n  "weight_map": {{\n{weight_map}\n  }}\n}}\n'.encode()
