"""What is written of quantised models loads in transformers, and unpacks with the package of its format.

The models are those of `support.packed_models`, whose values are NumPy's. Where transformers has no kernels
for a CPU, it dequantises while it loads. Its block FP8 needs whole blocks (it finds them by dividing rows by
rows of scales), so that sides here are multiples of 128; blocks that are cut off are in `test_packed.py`.
It knows none of ModelOpt's formats, nor scales under other tools' names: of those the plain output alone is
loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors import safe_open
from safetensors.torch import save_file

import taskvec as tv
from support.models import read_tensors
from support.packed_models import (
    BY_NAME,
    WAYS,
    Values,
    Way,
    is_packed,
    packed_config,
    packed_trio,
    plain_values,
)

SIZES: dict[str, Any] = {"hidden": 256, "intermediate": 384, "heads": 4, "kv_heads": 2}
FORCED = ("quantised-basis",)
COMPRESSED = [way for way in WAYS if way.config.get("quant_method") == "compressed-tensors"]
# Codes that are stored as F4, and columns in groups of their own, these packages do not read.
FOREIGN = [way for way in WAYS if "F4 codes" in way.name or " act" in way.name]
LOADABLE = [
    way
    for way in [way for way in WAYS if way.config.get("quant_method") == "fp8"] + COMPRESSED
    if way not in FOREIGN
]
# What `convert` writes, as the tables of the tests have it.
CONVERTED = {
    "fp8-block": BY_NAME["block FP8, F32 scales"],
    "fp8-channel": BY_NAME["CT FP8 channel"],
    "int8-channel": BY_NAME["CT INT8"],
    "mxfp4": BY_NAME["CT MXFP4"],
    "int4-g32": BY_NAME["CT INT4 group 32"],
}


def load(folder: Path, method: str = "") -> Any:
    """The model, dequantised; every weight is in the files, and every tensor of the files is a weight."""
    dequantised = {
        "fp8": transformers.FineGrainedFP8Config(dequantize=True),
        "compressed-tensors": transformers.CompressedTensorsConfig(dequantize=True),
        "mxfp4": transformers.Mxfp4Config(dequantize=True),
    }
    more = {"quantization_config": dequantised[method]} if method else {}
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True, **more
    )
    assert not any(info.values()), info
    return model.eval()


def bf16(values: Values) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array.astype(np.float32)).bfloat16() for name, array in values.items()}


def same_logits(model: Any, other: Any) -> None:
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, other(tokens).logits)


def holds(model: Any, values: Values) -> None:
    """Weights and logits are those of the same model made in torch from these values."""
    weights, state = bf16(values), model.state_dict()
    for name, weight in weights.items():
        assert state[name].dtype == torch.bfloat16
        assert torch.equal(state[name], weight), name
    config = transformers.AutoConfig.from_pretrained(model.config._name_or_path)
    vars(config).pop("quantization_config", None)
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    made.load_state_dict(weights, strict=False)
    same_logits(model, made)


def stored_values(folder: Path, way: Way) -> Values:
    """The values of a packed checkpoint, by NumPy."""
    shapes = {
        name: info.shape for name, info in zip(tv.open(folder), tv.inspect(folder).tensors, strict=True)
    }
    return plain_values(read_tensors(folder), shapes, way)


def unpacks(folder: Path) -> None:
    """compressed-tensors decompresses every weight to what is read here, but for its rounding."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    scheme = QuantizationScheme.model_validate(group)
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    model = tv.open(folder)
    stored: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            stored |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    names = [name for name in model if name not in stored or f"{name}_scale" in stored]
    assert names
    for name in names:
        stem = name.removesuffix("weight")
        parts = {
            key.removeprefix(stem): part for key, part in stored.items() if key.startswith(f"{stem}weight")
        }
        theirs = compressor.decompress(parts, scheme)["weight"]
        assert torch.equal(torch.tensor(np.array(model[name])).to(theirs.dtype), theirs), name


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_plain_output(tmp_path: Path, way: Way) -> None:
    """Dequantised, it is the model of NumPy's values; with a step, it is what was written."""
    trio, values = packed_trio(tmp_path, way, **SIZES)
    tv.convert(trio.target, tmp_path / "plain", out_dtype="bfloat16")
    holds(load(tmp_path / "plain"), values[0])
    tv.transfer(*trio, tmp_path / "out", out_dtype="bfloat16", force=FORCED)
    holds(load(tmp_path / "out"), read_tensors(tmp_path / "out"))


@pytest.mark.parametrize("way", LOADABLE, ids=str)
def test_output_in_the_targets_format(tmp_path: Path, way: Way) -> None:
    trio, _ = packed_trio(tmp_path, way, **SIZES)
    out = tmp_path / "out"
    tv.transfer(*trio, out, out_dtype="target")
    holds(load(out, str(way.config["quant_method"])), stored_values(out, way))
    if way in COMPRESSED:
        unpacks(out)


@pytest.mark.parametrize("form", CONVERTED)
def test_what_convert_packs(tmp_path: Path, form: str) -> None:
    everyone = ("target", "donor", "reference")
    trio, values = packed_trio(tmp_path, BY_NAME["MLX"], plain=everyone, **SIZES)
    out, way = tmp_path / "out", CONVERTED[form]
    tv.convert(trio.target, out, out_dtype=form)
    stored = stored_values(out, way)
    method = str(way.config["quant_method"])
    holds(load(out, method), stored)
    for name in filter(is_packed, stored):
        error = np.linalg.norm(stored[name] - values[0][name].astype(np.float32))
        assert error < 0.13 * np.linalg.norm(values[0][name].astype(np.float32)), name
    if method == "compressed-tensors":
        unpacks(out)


# --- mixtures of experts

MOE: dict[str, Any] = {"moe_intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 2}
LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "shared_expert_intermediate_size": 128,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": MOE,
    "qwen3_5_moe_text": {**MOE, **LINEAR},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def experts(folder: Path, family: str, *, fused: bool, seed: int = 0) -> Path:
    """A model with experts, as transformers saves it, or as it is in memory: experts in one tensor."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(
        family,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=96,
        dtype="bfloat16",
        **FAMILIES[family],
    )
    model = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
    if fused:
        folder.mkdir()
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    else:
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("form", CONVERTED)
@pytest.mark.parametrize(("family", "fused"), [("qwen3_moe", False), ("qwen3_5_moe_text", True)])
def test_convert_packs_experts(tmp_path: Path, family: str, fused: bool, form: str) -> None:
    """One by one, as released FP8 checkpoints have them, also where a plain one has them in one tensor.

    transformers does not read experts of INT8: they stay plain, and are named. Where they are stored one by
    one it does not even read the plain ones of such a checkpoint (5.24 looks for packed ones alone), so that
    this one is compared with what is read here.
    """
    source, out = experts(tmp_path / "model", family, fused=fused), tmp_path / "out"
    report = tv.convert(source, out, out_dtype=form)
    # read here, and written plain in the names of the packed one
    tv.convert(out, tmp_path / "plain", out_dtype="bfloat16")
    again, before = load(tmp_path / "plain"), load(source).state_dict()
    is_read = fused or form != "int8-channel"
    model = load(out, str(CONVERTED[form].config["quant_method"])) if is_read else again
    for name, weight in again.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    same_logits(model, again)
    stacked = [name for name in before if name.endswith((".experts.gate_up_proj", ".experts.down_proj"))]
    said = [each for each in report.findings if each.id == "convert-plain" and "experts" in each.subject]
    assert len(stacked) == 4
    assert bool(said) == (form == "int8-channel")
    for name in stacked:
        error = (model.state_dict()[name].float() - before[name].float()).norm() / before[name].float().norm()
        assert error == 0 if said else 0.005 < error < 0.13, name
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    left = config.get("ignore") or config.get("modules_to_not_convert")
    assert ("model.layers.0.mlp.experts" in left) == bool(said)
    assert "model.layers.1.mlp.gate" in left


def test_kept_experts_stay_as_they_are_stored(tmp_path: Path) -> None:
    source = experts(tmp_path / "model", "qwen3_5_moe_text", fused=True)
    tv.convert(source, tmp_path / "out", out_dtype="fp8-block", keep=[r"layers\.0\.mlp\.experts\.3\."])
    model, before = load(tmp_path / "out", "fp8").state_dict(), load(source).state_dict()
    name = "model.layers.{}.mlp.experts.down_proj"
    assert torch.equal(model[name.format(0)], before[name.format(0)])
    assert not torch.equal(model[name.format(1)], before[name.format(1)])
    assert name.format(0) in tv.open(tmp_path / "out")


@pytest.mark.parametrize("form", ["mxfp4", "fp8-block", "int4-g32"])
def test_convert_packs_gpt_oss(tmp_path: Path, form: str) -> None:
    """MXFP4 of gpt-oss is its own: experts in one tensor. Other formats have no such, and say so."""
    source, out = experts(tmp_path / "model", "gpt_oss", fused=True), tmp_path / "out"
    report = tv.convert(source, out, out_dtype=form)
    method = "mxfp4" if form == "mxfp4" else str(CONVERTED[form].config["quant_method"])
    model = load(out, method)
    tv.convert(out, tmp_path / "plain", out_dtype="bfloat16")
    again = load(tmp_path / "plain")
    for name, weight in again.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    same_logits(model, again)
    assert ("convert-plain" in [each.id for each in report.findings]) == (form != "mxfp4")
    before = load(source).state_dict()
    for name in ("model.layers.0.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"):
        change = (again.state_dict()[name].float() - before[name].float()).norm()
        assert 0.05 < change / before[name].float().norm() < 0.13 if form == "mxfp4" else change == 0


def test_transfer_of_gpt_oss(tmp_path: Path) -> None:
    """Three packed models; the output in their own format, and plain."""
    folders = []
    for seed, role in enumerate(("target", "donor", "reference")):
        plain = experts(tmp_path / f"{role}-plain", "gpt_oss", fused=True, seed=seed)
        tv.convert(plain, tmp_path / role, out_dtype="mxfp4")
        folders.append(tmp_path / role)
    weights = [load(folder, "mxfp4").state_dict() for folder in folders]
    tv.transfer(*folders, tmp_path / "out", out_dtype="bfloat16")
    tv.transfer(*folders, tmp_path / "packed", out_dtype="target")
    out, packed = load(tmp_path / "out").state_dict(), load(tmp_path / "packed", "mxfp4").state_dict()
    for name, weight in out.items():
        t, d, r = (each[name].double() for each in weights)
        exact = t + (d - r)
        assert torch.equal(weight, exact.float().bfloat16()) or torch.allclose(
            weight.double(), exact, rtol=2**-8, atol=1e-6
        )
        assert (packed[name].double() - exact).norm() <= 0.15 * exact.norm()


def test_the_config_of_the_models_here(tmp_path: Path) -> None:
    """They are whole: transformers loads what the tests start from."""
    way = BY_NAME["block FP8, F32 scales"]
    trio, values = packed_trio(tmp_path, way, **SIZES)
    assert packed_config(way, **SIZES)["quantization_config"]["quant_method"] == "fp8"
    holds(load(trio.target, "fp8"), values[0])
