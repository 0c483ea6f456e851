"""A vector of packed models is plain, and gives back what was subtracted."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

from support.packed import Held, memory, source
from taskvec import _core

FORM = {"kind": "scaled", "parts": {"codes": ".weight", "scales": ".s"}, "block": [128, 128]}
SHAPE = (256, 300)


def test_a_vector_of_packed_models(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    held, values = [], []
    for _ in range(2):
        codes = random.integers(0, 0x70, SHAPE).astype(np.uint8)
        scales = (random.random((2, 3)) + 0.1).astype(np.float32)
        parts: Held = {"x.weight": ("F8_E4M3", codes), "x.s": ("F32", scales)}
        held.append(memory(parts))
        spread = scales.repeat(128, 0).repeat(128, 1)[:256, :300]
        values.append(codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * spread)
    plan = {
        "format": 1,
        "sources": [source(FORM, SHAPE)] * 2,
        "tensors": [["x.weight", list(SHAPE), "x.weight", "x.weight"]],
        "max_shard_size": 1 << 30,
        "dtype": None,
    }
    _core.extract(json.dumps(plan).encode(), tmp_path / "vector", memories=held)
    files = sorted((tmp_path / "vector").glob("*.safetensors"))
    stored = {name: array for file in files for name, array in load_file(file).items()}
    # Lossless: either the difference is held as it is, or donor and reference are stored next to it.
    difference = np.zeros(SHAPE).ravel()
    if "x.weight" in stored:
        difference = stored["x.weight"].astype(np.float64).ravel()
    else:
        places = stored.get("x.weight.indices")
        if places is None:
            bits = np.unpackbits(stored["x.weight.mask"], bitorder="little")[: difference.size]
            places = np.flatnonzero(bits)
        difference[places] = stored["x.weight.values"].astype(np.float64)
    donor, reference = (value.astype(np.float64).ravel() for value in values)
    apart = stored.get("x.weight.exact.indices", np.zeros(0, np.int64))
    if apart.size:
        assert np.array_equal(stored["x.weight.exact.donor"].astype(np.float64), donor[apart])
        assert np.array_equal(stored["x.weight.exact.reference"].astype(np.float64), reference[apart])
    kept = np.setdiff1d(np.arange(donor.size), apart)
    back = (reference + difference).astype(np.float32)
    assert np.array_equal(back[kept], donor[kept].astype(np.float32))
