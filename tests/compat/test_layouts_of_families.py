"""Layouts of families: what transformers writes of a model meets the same model as it is in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

import taskvec as tv

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MOE = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 24},
    "qwen3_moe": MOE,
    "qwen3_next": {
        **MOE,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 24,
    },
    "qwen3_5_moe_text": MOE,
    "mixtral": {"num_local_experts": 4},
    "minimax": {"num_local_experts": 4},
    "minimax_m2": {"num_local_experts": 4},
    "phimoe": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4},
    "granitemoe": {"num_local_experts": 4},
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 48},
    "jamba": {"num_experts": 4},
    "olmoe": {"num_experts": 4},
    "flex_olmo": {"num_experts": 4},
    "deepseek_v3": {**ROUTED, **LATENT},
    "glm4_moe": ROUTED,
    "glm4_moe_lite": {**ROUTED, **LATENT},
    "dots1": ROUTED,
    "ernie4_5_moe": {"moe_intermediate_size": 24, "moe_num_experts": 4},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "longcat_flash": {
        **LATENT,
        "n_routed_experts": 4,
        "expert_ffn_hidden_size": 24,
        "ffn_hidden_size": 48,
        "zero_expert_num": 1,
        "moe_topk": 2,
        "num_layers": 2,
    },
    "nemotron_h": {},
    "exaone_moe": MOE,
    "afmoe": MOE,
    "phi3": {},
    "glm": {},
    "gpt_neox": {},
}


def saved_twice(folder: Path, family: str) -> tuple[Path, Path]:
    """A tiny model as `save_pretrained` writes it, and under the names that it has in memory."""
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family]})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "saved")
    tensors = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    (folder / "memory").mkdir()
    save_file(tensors, folder / "memory" / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder / "memory")
    return folder / "saved", folder / "memory"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_finds_its_own(tmp_path: Path, family: str) -> None:
    saved, memory = saved_twice(tmp_path, family)
    for one, other in ((saved, memory), (memory, saved)):
        found = tv.diff(one, other)
        assert not found.unmatched
        rows = found.to_dict()["tensors"]
        assert len(rows) == len(tv.open(one).tensors)
        assert all(row["difference_norm"] == 0 and row["left_norm"] == row["right_norm"] for row in rows)
