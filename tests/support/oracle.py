"""What a test expects, from NumPy and safetensors alone."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

from support.models import Tensors, Trio, read_tensors


def narrow(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Float64 values rounded once to nearest-even: ml_dtypes goes through float32, here rounded to odd."""
    if dtype != ml_dtypes.bfloat16:
        return values.astype(dtype)
    single = values.astype(np.float32)
    toward = np.nextafter(single, np.where(values > single, np.inf, -np.inf).astype(np.float32))
    odd = (single.view(np.uint32) & 1 == 1) | (single == values)
    return np.where(odd, single, toward).astype(dtype)


def oracle(trio: Trio, alpha: float, name: str, dtype: np.dtype) -> np.ndarray:
    """target + α·(donor − reference) in float64, rounded once."""
    t, d, r = (read_tensors(folder)[name].astype(np.float64) for folder in trio)
    return narrow(t + alpha * (d - r), dtype)


def ulps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many representable values lie between two finite arrays of one float type."""
    integers = {2: np.int16, 4: np.int32, 8: np.int64}[a.itemsize]
    lines = []
    for array in (a, b):
        bits = array.view(integers).astype(np.int64)
        lowest = np.int64(np.iinfo(integers).min)
        lines.append(np.where(bits < 0, lowest - bits, bits))
    return np.abs(lines[0] - lines[1])


def same_files(one: Path, other: Path) -> None:
    """Two outputs hold the same bytes, but for what the manifest says of the run."""
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for name in names:
        if name.name == "taskvec.json":
            first, second = (json.loads((folder / name).read_text()) for folder in (one, other))
            first.pop("run"), second.pop("run")
            assert json.dumps(first) == json.dumps(second)
        else:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def decode(folder: Path) -> Tensors:
    """A saved vector by its documented convention, with safetensors and NumPy."""
    facts = json.loads((folder / "taskvec.json").read_text())["vector"]["tensors"]
    stored: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored.update(load_file(file))
    vector: Tensors = {}
    for name, row in facts.items():
        values = stored.get(f"{name}.values", stored.get(name, np.empty(0, np.float32)))
        vector[name] = np.zeros(row["elements"], np.float64 if row.get("rounded") else values.dtype)
        if row["encoding"] == "dense":
            vector[name][:] = values.ravel()
        elif row["encoding"] == "mask":
            bits = np.unpackbits(stored[f"{name}.mask"], bitorder="little")[: row["elements"]]
            vector[name][bits.astype(bool)] = values
        elif row["encoding"] == "index":
            vector[name][stored[f"{name}.indices"]] = values
        if row.get("rounded"):
            donor, reference = (
                stored[f"{name}.exact.{role}"].astype(np.float64) for role in ("donor", "reference")
            )
            vector[name][stored[f"{name}.exact.indices"]] = donor - reference
        vector[name] = vector[name].reshape(row["shape"])
    return vector
