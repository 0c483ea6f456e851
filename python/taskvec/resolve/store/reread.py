"""A file at an address, read to be compared with what was written there."""

from __future__ import annotations

from pathlib import Path

from taskvec._core import digest_file
from taskvec.resolve.store.files import find
from taskvec.resolve.store.write import StorePlace


def digest_at(place: StorePlace, name: str, folder: Path, threads: int = 0) -> str:
    """BLAKE3 of a file, which lies in the folder for that time."""
    path = find(place.address).fetch([name], folder) / name
    try:
        return digest_file(path, threads=threads)[1]
    finally:
        path.unlink()
