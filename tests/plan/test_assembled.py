"""Tensors assembled of pieces in the engine, against strided copies by NumPy."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from safetensors.numpy import save_file

import taskvec as tv
from taskvec import _core
from taskvec.plan.plan import ARITHMETIC, FORMAT

RNG = np.random.default_rng(11)


def evaluate(folder: Path, shape: list[int], pieces: list[list], dtype: str = "BF16") -> np.ndarray:
    model = tv.open(str(folder))
    plan = {
        "format": FORMAT,
        "arithmetic": ARITHMETIC,
        "sources": [
            {
                "kind": "checkpoint",
                "path": str(folder),
                "files": list(map(list, model.file_sizes.items())),
                "fingerprint": model.fingerprint,
                "assembled": {"made": [shape, pieces]},
            }
        ],
        "outputs": [{"folder": "", "alpha": 1.0}],
        "shards": ["model.safetensors"],
        "operations": [{"kind": "copy"}],
        "tensors": [["made", dtype, shape, 0, 0, [[0, "made"]]]],
        "rounding": "nearest",
        "seed": 0,
    }
    data = _core.evaluate(json.dumps(plan).encode())
    kinds = {"BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64, "F16": np.float16}
    return np.frombuffer(data, kinds[dtype]).reshape(shape)


def save(folder: Path, **tensors: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


def numbers(*shape: int, dtype: type = ml_dtypes.bfloat16) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32).astype(dtype)


EXPERTS, INNER, HIDDEN = 3, 700, 900


@pytest.mark.parametrize("is_interleaved", [False, True])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_one_expert_of_a_fused_tensor(tmp_path: Path, is_transposed: bool, is_interleaved: bool) -> None:
    fused = numbers(EXPERTS, 2 * INNER, HIDDEN)
    stored = np.ascontiguousarray(fused.transpose(0, 2, 1)) if is_transposed else fused
    folder = save(tmp_path / "m", fused=stored)
    row, column = (1, 2 * INNER) if is_transposed else (HIDDEN, 1)
    for half in (0, 1):
        step, first = (2, half) if is_interleaved else (1, half * INNER)
        start = 2 * INNER * HIDDEN * 1 + first * row
        piece = ["fused", [INNER, HIDDEN], 0, [HIDDEN, 1], start, [row * step, column]]
        found = evaluate(folder, [INNER, HIDDEN], [piece])
        wanted = fused[1, half::2] if is_interleaved else fused[1, half * INNER : (half + 1) * INNER]
        assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("is_interleaved", [False, True])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_fused_tensor_of_experts_one_by_one(
    tmp_path: Path, is_transposed: bool, is_interleaved: bool
) -> None:
    parts = {f"{e}.{kind}": numbers(INNER, HIDDEN) for e in range(EXPERTS) for kind in ("gate", "up")}
    folder = save(tmp_path / "m", **parts)
    fused = np.empty((EXPERTS, 2 * INNER, HIDDEN), ml_dtypes.bfloat16)
    pieces = []
    row, column = (1, 2 * INNER) if is_transposed else (HIDDEN, 1)
    for e in range(EXPERTS):
        for half, kind in enumerate(("gate", "up")):
            rows = slice(half, None, 2) if is_interleaved else slice(half * INNER, (half + 1) * INNER)
            fused[e, rows] = parts[f"{e}.{kind}"]
            step, first = (2, half) if is_interleaved else (1, half * INNER)
            to = e * 2 * INNER * HIDDEN + first * row
            pieces.append([f"{e}.{kind}", [INNER, HIDDEN], to, [row * step, column], 0, [HIDDEN, 1]])
    wanted = np.ascontiguousarray(fused.transpose(0, 2, 1)) if is_transposed else fused
    assert evaluate(folder, list(wanted.shape), pieces).tobytes() == wanted.tobytes()


def test_boxes_of_any_strides(tmp_path: Path) -> None:
    source = numbers(40_000, dtype=np.float32)
    folder = save(tmp_path / "m", x=source)
    for _ in range(60):
        sizes = RNG.integers(1, 9, RNG.integers(1, 5)).tolist()
        order = RNG.permutation(len(sizes))
        strides, step = [0] * len(sizes), 1
        for axis in order:
            strides[axis] = step
            step *= sizes[axis]
        start, away = int(RNG.integers(0, 100)), [int(RNG.integers(0, 60)) for _ in sizes]
        piece = ["x", sizes, 0, strides, start, away]
        view = as_strided(source[start:], sizes, [4 * stride for stride in away])
        wanted = np.empty(step, np.float32)
        as_strided(wanted, sizes, [4 * stride for stride in strides])[...] = view
        assert evaluate(folder, [step], [piece], "F32").tobytes() == wanted.tobytes()


def test_a_piece_without_a_name_is_zero(tmp_path: Path) -> None:
    source = numbers(6, 50)
    folder = save(tmp_path / "m", x=source)
    pieces = [["x", [6, 50], 0, [50, 1], 0, [50, 1]], ["", [3, 50], 300, [50, 1], 0, [0, 0]]]
    found = evaluate(folder, [9, 50], pieces)
    assert (found[:6] == source).all()
    assert not found[6:].any()


def test_types_that_differ_meet_in_a_wider_one(tmp_path: Path) -> None:
    parts = {"a": numbers(5, 7), "b": numbers(5, 7, dtype=np.float32), "c": numbers(5, 7, dtype=np.float16)}
    folder = save(tmp_path / "m", **parts)
    pieces = [[name, [35], 35 * k, [1], 0, [1]] for k, name in enumerate(parts)]
    found = evaluate(folder, [3, 5, 7], pieces, "F32")
    for k, part in enumerate(parts.values()):
        assert (found[k] == part.astype(np.float32)).all()


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([["x", [6], 0, [1], 3, [1]]], "goes beyond"),
        ([["x", [7], 0, [1], 0, [1]]], "goes beyond"),
        ([["x", [2, 3], 0, [1, 1], 0, [3, 1]]], "goes over itself"),
        ([["x", [2**63, 2], 0, [2, 1], 0, [2**63, 1]]], "goes beyond"),
        ([["x", [5], 0, [1], 0, [1]]], "its pieces 5"),
        ([["x", [0], 0, [1], 0, [1]]], "is empty"),
        ([["x", [6], 0, [1, 2], 0, [1]]], "dimensions"),
        ([["y", [6], 0, [1], 0, [1]]], "y"),
    ],
)
def test_pieces_that_cannot_be(tmp_path: Path, pieces: list[list], words: str) -> None:
    folder = save(tmp_path / "m", x=numbers(6, dtype=np.float32))
    with pytest.raises(tv.Error, match=words):
        evaluate(folder, [2, 3], pieces, "F32")
