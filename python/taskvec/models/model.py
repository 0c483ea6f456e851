"""Checkpoints: a folder, a file or a hub repository opened by its headers; weights are read on demand."""

from __future__ import annotations

import difflib
import html
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from taskvec import _core
from taskvec.errors import HubError, NotFoundError
from taskvec.files.json import read_bytes

if TYPE_CHECKING:
    import numpy as np

    from taskvec.lazy.vector import TaskVector
    from taskvec.progress import Callback
    from taskvec.resolve.repository import Repository


class TensorInfo(NamedTuple):
    """One stored tensor: its name, dtype as safetensors writes it (``BF16``), shape, bytes and file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Checkpoint:
    """A checkpoint's headers, config and file list; made by :func:`open`, never changed.

    ``checkpoint[name]`` reads one tensor, ``checkpoint.items()`` streams them all, ``donor - reference`` is a
    :class:`taskvec.TaskVector` and ``target + vector`` a :class:`taskvec.Merge`, both lazy.

    Attributes
    ----------
    spec : str
        What the user wrote.
    path : Path or None
        The local folder, or the folder of the single file; ``None`` for a repository of which only headers
        are here.
    repository, revision : str or None
        Name on the hub and the commit it was resolved to.
    tensors : mapping of str to TensorInfo
        In file order: shard by shard, by offset.
    config : dict
        ``config.json``; empty if there is none.
    other_files : tuple of str
        The files that come along to an output, relative POSIX names.
    left_files : tuple of str
        The files that do not: weights that are not in use, links to folders, special files.
    file_sizes : dict
        The weight files in use and their sizes in bytes.
    fingerprint : str
        BLAKE3 over the headers of the weight files.
    download_bytes : int
        What a run would still download.
    """

    spec: str
    path: Path | None
    tensors: Mapping[str, TensorInfo]
    config: dict[str, Any]
    other_files: tuple[str, ...]
    file_sizes: dict[str, int]
    fingerprint: str
    repository: str | None = None
    revision: str | None = None
    left_files: tuple[str, ...] = ()
    download_bytes: int = 0
    _reader: _core.Checkpoint | None = None
    _remote: Repository | None = None

    kind = "checkpoint"

    @property
    def total_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(info.shape) for info in self.tensors.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def keys(self) -> Iterator[str]:
        """The tensor names in file order."""
        return iter(self.tensors)

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Reads the tensors one after the other."""
        return ((name, self[name]) for name in self.tensors)

    def __getitem__(self, name: str) -> np.ndarray:
        """Read one tensor.

        Returns
        -------
        ndarray
            Of the stored dtype and shape, read-only; BF16 and F8 through ml_dtypes.

        Raises
        ------
        NotFoundError
            There is no tensor of this name.
        HubError
            The weights have not been downloaded.
        """
        info = self.tensors.get(name)
        if info is None:
            near = difflib.get_close_matches(name, self.tensors, n=1)
            hint = f"did you mean `{near[0]}`?" if near else "`keys()` lists the names"
            raise NotFoundError(f"`{self.spec}` has no tensor `{name}`", hint)
        import numpy as np  # a run of whole checkpoints never needs it, and importing it takes 100 ms

        from taskvec.dtypes import numpy_dtype

        return np.frombuffer(self.reader.read(name), dtype=numpy_dtype(info.dtype)).reshape(info.shape)

    @property
    def reader(self) -> _core.Checkpoint:
        """The engine's reader of the weights.

        Raises
        ------
        HubError
            The weights have not been downloaded.
        """
        if self._reader is None:
            raise HubError(
                f"the weights of `{self.spec}` have not been downloaded",
                "call `.materialise()`, which fetches them",
            )
        return self._reader

    @property
    def location(self) -> Path:
        """The folder of the weights; of a repository, the one that they will have in the cache."""
        if self.path is not None:
            return self.path
        assert self._remote is not None
        return self._remote.snapshot

    def read_file(self, name: str) -> bytes:
        """The bytes of one of ``other_files``; a repository's file is fetched through the cache.

        Raises
        ------
        NotFoundError
            There is no such file.
        """
        if name not in self.other_files:
            raise NotFoundError(f"`{self.spec}` has no file `{name}`")
        if self.path is not None:
            return read_bytes(self.path / name)
        assert self._remote is not None
        return self._remote.read(name)

    def materialise(self, progress: Callback | None = None) -> Checkpoint:
        """Downloads what a run needs and is not here yet: weights in use, config, tokenizer and the like.

        Returns
        -------
        Checkpoint
            With a ``path``; this one itself where everything is local already.

        Raises
        ------
        HubError
            The download failed, or its headers are not those seen before.
        """
        if self._remote is None:
            return self
        from taskvec.resolve.local import open_folder
        from taskvec.resolve.remote import needed_files

        names = needed_files(self._remote, self.file_sizes)
        local = open_folder(self.spec, self._remote.download(names, progress))
        if local.fingerprint != self.fingerprint:
            raise HubError(
                f"the weights of `{self.spec}` have other headers than the hub sent before",
                "run the same command again; if it stays so, look at the mirror or proxy (HF_ENDPOINT)",
            )
        return replace(local, repository=self.repository, revision=self.revision)

    def __sub__(self, other: object) -> TaskVector:
        if not isinstance(other, Checkpoint):
            return NotImplemented
        from taskvec.lazy.vector import TaskVector

        return TaskVector.difference(self, other)

    @property
    def dtypes(self) -> dict[str, int]:
        """How many elements there are of each dtype, the most frequent first."""
        counts: Counter[str] = Counter()
        for info in self.tensors.values():
            counts[info.dtype] += math.prod(info.shape)
        return dict(counts.most_common())

    def _facts(self) -> dict[str, str]:
        facts = {
            "tensors": f"{len(self.tensors):,}",
            "parameters": _short(self.total_parameters),
            "dtype": ", ".join(self.dtypes) or "none",
            "size": _bytes(self.total_bytes),
            "files": str(len(self.file_sizes)),
        }
        if self.config.get("architectures"):
            facts = {"architecture": ", ".join(map(str, self.config["architectures"])), **facts}
        if self.revision:
            facts["revision"] = self.revision
        if self.download_bytes:
            facts["to download"] = _bytes(self.download_bytes)
        return facts

    def __repr__(self) -> str:
        facts = self._facts()
        facts.pop("revision", None)
        return f"Checkpoint({self.spec!r}, {', '.join(f'{key}: {value}' for key, value in facts.items())})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>"
            for key, value in self._facts().items()
        )
        return f"<table><caption>Checkpoint <code>{html.escape(self.spec)}</code></caption>{rows}</table>"


def _short(count: int) -> str:
    for unit, name in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count:,}"


def _bytes(count: int) -> str:
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count} bytes"
