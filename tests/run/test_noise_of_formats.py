"""Signal and noise of synthetic triples in every format, written plain and packed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from support.packed import document
from support.quantised import DTYPES, FORMATS, Format, Parts, Stored, spread, write
from taskvec import _core
from taskvec.report.noise import Noise, Sums, noise_of

BF16 = ml_dtypes.bfloat16
TRANSFER = {"kind": "task_arithmetic", "terms": [{"model": 1, "reference": 2, "weight": 1.0}]}
SIZE = (1024, 1024)
VECTORS = {"rl .2": (0.2, 0.0), "rl 1": (1.0, 0.0), "sft .01": (0.0, 0.01), "sft .05": (0.0, 0.05)}
NAMES = [
    "block fp8",
    "block fp8 bf16",
    "block fp8 ue8m0",
    "channel fp8",
    "channel int8",
    "mxfp8",
    "mxfp4",
    "nvfp4",
    "nvfp4 modelopt",
    "int4",
]


def weights(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Rows of different size."""
    rows = np.exp(rng.standard_normal((shape[0], 1)) * 0.5) * 0.02
    return (rng.standard_normal(shape) * rows).astype(BF16).astype(np.float32)


def stepped(weight: np.ndarray, rng: np.random.Generator, share: float, size: float) -> np.ndarray:
    """A step of one to three ulps of bfloat16 on a share of the elements, or a dense one."""
    if size:
        step = rng.standard_normal(weight.shape) * size * np.sqrt((weight.astype(np.float64) ** 2).mean())
    else:
        ulp = np.exp2(np.floor(np.log2(np.abs(weight) + 1e-12)) - 7)
        step = rng.integers(1, 4, weight.shape) * rng.choice([-1, 1], weight.shape) * ulp
        step *= rng.random(weight.shape) < share
    return (weight + step).astype(BF16).astype(np.float32)


def ends_of(form: Format) -> dict[str, str]:
    return dict(form.plan["parts"])  # type: ignore[call-overload]


def store(folder: Path, form: Format, parts: Parts, plain: np.ndarray) -> Stored:
    """A packed matrix and a plain one."""
    types = {"codes": form.codes, "scales": form.scales, "global": "F32"}
    tensors: Stored = {}
    for role, end in ends_of(form).items():
        data = np.ascontiguousarray(parts[role]).astype(DTYPES[types[role]], copy=False)
        tensors["x" + end] = (types[role], data.shape, data.tobytes())
    tensors["plain"] = ("BF16", plain.shape, plain.astype(BF16).tobytes())
    write(folder / "model.safetensors", tensors)
    return tensors


def source(folder: Path, form: Format, shape: tuple[int, int]) -> dict[str, Any]:
    opened = _core.Checkpoint(folder)
    held = {"path": str(folder), "files": opened.files(), "fingerprint": opened.fingerprint}
    packed = {"formats": [form.plan], "tensors": {"x.weight": [0, list(shape)]}}
    return {"kind": "checkpoint", **held, "packed": packed}


def plan(
    form: Format,
    folders: Sequence[Path],
    target: Stored,
    shape: tuple[int, int],
    *,
    packed: bool,
    operation: Mapping[str, Any] = TRANSFER,
) -> bytes:
    """A plan that writes the matrix packed or plain, one shard for each tensor."""
    inputs = [[index, "x.weight"] for index in range(len(folders))]
    plain = [[index, "plain"] for index in range(len(folders))]
    rows: list[list[Any]] = [["plain", "BF16", list(target["plain"][1]), 0, 0, plain]]
    if packed:
        for shard, (role, end) in enumerate(ends_of(form).items()):
            dtype, size, _ = target["x" + end]
            part = [0, role, "x.weight", list(shape)]
            rows.append(["x" + end, dtype, list(size), shard + 1, 0, inputs, part])
    else:
        rows.append(["x.weight", "BF16", list(shape), 1, 0, inputs])
    made = document([source(folder, form, shape) for folder in folders], rows, dict(operation))
    made["shards"] = [f"{index}.safetensors" for index in range(len(rows))]
    if packed:
        made["encodings"] = [form.plan | {"rule": form.rule, "own": True}]
    return json.dumps(made).encode()


def rows_of(report: str | bytes) -> list[dict[str, Any]]:
    return json.loads(report)["outputs"][0]["noise"]["tensors"]


def estimate(rows: Sequence[Mapping[str, Any]], words: str) -> Noise:
    """As a report has it."""
    packed, plain = ([Sums.of(row) for row in rows if row["stored"] == sort] for sort in ("packed", "plain"))
    found = noise_of(words, packed, plain)
    assert found is not None
    return found


def sums(form: Format, donor: Parts, reference: Parts, shape: tuple[int, int]) -> dict[str, Any]:
    """What the engine is to measure of a packed matrix."""
    d, r = (form.decode(parts, shape).astype(np.float64) for parts in (donor, reference))
    values = [
        spread(
            form.value(parts["scales"], parts["global"][0] if "global" in parts else None), shape, form.block
        )
        for parts in (donor, reference)
    ]
    same = values[0] == values[1]
    codes = [form.unpack(parts["codes"], shape[1]) for parts in (donor, reference)]
    signs = [np.signbit(each) for each in codes]
    return {
        "elements": d.size,
        "squares": pytest.approx(((d - r) ** 2).sum(), rel=1e-4),
        "magnitudes": pytest.approx(np.abs(d - r)[same].sum(), rel=1e-4),
        "equal_elements": int(same.sum()),
        "codes_differ": int(((codes[0] != codes[1]) | (signs[0] != signs[1])).sum()),
        "groups": donor["scales"].size,
        "scales_differ": int(
            (donor["scales"].view(np.uint8) != reference["scales"].view(np.uint8))
            .reshape(donor["scales"].size, -1)
            .any(1)
            .sum()
        ),
    }


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("name", NAMES)
def test_the_estimate_is_within_two_hundredths_of_the_truth(name: str, vector: str, tmp_path: Path) -> None:
    form, rng = FORMATS[name], np.random.default_rng(11)
    reference, plain = weights(rng, SIZE), weights(rng, SIZE)
    donor, changed = (stepped(each, rng, *VECTORS[vector]) for each in (reference, plain))
    target = (reference + 0.02 * reference * rng.standard_normal(SIZE)).astype(BF16).astype(np.float32)
    parts = [form.quantise(each) for each in (target, donor, reference)]
    folders = [tmp_path / role for role in ("target", "donor", "reference")]
    stored = [store(*each) for each in zip(folders, [form] * 3, parts, (plain, changed, plain), strict=True)]
    found = {}
    for packed in (False, True):
        text = _core.run(plan(form, folders, stored[0], SIZE, packed=packed), tmp_path / f"out-{packed}")
        found[packed] = rows_of(text)
    true = (donor.astype(np.float64) - reference).ravel()
    step = (form.decode(parts[1], SIZE).astype(np.float64) - form.decode(parts[2], SIZE)).ravel()
    cosine = true @ step / math.sqrt((true @ true) * (step @ step))
    wanted = sums(form, parts[1], parts[2], SIZE)
    for rows in found.values():
        row = next(row for row in rows if row["stored"] == "packed")
        assert {field: row[field] for field in wanted} == wanted
        noise = estimate(rows, f"{form.scales} scales")
        assert noise.cosine == pytest.approx(cosine, abs=0.02)
        assert noise.step == pytest.approx(
            math.sqrt((step @ step) / (form.decode(parts[2], SIZE).astype(np.float64) ** 2).sum()), rel=1e-3
        )


def small(folder: Path, form: Format, count: int) -> tuple[list[Path], Stored, list[Parts]]:
    """A target, `count` donors and their reference."""
    shape, rng = (192, 320), np.random.default_rng(5)
    base = weights(rng, shape)
    values = [base * np.float32(1.02), *(stepped(base, rng, 0.5, 0.05 * i) for i in range(count)), base]
    parts = [form.quantise(each.astype(np.float32)) for each in values]
    folders = [folder / str(index) for index in range(count + 2)]
    stored = [
        store(at, form, each, values[i]) for i, (at, each) in enumerate(zip(folders, parts, strict=True))
    ]
    return folders, stored[0], parts


@pytest.mark.parametrize("name", NAMES)
def test_several_donors_are_measured_each_by_itself(name: str, tmp_path: Path) -> None:
    form, shape, weights_of = FORMATS[name], (192, 320), (0.75, -0.5)
    folders, target, parts = small(tmp_path, form, 2)
    terms = [{"model": 1 + i, "reference": 3, "weight": weight} for i, weight in enumerate(weights_of)]
    operation = {"kind": "task_arithmetic", "terms": terms}
    for packed in (False, True):
        made = plan(form, folders, target, shape, packed=packed, operation=operation)
        rows = rows_of(_core.run(made, tmp_path / f"out-{packed}", threads=1))
        for pair, weight in enumerate(weights_of):
            row = next(row for row in rows if row["stored"] == "packed" and row["pair"] == pair)
            wanted = sums(form, parts[1 + pair], parts[3], shape)
            for field in ("elements", "equal_elements", "codes_differ", "groups", "scales_differ"):
                assert row[field] == wanted[field]
            assert row["squares"] / weight**2 == wanted["squares"]
            assert row["magnitudes"] / abs(weight) == wanted["magnitudes"]
        assert {row["pair"] for row in rows if row["stored"] == "plain"} == {0, 1}


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_goes_on_measures_the_same(name: str, tmp_path: Path) -> None:
    form, shape = FORMATS[name], (192, 320)
    folders, target, _ = small(tmp_path, form, 1)
    made = plan(form, folders, target, shape, packed=True)
    whole = json.loads(_core.run(made, tmp_path / "out"))["outputs"][0]["noise"]
    for index in range(len(ends_of(form)) + 1):
        (tmp_path / "out" / f"{index}.safetensors").unlink()
        report = json.loads(_core.run(made, tmp_path / "out", threads=3))
        assert report["resumed_shards"] == len(ends_of(form))
        found = report["outputs"][0]["noise"]
        assert sorted(found["tensors"], key=str) == sorted(whole["tensors"], key=str)
        assert found["total"] == whole["total"]
