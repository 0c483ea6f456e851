"""Factors, values and plans at the edge of what numbers hold."""

import json
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import taskvec as tv
from taskvec import _core

BF16 = np.dtype(ml_dtypes.bfloat16)
STEP = {"kind": "task_arithmetic", "terms": [{"model": 1, "reference": 2, "weight": 1.0}]}
NAMES = {"BF16": BF16, "F16": np.dtype(np.float16), "F32": np.dtype(np.float32), "F64": np.dtype(np.float64)}


def plan(
    dtype: str, elements: int, *, alpha: float = 1.0, operation: Any = STEP, inputs: int = 3, names: str = "w"
) -> bytes:
    """A plan of one output over state dicts; one tensor per letter of `names`."""
    source = {"kind": "memory", "path": "a", "files": [], "fingerprint": ""}
    tensors = [[name, dtype, [elements], 0, 0, [[i, name] for i in range(inputs)]] for name in names]
    document = {
        "format": 1,
        "arithmetic": 3,
        "sources": [source] * inputs,
        "outputs": [{"folder": "", "alpha": alpha}],
        "shards": ["x.safetensors"],
        "operations": [operation],
        "tensors": tensors,
        "rounding": "nearest",
        "seed": 0,
    }
    return json.dumps(document).encode()


def held(dtype: str, values: np.ndarray) -> list[tuple[str, str, tuple[int, ...], np.ndarray]]:
    return [("w", dtype, values.shape, values.view(np.uint8))]


@pytest.mark.parametrize(
    ("target", "donor", "reference", "alpha"),
    [
        (0, 1e30, 0, 1e-46),
        (0, 1e30, 0, 1e-44),
        (0, 1e30, 0, 3e-40),
        (1, 1e-20, 0, 1e39),
        (0, 1e-30, 0, 1e60),
        (2, 3, 1, 0.3),
    ],
)
def test_a_factor_outside_of_single_precision_is_applied_as_it_is(
    target: float, donor: float, reference: float, alpha: float
) -> None:
    t, d, r = (np.array([x], np.float64).astype(BF16) for x in (target, donor, reference))
    merged = tv.from_state_dict({"w": t}) + alpha * (
        tv.from_state_dict({"w": d}) - tv.from_state_dict({"w": r})
    )
    t, d, r = (Fraction(float(x[0])) for x in (t, d, r))
    exact = np.array([float(t + Fraction(alpha) * (d - r))]).astype(BF16)
    assert dict(merged.items())["w"].tobytes() == exact.tobytes()


@pytest.mark.parametrize(
    ("dtype", "signalling"),
    [("BF16", 0x7F81), ("F16", 0x7C01), ("F32", 0x7F800001), ("F64", 0x7FF0000000000001)],
)
def test_alpha_zero_is_the_target_bit_for_bit_also_where_it_is_no_number(dtype: str, signalling: int) -> None:
    kind = NAMES[dtype]
    target, donor = np.full(600, 1.5).astype(kind), np.full(600, 2.0).astype(kind)
    target.view(f"u{kind.itemsize}")[7] = signalling
    memories = [held(dtype, target), held(dtype, donor), held(dtype, donor)]
    got = _core.evaluate(plan(dtype, 600, alpha=0.0), allow_non_finite=True, memories=memories)
    start = len(got) - target.nbytes
    assert bytes(got[start:]) == target.tobytes()


def test_a_negative_cap_is_refused() -> None:
    terms = [{"model": 1, "reference": 0, "weight": 1.0}, {"model": 2, "reference": 0, "weight": 1.0}]
    operation = {"kind": "ramplus_tl", "terms": terms, "epsilon": 1e-5, "r": 0.1, "alpha": -0.2}
    values = np.arange(4, dtype=np.float32)
    with pytest.raises(tv.errors.RecipeError):
        _core.evaluate(plan("F32", 4, operation=operation), memories=[held("F32", values)] * 3)


def test_a_layout_beyond_what_an_offset_holds_is_refused() -> None:
    with pytest.raises(tv.errors.RecipeError, match="bytes of tensors"):
        _core.evaluate(plan("U8", 1 << 62, names="abcdef"))


def test_two_views_of_one_buffer_are_no_two_targets() -> None:
    base = bytearray(1024)
    first, second = np.frombuffer(base, np.uint8), np.frombuffer(base, np.uint8)
    change = np.zeros(512, BF16).view(np.uint8)
    operation = {"kind": "task_arithmetic", "terms": [{"model": 1, "reference": None, "weight": 1.0}]}
    two = plan("BF16", 512, operation=operation, inputs=2, names="wu")
    memories = [[], [(name, "BF16", (512,), change) for name in "wu"]]
    with pytest.raises(tv.errors.RecipeError, match="shares bytes"):
        _core.in_place(two, [first, second], memories=memories)
    _core.in_place(two, [first, np.zeros(1024, np.uint8)], memories=memories)
