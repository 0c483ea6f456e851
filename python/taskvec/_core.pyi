"""The engine: headers, single tensors, runs and digests. No arithmetic happens on this side of the border."""

import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Checkpoint",
    "FolderLock",
    "__version__",
    "assemble_output",
    "blake3_hex",
    "compare",
    "cpu_level",
    "cpu_levels",
    "digest_arrays",
    "digest_file",
    "evaluate",
    "evaluate_measured",
    "extract",
    "finish_folder",
    "floor",
    "in_place",
    "join_vector",
    "memcpy_rate",
    "ranges",
    "replace_output",
    "run",
    "write_atomic",
]

_Path: TypeAlias = str | os.PathLike[str]
# Sources of kind memory in the plan's order: name, dtype, shape and bytes of each tensor.
_Memories: TypeAlias = Sequence[Sequence[tuple[str, str, Sequence[int], NDArray[np.uint8]]]]

__version__: str

@final
class Checkpoint:
    """An opened folder or file; headers only until a tensor is read."""

    def __new__(cls, path: _Path, files: Sequence[str] | None = None) -> Checkpoint:
        """Open what is found in a folder, or these files of it.

        Tensors of files in sub-folders have the path of the sub-folder before their names.
        """

    def tensors(self) -> Iterator[tuple[str, str, tuple[int, ...], str, int, int]]:
        """(name, dtype, shape, file, offset in the file, bytes) of every tensor in file order."""

    def files(self) -> list[tuple[str, int]]:
        """Weight files and their sizes in bytes."""

    @property
    def metadata(self) -> dict[str, str]:
        """What the headers say beside their tensors, all files together."""

    @property
    def fingerprint(self) -> str:
        """BLAKE3 over the headers."""

    def read(self, name: str) -> bytes:
        """The bytes of one tensor."""

    def sample(self, name: str, start: int, count: int) -> bytes:
        """Elements ``start .. start + count`` of one tensor as little-endian float32."""

    def decode(self, format: bytes, name: str, shape: Sequence[int], start: int, count: int) -> bytes:  # noqa: A002
        """Elements ``start .. start + count`` of a packed tensor as little-endian float32.

        ``format`` is JSON, as a plan has it; ``name`` and ``shape`` are those of the logical tensor.
        """

@final
class FolderLock:
    """The lock of an output folder, held from ``__enter__`` to ``__exit__``.

    ``run``, ``extract`` and ``finish_folder`` of this process, one at a time, use it instead of their own;
    runs of others are refused. A folder that is created for it goes again where nothing was put into it.

    With a ``plan`` it is the lock of one run: what the engine would refuse for what lies in the folder
    is refused before anything is created, and an output that an earlier run had begun to put in the place of
    another is put there.
    """

    def __new__(
        cls,
        path: _Path,
        *,
        inputs: Sequence[_Path] = ...,
        plan: bytes | None = None,
        resume: bool = True,
        overwrite: bool = False,
    ) -> FolderLock: ...
    def __enter__(self) -> FolderLock:
        """Take the lock; ``OutputError`` where another run has the folder or one of ``inputs`` touches it."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

def run(
    plan: bytes,
    out: _Path,
    *,
    threads: int = 0,
    max_memory: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    notice: Callable[[str], object] | None = None,
    resume: bool = True,
    overwrite: bool = False,
    rehash: bool = False,
    allow_non_finite: bool = False,
    memories: _Memories = ...,
    paths: Sequence[_Path] = ...,
    ends_only: bool = False,
    contents: Sequence[tuple[_Path, bool]] = ...,
) -> str:
    """Run a plan into a folder; the report as JSON."""

def ranges(plan: bytes, paths: Sequence[_Path]) -> list[dict[str, list[tuple[int, int]]]]:
    """The byte ranges that each shard of a plan reads, by the path of the file; from headers alone."""

def extract(
    plan: bytes,
    out: _Path,
    *,
    threads: int = 0,
    progress: Callable[[int, int], object] | None = None,
    notice: Callable[[str], object] | None = None,
    resume: bool = True,
    overwrite: bool = False,
    rehash: bool = False,
    allow_non_finite: bool = False,
    memories: _Memories = ...,
    paths: Sequence[_Path] = ...,
    contents: Sequence[tuple[_Path, bool]] = ...,
) -> str:
    """Extract donor - reference into a folder; the report as JSON."""

def join_vector(
    plan: bytes,
    pieces: bytes,
    out: _Path,
    *,
    threads: int = 0,
    progress: Callable[[int, int], object] | None = None,
    notice: Callable[[str], object] | None = None,
    paths: Sequence[_Path] = ...,
) -> str:
    """Join the pieces of a vector that was extracted in parts; the report as JSON.

    ``out`` holds an unfinished run of the plan; ``pieces`` is a list, as JSON, of the path, size and tensors
    of each.
    """

def compare(
    plan: bytes,
    *,
    threads: int = 0,
    progress: Callable[[int, int], object] | None = None,
    memories: _Memories = ...,
) -> str:
    """Measure two sums of tensors and differences against each other; the figures as JSON."""

def evaluate(
    plan: bytes, *, threads: int = 0, allow_non_finite: bool = False, memories: _Memories = ...
) -> NDArray[np.uint8]:
    """The data of a plan of one output and one shard: its tensors one after the other."""

def evaluate_measured(
    plan: bytes, *, threads: int = 0, allow_non_finite: bool = False, memories: _Memories = ...
) -> tuple[NDArray[np.uint8], str]:
    """The same, and what was measured of each tensor that takes a step: ``[name, sums]`` of each, as JSON."""

def in_place(
    plan: bytes,
    targets: Sequence[NDArray[np.uint8]],
    *,
    memories: _Memories = ...,
    threads: int = 0,
    write: bool = True,
    allow_non_finite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> str:
    """Add task vectors to arrays of bytes, or only find out what speaks against it; the figures as JSON."""

def digest_arrays(arrays: Sequence[NDArray[np.uint8]], *, threads: int = 0) -> list[str]:
    """BLAKE3 of the bytes of each array."""

def digest_file(path: _Path, *, threads: int = 0) -> tuple[int, str]:
    """Size in bytes and BLAKE3 of a file."""

def write_atomic(path: _Path, data: bytes) -> None:
    """Write a small file as a whole or not at all."""

def finish_folder(path: _Path) -> None:
    """Remove the state of a run whose manifest is in place."""

def assemble_output(path: _Path, inputs: Sequence[_Path], plan: bytes, records: Sequence[str]) -> None:
    """Make a folder that holds all shards of a run in parts an unfinished run that lacks only its end.

    ``records`` are the lines of the parts' journals, one of each shard. ``OutputError`` where another run has
    the folder or a shard is not in place as its record says.
    """

def replace_output(path: _Path) -> None:
    """Put an output that was made in the state folder of another, and is whole, in the place of that one."""

def blake3_hex(data: bytes) -> str:
    """BLAKE3 of some bytes."""

def cpu_level() -> str:
    """The CPU level in use: the best there is, or the one that ``TASKVEC_CPU`` names."""

def cpu_levels() -> list[str]:
    """Every CPU level that this machine can run, lowest first."""

def floor(inputs: list[_Path], output: _Path, *, threads: int = 0) -> float:
    """Seconds to read every byte of the inputs once and write the first of them, with no arithmetic."""

def memcpy_rate(size: int, *, threads: int = 0) -> float:
    """Bytes per second of copying ``size`` bytes from memory to memory."""
