"""Small models whose weights are stored in several layouts, by NumPy alone: no engine takes part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from support.quantised import array, read

Tensors = dict[str, np.ndarray]
EXPERTS, INNER, HIDDEN, LAYERS = 3, 24, 16, 2
RNG = np.random.default_rng(5)


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)


def one_by_one(scale: float = 1.0) -> Tensors:
    """A model of experts with every weight by itself, under Qwen3-MoE's names."""
    shapes = {
        "model.embed_tokens.weight": (32, HIDDEN),
        "lm_head.weight": (32, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}"
        shapes[f"{stem}.self_attn.q_proj.weight"] = (2 * HIDDEN, HIDDEN)
        shapes[f"{stem}.mlp.gate.weight"] = (EXPERTS, HIDDEN)
        for e in range(EXPERTS):
            for kind in ("gate_proj", "up_proj"):
                shapes[f"{stem}.mlp.experts.{e}.{kind}.weight"] = (INNER, HIDDEN)
            shapes[f"{stem}.mlp.experts.{e}.down_proj.weight"] = (HIDDEN, INNER)
    return {
        name: (numbers(*shape).astype(np.float32) * scale).astype(ml_dtypes.bfloat16)
        for name, shape in shapes.items()
    }


def plus(model: Tensors, other: Tensors) -> Tensors:
    return {
        name: (model[name].astype(np.float32) + other[name].astype(np.float32)).astype(ml_dtypes.bfloat16)
        for name in model
    }


def fused(model: Tensors, *, transposed: bool = False, interleaved: bool = False) -> Tensors:
    """The same with all experts of a layer in two tensors."""
    made = {name: value for name, value in model.items() if ".experts." not in name}
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}.mlp.experts"
        up, down = [], []
        for e in range(EXPERTS):
            gate, each = (model[f"{stem}.{e}.{kind}.weight"] for kind in ("gate_proj", "up_proj"))
            up.append(
                np.stack([gate, each], 1).reshape(2 * INNER, HIDDEN)
                if interleaved
                else np.concatenate([gate, each])
            )
            down.append(model[f"{stem}.{e}.down_proj.weight"])
        for kind, parts in (("gate_up_proj", up), ("down_proj", down)):
            whole = np.stack(parts)
            made[f"{stem}.{kind}"] = np.ascontiguousarray(whole.transpose(0, 2, 1)) if transposed else whole
    return made


def renamed(model: Tensors, rule: Callable[[str], str]) -> Tensors:
    return {rule(name): value for name, value in model.items()}


def w123(name: str) -> str:
    for old, new in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
        name = name.replace(old, new) if ".experts." in name else name
    return name.replace(".mlp.", ".block_sparse_moe.")


def wrapped(name: str) -> str:
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def old_wrapped(name: str) -> str:
    return f"language_model.{name}"


LAYOUTS: dict[str, Callable[[Tensors], Tensors]] = {
    "one by one": lambda model: model,
    "fused": fused,
    "transposed": lambda model: fused(model, transposed=True),
    "w1 w2 w3": lambda model: renamed(model, w123),
    "wrapped": lambda model: renamed(model, wrapped),
    "wrapped, fused": lambda model: renamed(fused(model), wrapped),
    "wrapped, old": lambda model: renamed(model, old_wrapped),
    "without a head class": lambda model: renamed(model, lambda name: name.removeprefix("model.")),
}


def save(folder: Path, tensors: Tensors, config: dict | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "qwen3_moe", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, **(config or {})}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def same(one: Tensors, other: Tensors) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.tobytes() == other[name].tobytes(), name


def biased(model: Tensors) -> Tensors:
    """The model with a bias of every expert's weight."""
    sizes = {"gate_proj": INNER, "up_proj": INNER, "down_proj": HIDDEN}
    stems = [f"model.layers.{layer}.mlp.experts.{e}" for layer in range(LAYERS) for e in range(EXPERTS)]
    return {**model, **{f"{s}.{kind}.bias": numbers(size) for s in stems for kind, size in sizes.items()}}


def as_gpt_oss(model: Tensors) -> Tensors:
    """The same with weights and biases of experts fused, transposed, and gate and up row by row in turn."""
    weights = {name: value for name, value in model.items() if not name.endswith(".bias")}
    made = fused(weights, transposed=True, interleaved=True)
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}.mlp.experts"
        up = [
            np.stack([model[f"{stem}.{e}.{kind}.bias"] for kind in ("gate_proj", "up_proj")], 1).reshape(-1)
            for e in range(EXPERTS)
        ]
        made[f"{stem}.gate_up_proj_bias"] = np.stack(up)
        down = [model[f"{stem}.{e}.down_proj.bias"] for e in range(EXPERTS)]
        made[f"{stem}.down_proj_bias"] = np.stack(down)
    return made


ATTENTION = {"q_proj": 16, "k_proj": 8, "v_proj": 8}


def as_phi3(model: Tensors) -> Tensors:
    """Queries, keys and values in one tensor, gate and up in another."""

    def joined(block: str, kinds: list[str]) -> np.ndarray:
        return np.concatenate([model[f"model.layers.0.{block}.{kind}.weight"] for kind in kinds])

    return {
        "model.layers.0.self_attn.qkv_proj.weight": joined("self_attn", list(ATTENTION)),
        "model.layers.0.mlp.gate_up_proj.weight": joined("mlp", ["gate_proj", "up_proj"]),
        "model.norm.weight": model["model.norm.weight"],
    }


BLOCK = 8
FP8 = {
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
    },
}


def quantised(model: Tensors) -> Tensors:
    """The model with its experts in blocks of FP8, and scales in float32."""
    made: Tensors = {}
    for name, value in model.items():
        if ".experts." not in name:
            made[name] = value
            continue
        rows, columns = value.shape[-2] // BLOCK, value.shape[-1] // BLOCK
        blocks = value.astype(np.float32).reshape(*value.shape[:-2], rows, BLOCK, columns, BLOCK)
        scale = np.abs(blocks).max((-3, -1)) / np.float32(448)
        codes = (blocks / scale[..., :, None, :, None]).reshape(value.shape)
        made[name] = codes.astype(ml_dtypes.float8_e4m3fn)
        made[f"{name}_scale_inv"] = scale.astype(np.float32)
    return made


def decoded(model: Tensors) -> Tensors:
    """The same as plain numbers, in float32."""
    made: Tensors = {}
    for name, value in model.items():
        if f"{name}_scale_inv" in model:
            scale = model[f"{name}_scale_inv"].repeat(BLOCK, -2).repeat(BLOCK, -1)
            made[name] = value.astype(np.float32) * scale
        elif not name.endswith("_scale_inv"):
            made[name] = value
    return made


def near(one: Tensors, other: Tensors) -> None:
    """Equal up to a rounding to bfloat16: one of them may have been computed in a wider type."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.allclose(
            *(each.astype(np.float32) for each in (value, other[name])), rtol=2**-7, atol=1e-5
        ), name


def load(path: Path) -> Tensors:
    """The tensors of a file, in any of its types."""
    return {name: array(stored) for name, stored in read(path).items()}
