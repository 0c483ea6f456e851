"""Every verb on packed checkpoints, against NumPy on their values."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taskvec as tv
from support.models import DTYPES, Trio, read_tensors, safetensors_bytes
from support.packed_checks import FP8, UP, ids, near
from support.packed_models import WAYS, Way, expected, is_packed, packed_trio
from taskvec.errors import FormatError

FORCED = ("quantised-basis",)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_values_are_the_oracles(tmp_path: Path, way: Way) -> None:
    trio, values = packed_trio(tmp_path, way)
    model = tv.open(trio.target)
    assert list(model) == list(values[0])
    for name, value in values[0].items():
        assert np.array_equal(model[name].astype(np.float32), value.astype(np.float32)), name
        assert model[name].dtype == (np.float32 if is_packed(name) else DTYPES["BF16"])


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_transfer_to_plain_weights(tmp_path: Path, way: Way) -> None:
    trio, values = packed_trio(tmp_path, way, shards=2)
    report = tv.transfer(*trio, tmp_path / "out", out_dtype="bfloat16", force=FORCED)
    out = read_tensors(tmp_path / "out")
    assert list(out) == list(values[0])
    for name in values[0]:
        assert out[name].dtype == DTYPES["BF16"]
        near(out[name], values, name)
    assert report.survival is not None
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"quantization_config", "quantization", "compression_config"} & config.keys()
    assert config["dtype"] == "bfloat16"
    assert tv.verify(tmp_path / "out").ok
    assert not tv.open(tmp_path / "out").packed


def test_check(packed: tuple[Trio, Any]) -> None:
    assert ids(tv.check(*packed[0])) == ["lineage", "quantised-output"]


def test_the_same_bytes_for_any_threads_and_shards(tmp_path: Path) -> None:
    folders = []
    for shards, threads in ((1, 1), (3, 2)):
        trio, _ = packed_trio(tmp_path / str(shards), FP8, shards=shards)
        folders.append(tmp_path / f"out{shards}")
        tv.transfer(*trio, folders[-1], out_dtype="bfloat16", threads=threads, max_shard_size="1GB")
    assert (folders[0] / "model.safetensors").read_bytes() == (folders[1] / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_plain_types(packed: Any, tmp_path: Path, dtype: str) -> None:
    trio, values = packed
    tv.transfer(*trio, tmp_path / "out", out_dtype=dtype)
    out = read_tensors(tmp_path / "out")
    t, d, r = (each[UP].astype(np.float64) for each in values)
    assert out[UP].dtype == np.dtype(dtype)
    scale = np.finfo(np.dtype(dtype)).eps
    assert np.allclose(out[UP], t + (d - r), rtol=scale, atol=scale * 0.1)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_extract_and_apply(packed: Any, tmp_path: Path) -> None:
    trio, values = packed
    tv.extract(trio.donor, trio.reference, tmp_path / "vector")
    vector = tv.load_vector(tmp_path / "vector")
    difference = values[1][UP].astype(np.float64) - values[2][UP]
    assert np.allclose(vector[UP], difference, rtol=1e-6, atol=1e-9)
    report = tv.apply(trio.target, tmp_path / "vector", out=tmp_path / "out")
    assert ids(report.findings) == ["quantised-output"]
    for name, array in read_tensors(tmp_path / "out").items():
        near(array, values, name)


def test_diff(packed: Any) -> None:
    trio, values = packed
    pair = tv.diff(trio.donor, trio.reference).tensors[UP]
    d, r = (each[UP].astype(np.float64) for each in values[1:])
    assert pair.changed == (d != r).sum()
    assert pair.difference_norm == pytest.approx(np.linalg.norm(d - r), rel=1e-5)


def test_diff_of_packed_and_plain(tmp_path: Path) -> None:
    trio, values = packed_trio(tmp_path, FP8, plain=("reference",))
    pair = tv.diff(trio.donor, trio.reference).tensors[UP]
    d, r = (each[UP].astype(np.float64) for each in values[1:])
    assert pair.difference_norm == pytest.approx(np.linalg.norm(d - r), rel=1e-5)


def test_streaming(packed: Any) -> None:
    trio, values = packed
    vector = tv.open(trio.donor) - tv.open(trio.reference)
    merged = tv.open(trio.target) + 0.5 * vector
    assert np.allclose(vector[UP], values[1][UP] - values[2][UP], rtol=1e-6, atol=1e-9)
    near(merged[UP], values, UP, 0.5)
    for name, array in merged.items():
        near(array, values, name, 0.5)


def test_in_memory(packed: Any) -> None:
    trio, values = packed
    config = json.loads((trio.target / "config.json").read_text())
    model = tv.from_state_dict(read_tensors(trio.target), config=config)
    assert np.array_equal(model[UP], values[0][UP])
    near((model + (tv.open(trio.donor) - tv.open(trio.reference)))[UP], values, UP)


def test_a_vector_of_packed_models_changes_a_plain_model_in_place(packed: Any) -> None:
    trio, values = packed
    state = {name: np.array(array.astype(DTYPES["BF16"])) for name, array in values[0].items()}
    before = (state, *values[1:])
    want = {name: expected(before, name) for name in state}  # type: ignore[arg-type]
    (tv.open(trio.donor) - tv.open(trio.reference)).apply_(state)
    assert np.array_equal(state[UP], want[UP])


def test_packed_weights_in_memory_are_not_changed_in_place(packed: Any) -> None:
    trio, _ = packed
    state = {name: np.array(array) for name, array in read_tensors(trio.target).items()}
    with pytest.raises(FormatError, match="FP8 block 128x128"):
        (tv.open(trio.donor) - tv.open(trio.reference)).apply_(state)


def test_inspect(packed: Any) -> None:
    trio, values = packed
    result = tv.inspect(trio.target)
    assert result.parameters == sum(value.size for value in values[0].values())
    assert list(result.dtypes) == ["FP8 block 128x128, BF16 scales", "BF16"]
    assert {info.name: info.shape for info in result.tensors}[UP] == values[0][UP].shape
    assert sum(file.tensors for file in result.files) == len(read_tensors(trio.target))


@pytest.mark.parametrize("control", ["random", "permute"])
def test_controls(packed: Any, tmp_path: Path, control: Any) -> None:
    trio, values = packed
    report = tv.transfer(*trio, tmp_path / "out", control=control, out_dtype="bfloat16")
    out = read_tensors(tmp_path / "out")
    moved = np.linalg.norm(out[UP].astype(np.float64) - values[0][UP])
    step = np.linalg.norm(values[1][UP].astype(np.float64) - values[2][UP])
    assert moved == pytest.approx(step, rel=0.05)
    assert report.survival is not None


def test_a_recipe(packed: Any, tmp_path: Path) -> None:
    trio, values = packed
    models = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in (trio.target, trio.donor)]
    tv.merge({"merge_method": "linear", "models": models, "dtype": "bfloat16"}, tmp_path / "out")
    out = read_tensors(tmp_path / "out")
    mean = 0.5 * (values[0][UP].astype(np.float64) + values[1][UP])
    assert np.array_equal(out[UP], mean.astype(np.float32).astype(DTYPES["BF16"]))
    assert not tv.open(tmp_path / "out").packed


def test_slices_are_copied_in_their_format(packed: Any, tmp_path: Path) -> None:
    trio, _ = packed
    slices = [
        {"sources": [{"model": str(each), "layer_range": [0, 1]}]} for each in (trio.target, trio.donor)
    ]
    tv.merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    out, donor = read_tensors(tmp_path / "out"), read_tensors(trio.donor)
    for name, array in donor.items():
        if ".layers.0." in name:
            assert out[name.replace(".layers.0.", ".layers.1.")].tobytes() == array.tobytes()


def test_an_adapter_on_a_packed_model(packed: Any, tmp_path: Path) -> None:
    trio, values = packed
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) * 0.02 for shape in ((4, 160), (192, 4)))
    stem = "base_model.model.model.layers.0.mlp.up_proj"
    folder = tmp_path / "adapter"
    folder.mkdir()
    weights = safetensors_bytes({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b})
    (folder / "adapter_model.safetensors").write_bytes(weights)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    model = {"model": f"{trio.target}+{folder}", "parameters": {"weight": 1.0}}
    tv.merge({"merge_method": "linear", "models": [model]}, tmp_path / "out")
    out = read_tensors(tmp_path / "out")
    want = values[0][UP].astype(np.float64) + 2.0 * (b.astype(np.float64) @ a.astype(np.float64))
    assert out[UP].dtype == DTYPES["BF16"]
    assert np.allclose(out[UP].astype(np.float64), want, rtol=2.0**-8, atol=1e-7)


def test_weights_outside_of_the_selection_keep_their_bytes(packed: Any, tmp_path: Path) -> None:
    trio, _ = packed
    tv.transfer(*trio, tmp_path / "out", include=["norm"])
    out, target = read_tensors(tmp_path / "out"), read_tensors(trio.target)
    assert list(out) == list(target)
    assert {name for name in out if out[name].tobytes() != target[name].tobytes()} == {
        name for name in target if "norm" in name
    }
    assert (tmp_path / "out" / "config.json").read_bytes() == (trio.target / "config.json").read_bytes()


def test_scales_of_activations_stay_with_their_format(packed: Any, tmp_path: Path) -> None:
    trio, _ = packed
    for number, folder in enumerate(trio):
        part = next(path for path in sorted(folder.glob("*.safetensors")))
        tensors = read_tensors(folder) | {
            "model.layers.0.mlp.up_proj.input_scale": np.array(number, np.float32)
        }
        for path in folder.glob("*.safetensors*"):
            os.remove(path)
        part.with_name("model.safetensors").write_bytes(safetensors_bytes(tensors))
    tv.transfer(*trio, tmp_path / "plain", out_dtype="bfloat16")
    assert not [name for name in read_tensors(tmp_path / "plain") if "input_scale" in name]
    tv.transfer(*trio, tmp_path / "copy", include=["norm"])
    assert read_tensors(tmp_path / "copy")["model.layers.0.mlp.up_proj.input_scale"] == 0


def test_files_that_declare_the_format_go_with_it(packed: Any, tmp_path: Path) -> None:
    trio, _ = packed
    for folder in trio:
        (folder / "quantize_config.json").write_text("{}")
    tv.transfer(*trio, tmp_path / "plain", out_dtype="bfloat16")
    tv.transfer(*trio, tmp_path / "copy", include=["norm"])
    assert not (tmp_path / "plain" / "quantize_config.json").exists()
    assert (tmp_path / "copy" / "quantize_config.json").exists()
    assert tv.verify(tmp_path / "plain").ok
