"""Files at an address, read after they were written there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from taskvec._core import digest_file
from taskvec.resolve.store.files import find
from taskvec.resolve.store.write import StorePlace


def digest_at(place: StorePlace, name: str, folder: Path, threads: int = 0) -> str:
    """BLAKE3 of a file, which lies in the folder for that time."""
    path = files_at(place, [name], folder) / name
    try:
        return digest_file(path, threads=threads)[1]
    finally:
        path.unlink()


def files_at(place: StorePlace, names: Sequence[str], folder: Path) -> Path:
    """Fetch files into a folder, several at a time; the folder."""
    return find(place.address).fetch(names, folder)
