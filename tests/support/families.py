"""Tiny models of the families that recipes are published for: names, shapes and config of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from support.models import random_tensors, write_checkpoint

HIDDEN, INNER, HEADS, KEY_HEADS, WORDS = 16, 24, 4, 2, 96
Shapes = dict[str, tuple[int, ...]]

CLASSES = {
    "gemma2": "Gemma2ForCausalLM", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM", "phi3": "Phi3ForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}  # fmt: skip


def config_of(family: str, layers: int) -> dict[str, Any]:
    """A config.json of a family."""
    config: dict[str, Any] = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "head_dim": HIDDEN // HEADS,
        "vocab_size": WORDS,
        "tie_word_embeddings": family == "gemma2",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "dtype": "bfloat16",
    }
    return {**config, "num_local_experts": 4, "num_experts_per_tok": 2} if family == "mixtral" else config


def shapes_of(family: str, layers: int) -> Shapes:
    """The tensors of a model of a family, in file order."""
    shapes: Shapes = {"model.embed_tokens.weight": (WORDS, HIDDEN)}
    for layer in range(layers):
        each = {**_norms(family), **_attention(family), **_mlp(family)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in each.items()}
    shapes["model.norm.weight"] = (HIDDEN,)
    return shapes if family == "gemma2" else {**shapes, "lm_head.weight": (WORDS, HIDDEN)}


def _norms(family: str) -> Shapes:
    names = ["input_layernorm", "post_attention_layernorm"]
    names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] * (family == "gemma2")
    return {f"{name}.weight": (HIDDEN,) for name in names}


def _attention(family: str) -> Shapes:
    head = HIDDEN // HEADS
    rows = {"q": HIDDEN, "k": KEY_HEADS * head, "v": KEY_HEADS * head}
    shapes: Shapes = {"self_attn.o_proj.weight": (HIDDEN, HIDDEN)}
    if family == "phi3":
        return {**shapes, "self_attn.qkv_proj.weight": (sum(rows.values()), HIDDEN)}
    for name, count in rows.items():
        shapes[f"self_attn.{name}_proj.weight"] = (count, HIDDEN)
        if family == "qwen2":
            shapes[f"self_attn.{name}_proj.bias"] = (count,)
        if family == "qwen3" and name != "v":
            shapes[f"self_attn.{name}_norm.weight"] = (head,)
    return shapes


def _mlp(family: str) -> Shapes:
    if family == "phi3":
        return {"mlp.gate_up_proj.weight": (2 * INNER, HIDDEN), "mlp.down_proj.weight": (HIDDEN, INNER)}
    if family == "mixtral":
        shapes: Shapes = {"block_sparse_moe.gate.weight": (4, HIDDEN)}
        for expert in range(4):
            stem = f"block_sparse_moe.experts.{expert}."
            shapes |= {stem + f"{w}.weight": (INNER, HIDDEN) for w in ("w1", "w3")}
            shapes[stem + "w2.weight"] = (HIDDEN, INNER)
        return shapes
    sizes = {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
    return {f"mlp.{name}_proj.weight": shape for name, shape in sizes.items()}


def write_model(folder: Path, family: str, layers: int, *, seed: int) -> Path:
    """A model of a family as a folder."""
    tensors = random_tensors(shapes_of(family, layers), seed=seed)
    return write_checkpoint(folder, tensors, config_of(family, layers))


def write_adapter(folder: Path, family: str, layers: int, *, rank: int = 2) -> Path:
    """A LoRA adapter of the queries of a model, as PEFT saves one."""
    folder.mkdir(parents=True)
    draws = np.random.default_rng(len(family) + layers)
    tensors = {}
    for layer in range(layers):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        tensors[stem + "A.weight"] = draws.standard_normal((rank, HIDDEN)).astype(np.float32)
        tensors[stem + "B.weight"] = draws.standard_normal((HIDDEN, rank)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}'
    )
    return folder
