"""Task vectors on disk: a folder of safetensors whose manifest says where it came from and what it fits.

Each tensor is stored in the smallest of three ways: ``T`` itself; ``T.mask`` (a bit for each element, the
lowest bit of a byte first) and ``T.values``; or ``T.indices`` (flat and sorted) and ``T.values``. A tensor
that is zero is not stored. The type of the values is the one that takes the fewest bytes; where it does not
hold a difference, or a difference does not give its donor back (a negative zero, or numbers so far apart
that their difference was rounded), ``T.exact.indices``, ``T.exact.donor`` and ``T.exact.reference`` hold
the element. ``reference/`` holds config and tokenizer of the model that was subtracted: what a target is
compared with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from taskvec._core import digest_file
from taskvec.errors import FormatError, NotFoundError
from taskvec.files import look
from taskvec.files.folder import list_folder
from taskvec.files.json import parse_object, read_bytes, read_object
from taskvec.files.manifest import MAXIMUM_BYTES, files, read
from taskvec.files.names import CONFIG, MANIFEST
from taskvec.models.model import Model, TensorInfo
from taskvec.models.saved_vector import REFERENCE, SavedVector, fits
from taskvec.models.selection import Selection
from taskvec.models.storage import plain
from taskvec.resolve import vector_manifest
from taskvec.resolve.open import open as open_model

if TYPE_CHECKING:
    from taskvec.progress import Callback


_EXTRACT = (
    "`taskvec extract DONOR REFERENCE -o VECTOR` saves one; `taskvec transfer` adds the difference of two "
    "checkpoints without it"
)


def open_vector(spec: str | os.PathLike[str], progress: Callback | None = None) -> SavedVector:
    """Open a saved task vector by its headers and its manifest.

    Parameters
    ----------
    spec : str or path
        A folder that ``extract`` or ``save`` wrote, or its address, of which headers and small files are
        fetched.
    progress : callable, optional
        Told about that.

    Raises
    ------
    NotFoundError
        Nothing of that name, or it has no manifest.
    FormatError
        It is not a task vector, or damaged.
    """
    stored = open_model(spec, has_variants=False)
    if stored.remote is not None:
        small = [name for name in stored.other_files if name == MANIFEST or name.startswith(f"{REFERENCE}/")]
        stored.remote.fetch(small, progress=progress)
    if stored.kind != "memory" and MANIFEST not in stored.other_files and stored.file_sizes:
        if any(name.startswith("vector") for name in stored.file_sizes):
            raise NotFoundError(
                f"`{spec}` has no `{MANIFEST}`", "it is a task vector that is not whole: copy it again"
            )
        raise NotFoundError(f"`{spec}` is a checkpoint, expected a saved task vector", _EXTRACT)
    data = read(stored.location)
    if data.get("kind") != "vector":
        raise FormatError(f"`{spec}` is a {data.get('kind')}, expected a saved task vector", _EXTRACT)
    _hold_files(data, stored)
    rows = vector_manifest.rows(data, stored)
    model = _reference(os.fspath(spec), stored, rows)
    listed = files(data, stored.location / MANIFEST)
    if data["vector"].get("fits") != fits(rows, model.config, listed):
        raise FormatError(
            f"`vector.fits` in the manifest of `{spec}` is not what its tensors and its `{REFERENCE}/` say",
            "`taskvec verify` names every file that has changed; extract or download the vector again",
        )
    tensors = {
        name: TensorInfo(
            name,
            vector_manifest.widest(name, row, stored),
            tuple(row["shape"]),
            row["bytes"],
            row["file"] or "",
        )
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
    """Whether a local path is a saved vector, as far as its manifest says.

    Raises
    ------
    FormatError, OutputError
        The manifest is there and cannot be read; one that is damaged is that of no vector.
    """
    path = Path(spec) / MANIFEST
    if not look.exists(path):
        return False
    data = read_bytes(path, maximum=MAXIMUM_BYTES)
    try:
        return parse_object(data, str(path)).get("kind") == "vector"
    except FormatError:
        return False


def is_stored_vector(model: Model) -> bool:
    """Whether what was opened as a model is a saved vector, as far as its manifest says; raises as above."""
    if MANIFEST not in model.other_files:
        return False
    try:
        return parse_object(model.read_file(MANIFEST), MANIFEST).get("kind") == "vector"
    except FormatError:
        return False


def _selection(recipe: Any) -> Selection:
    names = ("include", "exclude", "preset", "layers")
    return Selection(**{name: recipe[name] for name in names if isinstance(recipe, dict) and name in recipe})


def _hold_files(data: Mapping[str, Any], stored: Model) -> None:
    """The listed files: weights by name and size, and what a target is compared with by digest."""
    listed = {file.name: file for file in files(data, stored.location / MANIFEST)}
    weights = {name: listed[name].bytes for name in listed if name.endswith(".safetensors")}
    for name in sorted({*weights, *stored.file_sizes}):
        if weights.get(name) != stored.file_sizes.get(name):
            raise _altered(stored, name)
    for name, file in listed.items():
        if name.startswith(f"{REFERENCE}/"):
            path = stored.location / name
            if not look.is_file(path) or digest_file(path) != (file.bytes, file.blake3):
                raise _altered(stored, name)


def _altered(stored: Model, name: str) -> FormatError:
    return FormatError(
        f"`{name}` of `{stored.spec}` is not the file that its manifest lists",
        "`taskvec verify` names every file that has changed; extract or download the vector again",
    )


def _reference(spec: str, stored: Model, rows: Mapping[str, Mapping[str, Any]]) -> Model:
    folder = stored.location / REFERENCE
    listing = list_folder(folder, ()) if look.is_folder(folder) else None
    config = read_object(folder / CONFIG) if look.exists(folder / CONFIG) else {}
    tensors = {name: plain(name, row["origin"], tuple(row["shape"])) for name, row in rows.items()}
    return Model(
        spec=spec,
        path=folder,
        tensors=MappingProxyType(tensors),
        config=config,
        other_files=listing.other if listing else (),
        file_sizes={},
        fingerprint=stored.fingerprint,
    )
