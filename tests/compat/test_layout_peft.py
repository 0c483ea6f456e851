"""Adapters that PEFT trains on a model in memory, merged into what transformers saves of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

import taskvec as tv

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "pad_token_id": 0,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CASES = [
    ("qwen3_moe", EXPERTS, []),
    ("qwen3_moe", EXPERTS[1:], ["q_proj"]),
    ("mixtral", EXPERTS, ["v_proj"]),
    ("gpt_oss", EXPERTS, ["q_proj"]),
    ("phi3", None, ["qkv_proj", "gate_up_proj"]),
]


@pytest.mark.parametrize(("family", "parameters", "modules"), CASES)
def test_against_merge_and_unload(
    tmp_path: Path, family: str, parameters: list[str] | None, modules: list[str]
) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **SIZES)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "m")
    settings = LoraConfig(r=4, lora_alpha=6, target_modules=modules, target_parameters=parameters)
    adapted = get_peft_model(model, settings)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path / "a")
    adapted.merge_and_unload().save_pretrained(tmp_path / "wanted")
    spec = f"{tmp_path}/m+{tmp_path}/a"
    tv.merge({"merge_method": "passthrough", "models": [{"model": spec}]}, tmp_path / "out")
    before, found, wanted = (tv.open(tmp_path / name) for name in ("m", "out", "wanted"))
    assert set(found.tensors) == set(wanted.tensors)
    changed = 0
    for name in wanted.tensors:
        one, other = torch.as_tensor(found[name].copy()), torch.as_tensor(wanted[name].copy())
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6), name
        changed += not torch.equal(one, torch.as_tensor(before[name].copy()))
    assert changed
