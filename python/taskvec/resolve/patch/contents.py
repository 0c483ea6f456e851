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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskvec._core import Checkpoint as Reader
from taskvec.dtypes import numpy_dtype
from taskvec.errors import Error, FormatError, NotFoundError
from taskvec.files import look
from taskvec.files.json import read_object

PRIME = "sparse_update_manifest.json"
_PRIME_FORMAT = "prime-rl-sparse-update"
_ENDINGS = ((".indices", ".values"), (".idx", ".val"))
_POSITIONS = frozenset({"I32", "I64", "U16", "U32"})
_MAXIMUM_MANIFEST = 256 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """What a patch does to one tensor, by headers; :meth:`read` gives the values.

    Attributes
    ----------
    is_whole : bool
        Whether the whole tensor is replaced.
    dtype : str
        Of the values, as safetensors names it.
    count : int
        Elements that are given.
    shape : tuple of int or None
        Of the tensor, where the patch says it.
    """

    is_whole: bool
    dtype: str
    count: int
    shape: tuple[int, ...] | None
    _read: Callable[[], tuple[np.ndarray | None, np.ndarray]]

    def read(self) -> tuple[np.ndarray | None, np.ndarray]:
        """Positions in row-major order, int64, ascending (none of a whole tensor), and as many values.

        Raises
        ------
        FormatError
            Positions are negative, or given twice.
        """
        return self._read()


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
    infos = {name: (dtype, tuple(shape)) for name, dtype, shape, *_ in reader.tensors()}
    encoding = reader.metadata.get("encoding", "raw").lower().rpartition(".")[2]
    sparse = _Sparse(path, reader, infos)
    changes: dict[str, Change] = {}
    used = set()
    for positions, values in _ENDINGS:
        for key in infos:
            name = key.removesuffix(positions)
            if name == key or name + values not in infos:
                continue
            if name in changes or name in infos:
                raise FormatError(f"`{path}` changes `{name}` in two ways", "write the patch again")
            own = encoding if positions == ".idx" else "raw"
            changes[name] = sparse.change(name, key, name + values, None, own)
            used |= {key, name + values}
    if not changes:
        raise FormatError(
            f"`{path}` is not a patch: it has no NAME.indices and NAME.values",
            "give it as a model by itself, or save the patch as positions and values",
        )
    for name in infos.keys() - used:
        changes[name] = sparse.whole(name)
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
    except Error:
        raise
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
    infos = {name: (dtype, tuple(shape)) for name, dtype, shape, *_ in reader.tensors()}
    sparse = _Sparse(path, reader, infos)
    changes: dict[str, Change] = {}
    for entry in manifest["tensors"]:
        name, indices, values = str(entry["name"]), entry["indices"], entry["values"]
        shape = tuple(int(size) for size in entry["shape"])
        missing = next((key for key in (indices, values) if key not in infos), None)
        if missing is not None:
            raise FormatError(
                f"`{path}` has no tensor `{missing}`, which holds `{name}`", "write the patch again"
            )
        if name in changes:
            raise FormatError(f"`{path}` changes `{name}` in two ways", "write the patch again")
        changes[name] = sparse.change(name, indices, values, shape, "raw")
    return Patch(folder, changes, **steps)


@dataclass(frozen=True, slots=True)
class _Sparse:
    """A safetensors file with positions and values; those of one tensor are in memory at a time."""

    path: Path
    reader: Reader
    infos: Mapping[str, tuple[str, tuple[int, ...]]]

    def change(
        self, name: str, positions: str, values: str, shape: tuple[int, ...] | None, encoding: str
    ) -> Change:
        """The change of a tensor, by the names of its positions and values."""
        (kind, places), (dtype, given) = self.infos[positions], self.infos[values]
        if kind not in _POSITIONS:
            raise FormatError(
                f"`{self.path}`: positions of `{name}` are {kind}, expected int32",
                "write them as plain positions (encoding `raw`)",
            )
        if encoding not in ("raw", "gap_delta"):
            raise FormatError(
                f"`{self.path}`: positions are encoded as `{encoding}`, which is not read",
                "write them as `raw` or `gap_delta`",
            )
        count = math.prod(places)
        if count != math.prod(given):
            raise FormatError(
                f"`{self.path}`: `{name}` has {count} positions and {math.prod(given)} values",
                "write the patch again",
            )

        def read() -> tuple[np.ndarray, np.ndarray]:
            found = np.frombuffer(self.reader.read(positions), numpy_dtype(kind)).astype(np.int64)
            if encoding == "gap_delta":
                found = self._from_gaps(name, found)
            held = np.frombuffer(self.reader.read(values), numpy_dtype(dtype))
            order = np.argsort(found, kind="stable")
            found = found[order]
            if count and (found[0] < 0 or (np.diff(found) == 0).any()):
                raise FormatError(
                    f"`{self.path}`: positions of `{name}` are negative, or given twice",
                    "write the patch again",
                )
            return found, held[order]

        return Change(False, dtype, count, shape, read)

    def whole(self, name: str) -> Change:
        """The change of a tensor that is there as a whole."""
        dtype, shape = self.infos[name]
        kind = numpy_dtype(dtype)
        return Change(
            True, dtype, math.prod(shape), shape, lambda: (None, np.frombuffer(self.reader.read(name), kind))
        )

    def _from_gaps(self, name: str, gaps: np.ndarray) -> np.ndarray:
        """Positions from the numbers of elements that lie between them."""
        # sums of numbers as large as these could pass the largest one, and come back as small positions
        if len(gaps) and (gaps.min() < 0 or int(gaps.max()) >= 2**62 // len(gaps)):
            raise FormatError(
                f"`{self.path}`: gaps of `{name}` are negative, or beyond any tensor", "write the patch again"
            )
        return np.cumsum(gaps + 1) - 1
