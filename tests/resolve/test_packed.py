"""Packed checkpoints are opened: the oracles' own values, weights and scales in different shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.large import deepseek_v3, qwen36_35b_a3b, write_large
from support.models import DTYPES, header_bytes, read_safetensors, safetensors_bytes, write_weights
from support.packed_models import BY_NAME, packed_config, packed_trio

# Stored tensors with the values that the tool of the format decodes them to; the metadata names the tool.
GOLDEN = sorted((Path(__file__).parent.parent / "data" / "golden").glob("*.safetensors"))


def metadata(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])["__metadata__"]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_oracles_values(tmp_path: Path, path: Path) -> None:
    facts, tensors = metadata(path), read_safetensors(path)
    expected = {name: tensors.pop(name) for name in list(tensors) if name.startswith("expect.")}
    want = next(array for name, array in expected.items() if name.startswith("expect.decoded"))
    write_weights(tmp_path, tensors)
    config = {"quantization_config": json.loads(facts["quantization_config"]), "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ((name, got),) = tv.open(tmp_path).items()
    if "layout of the BF16 model" in facts["oracle"]:
        want = want.swapaxes(-1, -2)
    if facts.get("decoded_rounded_to") == "bfloat16":
        got = got.astype(DTYPES["BF16"])
    assert name in ("x.weight", "m.weight", "mlp.experts.gate_up_proj")
    got, want = got.astype(np.float32), want.astype(np.float32)
    if "+0 for code 8" in facts["oracle"]:
        assert np.array_equal(got, want)  # but for the sign of a zero
    else:
        assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


def test_weight_and_scale_in_different_shards(tmp_path: Path) -> None:
    way = BY_NAME["block FP8, F32 scales"]
    trio, values = packed_trio(tmp_path, way)
    stored = read_safetensors(trio.target / "model.safetensors")
    scales = {name: array for name, array in stored.items() if name.endswith("_scale_inv")}
    parts = [{name: array for name, array in stored.items() if name not in scales}, scales]
    weight_map = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        (trio.target / file).write_bytes(safetensors_bytes(part))
        weight_map |= dict.fromkeys(part, file)
    (trio.target / "model.safetensors").unlink()
    (trio.target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model = tv.open(trio.target)
    assert all(
        np.array_equal(model[name].astype("f4"), value.astype("f4")) for name, value in values[0].items()
    )
    tv.transfer(*trio, tmp_path / "out", out_dtype="bfloat16")
    assert list(tv.open(tmp_path / "out")) == list(model)


def test_a_single_file_without_a_config(tmp_path: Path) -> None:
    way = BY_NAME["single-file FP8"]
    trio, values = packed_trio(tmp_path, way)
    model = tv.open(trio.target / "model.safetensors")
    assert len(model.packed) == 7
    assert all(
        np.array_equal(model[name].astype("f4"), value.astype("f4")) for name, value in values[0].items()
    )


def test_stored_and_packed(tmp_path: Path) -> None:
    trio, values = packed_trio(tmp_path, BY_NAME["CT INT4 group 32"], plain=("donor",))
    model, plain = tv.open(trio.target), tv.open(trio.donor)
    name = "model.layers.0.mlp.up_proj.weight"
    assert model.info(name).dtype == "BF16"
    assert model.info(name).shape == values[0][name].shape
    assert model.packed[name].parts == (f"{name}_packed", f"{name}_scale")
    assert model.packed[name].beside == (f"{name}_shape",)
    assert {f"{name}_packed", f"{name}_scale", f"{name}_shape"} <= model.stored.keys()
    assert plain.stored is plain.tensors
    assert not plain.packed


@pytest.mark.parametrize(("dtype", "expected"), [("float16", "F16"), ("float32", "F32"), ("int8", "BF16")])
def test_the_type_of_plain_output_is_the_configs(tmp_path: Path, dtype: str, expected: str) -> None:
    trio, _ = packed_trio(tmp_path, BY_NAME["block FP8, F32 scales"])
    config = packed_config(BY_NAME["block FP8, F32 scales"], dtype=dtype)
    (trio.target / "config.json").write_text(json.dumps(config))
    model = tv.open(trio.target)
    assert {model.info(name).dtype for name in model.packed} == {expected}


@pytest.mark.parametrize(
    ("names", "shards", "count"), [(qwen36_35b_a3b, 42, 64_196), (deepseek_v3, 163, 91_991)]
)
def test_the_names_of_very_large_models(tmp_path: Path, names, shards: int, count: int) -> None:
    rows = list(names())
    assert len(rows) == count
    folders = [
        write_large(tmp_path / role, rows, shards, {"model_type": "qwen2"}, seed)
        for seed, role in enumerate(("target", "donor", "reference"))
    ]
    models = [tv.open(folder) for folder in folders]
    codes = [name for name, kind in rows if kind == "codes"]
    assert list(models[0].packed) == [f"{name}" for name in codes]
    assert models[0].tensors is models[1].tensors
    plan = tv.plan_transfer(*models, out_dtype="bfloat16")
    assert plan.tensors == count - len(codes)
    report = tv.transfer(*models, tmp_path / "out", out_dtype="bfloat16")
    assert len(report.outputs[0].shards) == shards
    values = [model[codes[-1]].astype(np.float64) for model in models]
    want = (values[0] + values[1] - values[2]).astype(np.float32).astype(DTYPES["BF16"])
    assert np.array_equal(tv.open(tmp_path / "out")[codes[-1]], want)


def test_a_header_that_lies_about_scales(tmp_path: Path) -> None:
    header = {
        "a.weight": {"dtype": "F8_E4M3", "shape": [2**40, 2**40], "data_offsets": [0, 4]},
        "a.weight_scale_inv": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    }
    (tmp_path / "model.safetensors").write_bytes(header_bytes(header) + b"\0" * 8)
    with pytest.raises(tv.FormatError):
        tv.open(tmp_path)
