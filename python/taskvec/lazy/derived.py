"""Vectors made of a vector: its largest elements, its best low-rank matrices, its signs, and without another.

Each is written as a saved task vector, one tensor at a time.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from taskvec.errors import RecipeError
from taskvec.files.names import CONFIG
from taskvec.host import cores
from taskvec.lazy.spill import WEIGHTS, Spill, chunks, dot, hold_finite, keys, square
from taskvec.lazy.vector import TaskVector
from taskvec.models.model import Model
from taskvec.models.saved_vector import COMPARED
from taskvec.models.selection import Selection
from taskvec.plan.delta import Step
from taskvec.resolve.open import open as open_model
from taskvec.run.evaluate import of_terms
from taskvec.run.low_rank import Decomposer, Wanted, decomposer

Way = Literal["top", "rank", "sign", "without"]
VALUE = 4  # bytes of a value as it is applied: float32
INDEX = 4  # bytes of a place in a tensor


@dataclass(frozen=True, slots=True)
class Rule:
    """How a vector is made of another one.

    Attributes
    ----------
    way : {"top", "rank", "sign", "without"}
        ``top``: the largest elements of all tensors together, ties in their order. ``rank``: every matrix by
        its best approximation of a rank; what is not one stays whole. ``sign``: the signs, times the mean
        magnitude of the elements of the tensor that are not zero: of all scales the nearest. ``without``:
        v - (v·s / s·s) s, its part at right angles to the other vector, taken as one vector each.
    amount : float
        Per cent of the elements for ``top``, the rank for ``rank``.
    """

    way: Way
    amount: float = 0.0

    def __post_init__(self) -> None:
        if self.way == "top" and not 0 < self.amount <= 100:
            raise RecipeError(f"top {self.amount:g}% of a vector is not above 0 and at most 100%")
        if self.way == "rank" and not (self.amount >= 1 and float(self.amount).is_integer()):
            raise RecipeError(f"rank {self.amount:g} is not a whole number of at least 1")


@dataclass(frozen=True, slots=True)
class Derived:
    """A vector that was made, and its figures.

    Attributes
    ----------
    folder : str
        The saved vector.
    bytes : int
        What it takes at least in a plain form: values of four bytes; a kept element with its place, or a bit
        for each element that says whether it is kept; factors of matrices; a bit for each sign, one more
        where some elements are zero.
    norm : float
        Its L2 norm.
    cosine : float or None
        To the vector that it was made of; None where one of them is zero.
    """

    folder: str
    bytes: int
    norm: float
    cosine: float | None


def derive(
    vector: TaskVector,
    rules: Mapping[str, Rule],
    out: str | os.PathLike[str],
    *,
    other: TaskVector | None = None,
    threads: int | None = None,
) -> dict[str, Derived]:
    """Write vectors made of one, each into a folder of `out`, from one read of its models.

    Memory is a few times the largest tensor; on the disk, the vector itself in float32 lies in `out`
    meanwhile, and one of those that are made.

    Parameters
    ----------
    vector : TaskVector
    rules : mapping of str to Rule
        By the name of the folder.
    out : path
    other : TaskVector, optional
        The vector that ``without`` takes out, in the same names and shapes.
    threads : int, optional
        All cores by default.

    Raises
    ------
    NonFiniteError
        A value of the vector is not finite.
    RecipeError
        ``without`` has no other vector, or that is zero.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    work = out / ".derived"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        with decomposer(threads or cores()) as decompose:
            source = _Source(vector, other, work)
            return {name: _made(source, rule, out / name, work, decompose) for name, rule in rules.items()}
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Source:
    """A vector, and the other one where there is one, on the disk; and what was counted on the way."""

    def __init__(self, vector: TaskVector, other: TaskVector | None, work: Path) -> None:
        self.vector = vector
        self.shapes = {name: tuple(shape) for name, shape in vector.tensors.items()}
        dtype = "F64" if "F64" in _types(vector) else "F32"
        self.values = Spill(work / "vector", self.shapes, dtype)
        self.others = Spill(work / "other", self.shapes, "F64") if other is not None else None
        self.counts = np.zeros(1 << 16, np.int64)
        self.square = self.dot = self.other_square = 0.0
        self.nonzero = 0
        rest = of_terms(other.terms(), self.shapes) if other is not None else None
        for name, array in _in_order(vector.items(), self.shapes):
            hold_finite(name, array)
            self.values.write(name, array)
            self.square += square(array)
            for part in chunks(array):
                self.counts += np.bincount(keys(part), minlength=1 << 16)
                self.nonzero += int(np.count_nonzero(part))
        if rest is None or self.others is None:
            return
        for name, array in _in_order(rest, self.shapes):
            hold_finite(name, array)
            self.others.write(name, array)
            self.other_square += square(array)
            self.dot += dot(self.values.read(name), array)


def _in_order(
    items: Iterator[tuple[str, np.ndarray]], shapes: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in items:
        if name in shapes:
            yield name, array


def _types(vector: TaskVector) -> set[str]:
    return {
        info.dtype
        for step in vector.steps
        for _, source in step.sources
        for name, info in source.tensors.items()
        if name in vector.tensors
    }


def _made(source: _Source, rule: Rule, out: Path, work: Path, decompose: Decomposer) -> Derived:
    """Write one vector."""
    tensors = _WAYS[rule.way](source, rule, decompose)
    base = source.vector.steps[0].base
    donor, zero = work / "donor", work / "zero"
    dtype = source.values.dtype
    for folder in (donor, zero):
        shutil.rmtree(folder, ignore_errors=True)
        _begin(base, folder)
    shapes = {name: tuple(base.tensors[name].shape) for name in source.shapes}
    Spill(zero / WEIGHTS, shapes, dtype)
    written = Spill(donor / WEIGHTS, shapes, dtype)
    total = along = 0.0
    size = 0
    for name, array, taken in tensors:
        written.write(name, array)
        kept = written.read(name)  # as it was rounded
        total += square(kept)
        along += dot(kept, source.values.read(name))
        size += taken
    names = [f"^{_escaped(name)}$" for name in source.shapes]
    step = Step(1.0, open_model(donor), open_model(zero), Selection(include=tuple(names)))
    TaskVector([step]).save(out, overwrite=True)
    norms = math.sqrt(total) * math.sqrt(source.square)
    cosine = max(-1.0, min(1.0, along / norms)) if norms else None
    return Derived(str(out), size, math.sqrt(total), cosine)


def _escaped(name: str) -> str:
    import re

    return re.escape(name)


def _begin(base: Model, folder: Path) -> None:
    """A folder with the small files of a model, whose weights are plain."""
    folder.mkdir()
    for name, data in _small_files(base):
        (folder / name).write_bytes(data)
    config = {key: value for key, value in base.config.items() if key != "quantization_config"}
    (folder / CONFIG).write_text(json.dumps(config))


def _small_files(base: Model) -> Iterator[tuple[str, bytes]]:
    for name in COMPARED:
        if name in base.other_files and name != CONFIG:
            yield name, base.read_file(name)


# --- the ways

Made = Iterator[tuple[str, np.ndarray, int]]  # name, tensor, and its bytes


def _top(source: _Source, rule: Rule, _: Decomposer) -> Made:
    """The largest elements: all above the threshold, and of those equal to it the first ones."""
    elements = sum(math.prod(shape) for shape in source.shapes.values())
    wanted = min(source.nonzero, max(1, round(rule.amount / 100 * elements)))
    threshold, equal = _threshold(source, wanted)
    for name, array in source.values.items():
        magnitudes = np.abs(array)
        kept = magnitudes > threshold
        if equal:
            ties = np.flatnonzero(magnitudes == threshold)[:equal]
            kept.reshape(-1)[ties] = True
            equal -= len(ties)
        count = int(np.count_nonzero(kept))
        yield name, np.where(kept, array, array.dtype.type(0)), _sparse(count, array.size)


def _threshold(source: _Source, wanted: int) -> tuple[float, int]:
    """The magnitude of the smallest element among the `wanted` largest, and how many equal it count."""
    if not wanted:
        return math.inf, 0
    above = np.cumsum(source.counts[::-1])
    at = int(np.searchsorted(above, wanted))  # bins from the top that are taken in full
    bin_ = len(above) - 1 - at
    before = int(above[at - 1]) if at else 0
    found = [np.abs(part[keys(part) == bin_]) for _, array in source.values.items() for part in chunks(array)]
    inside = np.sort(np.concatenate(found))[::-1]
    threshold = inside[wanted - before - 1]
    return float(threshold), wanted - before - int(np.count_nonzero(inside > threshold))


def _sparse(count: int, elements: int) -> int:
    """Bytes of some kept elements of a tensor."""
    return VALUE * count + min(INDEX * count, -(-elements // 8)) if count else 0


def _rank(source: _Source, rule: Rule, decompose: Decomposer) -> Made:
    """Matrices of a rank; several in one tensor (experts) are each a matrix."""
    rank = int(rule.amount)
    for name, array in source.values.items():
        if array.ndim < 2 or 1 in array.shape[-2:]:
            yield name, array, VALUE * array.size
            continue
        matrices = array.reshape(-1, *array.shape[-2:])
        made = np.empty_like(matrices)
        for number, matrix in enumerate(matrices):
            found = decompose(np.asarray(matrix), Wanted(rank, None, 0), f"{name}.{number}")
            made[number] = found.b @ found.a
        used = min(rank, *array.shape[-2:])
        yield name, made.reshape(array.shape), VALUE * len(matrices) * used * sum(array.shape[-2:])


def _sign(source: _Source, _rule: Rule, _: Decomposer) -> Made:
    for name, array in source.values.items():
        count = int(np.count_nonzero(array))
        scale = math.fsum(float(np.abs(part).sum(dtype=np.float64)) for part in chunks(array))
        scale = scale / count if count else 0.0
        planes = 1 if count == array.size else 2
        bits = planes * -(-array.size // 8)
        yield name, (np.sign(array) * scale).astype(array.dtype), bits + VALUE if count else 0


def _without(source: _Source, _rule: Rule, _: Decomposer) -> Made:
    if source.others is None:
        raise RecipeError("there is no other vector to take out of this one", "name the SFT vector")
    if not source.other_square:
        raise RecipeError("the other vector is zero: there is nothing to take out of this one")
    factor = source.dot / source.other_square
    for name, array in source.values.items():
        rest = array.astype(np.float64) - factor * source.others.read(name)
        yield name, rest.astype(array.dtype), VALUE * array.size


_WAYS: Mapping[Way, Callable[[_Source, Rule, Decomposer], Made]] = {
    "top": _top,
    "rank": _rank,
    "sign": _sign,
    "without": _without,
}
