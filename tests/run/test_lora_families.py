"""Adapters made of vectors, with PEFT as the judge: it loads them, and base + adapter is the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.numpy import load_file

import taskvec as tv

SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 40, "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {**SIZES, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2ForCausalLM", {**SIZES, "tie_word_embeddings": False}),
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 64},
    ),
    "neox": ("GPTNeoXForCausalLM", {**SIZES, "tie_word_embeddings": False}),
    "phi3": ("Phi3ForCausalLM", {**SIZES, "tie_word_embeddings": False, "pad_token_id": 0}),
    "tied": ("Qwen2ForCausalLM", {**SIZES, "tie_word_embeddings": True}),
    "mixtral": ("MixtralForCausalLM", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**SIZES, **EXPERTS, "head_dim": 8, "tie_word_embeddings": False}),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        {
            **SIZES, "moe_intermediate_size": 12, "n_routed_experts": 4, "num_experts_per_tok": 2,
            "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
            "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "num_key_value_heads": 2,
            "tie_word_embeddings": False,
        },
    ),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        {**SIZES, **EXPERTS, "shared_expert_intermediate_size": 24, "tie_word_embeddings": False},
    ),
}  # fmt: skip
# PEFT changes the embedding of these and not the head, until it merges.
TIED = ("gpt2", "tied")


def pair(root: Path, family: str, *, low_rank: int | None = None) -> None:
    """A model of random weights and one that differs from it in all of them, saved by transformers.

    With ``low_rank``, matrices differ by a product of that rank.
    """
    name, settings = FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, name).config_class(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # biases begin as zero
    model.save_pretrained(root / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            step = torch.randn_like(parameter) * 0.02
            if low_rank is not None and parameter.dim() >= 2:
                left = torch.randn(*parameter.shape[:-1], low_rank)
                step = 0.02 * left @ torch.randn(*parameter.shape[:-2], low_rank, parameter.shape[-1])
            parameter.add_(step)
    model.save_pretrained(root / "donor")


def with_taskvec(root: Path) -> dict[str, np.ndarray]:
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{root}/base+{root}/lora"}]}
    tv.merge(recipe, root / "merged")
    return load_file(root / "merged" / "model.safetensors")


def loaded(folder: Path, family: str) -> Any:
    model = getattr(transformers, FAMILIES[family][0]).from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.arange(1, 21)[None]).logits.numpy()


def by_peft(root: Path, family: str, *, merged: bool = False) -> np.ndarray:
    model = PeftModel.from_pretrained(loaded(root / "base", family), str(root / "lora")).eval()
    return logits(model.merge_and_unload() if merged else model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("others", ["leave", "whole"])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_and_taskvec_make_the_same_model_of_an_adapter(family: str, others: Any, tmp_path: Path) -> None:
    pair(tmp_path, family)
    tv.extract_lora(tmp_path / "donor", tmp_path / "base", tmp_path / "lora", rank=3, others=others)
    with_taskvec(tmp_path)
    ours = logits(loaded(tmp_path / "merged", family))
    theirs = by_peft(tmp_path, family, merged=family in TIED)
    assert np.abs(ours - logits(loaded(tmp_path / "base", family))).max() > 1e-2
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_factors_of_full_rank_and_all_else_whole_are_the_donor(family: str, tmp_path: Path) -> None:
    pair(tmp_path, family)
    report = tv.extract_lora(
        tmp_path / "donor", tmp_path / "base", tmp_path / "lora", rank=40, others="whole"
    )
    assert report.adapter is not None
    assert report.adapter["factors_energy"] == 1
    donor, merged = load_file(tmp_path / "donor" / "model.safetensors"), with_taskvec(tmp_path)
    for name, want in donor.items():
        if name not in report.adapter["left"]:
            np.testing.assert_allclose(merged[name], want, atol=1e-6, err_msg=name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_embeddings_held_whole_or_left(family: str, tmp_path: Path) -> None:
    pair(tmp_path, family)
    for choice in ("whole", "leave"):
        place = tmp_path / choice
        place.mkdir()
        for role in ("base", "donor"):
            (place / role).symlink_to(tmp_path / role)
        if choice == "whole" and family == "gpt2":
            with pytest.raises(tv.RecipeError, match="ties embedding and head"):
                tv.extract_lora(place / "donor", place / "base", place / "lora", rank=3, embeddings=choice)
            continue
        tv.extract_lora(place / "donor", place / "base", place / "lora", rank=3, embeddings=choice)
        with_taskvec(place)
        np.testing.assert_allclose(
            logits(loaded(place / "merged", family)), by_peft(place, family), rtol=1e-4, atol=1e-5
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "mixtral", "qwen3_moe"])
def test_the_rank_that_keeps_the_energy_is_found(family: str, tmp_path: Path) -> None:
    """A donor whose matrices differ by products of rank 2: as many directions are enough."""
    pair(tmp_path, family, low_rank=2)
    donor, base = tmp_path / "donor", tmp_path / "base"
    report = tv.extract_lora(donor, base, tmp_path / "lora", rank="auto", energy=0.9999, max_rank=4)
    assert report.adapter is not None
    ranks = {row["rank"] for row in report.adapter["modules"].values()}
    assert ranks <= {1, 2}
    assert 2 in ranks
    assert report.adapter["factors_energy"] > 0.9999
    assert "not-low-rank" not in {each.id for each in report.findings}
    with_taskvec(tmp_path)
    ours = logits(loaded(tmp_path / "merged", family))
    np.testing.assert_allclose(ours, by_peft(tmp_path, family, merged=family in TIED), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_modules_of_different_ranks_have_patterns(tmp_path: Path) -> None:
    """Random differences need as many directions as each matrix has room for."""
    pair(tmp_path, "llama")
    tv.extract_lora(tmp_path / "donor", tmp_path / "base", tmp_path / "lora", rank="auto", energy=0.7)
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert settings["rank_pattern"]
    assert settings["rank_pattern"] == settings["alpha_pattern"]
    assert len({array.shape[0] for name, array in stored.items() if "lora_A" in name}) > 1
    with_taskvec(tmp_path)
    np.testing.assert_allclose(
        logits(loaded(tmp_path / "merged", "llama")), by_peft(tmp_path, "llama"), rtol=1e-4, atol=1e-5
    )
