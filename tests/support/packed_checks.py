"""What tests of packed checkpoints hold their outputs against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from support.models import read_tensors
from support.packed_models import BY_NAME, Values, expected

FP8 = BY_NAME["block FP8, BF16 scales"]
UP = "model.layers.0.mlp.up_proj.weight"


def near(got: np.ndarray, values: tuple[Values, Values, Values], name: str, alpha: float = 1.0) -> None:
    """The nearest BF16, where the sum in float32 leaves no doubt; one of the two around it elsewhere."""
    t, d, r = (each[name].astype(np.float64) for each in values)
    exact = t + alpha * (d - r)
    doubt = 2.0**-22 * (np.abs(t) + np.abs(d) + np.abs(r))
    best = expected(values, name, alpha).astype(np.float64)
    assert (np.abs(got.astype(np.float64) - exact) <= np.abs(best - exact) + doubt).all(), name


def ids(findings: Any) -> list[str]:
    return [finding.id for finding in findings]


def stored_bytes(folder: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in read_tensors(folder).items()}
