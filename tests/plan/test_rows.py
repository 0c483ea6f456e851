"""Matrices whose rows are those of others, in the engine, against NumPy."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import taskvec as tv
from taskvec import _core
from taskvec.plan.plan import ARITHMETIC, FORMAT

KINDS = {"BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64, "F16": np.float16}
COLUMNS = 7


def plan(folders: list[Path], shape: list[int], rows: list[Any], dtype: str) -> bytes:
    sources = []
    for folder in folders:
        model = tv.open(str(folder))
        files = list(map(list, model.file_sizes.items()))
        source = {"kind": "checkpoint", "path": str(folder), "files": files, "fingerprint": model.fingerprint}
        sources.append(source)
    sources[0]["rows"] = {"x": rows}
    document = {
        "format": FORMAT,
        "arithmetic": ARITHMETIC,
        "sources": sources,
        "outputs": [{"folder": "", "alpha": 1.0}],
        "shards": ["model.safetensors"],
        "operations": [{"kind": "copy"}],
        "tensors": [["x", dtype, shape, 0, 0, [[0, "x"]]]],
        "rounding": "nearest",
        "seed": 0,
    }
    return json.dumps(document).encode()


def tables(folder: Path, heights: list[int], dtypes: list[str]) -> tuple[list[Path], list[np.ndarray]]:
    rng, folders, arrays = np.random.default_rng(3), [], []
    for number, (height, dtype) in enumerate(zip(heights, dtypes, strict=True)):
        array = rng.standard_normal((height, COLUMNS)).astype(np.float32).astype(KINDS[dtype])
        folders.append(folder / str(number))
        folders[-1].mkdir()
        save_file({"x": array}, folders[-1] / "model.safetensors")
        arrays.append(array)
    return folders, arrays


@pytest.mark.parametrize("dtypes", [["BF16"] * 3, ["F32"] * 3, ["F16", "BF16", "F32"], ["F64", "F32", "F64"]])
@pytest.mark.parametrize("height", [1, 50, 40_000])
def test_rows_of_several_tables(tmp_path: Path, dtypes: list[str], height: int) -> None:
    rng = np.random.default_rng(height)
    folders, arrays = tables(tmp_path, [60, 90, 30], dtypes)
    expected = np.zeros((height, COLUMNS))
    runs, means, at = [], [], 0
    while at < height:
        kind, table = rng.integers(3), int(rng.integers(3))
        if kind == 0:
            count = int(min(rng.integers(1, 25), height - at))
            first = int(rng.integers(0, len(arrays[table]) - 24))
            runs.append([at, count, table, first])
            expected[at : at + count] = arrays[table][first : first + count]
            at += count
        elif kind == 1:
            places = [
                [int(t), int(rng.integers(len(arrays[t])))] for t in rng.integers(3, size=rng.integers(1, 4))
            ]
            means.append([at, places])
            expected[at] = np.mean([arrays[t][row].astype(np.float64) for t, row in places], axis=0)
            at += 1
        else:
            at += 1  # zero
    rng.shuffle(runs)
    named = [[number, "x", list(array.shape)] for number, array in enumerate(arrays)]
    dtype = "F64" if "F64" in dtypes else "F32"
    data = _core.evaluate(plan(folders, [height, COLUMNS], [[height, COLUMNS], named, runs, means], dtype))
    got = np.frombuffer(data, KINDS[dtype]).reshape(height, COLUMNS)
    exact = [row for row in range(height) if row not in {at for at, _ in means}]
    np.testing.assert_array_equal(got[exact], expected[exact].astype(KINDS[dtype]))
    np.testing.assert_allclose(got, expected, rtol=2e-7 if dtype == "F32" else 4e-16, atol=1e-7)


def test_without_means_the_bytes_are_the_stored_ones(tmp_path: Path) -> None:
    folders, arrays = tables(tmp_path, [300, 300], ["BF16", "BF16"])
    order = np.random.default_rng(1).permutation(600)
    runs = [[to, 1, int(row) // 300, int(row) % 300] for to, row in enumerate(order)]
    named = [[0, "x", [300, COLUMNS]], [1, "x", [300, COLUMNS]]]
    data = _core.evaluate(plan(folders, [600, COLUMNS], [[600, COLUMNS], named, runs, []], "BF16"))
    assert bytes(data) == np.concatenate(arrays)[order].tobytes()


@pytest.mark.parametrize(
    ("tables_of", "runs", "means"),
    [
        ([[0, "x", [60, COLUMNS]]], [[0, 61, 0, 0]], []),
        ([[0, "x", [60, COLUMNS]]], [[0, 2, 0, 59]], []),
        ([[0, "x", [60, COLUMNS]]], [[0, 2**64 - 1, 0, 2]], []),
        ([[0, "x", [60, COLUMNS]]], [[0, 5, 0, 0], [4, 2, 0, 0]], []),
        ([[0, "x", [60, COLUMNS]]], [[0, 5, 0, 0]], [[4, [[0, 1]]]]),
        ([[0, "x", [60, COLUMNS]]], [[0, 5, 1, 0]], []),
        ([[0, "x", [60, COLUMNS]]], [[0, 0, 0, 0]], []),
        ([[0, "x", [60, COLUMNS]]], [], [[1, []]]),
        ([[0, "x", [60, COLUMNS]]], [], [[60, [[0, 1]]]]),
        ([[0, "x", [60, COLUMNS]]], [], [[1, [[0, 60]]]]),
        ([[7, "x", [60, COLUMNS]]], [[0, 1, 0, 0]], []),
        ([[0, "y", [60, COLUMNS]]], [[0, 1, 0, 0]], []),
        ([[0, "x", [61, COLUMNS]]], [[0, 1, 0, 60]], []),
        ([[0, "x", [60, COLUMNS + 1]]], [[0, 1, 0, 0]], []),
    ],
)
def test_rows_that_are_not_there_are_refused(
    tmp_path: Path, tables_of: list[Any], runs: list[Any], means: list[Any]
) -> None:
    folders, _ = tables(tmp_path, [60], ["F32"])
    document = plan(folders, [60, COLUMNS], [[60, COLUMNS], tables_of, runs, means], "F32")
    with pytest.raises(tv.Error):
        _core.evaluate(document)
