"""An adapter's settings and tensors: what passes, what is refused by name, and which weights are meant."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig, PeftType
from safetensors.numpy import save_file

import taskvec as tv
from taskvec.models.adapter import WEIGHTS, Adapter
from taskvec.models.adapter_config import CONFIG, scale_of
from taskvec.models.adapter_names import StoredNames, core
from taskvec.resolve.adapter import open_adapter

MODULE = "model.layers.0.self_attn.q_proj"
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}


def adapter(
    folder: Path, settings: dict[str, Any] | None = None, more: dict[str, np.ndarray] | None = None
) -> Adapter:
    folder.mkdir(exist_ok=True)
    factors = {"lora_A": np.ones((2, 8), np.float32), "lora_B": np.ones((6, 2), np.float32)}
    tensors = {f"base_model.model.{MODULE}.{factor}.weight": each for factor, each in factors.items()}
    save_file({**tensors, **(more or {})}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({**PLAIN, **(settings or {})}))
    return open_adapter(folder)


def test_all_that_peft_writes_by_default_passes(tmp_path: Path) -> None:
    written = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]).to_dict()
    written = json.loads(json.dumps(written, default=list))
    assert adapter(tmp_path / "a", written).factors[f"{MODULE}.weight"].scale == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "gaussian"}, {"init_lora_weights": "orthogonal"}, {"init_lora_weights": "eva"},
        {"init_lora_weights": False}, {"lora_dropout": 0.1}, {"target_modules": "all-linear"},
        {"layers_to_transform": [0]}, {"exclude_modules": ["k_proj"]}, {"eva_config": {"rho": 2.0}},
        {"a_setting_to_come": None}, {"another": False}, {"third": {}}, {"peft_version": "0.99"},
        {"auto_mapping": {"base_model_class": "X"}}, {"use_rslora": False, "modules_to_save": []},
    ],
)  # fmt: skip
def test_settings_without_effect(settings: dict[str, Any], tmp_path: Path) -> None:
    assert adapter(tmp_path / "a", settings).factors[f"{MODULE}.weight"].scale == 2


REFUSED = [
    ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),
    ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
    ({"init_lora_weights": "OLoRA"}, "OLoRA"),
    ({"init_lora_weights": "corda"}, "corda"),
    ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "loftq"),
    ({"init_lora_weights": "lora_ga"}, "lora_ga"),
    ({"init_lora_weights": "of-tomorrow"}, "unknown initialisation"),
    ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
    ({"use_dora": True}, "DoRA"),
    ({"use_qalora": True}, "QALoRA"),
    ({"lora_bias": True}, "lora_bias"),
    ({"bias": "lora_only"}, "lora_only"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"trainable_token_indices": [5]}, "trainable_token_indices"),
    ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
    ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    ({"megatron_config": {"x": 1}}, "megatron_config"),
    ({"arrow_config": {"top_k": 2}}, "Arrow"),
    ({"kasa_config": {"beta": 1}}, "KaSA"),
    ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA"),
    ({"ensure_weight_tying": True}, "ensure_weight_tying"),
    ({"a_setting_to_come": 3}, "a_setting_to_come: 3"),
    ({"a_setting_to_come": 0}, "a_setting_to_come: 0"),
    ({"a_setting_to_come": [[1]]}, "a_setting_to_come"),
    ({"use_rslora": "yes"}, "expected true or false"),
    ({"rank_pattern": [2]}, "expected a mapping"),
    ({"rank_pattern": {"(": 2}}, "cannot be read"),
    ({"lora_alpha": "16"}, "expected a number"),
    ({"r": 4}, "has rank 2"),
    ({"r": None}, "its settings say 8"),
]


@pytest.mark.parametrize(("settings", "word"), REFUSED)
def test_settings_that_are_refused_by_name(settings: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(tv.FormatError) as caught:
        adapter(tmp_path / "a", settings)
    assert word in caught.value.message


@pytest.mark.parametrize("kind", [kind.value for kind in PeftType if kind.value != "LORA"])
def test_every_other_kind_of_adapter_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(tv.FormatError, match=kind):
        adapter(tmp_path / "a", {"peft_type": kind})


def test_every_setting_of_peft_is_either_without_effect_or_refused(tmp_path: Path) -> None:
    """A field of PEFT's class that is new passes with its default and is refused with any other value."""
    for field in dataclasses.fields(LoraConfig):
        if field.name.startswith(("use_", "alora_")) and field.name != "use_rslora":
            with pytest.raises(tv.FormatError, match=field.name):
                adapter(tmp_path / field.name, {field.name: True})


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("lora_magnitude_vector.weight", "DoRA"),
        ("lora_B.bias", "a bias of B"),
        ("lora_E", "AdaLoRA"),
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("ia3_l", "IA³"),
        ("modules_to_save.weight", "whole weight"),
        ("lora_A.other.weight", "another kind of name"),
        ("original_module.weight", "whole weight"),
        ("surprise", "no known kind"),
    ],
)
def test_tensors_of_other_kinds_are_refused_by_name(name: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(tv.FormatError, match=word):
        adapter(tmp_path / "a", more={f"base_model.model.{MODULE}.{name}": np.ones((2, 2), np.float32)})


@pytest.mark.parametrize(
    ("settings", "stored", "weight"),
    [
        ({}, f"base_model.model.{MODULE}.base_layer.weight", f"{MODULE}.weight"),
        ({}, f"base_model.model.{MODULE}.base_layer.bias", f"{MODULE}.bias"),
        ({"modules_to_save": ["lm_head"]}, "base_model.model.lm_head.weight", "lm_head.weight"),
        ({"modules_to_save": ["classifier", "score"]}, "base_model.model.score.bias", "score.bias"),
        (
            {"modules_to_save": ["mlp"]},
            "base_model.model.model.layers.0.mlp.gate.weight",
            "model.layers.0.mlp.gate.weight",
        ),
        ({}, "base_model.model.model.embed_tokens.weight", "model.embed_tokens.weight"),
    ],
)
def test_whole_weights(settings: dict[str, Any], stored: str, weight: str, tmp_path: Path) -> None:
    opened = adapter(tmp_path / "a", settings, {stored: np.ones((6, 8), np.float32)})
    assert {name: info.name for name, info in opened.whole.items()} == {weight: stored}
    assert set(opened.changed) == {f"{MODULE}.weight", weight}


@pytest.mark.parametrize(
    ("settings", "tensors", "word"),
    [
        ({"modules_to_save": "lm_head"}, {}, "expected a list"),
        ({"modules_to_save": [3]}, {}, "expected a list"),
        ({"modules_to_save": ["lm_head"]}, {"model.embed_tokens.weight": "f4"}, "none of them"),
        ({"modules_to_save": ["norm"]}, {"norm.weight": "f4", "norm.steps": "i8"}, "not floats"),
        ({}, {f"{MODULE}.base_layer.weight": "i4"}, "not floats"),
        ({}, {f"{MODULE}.base_layer.base_layer.weight": "f4"}, "whole weight"),
        ({"modules_to_save": ["norm"]}, {"norm.original_module.weight": "f4"}, "whole weight"),
        (
            {"modules_to_save": ["q_proj"]},
            {f"{MODULE}.base_layer.weight": "f4", f"{MODULE}.weight": "f4"},
            "two tensors in the place",
        ),
    ],
)
def test_whole_weights_that_are_refused_by_name(
    settings: dict[str, Any], tensors: dict[str, str], word: str, tmp_path: Path
) -> None:
    more = {f"base_model.model.{name}": np.ones((6, 8), dtype) for name, dtype in tensors.items()}
    with pytest.raises(tv.FormatError, match=word):
        adapter(tmp_path / "a", settings, more)


def test_factors_that_are_none(tmp_path: Path) -> None:
    name = "base_model.model.conv.lora_{}.weight".format
    four = np.ones((2, 3, 3, 3), np.float32)
    with pytest.raises(tv.FormatError, match="convolution"):
        adapter(tmp_path / "a", more={name("A"): four, name("B"): np.ones((4, 2, 1, 1), np.float32)})
    with pytest.raises(tv.FormatError, match="do not fit"):
        adapter(tmp_path / "b", more={name("A"): np.ones((2, 3), "f4"), name("B"): np.ones((4, 3), "f4")})
    with pytest.raises(tv.FormatError, match="without the other"):
        adapter(tmp_path / "c", more={name("A"): np.ones((2, 3), "f4")})
    with pytest.raises(tv.FormatError, match="float type"):
        adapter(tmp_path / "d", more={name("A"): np.ones((2, 3), "i4"), name("B"): np.ones((4, 2), "i4")})
    save_file({}, tmp_path / "a" / WEIGHTS)
    (tmp_path / "a" / CONFIG).write_text(json.dumps(PLAIN))
    with pytest.raises(tv.FormatError, match="holds no factors"):
        open_adapter(tmp_path / "a")


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"r": 8}, 1.0),
        ({"lora_alpha": 16}, 2.0),
        ({"r": 4, "lora_alpha": 2, "use_rslora": True}, 1.0),
        ({"rank_pattern": {"q_proj": 2}, "lora_alpha": 3}, 1.5),
        ({"rank_pattern": {"proj": 2}, "lora_alpha": 3}, 0.375),
        ({"alpha_pattern": {r"layers\.0\..*": 24}}, 3.0),
    ],
)
def test_the_scale_with_the_defaults_of_peft(settings: dict[str, Any], scale: float) -> None:
    rank = 2 if "q_proj" in settings.get("rank_pattern", {}) else settings.get("r", 8)
    assert scale_of(settings, MODULE, rank, "x") == scale


def test_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    adapter(tmp_path / "a")
    with pytest.raises(tv.NotFoundError, match="is a file"):
        open_adapter(tmp_path / "a" / WEIGHTS)
    (tmp_path / "a" / WEIGHTS).rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(tv.NotFoundError, match="holds no LoRA adapter") as caught:
        open_adapter(tmp_path / "a")
    assert "pickle" in (caught.value.hint or "")
    with pytest.raises(tv.NotFoundError):
        open_adapter(tmp_path / "nowhere")


# --- names ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("transformer.h.0.attn.c_attn.weight", "h.0.attn.c_attn.weight"),
        ("model.language_model.layers.0.x.weight", "language_model.model.layers.0.x.weight"),
        ("model.layers.0.x.weight", "layers.0.x.weight"),
        ("model.vision_tower.x.weight", "vision_tower.x.weight"),
        ("gpt_neox.layers.0.x.weight", "layers.0.x.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
    ],
)
def test_names_that_differ_in_their_wrappers(one: str, other: str) -> None:
    assert core(one) == core(other)
    assert StoredNames({other}).alike(one) == [other]
    assert StoredNames({one}).alike(other) == [one]


def test_names_of_other_modules() -> None:
    names = {"vision_model.layers.0.x.weight", "decoder.layers.0.x.weight", "encoder.layers.0.x.weight"}
    assert StoredNames(names).alike("model.layers.0.x.weight") == []
    both = {"model.layers.0.x.weight", "language_model.layers.0.x.weight"}
    assert sorted(StoredNames(both).alike("layers.0.x.weight")) == sorted(both)
    assert StoredNames(both).alike("model.layers.0.x.weight") == ["model.layers.0.x.weight"]
