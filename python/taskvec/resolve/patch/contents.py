"""Reading a patch: which elements of which tensors have which values.

Three forms are known, all of them safetensors with positions counted in row-major order:

- ``NAME.indices`` (int32, or int64) and ``NAME.values``, and whole tensors as ``NAME``: TRL's delta
  weight sync as it was published (https://huggingface.co/blog/delta-weight-sync).
- ``NAME.idx`` and ``NAME.val``, the positions raw or as gaps (``encoding`` in the metadata: ``raw``,
  ``gap_delta``): TRL's asynchronous GRPO (trl/experimental/async_grpo).
- A folder with ``sparse_update_manifest.json``, which names the tensors of another file: prime-rl's sparse
  updates (prime_rl/utils/sparse_update.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskvec._core import Checkpoint as Reader
from taskvec.dtypes import numpy_dtype
from taskvec.errors import FormatError, NotFoundError
from taskvec.files import look
from taskvec.files.json import read_object

PRIME = "sparse_update_manifest.json"
_PRIME_FORMAT = "prime-rl-sparse-update"
_ENDINGS = ((".indices", ".values"), (".idx", ".val"))
_POSITIONS = frozenset({"I32", "I64", "U16", "U32"})
_MAXIMUM_MANIFEST = 256 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """What a patch does to one tensor.

    Attributes
    ----------
    indices : numpy.ndarray or None
        Positions in row-major order, int64, ascending; ``None`` where the whole tensor is replaced.
    dtype : str
        Of the values, as safetensors names it.
    values : numpy.ndarray
        As many values of that type.
    shape : tuple of int or None
        Of the tensor, where the patch says it.
    """

    indices: np.ndarray | None
    dtype: str
    values: np.ndarray
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch: its changes by tensor, and the steps that it leads from and to, where it says them."""

    path: Path
    changes: Mapping[str, Change]
    base_step: int | None = None
    step: int | None = None


def read(path: Path) -> Patch:
    """Read a patch: a file, or a folder with a manifest of prime-rl.

    Raises
    ------
    NotFoundError
        There is none.
    FormatError
        It is damaged, or of a form that is not known; the message names the tensor.
    """
    if look.is_folder(path):
        if look.exists(path / PRIME):
            return _of_prime(path)
        raise FormatError(
            f"`{path}` is a folder without `{PRIME}`, so not a patch",
            "give a safetensors file with NAME.indices and NAME.values, or the folder of a step of prime-rl",
        )
    if not look.exists(path):
        raise NotFoundError(f"patch `{path}` was not found", "check the path")
    reader = Reader(str(path))
    infos = {name: (dtype, shape) for name, dtype, shape, *_ in reader.tensors()}
    encoding = reader.metadata.get("encoding", "raw").lower().rpartition(".")[2]
    changes: dict[str, Change] = {}
    for positions, values in _ENDINGS:
        for key in infos:
            name = key.removesuffix(positions)
            if name == key or name + values not in infos:
                continue
            indices = _positions(
                path, name, infos[key][0], reader.read(key), encoding if positions == ".idx" else "raw"
            )
            changes[name] = _change(
                path, name, indices, infos[name + values][0], reader.read(name + values), None
            )
    used = {name + ending for name in changes for pair in _ENDINGS for ending in pair}
    for name, (dtype, shape) in infos.items():
        if name not in used:
            whole = np.frombuffer(reader.read(name), numpy_dtype(dtype))
            changes[name] = Change(None, dtype, whole, tuple(shape))
    if not any(change.indices is not None for change in changes.values()):
        raise FormatError(
            f"`{path}` is not a patch: it has no NAME.indices and NAME.values",
            "give it as a model by itself, or save the patch as positions and values",
        )
    return Patch(path, changes)


def _of_prime(folder: Path) -> Patch:
    manifest = read_object(folder / PRIME, maximum=_MAXIMUM_MANIFEST)
    if manifest.get("format") != _PRIME_FORMAT or manifest.get("version") != 1:
        raise FormatError(
            f"`{folder / PRIME}` has format {manifest.get('format')!r}, version "
            f"{manifest.get('version')!r}; known is {_PRIME_FORMAT!r}, version 1",
            "apply it with the release of prime-rl that wrote it",
        )
    if manifest.get("compressed"):
        raise FormatError(
            f"the patch in `{folder}` is compressed by zstd", "decompress it, or write it uncompressed"
        )
    try:
        return _from_manifest(folder, manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"`{folder / PRIME}` is damaged: {error!r}", "write the patch again") from None


def _from_manifest(folder: Path, manifest: Mapping[str, Any]) -> Patch:
    steps = {key: manifest[key] for key in ("base_step", "step") if isinstance(manifest.get(key), int)}
    if not manifest.get("patch_file"):
        return Patch(folder, {}, **steps)
    file = str(manifest["patch_file"])
    if file != Path(file).name:
        raise FormatError(
            f"`{folder / PRIME}` names a file outside its folder: `{file}`", "do not trust this patch"
        )
    path = folder / file
    reader = Reader(str(path))
    infos = {name: dtype for name, dtype, *_ in reader.tensors()}
    changes: dict[str, Change] = {}
    for entry in manifest["tensors"]:
        name, indices, values = str(entry["name"]), entry["indices"], entry["values"]
        shape = tuple(int(size) for size in entry["shape"])
        missing = next((key for key in (indices, values) if key not in infos), None)
        if missing is not None:
            raise FormatError(
                f"`{path}` has no tensor `{missing}`, which holds `{name}`", "write the patch again"
            )
        places = _positions(path, name, infos[indices], reader.read(indices), "raw")
        changes[name] = _change(path, name, places, infos[values], reader.read(values), shape)
    return Patch(folder, changes, **steps)


def _positions(path: Path, name: str, dtype: str, data: bytes, encoding: str) -> np.ndarray:
    """Positions as they are counted from the first element."""
    if dtype not in _POSITIONS:
        raise FormatError(
            f"`{path}`: positions of `{name}` are {dtype}, expected int32",
            "write them as plain positions (encoding `raw`)",
        )
    found = np.frombuffer(data, numpy_dtype(dtype)).astype(np.int64)
    if encoding == "gap_delta":
        return np.cumsum(found + 1) - 1
    if encoding != "raw":
        raise FormatError(
            f"`{path}`: positions are encoded as `{encoding}`, which is not read",
            "write them as `raw` or `gap_delta`",
        )
    return found


def _change(
    path: Path, name: str, indices: np.ndarray, dtype: str, data: bytes, shape: tuple[int, ...] | None
) -> Change:
    values = np.frombuffer(data, numpy_dtype(dtype))
    if len(values) != len(indices):
        raise FormatError(
            f"`{path}`: `{name}` has {len(indices)} positions and {len(values)} values",
            "write the patch again",
        )
    order = np.argsort(indices, kind="stable")
    indices = indices[order]
    if len(indices) and (indices[0] < 0 or (np.diff(indices) == 0).any()):
        raise FormatError(
            f"`{path}`: positions of `{name}` are negative, or given twice", "write the patch again"
        )
    if shape is not None and len(indices) and indices[-1] >= math.prod(shape):
        raise FormatError(
            f"`{path}`: position {indices[-1]} is beyond `{name}` of {math.prod(shape)} elements",
            "write the patch again",
        )
    return Change(indices, dtype, values[order], shape)
