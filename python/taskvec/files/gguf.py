"""GGUF files: where one lies, judging by names."""

from __future__ import annotations

import os
from pathlib import Path

from taskvec.errors import FormatError
from taskvec.files import look
from taskvec.text import listed

SUFFIX = ".gguf"


def is_one(name: str) -> bool:
    """Whether a file is in GGUF, judging by its name."""
    return name.lower().endswith(SUFFIX)


def file_of(path: str | os.PathLike[str]) -> Path | None:
    """The GGUF file at a path, or in a folder that holds no other weights; ``None`` where there is none.

    Raises
    ------
    FormatError
        The folder holds several.
    OutputError
        It cannot be looked at.
    """
    place = Path(path)
    if not look.is_folder(place):
        return place if is_one(place.name) and look.is_file(place) else None
    names = look.listing(place)
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        return None
    found = sorted(name for name in names if is_one(name) and look.is_file(place / name))
    if len(found) > 1:
        raise FormatError(
            f"`{place}` holds several GGUF files: {listed(found, 6)}", f"name one: `{place / found[0]}`"
        )
    return place / found[0] if found else None
