"""A distributed checkpoint of torch laid out as safetensors in the folder for fetched files.

One tensor is in memory at a time. What is there stays, as fetched files do, and is used again while the
checkpoint has the same metadata, and files of the same names, sizes and times.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec._core import blake3_hex
from taskvec.dtypes import TYPES
from taskvec.errors import Error, FormatError, OutputError
from taskvec.files import look, reading
from taskvec.files.distributed import METADATA, SUFFIX
from taskvec.files.folder import INDEX, SINGLE, is_weight
from taskvec.files.json import read_bytes, read_object
from taskvec.files.names import STATE
from taskvec.host import free_space
from taskvec.resolve import storage
from taskvec.resolve.distributed.metadata import MAXIMUM, Entry, read
from taskvec.resolve.distributed.names import names_of
from taskvec.resolve.distributed.part import part_of
from taskvec.text import size

# Bytes of the tensors in one file.
SHARD = 5_000_000_000
# The layout that is written: another one is laid out again.
_FORMAT = 1
_NOTE = f"{STATE}/staged.json"
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
    if not look.exists(folder / _NOTE):
        try:
            with part_of(folder) as part:
                _lay_out(path, place, part)
                if not look.exists(folder / _NOTE):
                    os.replace(part, folder)
        except OSError as error:
            if isinstance(error, Error) or look.exists(folder / _NOTE):
                raise
            raise OutputError(
                f"`{path}` cannot be laid out in `{folder}`: {error.strerror or error}",
                "free space there, or name another folder with --scratch",
            ) from error
    left = read_object(folder / _NOTE)["left"]
    return folder, identity, {str(what): int(count) for what, count in left.items()}


def _identity(path: Path, place: Path) -> str:
    """By the metadata, and the names, sizes and times of all files."""
    rows: list[Any] = [_FORMAT, blake3_hex(read_bytes(place / METADATA, maximum=MAXIMUM))]
    for folder in dict.fromkeys((path, place)):
        for name in look.listing(folder):
            stamp = look.stamp(folder / name)
            if stamp is not None:
                rows.append([name, stamp.size, stamp.modified])
    return blake3_hex(json.dumps(rows).encode())


def _lay_out(path: Path, place: Path, part: Path) -> None:
    tensors, left = names_of(read(place))
    rows = {name: (_dtype(name, entry), _bytes(entry)) for name, entry in sorted(tensors.items())}
    needed = sum(count for _, count in rows.values())
    (part / STATE).mkdir(parents=True)
    if needed > free_space(part):
        raise OutputError(
            f"`{path}` needs {size(needed)} to be laid out as safetensors in `{part.parent}`, which has "
            f"{size(free_space(part))}",
            "free space there, or name another folder with --scratch",
        )
    shards = list(_shards({name: count for name, (_, count) in rows.items()}))
    files = [SINGLE] if len(shards) == 1 else [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)
    ]  # fmt: skip
    for file, names in zip(files, shards, strict=True):
        _write(part / file, place, {name: (tensors[name], *rows[name]) for name in names})
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": needed}, "weight_map": weight_map}
        (part / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    for name in look.listing(path):
        if look.is_file(path / name) and not is_weight(name) and name != METADATA:
            reading.copy(path / name, part / name)
    (part / _NOTE).write_text(json.dumps({"path": str(path), "left": left}), encoding="utf-8")


def _dtype(name: str, entry: Entry) -> str:
    word = str(entry.dtype).removeprefix("torch.")
    if word not in _DTYPES:
        raise FormatError(f"`{name}` is of type {word}, which safetensors does not have", "leave it out")
    return _DTYPES[word]


def _bytes(entry: Entry) -> int:
    return math.prod(entry.shape) * int(entry.dtype.itemsize)


def _shards(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names in files of at most so many bytes."""
    here: list[str] = []
    filled = 0
    for name, count in sizes.items():
        if here and filled + count > SHARD:
            yield here
            here, filled = [], 0
        here.append(name)
        filled += count
    yield here


def _write(file: Path, place: Path, tensors: Mapping[str, tuple[Entry, str, int]]) -> None:
    """One safetensors file, tensor by tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (entry, dtype, count) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(entry.shape), "data_offsets": [at, at + count]}
        at += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, (entry, _, _) in tensors.items():
            out.write(_assembled(place, name, entry))
        out.flush()
        os.fsync(out.fileno())


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
