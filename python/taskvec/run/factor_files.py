"""The factors of an adapter while it is made: one file for each module, then the file that PEFT reads.

A run that is killed finds the modules that it had done. Each file is whole or not there; its head says what
it was made for and what is in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taskvec._core import blake3_hex, write_atomic
from taskvec.dtypes import numpy_dtype
from taskvec.errors import OutputError
from taskvec.files import look
from taskvec.files.json import read_bytes
from taskvec.files.names import STATE
from taskvec.files.place import placing

_FOLDER = "factors"
_ALIGN = 8
# No factors are larger: the engine reads headers up to this size, and a rank has a limit.
_MAXIMUM = 1 << 40


class Tensor(NamedTuple):
    """A tensor of the adapter: its name, type and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class FactorFiles:
    """The files of the modules that are done.

    Parameters
    ----------
    place : path
        The folder that the adapter is written to.
    key : str
        What the run is told by: its plan and the states of its inputs.
    """

    def __init__(self, place: Path, key: str) -> None:
        self.folder = place / STATE / _FOLDER
        self.key = key
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"`{self.folder}` cannot be made: {error.strerror or error}",
                "check permissions and free space, then run the same command again",
            ) from error

    def put(
        self, number: int, tensors: Mapping[str, tuple[str, np.ndarray]], facts: Mapping[str, Any]
    ) -> None:
        """Keep the tensors of one module, each with its type, and the facts that its report has."""
        body = b"".join(np.ascontiguousarray(array).tobytes() for _, array in tensors.values())
        rows = [[name, dtype, array.shape, array.nbytes] for name, (dtype, array) in tensors.items()]
        head = {"key": self.key, "tensors": rows, "facts": facts, "digest": blake3_hex(body)}
        write_atomic(self._path(number), json.dumps(head).encode() + b"\n" + body)

    def facts(self, number: int, *, rehash: bool = False) -> dict[str, Any] | None:
        """The facts of a module that is done; ``None`` where it is not, or was for another run."""
        head = self._head(number)
        if head is None or head["key"] != self.key:
            return None
        if rehash and blake3_hex(self._body(number)) != head["digest"]:
            return None
        return head["facts"]

    def tensors(self, number: int) -> list[Tensor]:
        """The tensors of a module that is done."""
        head = self._head(number)
        if head is None:
            raise OutputError(
                f"`{self._path(number)}` has gone or is damaged: something else changed the output during "
                "the run",
                "run the same command again when nothing else writes to the folder",
            )
        return [Tensor(name, dtype, tuple(shape), nbytes) for name, dtype, shape, nbytes in head["tensors"]]

    def arrays(self, number: int) -> list[tuple[str, str, np.ndarray]]:
        """The name, the type and the values of each tensor of a module that is done."""
        body, at, found = self._body(number), 0, []
        for name, dtype, shape, nbytes in self.tensors(number):
            part = np.frombuffer(body, np.uint8, nbytes, at)
            found.append((name, dtype, part.view(numpy_dtype(dtype)).reshape(shape)))
            at += nbytes
        return found

    def assemble(self, place: Path, name: str, numbers: Sequence[int]) -> None:
        """Write the tensors of some modules, one after the other, as one file of safetensors."""
        rows = [tensor for number in numbers for tensor in self.tensors(number)]
        with placing(place, name) as part, open(part, "wb") as out:
            out.write(header(rows))
            for number in numbers:
                out.write(self._body(number))

    def _head(self, number: int) -> dict[str, Any] | None:
        path = self._path(number)
        if not look.is_file(path):
            return None
        try:
            with open(path, "rb") as file:
                line = file.readline()
                size = os.fstat(file.fileno()).st_size - len(line)
        except OSError as error:
            raise look.unanswered(path, error) from error
        try:
            head = json.loads(line)
            is_whole = size == sum(row[3] for row in head["tensors"]) and {"key", "facts", "digest"} <= set(
                head
            )
        except (ValueError, KeyError, TypeError, IndexError):
            return None
        return head if is_whole else None

    def _body(self, number: int) -> bytes:
        return read_bytes(self._path(number), maximum=_MAXIMUM).partition(b"\n")[2]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}"


def header(tensors: Iterable[Tensor]) -> bytes:
    """The header of a file of safetensors that holds these tensors in this order."""
    rows: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        rows[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(rows, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    return len(text).to_bytes(8, "little") + text


def numbered(files: FactorFiles, count: int, *, rehash: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """The modules that are done, with their facts."""
    for number in range(count):
        facts = files.facts(number, rehash=rehash)
        if facts is not None:
            yield number, facts
