"""Distributed checkpoints of torch: where one lies, judging by names."""

from __future__ import annotations

import os
from pathlib import Path

from taskvec.files import look

METADATA = ".metadata"
SUFFIX = ".distcp"
# The folder of the weights below that of a checkpoint, as accelerate calls it.
_WITHIN = ("pytorch_model_fsdp_0", "model")


def place_of(path: str | os.PathLike[str]) -> Path | None:
    """The folder of the distributed checkpoint at a path; ``None`` where there is none, or weights by it.

    Raises
    ------
    OutputError
        A folder cannot be looked at.
    """
    folder = Path(path)
    if not look.is_folder(folder):
        return None
    names = look.listing(folder)
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        return None
    places = [folder, *(folder / name for name in _WITHIN if name in names)]
    return next((place for place in places if _is_one(place)), None)


def lacking(path: str | os.PathLike[str]) -> str | None:
    """What a folder without weights lacks to be a distributed checkpoint; ``None`` where nothing says so."""
    for folder in (Path(path), *(Path(path) / name for name in _WITHIN)):
        names = look.listing(folder) if look.is_folder(folder) else []
        if any(name.endswith(".safetensors") for name in names):
            return None
        has_pieces = any(name.endswith(SUFFIX) for name in names)
        if has_pieces or METADATA in names:
            return METADATA if has_pieces else f"*{SUFFIX}"
    return None


def _is_one(folder: Path) -> bool:
    names = look.listing(folder) if look.is_folder(folder) else []
    return METADATA in names and any(name.endswith(SUFFIX) for name in names)
