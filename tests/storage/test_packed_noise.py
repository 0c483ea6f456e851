"""What the difference of donor and reference is like, measured in the same pass: against NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from support.packed import document
from taskvec import _core

BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
SHAPES = {"x.weight": (700, 530), "y.weight": (256, 129)}
FORM = {
    "kind": "scaled",
    "dtype": "BF16",
    "strip": ".weight",
    "parts": {"codes": ".weight", "scales": ".s"},
    "block": [128, 128],
}


def model(folder: Path, seed: int) -> dict[str, np.ndarray]:
    """A model of packed tensors that are near those of other seeds, and a plain one."""
    held: dict[str, np.ndarray] = {}
    near, far = np.random.default_rng(3), np.random.default_rng(seed)
    for name, shape in SHAPES.items():
        grid = [-(-side // 128) for side in shape]
        codes = near.integers(0x10, 0x60, shape).astype(np.uint8)
        held[name] = (codes + (far.random(shape) < 0.1)).astype(np.uint8).view(FP8)
        scales = (near.random(grid) + 0.1).astype(np.float32)
        held[name.replace(".weight", ".s")] = np.where(far.random(grid) < 0.3, scales * 1.5, scales).astype(
            np.float32
        )
    plain = near.standard_normal((300, 40))
    held["plain"] = (plain + far.standard_normal(plain.shape) * 0.01).astype(BF16)
    folder.mkdir()
    save_file(held, folder / "model.safetensors")
    return held


def decoded(held: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Values, and a scale for each element."""
    shape = SHAPES[name]
    scales = held[name.replace(".weight", ".s")].repeat(128, 0).repeat(128, 1)[: shape[0], : shape[1]]
    return held[name].astype(np.float32) * scales, scales


def source(folder: Path) -> dict[str, Any]:
    opened = _core.Checkpoint(folder)
    packed = {"formats": [FORM], "tensors": {name: [0, list(shape)] for name, shape in SHAPES.items()}}
    held = {"path": str(folder), "files": opened.files(), "fingerprint": opened.fingerprint}
    return {"kind": "checkpoint", **held, "packed": packed}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path, list[dict[str, np.ndarray]]]:
    root = tmp_path_factory.mktemp("noise")
    models = [model(root / str(seed), seed) for seed in range(3)]
    shapes = {**SHAPES, "plain": (300, 40)}
    rows = [
        [name, "BF16", list(shape), int(name == "plain"), 0, [[i, name] for i in range(3)]]
        for name, shape in shapes.items()
    ]
    operation = {"kind": "task_arithmetic", "terms": [{"model": 1, "reference": 2, "weight": 1.0}]}
    plan = document([source(root / str(i)) for i in range(3)], rows, operation)
    plan["shards"] = ["a.safetensors", "b.safetensors"]
    return json.dumps(plan).encode(), root, models


def test_every_sum_is_that_of_numpy(made: tuple[bytes, Path, list[dict[str, np.ndarray]]]) -> None:
    plan, root, models = made
    report = json.loads(_core.run(plan, root / "out", threads=2))
    noise = report["outputs"][0]["noise"]
    found = {row["name"]: row for row in noise["tensors"]}
    assert set(found) == {*SHAPES, "plain"}
    for name, shape in SHAPES.items():
        (donor, a), (reference, b) = decoded(models[1], name), decoded(models[2], name)
        difference = (donor - reference).astype(np.float64)
        row = found[name]
        scales = [held[name.replace(".weight", ".s")] for held in models]
        codes = [held[name].view(np.uint8) for held in models]
        assert row["stored"] == "packed"
        assert row["elements"] == donor.size
        assert row["codes_differ"] == (codes[1] != codes[2]).sum()
        assert row["groups"] == scales[0].size
        assert row["scales_differ"] == (scales[1] != scales[2]).sum()
        assert row["equal_elements"] == (a == b).sum()
        assert row["squares"] == pytest.approx((difference**2).sum(), rel=1e-5)
        assert row["magnitudes"] == pytest.approx(np.abs(difference[a == b]).sum(), rel=1e-5)
        assert row["reference_squares"] == pytest.approx((reference.astype(np.float64) ** 2).sum(), rel=1e-5)
        assert shape == donor.shape
    donor, reference = (held["plain"].astype(np.float64) for held in models[1:])
    row = found["plain"]
    assert row["stored"] == "plain"
    assert row["elements"] == donor.size
    assert "groups" not in row
    assert row["squares"] == pytest.approx(((donor - reference) ** 2).sum(), rel=1e-4)
    assert row["magnitudes"] == pytest.approx(np.abs(donor - reference).sum(), rel=1e-4)
    assert row["reference_squares"] == pytest.approx((reference**2).sum(), rel=1e-4)
    packed, plain = noise["total"]
    assert packed["stored"] == "packed"
    assert plain["stored"] == "plain"
    assert packed["groups"] == sum(found[name]["groups"] for name in SHAPES)
    assert plain["elements"] == donor.size


def test_a_packed_target_is_measured_from_what_the_output_type_holds(
    made: tuple[bytes, Path, list[dict[str, np.ndarray]]],
) -> None:
    plan, root, models = made
    report = json.loads(_core.run(plan, root / "measured", threads=1))
    rows = {row["name"]: row for row in report["outputs"][0]["survival"]["tensors"]}
    for name in SHAPES:
        target, donor, reference = (decoded(held, name)[0] for held in models)
        step, still = donor - reference, target.astype(BF16).astype(np.float32)
        out = (target + step).astype(BF16).astype(np.float32)
        moved = (out - still).astype(np.float64)
        assert rows[name]["moved_norm"] == pytest.approx(np.sqrt((moved**2).sum()), rel=1e-4)
        assert rows[name]["changed"] == (step != 0).sum()
        assert rows[name]["rounded_away"] == pytest.approx(((step != 0) & (moved == 0)).sum(), abs=2)


def test_the_same_for_any_number_of_threads(made: tuple[bytes, Path, list[dict[str, np.ndarray]]]) -> None:
    plan, root, _ = made
    whole = json.loads(_core.run(plan, root / "whole"))
    again = json.loads(_core.run(plan, root / "threads", threads=1))
    assert again["outputs"][0]["noise"] == whole["outputs"][0]["noise"]


def test_nothing_is_measured_where_no_model_is_packed(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / str(index)).mkdir()
        save_file({"w": np.full(8, index, np.float32)}, tmp_path / str(index) / "model.safetensors")
    opened = [_core.Checkpoint(tmp_path / str(index)) for index in range(3)]
    sources = [
        {
            "kind": "checkpoint",
            "path": str(tmp_path / str(i)),
            "files": c.files(),
            "fingerprint": c.fingerprint,
        }
        for i, c in enumerate(opened)
    ]
    operation = {"kind": "task_arithmetic", "terms": [{"model": 1, "reference": 2, "weight": 1.0}]}
    plan = document(sources, [["w", "F32", [8], 0, 0, [[i, "w"] for i in range(3)]]], operation)
    report = json.loads(_core.run(json.dumps(plan).encode(), tmp_path / "out"))
    assert "noise" not in report["outputs"][0]
