"""What a test expects, from NumPy and safetensors alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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
    """Two outputs hold the same bytes, but for what the manifest says of the run.

    Digests of inputs are compared where both runs made them: parts and streamed runs do not.
    """
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    others = sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert names == others, set(names) ^ set(others)
    for name in names:
        if (one / name).read_bytes() == (other / name).read_bytes():
            continue
        if name.name == "taskvec.json":
            first, second = (json.loads((folder / name).read_text()) for folder in (one, other))
            for each in (first, second):
                each.pop("run"), each.pop("seal")
            if not _are_digested(first, second):
                first, second = (_without_digests(each) for each in (first, second))
            assert json.dumps(first) == json.dumps(second)
        elif name.name == "README.md" and "reference" not in name.parts:
            first, second = ((folder / name).read_text() for folder in (one, other))
            if "not computed |" in first or "not computed |" in second:
                first, second = (card_without_digests(each) for each in (first, second))
            assert first == second, name
        else:
            raise AssertionError(f"{name} differs")


def _are_digested(*manifests: dict[str, Any]) -> bool:
    return all(row.get("content") != "not-computed" for data in manifests for row in data.get("sources", ()))


def _without_digests(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest without the digests of inputs, and that of the card which shows them."""
    for row in manifest.get("sources", ()):
        row.pop("content", None)
        for file in row["files"]:
            file.pop("blake3", None)
    files = [file for file in manifest["files"] if file["name"] != "README.md"]
    return {**manifest, "files": files}


def card_without_digests(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith("The content of a model of one")]
    cells = [
        re.sub(r"\| (?:not computed|not read whole|`\w+:[0-9a-f]{64}`) \|$", "| |", line) for line in lines
    ]
    return re.sub(r"\n{2,}", "\n\n", "\n".join(cells))


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
