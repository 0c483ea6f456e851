"""What is not in safetensors laid out as safetensors, in the folder for fetched files.

One tensor is in memory at a time. What is there stays, as fetched files do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from taskvec.errors import Error, OutputError
from taskvec.files import look
from taskvec.files.flush import flush
from taskvec.files.folder import INDEX, SINGLE
from taskvec.files.json import read_object
from taskvec.files.names import STATE
from taskvec.host import free_space
from taskvec.resolve.part import part_of
from taskvec.text import size

# Bytes of the tensors in one file.
SHARD = 5_000_000_000
NOTE = f"{STATE}/staged.json"


class Row(NamedTuple):
    """A tensor as safetensors has it: its type, shape and bytes, and how these are made."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    data: Callable[[], Any]


def laid_out(path: Path, folder: Path, fill: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """The note of `folder`, which `fill` makes where it does not exist.

    Parameters
    ----------
    path : Path
        What is laid out, for messages.
    folder : Path
        Where it will lie.
    fill : callable
        Called with an empty folder; gives the note.

    Raises
    ------
    OutputError
        The folder for fetched files cannot be written, or has no room.
    """
    if not look.exists(folder / NOTE):
        try:
            with part_of(folder) as part:
                (part / STATE).mkdir(parents=True)
                note = fill(part)
                (part / NOTE).write_text(json.dumps(note), encoding="utf-8")
                if not look.exists(folder / NOTE):
                    os.replace(part, folder)
        except OSError as error:
            if isinstance(error, Error) or look.exists(folder / NOTE):
                raise
            raise OutputError(
                f"`{path}` cannot be laid out in `{folder}`: {error.strerror or error}",
                "free space there, or name another folder with --scratch",
            ) from error
    return read_object(folder / NOTE)


def write(path: Path, part: Path, rows: Mapping[str, Row], shard: int = SHARD) -> None:
    """Write tensors into a folder as safetensors, with an index where there are several files.

    Raises
    ------
    OutputError
        The folder has no room for them.
    """
    needed = sum(row.nbytes for row in rows.values())
    free = free_space(part)
    if free is not None and needed > free:
        raise OutputError(
            f"`{path}` needs {size(needed)} to be laid out as safetensors in `{part.parent}`, which has "
            f"{size(free)}",
            "free space there, or name another folder with --scratch",
        )
    shards = list(_shards(rows, shard))
    files = [SINGLE] if len(shards) == 1 else [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)
    ]  # fmt: skip
    for file, names in zip(files, shards, strict=True):
        _write(part / file, {name: rows[name] for name in names})
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": needed}, "weight_map": weight_map}
        (part / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _shards(rows: Mapping[str, Row], shard: int) -> Iterator[list[str]]:
    """Names in files of at most so many bytes."""
    here: list[str] = []
    filled = 0
    for name, row in rows.items():
        if here and filled + row.nbytes > shard:
            yield here
            here, filled = [], 0
        here.append(name)
        filled += row.nbytes
    yield here


def _write(file: Path, rows: Mapping[str, Row]) -> None:
    """One safetensors file, tensor by tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, row in rows.items():
        header[name] = {"dtype": row.dtype, "shape": list(row.shape), "data_offsets": [at, at + row.nbytes]}
        at += row.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for row in rows.values():
            out.write(row.data())
        out.flush()
        flush(out.fileno())
