"""Base, step and merged model of a look at a merge, in the names of the base, a run of elements at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from taskvec.compat.layouts.fit import fitted
from taskvec.dtypes import FLOAT_DTYPES
from taskvec.errors import RecipeError
from taskvec.models.adapter import Adapter
from taskvec.models.model import Model
from taskvec.models.saved_vector import SavedVector
from taskvec.report.merge_check import TensorCheck
from taskvec.run.evaluate import stored

# Elements that are looked at together: 32 MB of float64 a side.
CHUNK = 4 << 20
# Bits of the fraction of a float type, and the exponent of its smallest normal number.
_FRACTION = {"BF16": (7, -126), "F16": (10, -14), "F32": (23, -126), "F64": (52, -1022)}


@dataclass(frozen=True, slots=True)
class Sides:
    """The three sides of the comparison, in the names of the base."""

    base: Model
    donor: Model | None
    merged: Model
    names: list[str]
    changed: list[str]
    broken: dict[str, TensorCheck]
    values: Callable[[list[str]], Iterator[tuple[str, np.ndarray]]] | None

    @classmethod
    def of(cls, base: Model, step: Model | Adapter | SavedVector, merged: Model, values: Any) -> Sides:
        merged = fitted(merged, base, None)
        donor = fitted(step, base, None) if isinstance(step, Model) else None
        names = [name for name, info in base.tensors.items() if info.dtype in FLOAT_DTYPES]
        has = set(step.changed if isinstance(step, Adapter) else (donor or step).tensors)
        broken = {}
        for name in names:
            if name not in merged.tensors:
                broken[name] = TensorCheck("missing")
            elif merged.tensors[name].shape != base.tensors[name].shape:
                broken[name] = TensorCheck("shape")
        changed = [name for name in names if name in has and name not in broken]
        if not any(name in has for name in names):
            raise RecipeError(
                f"`{step.spec}` has no tensor of `{base.spec}`",
                "name the model that it was trained from as BASE",
            )
        return cls(base, donor, merged, names, changed, broken, values)

    def each(self) -> Iterator[tuple[str, Any]]:
        """The tensors that can be compared, each with what base + step is: a model, or values."""
        made = self.values(self.changed) if self.values is not None else None
        ready: dict[str, np.ndarray] = {}
        if made is not None:
            # in file order, as `names` are
            for name in self.names:
                if name in self.broken:
                    continue
                if name in self.changed:
                    while name not in ready:
                        key, array = next(made)
                        ready[key] = array
                yield name, ready.pop(name, None)
            return
        taken = set(self.changed)
        for name in self.names:
            if name not in self.broken:
                yield name, self.donor if name in taken else None

    def form(self, name: str) -> tuple[int, int]:
        """Bits of the fraction of the merged tensor's type, and its smallest exponent."""
        return _FRACTION.get(self.merged.tensors[name].dtype, (7, -126))

    def chunks(self, name: str, other: Any) -> Iterator[Chunk]:
        """Runs of elements as float64."""
        count = math.prod(self.base.tensors[name].shape)
        bits, least = self.form(name)
        for start in range(0, count, CHUNK):
            size = min(CHUNK, count - start)
            base, merged = _read(self.base, name, start, size), _read(self.merged, name, start, size)
            if other is None:
                target = base
            elif isinstance(other, np.ndarray):
                target = other.reshape(-1)[start : start + size].astype(np.float64)
            else:
                target = _read(other, name, start, size)
            yield Chunk(base, target - base, merged, ulp_of(merged, bits, least))


class Chunk(NamedTuple):
    base: np.ndarray
    step: np.ndarray
    merged: np.ndarray
    ulp: np.ndarray


def _read(model: Model, name: str, start: int, size: int) -> np.ndarray:
    if model.assembled or model.tensors[name].dtype == "F64":
        return stored(model, name, "F64").reshape(-1)[start : start + size]
    return np.frombuffer(model.sample(name, start, size), "<f4").astype(np.float64)


def ulp_of(values: np.ndarray, bits: int, least: int) -> np.ndarray:
    """The distance of neighbouring numbers of a type at these values."""
    _, exponent = np.frexp(values)
    return np.ldexp(1.0, np.maximum(exponent - 1, least) - bits)
