"""Checkpoints with the tensor names and shards of very large models, and tiny shapes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from support.models import DTYPES, Tensors, safetensors_bytes
from support.packed_models import FP8

E4M3, BF16 = DTYPES["F8_E4M3"], DTYPES["BF16"]
# What is stored: a linear layer in FP8 with its scales, a matrix, a vector.
Name = tuple[str, str]


def _linear(*names: str) -> Iterator[Name]:
    for name in names:
        yield f"{name}.weight", "codes"
        yield f"{name}.weight_scale_inv", "scales"


def _plain(*names: str) -> Iterator[Name]:
    return (
        (name, "matrix" if name.endswith(("proj.weight", "gate.weight", "head.weight")) else "vector")
        for name in names
    )


def _experts(prefix: str, count: int = 256) -> Iterator[Name]:
    for expert in range(count):
        yield from _linear(*(f"{prefix}.{expert}.{part}_proj" for part in ("gate", "up", "down")))


def deepseek_v3() -> Iterator[Name]:
    """DeepSeek-V3: 61 layers and one that predicts the token after the next."""
    yield from _plain("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight")
    for layer in range(62):
        p = f"model.layers.{layer}"
        if layer == 61:
            more = ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head")
            yield from _plain(*(f"{p}.{name}.weight" for name in more))
        yield from _plain(f"{p}.input_layernorm.weight", f"{p}.post_attention_layernorm.weight")
        parts = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
        yield from _linear(*(f"{p}.self_attn.{part}" for part in parts))
        yield from _plain(f"{p}.self_attn.q_a_layernorm.weight", f"{p}.self_attn.kv_a_layernorm.weight")
        where = f"{p}.mlp" if layer < 3 else f"{p}.mlp.shared_experts"
        yield from _linear(*(f"{where}.{part}_proj" for part in ("gate", "up", "down")))
        if layer >= 3:
            yield from _plain(f"{p}.mlp.gate.weight", f"{p}.mlp.gate.e_score_correction_bias")
            yield from _experts(f"{p}.mlp.experts")


def _qwen_layer(p: str, *, is_linear: bool) -> Iterator[Name]:
    yield from _plain(f"{p}.input_layernorm.weight", f"{p}.post_attention_layernorm.weight")
    if is_linear:
        at = f"{p}.linear_attn"
        yield from _linear(f"{at}.in_proj_qkv", f"{at}.in_proj_z", f"{at}.out_proj")
        names = ("A_log", "conv1d.weight", "dt_bias", "in_proj_a.weight", "in_proj_b.weight", "norm.weight")
        yield from _plain(*(f"{at}.{name}" for name in names))
    else:
        yield from _linear(*(f"{p}.self_attn.{part}_proj" for part in "qkvo"))
        yield from _plain(f"{p}.self_attn.q_norm.weight", f"{p}.self_attn.k_norm.weight")
    yield from _linear(*(f"{p}.mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")))
    yield from _plain(f"{p}.mlp.shared_expert_gate.weight", f"{p}.mlp.gate.weight")
    yield from _experts(f"{p}.mlp.experts")


def qwen36_35b_a3b() -> Iterator[Name]:
    """Qwen3.6-35B-A3B-FP8: 40 layers, 30 of them with linear attention, a predictor and a vision tower."""
    model = "model.language_model"
    yield from _plain("lm_head.weight", f"{model}.embed_tokens.weight", f"{model}.norm.weight")
    for layer in range(40):
        yield from _qwen_layer(f"{model}.layers.{layer}", is_linear=layer % 4 != 3)
    yield from _qwen_layer("mtp.layers.0", is_linear=False)
    names = ("fc.weight", "norm.weight", "pre_fc_norm_embedding.weight", "pre_fc_norm_hidden.weight")
    yield from _plain(*(f"mtp.{name}" for name in names))
    for block in range(27):
        parts = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2")
        names = tuple(f"{part}.{kind}" for part in parts for kind in ("weight", "bias"))
        yield from _plain(*(f"model.visual.blocks.{block}.{name}" for name in names))
    parts = ("patch_embed.proj", "merger.norm", "merger.linear_fc1", "merger.linear_fc2")
    names = tuple(f"{part}.{kind}" for part in parts for kind in ("weight", "bias"))
    yield from _plain("model.visual.pos_embed.weight", *(f"model.visual.{name}" for name in names))


def write_large(folder: Path, names: list[Name], shards: int, config: dict[str, Any], seed: int) -> Path:
    """The files of such a checkpoint; ``seed`` changes its values."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {
        "codes": (rng.standard_normal((2, 2)) * 100).astype(E4M3),
        "scales": np.full((1, 1), 0.001, BF16),
        "matrix": rng.standard_normal((2, 2)).astype(BF16),
        "vector": rng.standard_normal(2).astype(BF16),
    }
    bounds = [len(names) * number // shards for number in range(shards + 1)]
    weight_map: dict[str, str] = {}
    for number, (start, end) in enumerate(itertools.pairwise(bounds), 1):
        file = f"model-{number:05d}-of-{shards:06d}.safetensors"
        part: Tensors = {name: made[kind] for name, kind in names[start:end]}
        (folder / file).write_bytes(safetensors_bytes(part))
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(
        json.dumps({**config, "dtype": "bfloat16", "quantization_config": FP8})
    )
    return folder
