"""Packed tensors in memory, as a plan has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvec import _core

# Type as in a header, and the values.
Held = Mapping[str, tuple[str, np.ndarray]]


def document(
    sources: list[dict[str, Any]], rows: list[list[Any]], operation: dict[str, Any], alpha: float = 1.0
) -> dict[str, Any]:
    return {
        "format": 1,
        "arithmetic": 3,
        "sources": sources,
        "outputs": [{"folder": "", "alpha": alpha}],
        "shards": ["model.safetensors"],
        "operations": [operation],
        "tensors": rows,
        "rounding": "nearest",
        "seed": 0,
    }


def source(form: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    packed = {
        "formats": [{"dtype": "BF16", "strip": ".weight", **form}],
        "tensors": {"x.weight": [0, list(shape)]},
    }
    return {"kind": "memory", "path": "memory", "files": [], "fingerprint": "", "packed": packed}


def memory(held: Held) -> list[tuple[str, str, tuple[int, ...], np.ndarray]]:
    return [
        (name, dtype, array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        for name, (dtype, array) in held.items()
    ]


def evaluated(held: Held, shape: tuple[int, ...], form: dict[str, Any]) -> np.ndarray:
    """The values of `x.weight`, of which `held` are the parts, in float32."""
    rows = [["x.weight", "F32", list(shape), 0, 0, [[0, "x.weight"]]]]
    plan = document([source(form, shape)], rows, {"kind": "copy"})
    text = json.dumps(plan).encode()
    got = _core.evaluate(text, allow_non_finite=True, memories=[memory(held)], threads=2)
    return np.frombuffer(got, np.float32).reshape(shape)
