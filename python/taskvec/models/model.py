"""Model: a checkpoint's headers, config and file list; the record that every room above works on."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

from taskvec.errors import FormatError, HubError, NotFoundError, TensorNotFoundError
from taskvec.files.json import MAXIMUM_BYTES, read_bytes
from taskvec.files.look import Stamp
from taskvec.files.variants import Chosen
from taskvec.models.pickled import restored, state_of
from taskvec.text import nearest, shown

if TYPE_CHECKING:
    from taskvec.models.assembled import Assembled
    from taskvec.models.quantised.format import Packed
    from taskvec.progress import Callback

Kind = Literal["checkpoint", "memory"]


class TensorInfo(NamedTuple):
    """One stored tensor: its name, dtype as safetensors writes it (``BF16``), shape, bytes and file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str


class Weights(Protocol):
    """A reader of the weights: the engine's reader of files, or the buffers of this process."""

    def read(self, name: str) -> Any:
        """The bytes of one tensor, in row-major order, little-endian."""
        ...

    def sample(self, name: str, start: int, count: int) -> bytes:
        """Elements ``start`` to ``start + count`` of one tensor as little-endian float32."""
        ...

    def decode(self, format: bytes, name: str, shape: Sequence[int], start: int, count: int) -> bytes:  # noqa: A002
        """The same of a packed weight, by its format (as a plan has it, in JSON) and its logical name."""
        ...

    @property
    def metadata(self) -> dict[str, str]:
        """The members of the headers besides their tensors."""
        ...


@runtime_checkable
class Distant(Protocol):
    """Weights whose elements take a while to come each time that some are asked for."""

    def expect(self, wanted: Iterable[tuple[str, int, int]]) -> None:
        """Fetch together what is to be sampled next: names, first elements and counts."""
        ...


class RemoteFile(NamedTuple):
    """One file at an address.

    Attributes
    ----------
    name : str
        Relative, with ``/`` between its parts.
    size : int
        In bytes.
    digest : str or None
        In hexadecimal, where the address lists one: SHA-256 (64 digits) or git's SHA-1 of a blob (40).
    """

    name: str
    size: int
    digest: str | None = None


class Identity(NamedTuple):
    """The lasting name of the files at an address: other bytes have another one.

    Attributes
    ----------
    repository : str
        The place: ``org/name`` on the hub, an address without its version elsewhere.
    revision : str
        The state: a commit, a version, a digest of the files' ETags.
    address : str
        Opens these files again, and with them this state where the place keeps old ones:
        ``hf://org/name@commit``.
    """

    repository: str
    revision: str
    address: str


class Remote(Protocol):
    """Files that are reached over a network: a repository on the hub, a prefix of an object store.

    It stands for one state of them, its identity; a file that has changed since is an error. Whatever fails
    is raised as a :class:`taskvec.Error` with the way out: ``NotFoundError`` for a name that is not listed,
    ``HubError`` for an address that refuses, cannot be reached or sends something else than it lists,
    ``OutputError`` for a local folder that cannot be written. Methods may be called from several threads.
    """

    @property
    def identity(self) -> Identity:
        """The lasting name of the files."""
        ...

    @property
    def folder(self) -> Path:
        """The local folder that ``fetch`` fills: a cache of this identity. A file in it is complete."""
        ...

    def list(self) -> Mapping[str, RemoteFile]:
        """Every file by its name."""
        ...

    def size(self, name: str) -> int:
        """The bytes of one file."""
        ...

    def read(self, name: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Parts of one file, each from its first offset up to, and without, its second one.

        Nothing is kept; of a file that has been fetched the local copy may be read.
        """
        ...

    def fetch(
        self, names: Collection[str], folder: Path | None = None, progress: Callback | None = None
    ) -> Path:
        """Fetch files that are not here yet, in the order of their names given.

        Parameters
        ----------
        names : collection of str
            The files.
        folder : path, optional
            Where to put them under their names; without it, the remote's own ``folder``.
        progress : callable, optional
            Told the bytes of phase ``"download"``.

        Returns
        -------
        path
            The folder that holds them.
        """
        ...


class Stored(NamedTuple):
    """A file at an address, as the address has it.

    Attributes
    ----------
    size : int
        In bytes.
    tag : str or None
        Its ETag: another one for other bytes.
    """

    size: int
    tag: str | None


class Place(Protocol):
    """An address that can be written to, as it is now: a :class:`Remote` is for reading one state of it.

    Names are relative, with ``/`` between their parts. Errors are those of :class:`Remote`. Methods may be
    called from several threads.
    """

    @property
    def address(self) -> str:
        """As it is shown: without secrets."""
        ...

    def list(self, below: str = "") -> Mapping[str, Stored]:
        """Every file by its name, or those in a folder."""
        ...

    def head(self, name: str) -> Stored | None:
        """One file; ``None`` where there is none."""
        ...

    def get(self, name: str) -> bytes | None:
        """The bytes of a small file; ``None`` where there is none."""
        ...

    def write(self, name: str, path: Path, told: Callable[[int], None]) -> Stored:
        """Send a local file, in equal parts if it is large; it is there when it is whole, or not at all.

        ``told`` is called with the bytes sent so far; what it raises aborts the upload.

        Raises
        ------
        HubError
            What arrived is not what was sent.
        """
        ...

    def put(self, name: str, data: bytes) -> Stored:
        """Write a small file, whatever is there."""
        ...

    def put_absent(self, name: str, data: bytes) -> bool:
        """Write a small file where none is; whether it was this call. One of these very bytes counts as such,
        since the answer to an earlier try may have been lost."""
        ...

    def delete(self, names: Collection[str]) -> None:
        """Remove files; those that do not exist are left so."""
        ...


def fetched_bytes(spec: str, remote: Remote, name: str) -> bytes:
    """The bytes of one small file at an address, fetched first if it is not here.

    Raises
    ------
    FormatError
        It is larger than configurations and tokenizers are.
    """
    size = remote.size(name)
    if size > MAXIMUM_BYTES:
        raise FormatError(f"`{name}` of `{spec}` has {size} bytes, expected at most {MAXIMUM_BYTES}")
    return read_bytes(remote.fetch((name,)) / name)


def no_tensor(owner: str, name: object, names: Iterable[str]) -> TensorNotFoundError:
    """The error that `owner` has no tensor of a name, with the nearest of those that it has."""
    near = nearest(str(name), names)
    return TensorNotFoundError(
        f"{owner} has no tensor `{shown(name)}`",
        f"did you mean `{near}`?" if near else "`keys()` lists the names",
    )


@dataclass(frozen=True, eq=False, slots=True)
class Model:
    """A checkpoint's headers, config and file list; made by :func:`taskvec.resolve.open.open`, never changed.

    Attributes
    ----------
    spec : str
        What the user wrote.
    path : Path or None
        The local folder, or the folder of the single file; ``None`` for a remote one of which only headers
        are here, and for tensors in memory.
    repository, revision : str or None
        Name on the hub and the commit it was resolved to; the identity of what another address holds.
    address : str or None
        The address that opens the files of that revision again.
    tensors : mapping of str to TensorInfo
        What the model computes with, in file order: shard by shard, by offset. A packed weight is one tensor,
        with the type of plain output, the bytes of all its parts and the file of its codes.
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
    remote : Remote or None
        Where the files are fetched from, when they are not here.
    kind : {"checkpoint", "memory"}
        Whether the weights lie in files or in buffers of this process.
    stamps : mapping of str to Stamp
        The states of ``other_files`` when a local folder was opened.
    assembled : mapping of str to Assembled
        Those of ``tensors`` that are made of stored ones, where the model has been fitted to another layout.
    stored : mapping of str to TensorInfo
        Every stored tensor as the headers have it; ``tensors`` itself where no weight is packed.
    packed : mapping of str to Packed
        Those of ``tensors`` that are stored packed: codes with scales and the like.
    permuted : frozenset of str
        Those of ``tensors`` whose rows are in the order of an output's vocabulary, unlike the stored ones.
    header_metadata : mapping of str to str
        The members of the headers besides their tensors, of weights that are not here.
    sub_models : mapping of str to Chosen
        The folders that weights lie in, by their paths with ``/`` behind them (empty for the top), where
        these are several, or the weights are of a variant. Tensors have the path before their names.
    configs : mapping of str to dict
        The ``config.json`` of each of these folders but the top.
    left_states : mapping of str to int
        Of a distributed checkpoint, how many tensors are not the model's, by what they belong to.
    decoded : mapping of str to int
        Of a GGUF file, how many of its tensors are stored in each type; ``tensors`` are their values.
    is_laid_out : bool
        Whether the weights are in another form (GGUF, a distributed checkpoint), and the files in ``path``
        are safetensors made of them.
    patched : mapping of str to int
        Of a base with a patch put in, how many elements of which tensors the patch sets.
    unreadable : str or None
        Why packed weights that are there cannot be decoded: then ``tensors`` are the stored ones.
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
    address: str | None = None
    left_files: tuple[str, ...] = ()
    download_bytes: int = 0
    remote: Remote | None = None
    weights: Any = None
    kind: Kind = "checkpoint"
    stamps: Mapping[str, Stamp] = field(default_factory=dict, repr=False)
    assembled: Mapping[str, Assembled] = field(default_factory=dict, repr=False)
    stored: Mapping[str, TensorInfo] = field(default=None, repr=False)  # type: ignore[assignment]
    packed: Mapping[str, Packed] = field(default_factory=dict, repr=False)
    unreadable: str | None = None
    permuted: frozenset[str] = frozenset()
    header_metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    sub_models: Mapping[str, Chosen] = field(default_factory=dict, repr=False)
    configs: Mapping[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    left_states: Mapping[str, int] = field(default_factory=dict, repr=False)
    decoded: Mapping[str, int] = field(default_factory=dict, repr=False)
    is_laid_out: bool = False
    patched: Mapping[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.stored is None:
            object.__setattr__(self, "stored", self.tensors)

    def __reduce__(self) -> Any:
        return restored, (type(self), state_of(self))

    def __deepcopy__(self, memo: object) -> Self:
        return self  # it is never changed

    def info(self, name: str) -> TensorInfo:
        """One tensor as the headers describe it.

        Raises
        ------
        TensorNotFoundError
            There is no tensor of this name; the nearest one is named.
        """
        info = self.tensors.get(name)
        if info is None:
            raise no_tensor(f"`{self.spec}`", name, self.tensors)
        return info

    @property
    def total_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(info.shape) for info in self.tensors.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def reader(self) -> Weights:
        """The reader of the weights.

        Raises
        ------
        HubError
            The weights have not been downloaded.
        """
        if self.weights is None:
            raise HubError(
                f"the weights of `{self.spec}` have not been downloaded",
                "call `.materialise()`, which fetches them",
            )
        return self.weights

    @property
    def metadata(self) -> Mapping[str, str]:
        """The members of the headers besides their tensors."""
        return self.header_metadata if self.weights is None else self.weights.metadata

    @property
    def location(self) -> Path:
        """The folder of the weights; of a remote one the folder that they will have here."""
        if self.path is not None:
            return self.path
        if self.remote is not None:
            return self.remote.folder
        return Path(f"{self.spec} #{self.weights.number}" if self.kind == "memory" else self.spec)

    def read_file(self, name: str) -> bytes:
        """The bytes of one of ``other_files``; a remote one is fetched first.

        Raises
        ------
        NotFoundError
            There is no such file.
        """
        if name not in self.other_files:
            raise NotFoundError(f"`{self.spec}` has no file `{name}`")
        if self.path is not None:
            return read_bytes(self.path / name)
        assert self.remote is not None
        return fetched_bytes(self.spec, self.remote, name)

    @property
    def dtypes(self) -> dict[str, int]:
        """How many elements there are of each dtype, the most frequent first."""
        counts: Counter[str] = Counter()
        for info in self.tensors.values():
            counts[info.dtype] += math.prod(info.shape)
        return dict(counts.most_common())

    @property
    def types(self) -> dict[str, int]:
        """The same in words: a packed weight counts to its format, ``FP8 block 128x128, BF16 scales``."""
        if not self.packed:
            return self.dtypes
        counts: Counter[str] = Counter()
        for info in self.tensors.values():
            counts[self.type_of(info.name)] += math.prod(info.shape)
        return dict(counts.most_common())

    def type_of(self, name: str) -> str:
        """How one tensor is stored: its dtype, or the format of a packed one in words."""
        packed = self.packed.get(name)
        return self.tensors[name].dtype if packed is None else packed.format.words

    def expect(self, wanted: Iterable[tuple[str, int, int]]) -> None:
        """Prepare for samples of these names, first elements and counts, where each takes a while."""
        if isinstance(self.weights, Distant):
            self.weights.expect([each for each in wanted if each[0] not in self.packed])

    def sample(self, name: str, start: int, count: int) -> bytes:
        """Elements ``start`` to ``start + count`` of one tensor as little-endian float32, decoded if packed.

        Raises
        ------
        HubError
            The weights have not been downloaded.
        """
        packed = self.packed.get(name)
        if packed is None:
            return self.reader.sample(name, start, count)
        form = json.dumps(packed.format.document()).encode()
        return self.reader.decode(form, name, self.tensors[name].shape, start, count)
