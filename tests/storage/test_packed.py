"""Decoders of packed tensors against a few lines of NumPy, over ragged sizes; and parts that do not fit."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from support.packed import Held, document, evaluated, memory, source
from taskvec import _core, errors

RANDOM = np.random.default_rng(12)
SHAPES = [(1, 1), (3, 5), (130, 257), (257, 130), (700, 513), (3, 40, 136), (2, 129, 130)]
TYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I8": np.int8,
}


def scales_of(shape: tuple[int, ...], dtype: str) -> tuple[tuple[str, np.ndarray], np.ndarray]:
    """Stored scales, and their values in float32."""
    if dtype in ("U8", "F8_E8M0"):
        codes = RANDOM.integers(100, 140, shape).astype(np.uint8)
        return (dtype, codes), np.ldexp(np.float32(1), codes.astype(np.int32) - 127).astype(np.float32)
    stored = (RANDOM.random(shape) + 0.1).astype(TYPES[dtype])
    return (dtype, stored), stored.astype(np.float32)


def spread(scales: np.ndarray, shape: tuple[int, ...], block: tuple[int, int]) -> np.ndarray:
    """A scale for each element."""
    rows, columns = (side or whole for side, whole in zip(block, shape[-2:], strict=True))
    whole = scales.repeat(rows, -2).repeat(columns, -1)
    return whole[..., : shape[-2], : shape[-1]]


def grid(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    sides = [-(-side // (by or side)) for side, by in zip(shape[-2:], block, strict=True)]
    return (*shape[:-2], *sides)


def fields(values: np.ndarray, bits: int, dtype: type = np.int32) -> np.ndarray:
    """Integers along the last axis, dense from the lowest bit on, in words of 32 bits."""
    as_bits = (values[..., None] >> np.arange(bits)) & 1
    flat = as_bits.reshape(*values.shape[:-1], -1).astype(np.uint8)
    flat = np.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, -flat.shape[-1] % 32)])
    packed = np.ascontiguousarray(np.packbits(flat, axis=-1, bitorder="little"))
    return packed.view("<u4").view(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [(128, 128), (1, 0), (0, 0), (1, 32), (0, 1), (7, 5)])
@pytest.mark.parametrize("codes", ["F8_E4M3", "F8_E5M2", "I8"])
def test_scaled(shape: tuple[int, ...], block: tuple[int, int], codes: str) -> None:
    for dtype in ("F32", "BF16", "F16", "U8", "F8_E8M0"):
        stored = RANDOM.integers(0, 256, shape).astype(np.uint8)
        scales, values = scales_of(grid(shape, block), dtype)
        held: Held = {"x.weight": (codes, stored), "x.s": scales}
        form = {"kind": "scaled", "parts": {"codes": ".weight", "scales": ".s"}, "block": block}
        with np.errstate(all="ignore"):
            want = stored.view(TYPES[codes]).astype(np.float32) * spread(values, shape, block)
            scaled = want * np.float32(0.3)
        assert np.array_equal(evaluated(held, shape, form), want, equal_nan=True)
        assert np.array_equal(evaluated(held, shape, {**form, "factor": 0.3}), scaled, equal_nan=True)


@pytest.mark.parametrize(
    ("expected", "found"), [((130, 1), (130,)), ((1, 1), ()), ((1, 1), (1,)), ((1, 3), (3,))]
)
def test_scales_without_axes_of_one(expected: tuple[int, int], found: tuple[int, ...]) -> None:
    block = (1 if expected[0] > 1 else 0, 100 if expected[1] > 1 else 0)
    stored, values = (
        RANDOM.integers(-9, 9, (130, 257)).astype(np.int8),
        RANDOM.random(expected).astype(np.float32),
    )
    form = {"kind": "scaled", "parts": {"codes": ".weight", "scales": ".s"}, "block": block}
    got = evaluated({"x.weight": ("I8", stored), "x.s": ("F32", values.reshape(found))}, (130, 257), form)
    assert np.array_equal(got, stored * spread(values, (130, 257), block))


@pytest.mark.parametrize("rule", [None, "multiply", "divide"])
@pytest.mark.parametrize("shape", [(1, 2), (3, 32), (130, 258), (700, 514), (3, 40, 96)])
def test_e2m1(shape: tuple[int, ...], rule: str | None) -> None:
    group, dtype = (32, "U8") if rule is None else (16, "F8_E4M3")
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6] * 2, np.float32) * np.repeat(np.float32([1, -1]), 8)
    codes = RANDOM.integers(0, 16, shape).astype(np.uint8)
    scales, values = scales_of(grid(shape, (1, group)), dtype)
    scale, held = values, {"x.p": ("U8", codes[..., ::2] | codes[..., 1::2] << 4), "x.s": scales}
    form: dict[str, Any] = {"kind": "e2m1", "parts": {"codes": ".p", "scales": ".s"}, "group": group}
    if rule:
        one = np.float32(0.37)
        held["x.g"] = ("F32", np.array(one))
        form = {**form, "parts": {**form["parts"], "global": ".g"}, "global": rule}
        scale = values * one if rule == "multiply" else values / one
    want = table[codes] * spread(scale, shape, (1, group))
    got = evaluated(held, shape, form)
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
    if shape[-1] % group == 0:
        held["x.p"] = ("U8", held["x.p"][1].reshape(*shape[:-1], shape[-1] // group, group // 2))
        assert np.array_equal(evaluated(held, shape, form), want)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(1, 1), (24, 100), (130, 257), (700, 513), (3, 40, 96)])
def test_packed_int(shape: tuple[int, ...], bits: int) -> None:
    for group in (0, 32):
        codes = RANDOM.integers(0, 1 << bits, shape)
        scales, values = scales_of(grid(shape, (1, group)), "BF16")
        zeros = RANDOM.integers(0, 1 << bits, values.shape)
        order = RANDOM.integers(0, values.shape[-1], shape[-1]).astype(np.int32)
        held = {"x.p": ("I32", fields(codes, bits)), "x.s": scales}
        parts = {"codes": ".p", "scales": ".s"}
        form = {"kind": "packed_int", "parts": parts, "bits": bits, "group": group}
        scale = spread(values, shape, (1, group))
        want = (codes - (1 << (bits - 1))).astype(np.float32) * scale
        assert np.array_equal(evaluated(held, shape, form), want)
        # Packed along the rows: each column of zero points by itself.
        along = fields(zeros.swapaxes(-1, -2), bits).swapaxes(-1, -2)
        held |= {"x.z": ("I32", np.ascontiguousarray(along)), "x.o": ("I32", order)}
        want = (codes - spread(zeros, shape, (1, group))).astype(np.float32) * scale
        assert np.array_equal(evaluated(held, shape, {**form, "parts": {**parts, "zeros": ".z"}}), want)
        want = (codes - zeros[..., order]).astype(np.float32) * values[..., order]
        got = evaluated(held, shape, {**form, "parts": {**parts, "zeros": ".z", "order": ".o"}})
        assert np.array_equal(got, want)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("shape", [(32, 64), (64, 96), (1056, 512)])
def test_gptq(shape: tuple[int, int], bits: int, offset: int) -> None:
    for group in (0, 32):
        groups = shape[1] // (group or shape[1])
        codes, zeros = RANDOM.integers(0, 1 << bits, shape), RANDOM.integers(0, 1 << bits, (groups, shape[0]))
        scales, values = scales_of((groups, shape[0]), "F16")
        order = RANDOM.permutation(shape[1]) // (group or shape[1])
        held = {
            "x.qweight": ("I32", np.ascontiguousarray(fields(codes, bits).T)),
            "x.qzeros": ("I32", fields(zeros, bits)),
            "x.scales": scales,
            "x.g_idx": ("I32", order.astype(np.int32)),
        }
        parts = {"codes": ".qweight", "zeros": ".qzeros", "scales": ".scales"}
        form = {"kind": "gptq", "parts": parts, "bits": bits, "group": group, "zero_offset": offset}
        zero = (zeros + offset) % (1 << bits)
        for of, named in ((np.sort(order), parts), (order, {**parts, "order": ".g_idx"})):
            want = (codes - zero[of].T).astype(np.float32) * values[of].T
            assert np.array_equal(evaluated(held, shape, {**form, "parts": named}), want)


@pytest.mark.parametrize("shape", [(8, 32), (64, 96), (1048, 512)])
def test_awq(shape: tuple[int, int]) -> None:
    def interleaved(values: np.ndarray) -> np.ndarray:
        nibbles = values.reshape(*values.shape[:-1], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return fields(nibbles.reshape(values.shape), 4)

    codes, zeros = RANDOM.integers(0, 16, shape), RANDOM.integers(0, 16, (shape[1] // 32, shape[0]))
    scales, values = scales_of(zeros.shape, "F16")
    held = {
        "x.qweight": ("I32", interleaved(np.ascontiguousarray(codes.T))),
        "x.qzeros": ("I32", interleaved(zeros)),
        "x.scales": scales,
    }
    parts = {"codes": ".qweight", "zeros": ".qzeros", "scales": ".scales"}
    got = evaluated(held, shape, {"kind": "awq", "parts": parts, "group": 32})
    assert np.array_equal(got, (codes - zeros.repeat(32, 0).T).astype(np.float32) * values.repeat(32, 0).T)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (33, 130), (700, 513)])
def test_bnb4(shape: tuple[int, int], nested: bool) -> None:
    count = shape[0] * shape[1]
    codes, table = RANDOM.integers(0, 16, count + count % 2), RANDOM.standard_normal(16).astype(np.float32)
    blocks = -(-count // 64)
    held = {
        "x.weight": ("U8", (codes[::2] << 4 | codes[1::2]).astype(np.uint8)[:, None]),
        "x.t": ("F32", table),
    }
    form: dict[str, Any] = {
        "kind": "bnb4",
        "parts": {"codes": ".weight", "absmax": ".a", "table": ".t"},
        "block": 64,
    }
    absmax = RANDOM.random(blocks).astype(np.float32)
    held["x.a"] = ("F32", absmax)
    if nested:
        stored = RANDOM.integers(0, 256, blocks).astype(np.uint8)
        outer, values = (
            RANDOM.random(-(-blocks // 256)).astype(np.float32),
            RANDOM.random(256).astype(np.float32),
        )
        held |= {"x.a": ("U8", stored), "x.n": ("F32", outer), "x.v": ("F32", values)}
        absmax = values[stored] * outer.repeat(256)[:blocks] + np.float32(0.25)
        form["parts"] |= {"nested_absmax": ".n", "nested_table": ".v"}
        form |= {"nested_block": 256, "nested_offset": 0.25}
    want = (table[codes[:count]] * absmax.repeat(64)[:count]).reshape(shape)
    assert np.array_equal(evaluated(held, shape, form), want)
    if held["x.weight"][1].size % 2 == 0:
        held["x.weight"] = ("BF16", held["x.weight"][1].reshape(-1).view(np.uint16)[:, None])
        assert np.array_equal(evaluated(held, shape, form), want)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx(bits: int, group: int) -> None:
    for shape in ((3, group), (130, 256), (2, 40, 3 * group)):
        codes = RANDOM.integers(0, 1 << bits, shape)
        (scales, s), (biases, b) = (scales_of(grid(shape, (1, group)), "BF16") for _ in range(2))
        held = {"x.weight": ("U32", fields(codes, bits, np.uint32)), "x.scales": scales, "x.biases": biases}
        parts = {"codes": ".weight", "scales": ".scales", "biases": ".biases"}
        got = evaluated(held, shape, {"kind": "mlx", "parts": parts, "bits": bits, "group": group})
        want = codes.astype(np.float32) * spread(s, shape, (1, group)) + spread(b, shape, (1, group))
        assert np.array_equal(got, want)


FP8: dict[str, Any] = {
    "kind": "scaled",
    "parts": {"codes": ".weight", "scales": ".s"},
    "block": [128, 128],
}
CODES, ONES = np.zeros((256, 300), np.uint8), np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("held", "form", "expected"),
    [
        ({"x.weight": ("F8_E4M3", CODES)}, FP8, "there is no tensor `x.s`, a part of `x.weight`"),
        ({"x.s": ("F32", ONES)}, FP8, "there is no tensor `x.weight`"),
        (
            {"x.weight": ("F8_E4M3", CODES), "x.s": ("F32", ONES.T)},
            FP8,
            r"`x.s` is F32 \[3, 2\].*shape \[2, 3\]",
        ),
        ({"x.weight": ("F8_E4M3", CODES), "x.s": ("F32", ONES[:1])}, FP8, r"`x.s` is F32 \[1, 3\]"),
        (
            {"x.weight": ("F8_E4M3", CODES), "x.s": ("I32", ONES)},
            FP8,
            "`x.s` is I32 .*one of the types F32, BF16",
        ),
        (
            {"x.weight": ("U8", CODES), "x.s": ("F32", ONES)},
            FP8,
            "`x.weight` is U8 .*one of the types F8_E4M3",
        ),
        (
            {"x.weight": ("F8_E4M3", CODES[1:]), "x.s": ("F32", ONES)},
            FP8,
            r"`x.weight` is F8_E4M3 \[255, 300\]",
        ),
        (
            {"x.weight": ("F8_E4M3", CODES), "x.s": ("F32", ONES)},
            {**FP8, "block": [64, 128]},
            r"shape \[4, 3\]",
        ),
        ({}, {**FP8, "kind": "scald"}, "unknown variant"),
        ({}, {**FP8, "dtype": "I8"}, "expected BF16, F16 or F32"),
        ({}, {**FP8, "spread": 1}, "unknown field"),
        ({}, {**FP8, "strip": ".bias"}, "does not end in `.bias`"),
        (
            {"x.weight": ("U8", CODES), "x.s": ("F32", ONES)},
            {**FP8, "kind": "e2m1", "block": None},
            "unknown field",
        ),
        ({}, {"kind": "packed_int", "parts": FP8["parts"], "bits": 9, "group": 0}, "has 9 bits"),
        ({}, {"kind": "packed_int", "parts": FP8["parts"], "bits": 0, "group": 0}, "has 0 bits"),
    ],
)
def test_parts_that_do_not_fit_are_named(held: Held, form: dict[str, Any], expected: str) -> None:
    with pytest.raises(errors.Error, match=expected):
        evaluated(held, (256, 300), form)


def test_a_column_in_a_group_that_there_is_not() -> None:
    parts = {"codes": ".p", "scales": ".s", "order": ".o"}
    for bad in (-2, 2, 1 << 30):
        order = np.zeros(64, np.int32)
        order[63] = bad
        held = {
            "x.p": ("I32", np.zeros((4, 8), np.int32)),
            "x.s": ("F32", np.ones((4, 2), np.float32)),
            "x.o": ("I32", order),
        }
        with pytest.raises(errors.Error, match=f"`x.o` has column 63 in group {bad}, there are 2"):
            evaluated(held, (4, 64), {"kind": "packed_int", "parts": parts, "bits": 4, "group": 32})


def test_codes_and_scales_that_are_no_numbers_are_counted() -> None:
    scales, codes = ONES.copy(), CODES.copy()
    scales[0, 0], codes[200, 299] = np.nan, 0x7F
    held: Held = {"x.weight": ("F8_E4M3", codes), "x.s": ("F32", scales)}
    rows = [["x.weight", "BF16", [256, 300], 0, 0, [[0, "x.weight"]]]]
    plan = json.dumps(document([source(FP8, (256, 300))], rows, {"kind": "copy"})).encode()
    with pytest.raises(errors.NonFiniteError, match="16385 in"):
        _core.evaluate(plan, memories=[memory(held)])
    assert np.isnan(evaluated(held, (256, 300), FP8)).sum() == 128 * 128 + 1
    held = {"x.weight": ("F8_E4M3", CODES), "x.s": ("F8_E8M0", np.full((2, 3), 255, np.uint8))}
    assert np.isnan(evaluated(held, (256, 300), FP8)).all()


@pytest.mark.parametrize("name", ["x.weight", "x.s"])
def test_a_stored_part_is_copied_as_it_is(name: str) -> None:
    codes, scales = (
        RANDOM.integers(0, 256, (256, 300)).astype(np.uint8),
        RANDOM.random((2, 3)).astype(np.float32),
    )
    held: Held = {"x.weight": ("F8_E4M3", codes), "x.s": ("F32", scales)}
    dtype, array = held[name]
    rows = [["out", dtype, list(array.shape), 0, 0, [[0, name]]]]
    stored = document([source(FP8, (256, 300))], rows, {"kind": "copy", "stored": True})
    got = _core.evaluate(json.dumps(stored).encode(), memories=[memory(held)])
    assert bytes(got) == array.tobytes()
    rows[0][1] = "BF16"
    with pytest.raises(errors.Error, match="copied as it is stored, as BF16"):
        _core.evaluate(json.dumps(stored).encode(), memories=[memory(held)])


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.7])
def test_a_transfer_between_packed_models(alpha: float) -> None:
    shape = (256, 300)
    models, values = [], []
    for _ in range(3):
        codes = RANDOM.integers(0, 0x70, shape).astype(np.uint8)
        scales, s = scales_of((2, 3), "F32")
        models.append(memory({"x.weight": ("F8_E4M3", codes), "x.s": scales}))
        values.append(codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64) * spread(s, shape, (128, 128)))
    values = [value.astype(np.float32).astype(np.float64) for value in values]
    rows = [["x.weight", "BF16", list(shape), 0, 0, [[i, "x.weight"] for i in range(3)]]]
    operation = {"kind": "task_arithmetic", "terms": [{"model": 1, "reference": 2, "weight": 1.0}]}
    plan = document([source(FP8, shape)] * 3, rows, operation, alpha)
    got = np.frombuffer(_core.evaluate(json.dumps(plan).encode(), memories=models), ml_dtypes.bfloat16)
    want = values[0] + alpha * (values[1] - values[2])
    if alpha == 0.0:
        assert np.array_equal(got, want.astype(np.float32).astype(ml_dtypes.bfloat16).ravel())
    difference = np.abs(got.astype(np.float64) - want.ravel())
    largest = np.maximum.reduce([np.abs(value) for value in values]).ravel()
    assert (difference <= np.abs(want.ravel()) * 2**-8 + largest * 2**-22).all()
