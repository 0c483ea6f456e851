"""The ``.metadata`` of a distributed checkpoint: a pickle that may hold torch's records alone."""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any, NamedTuple

from taskvec.errors import FormatError
from taskvec.extras import install
from taskvec.files.distributed import METADATA, SUFFIX
from taskvec.files.json import read_bytes

# Of a model with a hundred thousand tensors in a thousand pieces it is a few hundred MB.
MAXIMUM = 1 << 30

_RECORDS = frozenset(
    (f"torch.distributed.checkpoint.{module}", name)
    for module, names in {
        "metadata": "Metadata TensorStorageMetadata BytesStorageMetadata TensorProperties "
        "ChunkStorageMetadata MetadataIndex StorageMeta _MEM_FORMAT_ENCODING",
        "filesystem": "_StorageInfo _StoragePrefix",
    }.items()
    for name in names.split()
)
# Megatron's own class has torch's members, and notes for Megatron.
_MEGATRONS = "megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"
_PLAIN = {
    ("collections", "OrderedDict"): dict,
    # paths are notes of who wrote it, and are read as text
    ("pathlib", "PosixPath"): lambda *parts: "/".join(parts),
    ("pathlib", "WindowsPath"): lambda *parts: "/".join(parts),
    ("pathlib", "PurePosixPath"): lambda *parts: "/".join(parts),
    ("pathlib._local", "PosixPath"): lambda *parts: "/".join(parts),
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
}


class Chunk(NamedTuple):
    """A stored box of a tensor: its place in the tensor, its shape, and the bytes that hold it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


class Entry(NamedTuple):
    """A stored tensor: its keys in the nested state dict, its type, shape and chunks."""

    path: tuple[str, ...]
    is_nested: bool
    dtype: Any
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


class Contents(NamedTuple):
    """The tensors of a checkpoint by their flat names, and the paths of everything else."""

    tensors: dict[str, Entry]
    others: list[str]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What a global of the pickle stands for.

        Raises
        ------
        FormatError
            It is not one of the records that torch writes.
        """
        import torch

        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if (module, name) in _RECORDS:
            return super().find_class(module, name)
        if (module, name) == _MEGATRONS:
            return super().find_class("torch.distributed.checkpoint.metadata", "Metadata")
        if module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        if (module, name) == ("torch.serialization", "_get_layout"):
            return lambda text: {"torch.strided": torch.strided}[text]
        raise FormatError(
            f"`{METADATA}` names `{module}.{name}`, which is not one of torch's records of a checkpoint",
            "it is a pickle, which can run code when it is loaded: convert it where you trust it",
        )


def read(folder: Path) -> Contents:
    """What a distributed checkpoint holds; no code of its pickle is run.

    Raises
    ------
    FormatError
        It is damaged, names something else than torch's records, or was written by an extension of torch; or
        torch is not installed.
    """
    try:
        import torch.distributed.checkpoint.metadata as known
    except ImportError as error:
        raise FormatError(
            f"`{folder}` is a distributed checkpoint of torch, and torch, which reads it, is not installed",
            f"install it: `{install('eval')}`",
        ) from error
    data = read_bytes(folder / METADATA, maximum=MAXIMUM)
    try:
        found = _Unpickler(io.BytesIO(data)).load()
        if not isinstance(found, known.Metadata):
            raise TypeError(type(found).__name__)
        return _contents(found, known)
    except FormatError:
        raise
    except Exception as error:  # a hostile pickle may raise anything
        raise FormatError(
            f"`{folder / METADATA}` is not the metadata of a distributed checkpoint: {error!r:.200}",
            "the checkpoint is damaged or of another version: copy it again",
        ) from error


def _contents(found: Any, known: Any) -> Contents:
    paths = found.planner_data if isinstance(found.planner_data, dict) else {}
    tensors: dict[str, Entry] = {}
    others: list[str] = []
    for name, stored in found.state_dict_metadata.items():
        if not isinstance(name, str):
            raise FormatError(f"a key of the state dict is {type(name).__name__}, expected text")
        path = paths.get(name)
        is_known = isinstance(path, tuple) and bool(path)
        keys = tuple(map(str, path)) if is_known and path else tuple(name.split("."))
        if isinstance(stored, known.TensorStorageMetadata):
            chunks = tuple(_chunk(name, each, found.storage_data, known) for each in stored.chunks)
            shape = tuple(map(int, stored.size))
            _hold_possible(name, shape, stored.properties.dtype)
            _hold_whole(name, shape, chunks)
            tensors[name] = Entry(keys, is_known, stored.properties.dtype, shape, chunks)
        else:
            others.append(name)
    return Contents(tensors, others)


def _chunk(name: str, chunk: Any, storage: Any, known: Any) -> Chunk:
    place = storage.get(known.MetadataIndex(name, chunk.offsets))
    if place is None:
        raise FormatError(f"a piece of `{name}` is in no file", "the checkpoint is incomplete: copy it again")
    if getattr(place, "transform_descriptors", None):
        raise FormatError(
            f"`{name}` is stored by an extension of torch ({place.transform_descriptors}), which is not read",
            "save the checkpoint without it, or convert it with torch",
        )
    file = str(place.relative_path)
    if "/" in file or "\\" in file or "\0" in file or not file.endswith(SUFFIX):
        raise FormatError(f"`{name}` lies in `{file}`, which is not the name of a `{SUFFIX}` file next to it")
    return Chunk(
        tuple(map(int, chunk.offsets)),
        tuple(map(int, chunk.sizes)),
        file,
        int(place.offset),
        int(place.length),
    )


def _hold_possible(name: str, shape: tuple[int, ...], dtype: Any) -> None:
    """Return if a tensor of this shape and type can be."""
    import torch

    # sides of zero count as one: torch multiplies the others for its strides
    is_possible = all(side >= 0 for side in shape) and math.prod(side or 1 for side in shape) < 1 << 59
    if not is_possible or not isinstance(dtype, torch.dtype):
        raise FormatError(f"`{name}` is said to be {dtype} of {shape}, which no tensor is")


def _hold_whole(name: str, shape: tuple[int, ...], chunks: tuple[Chunk, ...]) -> None:
    """Return if boxes lie in a tensor, do not overlap and have as many elements as it."""
    for chunk in chunks:
        is_inside = len(chunk.sizes) == len(chunk.offsets) == len(shape) and all(
            offset >= 0 and size >= 0 and offset + size <= side
            for offset, size, side in zip(chunk.offsets, chunk.sizes, shape, strict=True)
        )
        if not is_inside:
            raise FormatError(f"a piece of `{name}` lies outside of its shape {shape}")
    elements = sum(math.prod(chunk.sizes) for chunk in chunks)
    if elements != math.prod(shape):
        raise FormatError(
            f"the pieces of `{name}` have {elements} elements, expected {math.prod(shape)}",
            "the checkpoint is incomplete: copy it again",
        )
    if _overlap([chunk for chunk in chunks if math.prod(chunk.sizes)]):
        raise FormatError(
            f"pieces of `{name}` overlap, and do not fill its shape {shape}",
            "the checkpoint is damaged: copy it again",
        )


def _overlap(chunks: list[Chunk]) -> bool:
    """Whether two of some boxes share an element; the axis that has most beginnings is swept."""
    if len(chunks) < 2:
        return False
    axes = range(len(chunks[0].offsets))
    swept = max(axes, key=lambda axis: len({chunk.offsets[axis] for chunk in chunks}))
    open_ones: list[Chunk] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.offsets[swept]):
        start = chunk.offsets[swept]
        open_ones = [other for other in open_ones if other.offsets[swept] + other.sizes[swept] > start]
        if any(all(_share(chunk, other, axis) for axis in axes) for other in open_ones):
            return True
        open_ones.append(chunk)
    return False


def _share(one: Chunk, other: Chunk, axis: int) -> bool:
    """Whether two boxes have places of an axis in common."""
    return (
        one.offsets[axis] < other.offsets[axis] + other.sizes[axis]
        and other.offsets[axis] < one.offsets[axis] + one.sizes[axis]
    )
