"""A task vector that was saved: the record of what its folder holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taskvec._core import blake3_hex
from taskvec.files.manifest import File
from taskvec.files.names import CONFIG
from taskvec.models.assembled import Assembled
from taskvec.models.model import Model, Remote, TensorInfo
from taskvec.models.pickled import restored, state_of
from taskvec.models.selection import Selection

# A vector of format 2 has tensors whose exact elements stand in for values that are rounded.
FORMATS = (1, 2)
INDEX = "vector.safetensors.index.json"
# The files that a target is compared with when the vector is applied.
COMPARED = (
    CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
REFERENCE = "reference"


@dataclass(frozen=True, eq=False, slots=True)
class SavedVector:
    """A task vector on disk, by its headers and its manifest; made by :func:`open_vector`.

    Attributes
    ----------
    spec : str
        What the user wrote.
    stored : Model
        The safetensors files as they are.
    manifest : dict
        taskvec.json.
    tensors : mapping of str to TensorInfo
        The tensors of the vector: type of the values, shape, bytes on disk, file (empty where it is zero).
    model : Model
        The reference's config, tokenizer, names, shapes and types, without its weights.
    zero : frozenset of str
        The tensors that are zero.
    selection : Selection
        What was selected when it was extracted: the target's other tensors need no counterpart in it.
    """

    spec: str
    stored: Model
    manifest: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    model: Model
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
    def address(self) -> str | None:
        """The address that opens this revision again."""
        return self.stored.address

    @property
    def remote(self) -> Remote | None:
        """Where its files are fetched from, when they are not here."""
        return self.stored.remote

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
        """What a run would still fetch."""
        return self.stored.download_bytes

    def in_layout(self, model: Model) -> SavedVector:
        """The vector with the names and shapes of ``model``, whose ``assembled`` are made of its tensors."""
        if model is self.model:
            return self
        assembled, zero = {}, {name for name in self.zero if name in model.tensors}
        for name, (shape, pieces, _) in model.assembled.items():
            named = tuple(piece._replace(name="") if piece.name in self.zero else piece for piece in pieces)
            if any(piece.name for piece in named):
                shapes = {piece.name: self.tensors[piece.name].shape for piece in named if piece.name}
                assembled[name] = Assembled(shape, named, shapes)
                zero.discard(name)
            else:
                zero.add(name)
        model = replace(model, assembled=assembled)
        tensors = {name: self.tensors.get(name, info) for name, info in model.tensors.items()}
        tensors |= {name: model.tensors[name] for name in assembled}
        return replace(self, model=model, tensors=tensors, zero=frozenset(zero))

    def __reduce__(self) -> Any:
        return restored, (type(self), state_of(self))

    def __deepcopy__(self, memo: object) -> SavedVector:
        return self  # it is never changed

    def __repr__(self) -> str:
        return (
            f"SavedVector({self.spec!r}, tensors: {len(self.tensors):,}, bytes: {self.stored.total_bytes:,})"
        )


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
        "architecture": blake3_hex(json.dumps([kind, shapes]).encode()),
        "tokenizer": blake3_hex(json.dumps(tokenizer).encode()) if tokenizer else None,
    }
