"""A distributed checkpoint of torch laid out as safetensors in the folder for fetched files.

What is there is used again while the checkpoint has the same metadata, and files of the same names, sizes and
times.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from taskvec._core import blake3_hex
from taskvec.dtypes import TYPES
from taskvec.errors import FormatError
from taskvec.files import look, reading
from taskvec.files.distributed import METADATA, SUFFIX
from taskvec.files.folder import is_weight
from taskvec.files.json import read_bytes
from taskvec.resolve import storage
from taskvec.resolve.distributed.metadata import MAXIMUM, Entry, read
from taskvec.resolve.distributed.names import names_of
from taskvec.resolve.laid_out import Row, laid_out, write

# Bytes of the tensors in one file.
SHARD = 5_000_000_000
# The layout that is written: another one is laid out again.
_FORMAT = 1
_DTYPES = {kind.numpy: name for name, kind in TYPES.items() if not kind.is_half}


def staged(path: Path, place: Path) -> tuple[Path, str, dict[str, int]]:
    """Lay out the distributed checkpoint in `place`, which is the folder of `path` or one below.

    Returns
    -------
    folder : path
        Where it lies: weights, their index, and the small files of `path`.
    identity : str
        Of the checkpoint's state, in hexadecimal.
    left : dict
        How many tensors were left out, by what they belong to.

    Raises
    ------
    FormatError
        The checkpoint is damaged, or holds what safetensors cannot.
    OutputError
        The folder for fetched files cannot be written, or has no room.
    """
    identity = _identity(path, place)
    folder = storage.current().folder / "distributed" / identity[:32]
    note = laid_out(path, folder, lambda part: {"path": str(path), "left": _lay_out(path, place, part)})
    return folder, identity, {str(what): int(count) for what, count in note["left"].items()}


def _identity(path: Path, place: Path) -> str:
    """By the metadata, and the names, sizes and times of all files."""
    rows: list[Any] = [_FORMAT, blake3_hex(read_bytes(place / METADATA, maximum=MAXIMUM))]
    for folder in dict.fromkeys((path, place)):
        for name in look.listing(folder):
            stamp = look.stamp(folder / name)
            if stamp is not None:
                rows.append([name, stamp.size, stamp.modified])
    return blake3_hex(json.dumps(rows).encode())


def _lay_out(path: Path, place: Path, part: Path) -> dict[str, int]:
    """Write the model's tensors and its small files; the numbers of tensors left out."""
    tensors, left = names_of(read(place))
    rows = {
        name: Row(_dtype(name, entry), entry.shape, _bytes(entry), partial(_assembled, place, name, entry))
        for name, entry in sorted(tensors.items())
    }
    write(path, part, rows, SHARD)
    for name in look.listing(path):
        if look.is_file(path / name) and not is_weight(name) and name != METADATA:
            reading.copy(path / name, part / name)
    return left


def _dtype(name: str, entry: Entry) -> str:
    word = str(entry.dtype).removeprefix("torch.")
    if word not in _DTYPES:
        raise FormatError(f"`{name}` is of type {word}, which safetensors does not have", "leave it out")
    return _DTYPES[word]


def _bytes(entry: Entry) -> int:
    return math.prod(entry.shape) * int(entry.dtype.itemsize)


def _assembled(place: Path, name: str, entry: Entry) -> memoryview:
    """The bytes of a tensor, put together from its chunks."""
    import torch

    whole = torch.empty(entry.shape, dtype=entry.dtype)
    for chunk in entry.chunks:
        if math.prod(chunk.sizes):
            found = _loaded(place / chunk.file, name, chunk.start, chunk.length)
            if tuple(found.shape) != chunk.sizes or found.dtype != entry.dtype:
                raise FormatError(
                    f"a piece of `{name}` in `{place / chunk.file}` is {found.dtype} of "
                    f"{tuple(found.shape)}, "
                    f"expected {entry.dtype} of {chunk.sizes}",
                    "the checkpoint is damaged: copy it again",
                )
            _box(whole, chunk.offsets, chunk.sizes).copy_(found)
    return whole.reshape(-1).view(torch.uint8).numpy().data


def _box(whole: Any, offsets: Sequence[int], sizes: Sequence[int]) -> Any:
    for dimension, (offset, count) in enumerate(zip(offsets, sizes, strict=True)):
        whole = whole.narrow(dimension, offset, count)
    return whole


def _loaded(path: Path, name: str, start: int, length: int) -> Any:
    """A tensor that torch has saved in a part of a file; nothing but tensors is unpickled."""
    import torch

    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            if not 0 <= start <= start + length <= end:
                raise FormatError(
                    f"the piece of `{name}` in `{path}` is said to be {length} bytes from {start}, and the "
                    f"file has {end}",
                    "the checkpoint is incomplete: copy it again",
                )
            file.seek(start)
            data = file.read(length)
    except OSError as error:
        raise FormatError(
            f"the piece of `{name}` lies in `{path}`, which cannot be read: {error.strerror or error}",
            "the checkpoint is incomplete: copy it again",
        ) from error
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(found, torch.Tensor):
            raise TypeError(type(found).__name__)
    except Exception as error:  # torch raises several sorts for a damaged file
        raise FormatError(
            f"the piece of `{name}` in `{path}` is not a tensor as torch saves it: {error!r:.200}",
            f"the `{SUFFIX}` file is damaged, or holds objects that could run code: copy it again",
        ) from error
    return found.detach()
