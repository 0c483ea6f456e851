"""The contents of a checkpoint, from its headers, config and manifest alone."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from taskvec.errors import Error, FormatError
from taskvec.files import look
from taskvec.files.json import read_bytes
from taskvec.files.manifest import MAXIMUM_BYTES, parse
from taskvec.files.names import MANIFEST
from taskvec.models.model import Model, TensorInfo
from taskvec.report.survival import Status, Survival, status_of
from taskvec.report.tables import Tabled, table_html
from taskvec.resolve import storage
from taskvec.resolve.open import open as open_model
from taskvec.text import amount, size

SCHEMA = 1


class WeightFile(NamedTuple):
    """A weight file: its size on disk, how many tensors it holds, and the elements of the weights in it."""

    name: str
    bytes: int
    tensors: int
    parameters: int


@dataclass(frozen=True, slots=True, repr=False)
class Inspection(Tabled):
    """The outcome of :func:`taskvec.inspect`.

    Attributes
    ----------
    spec : str
        What was asked for.
    kind : {"checkpoint", "vector"}
        What it is.
    location : str
        The folder; of a repository that is not downloaded, where the cache will have it.
    repository, revision : str or None
        Name and commit on the hub.
    tensors : tuple of TensorInfo
        In file order; the type of a packed weight is its format, its shape and size are those of the whole.
    files : tuple of WeightFile
        The weight files.
    other_files : tuple of str
        The other files.
    parameters, bytes : int
        Elements and bytes of all tensors.
    dtypes : dict of str to int
        Elements of each type.
    config : dict
        config.json.
    manifest : dict or None
        taskvec.json, if taskvec made this folder.
    download : int
        Bytes that a run would have to fetch.
    """

    spec: str
    kind: str
    location: str
    repository: str | None
    revision: str | None
    tensors: tuple[TensorInfo, ...]
    files: tuple[WeightFile, ...]
    other_files: tuple[str, ...]
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    config: dict[str, Any]
    manifest: dict[str, Any] | None
    download: int

    @property
    def survival(self) -> Survival | None:
        """What survived of the step, if taskvec made this folder and it was measured."""
        total = self.manifest["survival"]["total"] if self.manifest else None
        return Survival.measured(Survival(*total) if total else None)

    @property
    def unmeasured(self) -> int:
        """Merged tensors that take no step, where others do: the survival says nothing of them."""
        return self.manifest["survival"].get("unmeasured", 0) if self.manifest else 0

    @property
    def survival_status(self) -> Status | None:
        """What ``survival`` is worth; ``None`` if taskvec did not make this folder."""
        return status_of(self.survival) if self.manifest else None

    def _subject(self) -> str:
        return self.spec

    def _facts(self) -> dict[str, str]:
        facts = {"kind": self.kind}
        if self.config.get("architectures"):
            facts["architecture"] = ", ".join(map(str, self.config["architectures"]))
        facts["tensors"] = f"{len(self.tensors):,}"
        facts["parameters"] = amount(self.parameters)
        facts["types"] = ", ".join(self.dtypes) or "none"
        facts["size"] = size(self.bytes)
        facts["weight files"] = str(len(self.files))
        if self.download:
            facts["to download"] = size(self.download)
        if self.manifest is not None:
            facts["made by"] = f"taskvec {self.manifest['recipe'].get('verb', '')}".rstrip()
        return facts

    def _tables(self) -> Mapping[str, Any]:
        return {
            "tensors": lambda: [info._asdict() for info in self.tensors],
            "files": lambda: [file._asdict() for file in self.files],
        }

    def _more_html(self) -> str:
        rows = [
            {**info._asdict(), "shape": list(info.shape), "nbytes": size(info.nbytes)}
            for info in self.tensors
        ]
        return table_html(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; of the manifest only how the folder was made."""
        return {
            "schema": SCHEMA,
            "spec": self.spec,
            "kind": self.kind,
            "location": self.location,
            "repository": self.repository,
            "revision": self.revision,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "download": self.download,
            "dtypes": self.dtypes,
            "files": [file._asdict() for file in self.files],
            "other_files": list(self.other_files),
            "config": self.config,
            "made": self._made(),
            "tensors": [{**info._asdict(), "shape": list(info.shape)} for info in self.tensors],
        }

    def _made(self) -> dict[str, Any] | None:
        if self.manifest is None:
            return None
        return {
            **{key: self.manifest[key] for key in ("engine", "recipe", "command", "sources")},
            "survival": self.survival.to_dict() if self.survival else None,
            "survival_status": self.survival_status,
        }

    def __str__(self) -> str:
        types = ", ".join(f"{dtype} {count:,}" for dtype, count in self.dtypes.items())
        lines = [
            f"{self.spec}: {self.kind} of {self.parameters:,} parameters in {len(self.tensors):,} tensors",
            f"  types  {types}",
        ]
        lines += [f"  file   {f.name}: {f.bytes:,} bytes, {f.tensors:,} tensors" for f in self.files]
        return "\n".join(lines)


def inspect(path: str | os.PathLike[str] | Model) -> Inspection:
    """The contents of a checkpoint, from its headers alone; see :func:`taskvec.inspect`."""
    checkpoint, made = _opened(path)
    count: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    for info in checkpoint.stored.values():
        count[info.file] += 1
    for info in checkpoint.tensors.values():
        elements[info.file] += math.prod(info.shape)
    return Inspection(
        spec=checkpoint.spec,
        kind=str(made["kind"]) if made else "checkpoint",
        location=str(checkpoint.location),
        repository=checkpoint.repository,
        revision=checkpoint.revision,
        tensors=tuple(_in_words(checkpoint)),
        files=tuple(
            WeightFile(name, size, count[name], elements[name])
            for name, size in checkpoint.file_sizes.items()
        ),
        other_files=checkpoint.other_files,
        parameters=checkpoint.total_parameters,
        bytes=checkpoint.total_bytes,
        dtypes=checkpoint.types,
        config=checkpoint.config,
        manifest=made,
        download=checkpoint.download_bytes,
    )


def _opened(path: str | os.PathLike[str] | Model) -> tuple[Model, dict[str, Any] | None]:
    """A model, or a saved vector, which has no variants, and its manifest."""
    try:
        checkpoint = open_model(path)
    except Error:
        if storage.current().variant is None:
            raise
        vector = open_model(path, has_variants=False)
        made = _manifest(vector)
        if made is None or made["kind"] != "vector":
            raise
        return vector, made
    return checkpoint, _manifest(checkpoint)


def _in_words(checkpoint: Model) -> Iterator[TensorInfo]:
    """The tensors; the type of a packed one is its format."""
    for name, info in checkpoint.tensors.items():
        yield info._replace(dtype=checkpoint.type_of(name)) if name in checkpoint.packed else info


def _manifest(checkpoint: Model) -> dict[str, Any] | None:
    """The manifest, if there is one that can be read; the weights can be looked at without it."""
    if checkpoint.kind == "memory":
        return None
    if checkpoint.remote is not None:
        if MANIFEST not in checkpoint.other_files:
            return None
        checkpoint.remote.fetch((MANIFEST,))
    path = checkpoint.location / MANIFEST
    if not look.exists(path):
        return None
    data = read_bytes(path, maximum=MAXIMUM_BYTES)
    try:
        return parse(data, path)
    except FormatError:
        return None
