"""Task vectors on disk: a folder of safetensors whose manifest says where it came from and what it fits.

Each tensor is stored in the smallest of three ways: ``T`` itself; ``T.mask`` (a bit for each element, the
lowest bit of a byte first) and ``T.values``; or ``T.indices`` (flat and sorted) and ``T.values``. A tensor
that is zero is not stored. Where a difference does not give its donor back (a negative zero, or numbers so
far apart that their difference was rounded), ``T.exact.indices``, ``T.exact.donor`` and
``T.exact.reference`` hold the element. ``reference/`` holds config and tokenizer of the model that was
subtracted: what a target is compared with.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from taskvec import _core, manifest, saved_rows
from taskvec.checkpoint import Checkpoint, TensorInfo
from taskvec.checkpoint import open as open_checkpoint
from taskvec.companions import CONFIG, MANIFEST
from taskvec.errors import FormatError
from taskvec.folder import list_folder
from taskvec.jsonfile import read_object
from taskvec.manifest import File
from taskvec.selection import Selection
from taskvec.settings import DTYPE_BYTES

if TYPE_CHECKING:
    from taskvec.progress import Callback

REFERENCE = "reference"


@dataclass(frozen=True, eq=False, slots=True)
class SavedVector:
    """A task vector on disk, by its headers and its manifest; made by :func:`open_vector`.

    Attributes
    ----------
    spec : str
        What the user wrote.
    stored : Checkpoint
        The safetensors files as they are.
    manifest : dict
        taskvec.json.
    tensors : mapping of str to TensorInfo
        The tensors of the vector: type of the values, shape, bytes on disk, file (empty where it is zero).
    model : Checkpoint
        The reference's config, tokenizer, names, shapes and types, without its weights.
    zero : frozenset of str
        The tensors that are zero.
    selection : Selection
        What was selected when it was extracted: the target's other tensors need no counterpart in it.
    """

    spec: str
    stored: Checkpoint
    manifest: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    model: Checkpoint
    zero: frozenset[str]
    selection: Selection

    kind = "vector"

    @property
    def location(self) -> Path:
        """The folder."""
        return self.stored.location

    path = location

    @property
    def repository(self) -> str | None:
        """Its name on the hub."""
        return self.stored.repository

    @property
    def revision(self) -> str | None:
        """The commit on the hub."""
        return self.stored.revision

    @property
    def config(self) -> dict[str, Any]:
        """config.json of the reference."""
        return self.model.config

    @property
    def fingerprint(self) -> str:
        """BLAKE3 over the headers of its files."""
        return self.stored.fingerprint

    @property
    def file_sizes(self) -> dict[str, int]:
        """Its weight files and their sizes."""
        return self.stored.file_sizes

    @property
    def download_bytes(self) -> int:
        """Nothing is left to download."""
        return 0

    def materialise(self, progress: Callback | None = None) -> SavedVector:
        """Itself: its files are here."""
        del progress
        return self

    def __repr__(self) -> str:
        return (
            f"SavedVector({self.spec!r}, tensors: {len(self.tensors):,}, bytes: {self.stored.total_bytes:,})"
        )


def open_vector(spec: str | os.PathLike[str], progress: Callback | None = None) -> SavedVector:
    """Open a saved task vector by its headers and its manifest.

    Parameters
    ----------
    spec : str or path
        A folder that ``extract`` or ``save`` wrote, or its name on the hub.
    progress : callable, optional
        Told about the download of one on the hub.

    Raises
    ------
    NotFoundError
        Nothing of that name, or it has no manifest.
    FormatError
        It is no task vector, or damaged.
    """
    stored = open_checkpoint(spec).materialise(progress)
    data = manifest.read(stored.location)
    if data.get("kind") != "vector":
        raise FormatError(
            f"`{spec}` is a {data.get('kind')}, expected a task vector",
            "`taskvec extract` makes one of two models",
        )
    _hold_files(data, stored)
    rows = saved_rows.rows(data, stored)
    model = _reference(os.fspath(spec), stored, rows)
    listed = manifest.files(data, stored.location / MANIFEST)
    if data["vector"].get("fits") != fits(rows, model.config, listed):
        raise FormatError(
            f"`vector.fits` in the manifest of `{spec}` is not what its tensors and its `{REFERENCE}/` say",
            "`taskvec verify` names every file that has changed; extract or download the vector again",
        )
    tensors = {
        name: TensorInfo(name, row["dtype"], tuple(row["shape"]), row["bytes"], row["file"] or "")
        for name, row in rows.items()
    }
    return SavedVector(
        spec=os.fspath(spec),
        stored=stored,
        manifest=data,
        tensors=MappingProxyType(tensors),
        model=model,
        zero=frozenset(name for name, row in rows.items() if row["encoding"] == "zero"),
        selection=_selection(data.get("recipe")),
    )


def is_vector(spec: str | os.PathLike[str]) -> bool:
    """Whether a local path is a saved vector, as far as its manifest says."""
    try:
        return read_object(Path(spec) / MANIFEST, maximum=manifest.MAXIMUM_BYTES).get("kind") == "vector"
    except (OSError, ValueError):
        return False


def _selection(recipe: Any) -> Selection:
    names = ("include", "exclude", "preset", "layers")
    return Selection(**{name: recipe[name] for name in names if isinstance(recipe, dict) and name in recipe})


def fits(
    rows: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any], files: Iterable[File]
) -> dict[str, Any]:
    """Fingerprints of what a vector fits: architecture (kind of model, names and shapes) and tokenizer.

    Parameters
    ----------
    rows : mapping
        The tensors as the manifest lists them.
    config : mapping
        config.json of the model that was subtracted.
    files : iterable of File
        The files of the vector, of which those in ``reference/`` count.
    """
    kind = [config.get("model_type"), config.get("architectures")]
    shapes = [[name, list(row["shape"])] for name, row in sorted(rows.items())]
    tokenizer = sorted((file.name, file.blake3) for file in files if file.name.startswith(f"{REFERENCE}/"))
    tokenizer = [pair for pair in tokenizer if pair[0] != f"{REFERENCE}/{CONFIG}"]
    return {
        "architecture": _core.blake3_hex(json.dumps([kind, shapes]).encode()),
        "tokenizer": _core.blake3_hex(json.dumps(tokenizer).encode()) if tokenizer else None,
    }


def _hold_files(data: Mapping[str, Any], stored: Checkpoint) -> None:
    """The listed files: weights by name and size, and what a target is compared with by digest."""
    listed = {file.name: file for file in manifest.files(data, stored.location / MANIFEST)}
    weights = {name: listed[name].bytes for name in listed if name.endswith(".safetensors")}
    for name in sorted({*weights, *stored.file_sizes}):
        if weights.get(name) != stored.file_sizes.get(name):
            raise _altered(stored, name)
    for name, file in listed.items():
        if name.startswith(f"{REFERENCE}/"):
            path = stored.location / name
            if not path.is_file() or _core.digest_file(path) != (file.bytes, file.blake3):
                raise _altered(stored, name)


def _altered(stored: Checkpoint, name: str) -> FormatError:
    return FormatError(
        f"`{name}` of `{stored.spec}` is not the file that its manifest lists",
        "`taskvec verify` names every file that has changed; extract or download the vector again",
    )


def _reference(spec: str, stored: Checkpoint, rows: Mapping[str, Mapping[str, Any]]) -> Checkpoint:
    folder = stored.location / REFERENCE
    listing = list_folder(folder, ()) if folder.is_dir() else None
    config = read_object(folder / CONFIG) if (folder / CONFIG).exists() else {}
    tensors = {
        name: TensorInfo(
            name, row["origin"], tuple(row["shape"]), math.prod(row["shape"]) * DTYPE_BYTES[row["origin"]], ""
        )
        for name, row in rows.items()
    }
    return Checkpoint(
        spec=spec,
        path=folder,
        tensors=MappingProxyType(tensors),
        config=config,
        other_files=listing.other if listing else (),
        file_sizes={},
        fingerprint=stored.fingerprint,
    )
