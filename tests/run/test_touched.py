"""Output in which only the packed weights that change are plain, and the config says which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

import taskvec as tv
from support.models import DTYPES, edit_json, read_tensors, write_checkpoint
from support.packed_checks import near
from support.packed_floats import scaled
from support.packed_models import BY_NAME, WAYS, Values, Way, is_packed, packed_trio
from taskvec.errors import RecipeError

SIZES: dict[str, Any] = {"layers": 2, "hidden": 256, "intermediate": 384, "heads": 4, "kv_heads": 2}
FORCED = ("quantised-basis", "quantised-mixed")
STEM = "model.layers.1.self_attn"
PLAIN = [f"{STEM}.{each}_proj" for each in "kqv"]
SAYABLE = [way for way in WAYS if "GPTQ" not in way.name]
# The list of plain modules of each method, as its readers have it.
LISTS = {
    "fp8": "modules_to_not_convert",
    "fbgemm_fp8": "modules_to_not_convert",
    "compressed-tensors": "ignore",
    "modelopt": "ignore",
    "awq": "modules_to_not_convert",
    "bitsandbytes": "llm_int8_skip_modules",
}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("way", SAYABLE, ids=str)
def test_only_what_changes_is_plain(tmp_path: Path, way: Way) -> None:
    trio, values = packed_trio(tmp_path, way, plain=("donor", "reference"), shards=2, **SIZES)
    out = tmp_path / "out"
    report = tv.transfer(*trio, out, out_dtype="touched", include=[f"{STEM}.q_proj"], force=FORCED)
    (said,) = [each for each in report.findings if each.id == "quantised-output"]
    assert said.found.startswith("3 weights that are stored as ")
    assert "2 of them because others of their layers change; 11 keep their bytes" in said.found
    before, after, opened = read_tensors(trio.target), read_tensors(out), tv.open(out)
    weights = {f"{module}.weight" for module in PLAIN}
    assert set(opened.packed) == {name for name in values[0] if is_packed(name)} - weights
    for module in PLAIN:
        weight = f"{module}.weight"
        assert after[weight].dtype == DTYPES["BF16"]
        near(after[weight], values, weight, 1.0 if "q_proj" in weight else 0.0)
        assert not [
            name for name in after if name.startswith(f"{module}.") and name not in (weight, f"{module}.bias")
        ]
    for name, array in after.items():
        if name not in weights and name != f"{STEM}.q_proj.bias":
            assert array.tobytes() == before[name].tobytes(), name
    assert tv.verify(out).ok
    assert [file.name for file in sorted(out.glob("*.safetensors"))] == [
        file.name for file in sorted(trio.target.glob("*.safetensors"))
    ]


@pytest.mark.parametrize("way", SAYABLE, ids=str)
def test_the_config_names_them(tmp_path: Path, way: Way) -> None:
    trio, _ = packed_trio(tmp_path, way, plain=("donor", "reference"), **SIZES)
    tv.transfer(*trio, tmp_path / "out", out_dtype="touched", include=[f"{STEM}.q_proj"], force=FORCED)
    before, after = config_of(trio.target), config_of(tmp_path / "out")
    method = way.config.get("quant_method")
    if way.more:  # MLX says it of each module
        facts = {**before["quantization"], **dict.fromkeys(PLAIN, False)}
        assert after == {**before, "quantization": facts}
    elif method is None:
        assert after == before
    else:
        known = before["quantization_config"].get(LISTS[method])
        # without a list readers leave embeddings and head alone by themselves: a list has to name them
        wanted = [*known, *PLAIN] if known else sorted([*PLAIN, "lm_head", "model.embed_tokens"])
        listed = {**before["quantization_config"], LISTS[method]: wanted}
        assert after == {**before, "quantization_config": listed}


def test_lists_that_are_there_and_other_files(tmp_path: Path) -> None:
    trio, _ = packed_trio(tmp_path, BY_NAME["ModelOpt FP8"], plain=("donor", "reference"), **SIZES)
    facts = {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    beside = {"producer": {"name": "modelopt"}, "quantization": facts}
    (trio.target / "hf_quant_config.json").write_text(json.dumps(beside))
    quantisation = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head", PLAIN[0]]}
    edit_json(trio.target / "config.json", quantization_config=quantisation)
    tv.transfer(*trio, tmp_path / "out", out_dtype="touched", include=[f"{STEM}.q_proj"])
    after = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())
    assert after == {**beside, "quantization": {**facts, "exclude_modules": ["lm_head", *PLAIN]}}
    listed = config_of(tmp_path / "out")["quantization_config"]["ignore"]
    assert listed == ["lm_head", PLAIN[0], *PLAIN[1:]]


def test_scales_of_inputs_go_and_those_of_caches_stay(tmp_path: Path) -> None:
    trio, _ = packed_trio(tmp_path, BY_NAME["ModelOpt FP8"], plain=("donor", "reference"), **SIZES)
    tensors, one = read_tensors(trio.target), np.ones((), np.float32)
    kept = [f"{STEM}.o_proj.input_scale", f"{STEM}.k_proj.output_scale", f"{STEM}.k_scale"]
    tensors |= dict.fromkeys((f"{STEM}.q_proj.input_scale", f"{STEM}.k_proj.input_scale", *kept), one)
    write_checkpoint(trio.target, tensors, config_of(trio.target))
    tv.transfer(*trio, tmp_path / "out", out_dtype="touched", include=[f"{STEM}.q_proj"])
    assert sorted(
        n for n in read_tensors(tmp_path / "out") if n.endswith("_scale") and "weight" not in n
    ) == sorted(kept)


def test_where_all_change_all_are_plain(tmp_path: Path) -> None:
    trio, _ = packed_trio(tmp_path, BY_NAME["block FP8, F32 scales"], plain=("donor", "reference"), **SIZES)
    for word in ("touched", "bfloat16"):
        tv.transfer(*trio, tmp_path / word, out_dtype=word)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "touched" / name).read_bytes() == (tmp_path / "bfloat16" / name).read_bytes()


def test_where_none_changes_all_stay(tmp_path: Path) -> None:
    trio, _ = packed_trio(tmp_path, BY_NAME["block FP8, F32 scales"], plain=("donor", "reference"), **SIZES)
    tv.transfer(*trio, tmp_path / "out", out_dtype="touched", include=["norm"])
    mine, theirs = read_tensors(trio.target), read_tensors(tmp_path / "out")
    assert all(theirs[name].tobytes() == mine[name].tobytes() for name in mine if "norm" not in name)
    assert config_of(tmp_path / "out") == config_of(trio.target)


def test_a_format_that_cannot_say_it_is_refused(tmp_path: Path) -> None:
    trio, _ = packed_trio(tmp_path, BY_NAME["GPTQ 8 bits"], plain=("donor", "reference"), **SIZES)
    with pytest.raises(RecipeError, match="`gptq`, which cannot have some of these weights plain"):
        tv.transfer(*trio, tmp_path / "out", out_dtype="touched", include=[f"{STEM}.q_proj"])
    with pytest.raises(RecipeError, match="own format already"):
        tv.convert(trio.target, tmp_path / "out", out_dtype="touched")
    assert not (tmp_path / "out").exists()


def test_a_merge(tmp_path: Path) -> None:
    trio, values = packed_trio(tmp_path, BY_NAME["CT INT4 group 32"], plain=("donor", "reference"), **SIZES)
    recipe = {
        "merge_method": "linear",
        "out_dtype": "touched",
        "include": [f"{STEM}.q_proj"],
        "models": [{"model": str(each), "parameters": {"weight": 0.5}} for each in (trio.target, trio.donor)],
    }
    tv.merge(recipe, tmp_path / "out")
    after, before = read_tensors(tmp_path / "out"), read_tensors(trio.target)
    name = f"{STEM}.q_proj.weight"
    base, donor = (each[name].astype(np.float64) for each in values[:2])
    assert np.allclose(after[name].astype(np.float64), (base + donor) / 2, rtol=2**-8, atol=1e-6)
    assert set(tv.open(tmp_path / "out").packed) == set(tv.open(trio.target).packed) - {
        f"{m}.weight" for m in PLAIN
    }
    assert all(
        after[key].tobytes() == before[key].tobytes() for key in after if key in before and STEM not in key
    )


@pytest.mark.parametrize("name", ["block FP8, BF16 scales", "CT FP8 channel", "CT INT4 group 32", "CT INT8"])
def test_it_loads(tmp_path: Path, name: str) -> None:
    """In transformers: each weight is where the config says that it is, and none is missing or left over."""
    trio, values = packed_trio(tmp_path, BY_NAME[name], plain=("donor", "reference"), **SIZES)
    out = tmp_path / "out"
    tv.transfer(*trio, out, out_dtype="touched", include=[r"layers\.1\.mlp", f"{STEM}.q_proj"])
    dequantised = {
        "fp8": transformers.FineGrainedFP8Config(dequantize=True),
        "compressed-tensors": transformers.CompressedTensorsConfig(dequantize=True),
    }[BY_NAME[name].config["quant_method"]]
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.bfloat16, output_loading_info=True, quantization_config=dequantised
    )
    assert not any(info.values()), info
    state, opened = model.state_dict(), tv.open(out)
    wanted: Values = {key: np.asarray(opened[key]).astype(np.float32) for key in values[0]}
    for key, value in wanted.items():
        assert torch.equal(state[key], torch.tensor(value).bfloat16()), key


def on_nothing(folder: Path) -> Any:
    """The model of a config without weights."""
    config = transformers.AutoConfig.from_pretrained(folder)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def test_transformers_packs_the_other_modules(tmp_path: Path) -> None:
    """Its own quantiser makes the modules of the config; their parameters are those stored."""
    way = BY_NAME["block FP8, F32 scales"]
    trio, _ = packed_trio(tmp_path, way, plain=("donor", "reference"), **SIZES)
    tv.transfer(*trio, tmp_path / "out", out_dtype="touched", include=[r"layers\.1\.mlp", f"{STEM}.q_proj"])
    config = transformers.FineGrainedFP8Config(**config_of(tmp_path / "out")["quantization_config"])
    quantiser = transformers.quantizers.AutoHfQuantizer.from_config(config)
    quantiser.pre_quantized = True
    model = on_nothing(tmp_path / "out")
    quantiser._process_model_before_weight_loading(model)
    # the head is tied, and plain though no list of the target's named it
    assert set(model.state_dict()) == {*read_tensors(tmp_path / "out"), "lm_head.weight"}


def test_compressed_tensors_packs_the_other_modules(tmp_path: Path) -> None:
    trio, _ = packed_trio(tmp_path, BY_NAME["CT INT4 group 32"], plain=("donor", "reference"), **SIZES)
    tv.transfer(*trio, tmp_path / "out", out_dtype="touched", include=[r"layers\.1\.mlp", f"{STEM}.q_proj"])
    declared = config_of(tmp_path / "out")["quantization_config"]
    declared.pop("quant_method")
    model = on_nothing(tmp_path / "out")
    apply_quantization_config(model, QuantizationConfig(**declared))
    packed = {
        f"{name}.weight" for name, module in model.named_modules() if hasattr(module, "quantization_scheme")
    }
    assert packed == set(tv.open(tmp_path / "out").packed)


def test_fused_experts_are_one_module(tmp_path: Path) -> None:
    pack, unpack = scaled("_scale_inv", (128, 128))
    rng, layers = np.random.default_rng(0), [f"model.layers.{layer}.mlp.experts" for layer in range(2)]
    shapes = {"gate_up_proj": (2, 256, 128), "down_proj": (2, 128, 128)}
    folders, values = [], []
    for role in ("target", "donor", "reference"):
        stored: dict[str, np.ndarray] = {"model.norm.weight": np.ones(128, DTYPES["BF16"])}
        plain: Values = {}
        for name, shape in ((f"{layer}.{each}", shape) for layer in layers for each, shape in shapes.items()):
            weight = rng.standard_normal(shape).astype(np.float32) * np.float32(0.02)
            if role != "target":
                stored[name] = weight.astype(DTYPES["BF16"])
                plain[name] = stored[name].astype(np.float32)
                continue
            parts = [pack(each) for each in weight]
            stored[name] = np.stack([each[".weight"] for each in parts])
            stored[f"{name}_scale_inv"] = np.stack([each["_scale_inv"] for each in parts])
            plain[name] = np.stack([unpack(each, shape[1:]) for each in parts])
        quantised = (
            {} if role != "target" else {"quantization_config": BY_NAME["block FP8, F32 scales"].config}
        )
        folders.append(write_checkpoint(tmp_path / role, stored, {"model_type": "qwen3_5_moe", **quantised}))
        values.append(plain)
    tv.transfer(
        *folders, tmp_path / "out", out_dtype="touched", include=[r"layers\.0\.mlp\.experts\.1\.gate_proj"]
    )
    listed = config_of(tmp_path / "out")["quantization_config"]["modules_to_not_convert"]
    assert listed == ["lm_head", layers[0]]
    opened, before, after = (
        tv.open(tmp_path / "out"),
        read_tensors(folders[0]),
        read_tensors(tmp_path / "out"),
    )
    assert set(opened.packed) == {f"{layers[1]}.{each}" for each in shapes}
    fused = f"{layers[0]}.gate_up_proj"
    wanted = values[0][fused].copy()
    wanted[1, :128] += values[1][fused][1, :128] - values[2][fused][1, :128]
    assert np.allclose(after[fused].astype(np.float32), wanted, rtol=2**-8, atol=1e-6)
    assert all(after[name].tobytes() == before[name].tobytes() for name in after if layers[0] not in name)


def test_experts_of_gpt_oss_are_refused(tmp_path: Path) -> None:
    """Packed they are stored the other way round than plain: readers take one or the other."""
    way, stem = BY_NAME["DeepSeek FP4"], "model.layers.0.mlp.experts."
    stored: dict[str, np.ndarray] = {"model.norm.weight": np.ones(96, DTYPES["BF16"])}
    for each, shape in (("gate_up_proj", (2, 64, 96)), ("down_proj", (2, 96, 32))):
        weight = np.random.default_rng(0).standard_normal((shape[0] * shape[1], shape[2])).astype(np.float32)
        parts, groups = way.pack(weight), (*shape[:2], shape[2] // 32)
        stored[f"{stem}{each}_blocks"] = parts[".weight"].view(np.uint8).reshape(*groups, 16)
        stored[f"{stem}{each}_scales"] = parts[".scale"].view(np.uint8).reshape(groups)
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    folders = [write_checkpoint(tmp_path / role, stored, config) for role in ("t", "d", "r")]
    with pytest.raises(RecipeError, match="`mxfp4`, which cannot have some of these weights plain"):
        tv.transfer(*folders, tmp_path / "out", out_dtype="touched", include=["gate_proj"])
    assert not (tmp_path / "out").exists()
