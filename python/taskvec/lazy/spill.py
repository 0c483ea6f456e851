"""The tensors of a vector on the disk, one after the other, so that it can be read again and again.

A vector is computed from its models once; what needs several looks at all of it (a threshold over all
elements, say) takes them here, a tensor at a time.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from taskvec.dtypes import numpy_dtype
from taskvec.errors import NonFiniteError

WEIGHTS = "model.safetensors"
BINS = 1 << 16
_CHUNK = 1 << 22  # elements that are widened at a time


class Spill:
    """A safetensors file of float32 or float64 tensors that is filled in the order of its header.

    Parameters
    ----------
    path : Path
        The file; tensors that are not written are zeros, and take no room on most disks.
    shapes : mapping of str to tuple of int
        Names and shapes, in order.
    dtype : {"F32", "F64"}
        Of all tensors.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]], dtype: str = "F32") -> None:
        self.path, self.shapes, self.dtype = path, {n: tuple(s) for n, s in shapes.items()}, dtype
        header, at = {}, 0
        for name, shape in self.shapes.items():
            size = math.prod(shape) * self._type.itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._places = {name: len(text) + 8 + row["data_offsets"][0] for name, row in header.items()}
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(len(text) + 8 + at)

    @property
    def _type(self) -> np.dtype:
        return np.dtype(numpy_dtype(self.dtype))

    def write(self, name: str, array: np.ndarray) -> None:
        """Write one tensor; its own bytes go from memory."""
        with self.path.open("r+b") as file:
            file.seek(self._places[name])
            array.astype(self._type, copy=False).tofile(file)

    def read(self, name: str) -> np.ndarray:
        """One tensor, mapped from the file, read-only."""
        shape = self.shapes[name]
        if not math.prod(shape):
            return np.zeros(shape, self._type)
        return np.memmap(self.path, self._type, "r", self._places[name], shape)

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every tensor in order."""
        for name in self.shapes:
            yield name, self.read(name)

    def remove(self) -> None:
        """Remove the file."""
        os.unlink(self.path)


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """A flat array in pieces of a few MB."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK]


def square(array: np.ndarray) -> float:
    """The sum of the squares of all elements, in float64."""
    return math.fsum(float(np.square(part, dtype=np.float64).sum()) for part in chunks(array))


def dot(one: np.ndarray, other: np.ndarray) -> float:
    """The sum of the products of all elements, in float64."""
    pairs = zip(chunks(one), chunks(other), strict=True)
    return math.fsum(float(np.dot(x.astype(np.float64), y.astype(np.float64))) for x, y in pairs)


def hold_finite(name: str, array: np.ndarray) -> None:
    """Refuse a difference that has values which are not finite.

    Raises
    ------
    NonFiniteError
    """
    if not all(np.isfinite(part).all() for part in chunks(array)):
        raise NonFiniteError(
            f"values that are not finite: the difference in `{name}`",
            "leave the tensor out with `--exclude`; `taskvec diff --tensors` counts them in each",
        )


def keys(part: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 65535 that are ordered as the magnitudes of some elements are.

    The upper half of a float32 without its sign: two magnitudes with one number lie within 0.8 % of each
    other.
    """
    with np.errstate(over="ignore"):  # beyond the range of float32: the highest number
        return (np.abs(part).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
