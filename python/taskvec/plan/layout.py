"""The weight file of each output tensor."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from taskvec.errors import OutputError
from taskvec.files.variants import Chosen, renamed

if TYPE_CHECKING:
    from taskvec.models.model import TensorInfo

# The size that transformers wrote for years.
DEFAULT_SHARD_SIZE = 5_000_000_000
SINGLE = "model.safetensors"
# Bytes of a file's name: it is written as `.NAME.part`, for which file systems allow 255.
LONGEST_NAME = 249


class Sized(NamedTuple):
    """An output tensor and the bytes of its data."""

    name: str
    nbytes: int


class Layout(NamedTuple):
    """File names, and for each tensor the index of its file; tensors keep their order."""

    shards: list[str]
    of: list[int]


def layout(
    tensors: Sequence[Sized], own: Mapping[str, TensorInfo], *, max_shard_size: int | None = None
) -> Layout:
    """Lay tensors out over weight files.

    The target's own files and their names are kept, unless a size is asked for, or a wider type would make a
    file larger than 5 GB and than the target's largest.

    Parameters
    ----------
    tensors : sequence of Sized
        In the target's own file order; tensors that the target does not have come last.
    own : mapping
        The target's tensors.
    max_shard_size : int, optional
        Bytes of tensor data per file at most; a larger tensor has a file of its own.

    Raises
    ------
    OutputError
        A file of the target has a name that is too long to be written.
    """
    if max_shard_size is not None:
        return _fill(tensors, max_shard_size)
    if own and not next(iter(own.values())).file:  # a target in memory has no files
        return _fill(tensors, DEFAULT_SHARD_SIZE)
    kept, sizes, own_sizes = _keep(tensors, own)
    limit = max(DEFAULT_SHARD_SIZE, *own_sizes)
    if max(sizes) > limit:
        return _fill(tensors, limit)
    _check_names(kept.shards)
    return kept


def layout_in_folders(
    tensors: Sequence[Sized],
    own: Mapping[str, TensorInfo],
    sub_models: Mapping[str, Chosen],
    *,
    max_shard_size: int | None = None,
) -> Layout:
    """The same of a target whose weights lie in several folders, or are of a variant: each folder on its own.

    Parameters
    ----------
    tensors : sequence of Sized
        In the order of the folders: :func:`folder_order`.
    own : mapping
        The target's tensors.
    sub_models : mapping
        Its folders.
    max_shard_size : int, optional
        As of :func:`layout`.
    """
    shards: list[str] = []
    of: list[int] = []
    names = list(sub_models)
    for folder, group in itertools.groupby(tensors, lambda each: names[folder_order(names, each.name)]):
        here = list(group)
        inside = {name: info for name, info in own.items() if info.file in sub_models[folder].files}
        found = layout(here, inside, max_shard_size=max_shard_size)
        if not set(found.shards) <= set(sub_models[folder].files):
            found = found._replace(shards=renamed(sub_models[folder], folder, len(found.shards))[0])
        of += [len(shards) + number for number in found.of]
        shards += found.shards
    return Layout(shards, of)


def folder_order(folders: Sequence[str], name: str) -> int:
    """Which of the folders of a checkpoint a tensor lies in, by its name: the longest one before it."""
    fitting = [number for number, folder in enumerate(folders) if name.startswith(folder)]
    return max(fitting, key=lambda number: len(folders[number]))


def _check_names(shards: Sequence[str]) -> None:
    bare = [name.rpartition("/")[2] for name in shards]
    longest = max(bare, key=lambda name: len(os.fsencode(name)), default="")
    length = len(os.fsencode(longest))
    if length > LONGEST_NAME:
        raise OutputError(
            f"the target's file `{longest}` has a name of {length} bytes, expected at most "
            f"{LONGEST_NAME}: a file is written under a longer name until it is whole",
            "rename it, or lay the output out with `--max-shard-size 5GB`",
        )


def _keep(tensors: Sequence[Sized], own: Mapping[str, TensorInfo]) -> tuple[Layout, list[int], list[int]]:
    index: dict[str, int] = {}
    of: list[int] = []
    sizes: list[int] = []
    own_sizes: list[int] = []
    for name, nbytes in tensors:
        stored = own.get(name)
        if stored is not None and stored.file not in index:
            index[stored.file] = len(index)
            sizes.append(0)
            own_sizes.append(0)
        shard = len(index) - 1 if stored is None else index[stored.file]
        of.append(shard)
        sizes[shard] += nbytes
        own_sizes[shard] += nbytes if stored is None else stored.nbytes
    return Layout(list(index), of), sizes, own_sizes


def _fill(tensors: Sequence[Sized], limit: int) -> Layout:
    of: list[int] = []
    shard = filled = 0
    for _, nbytes in tensors:
        if filled and filled + nbytes > limit:
            shard, filled = shard + 1, 0
        of.append(shard)
        filled += nbytes
    count = shard + 1
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    return Layout(names if count > 1 else [SINGLE], of)
