"""Names of layers and parts, and the keys of config.json that count layers."""

from __future__ import annotations

from typing import Any

import pytest

from taskvec.models.tensor_names import (
    Place,
    is_first,
    kind_of_stack,
    main_stack,
    modules,
    place_of,
    split_by,
    stacks,
)
from taskvec.recipe.config_edits import Origin, edits, layer_count

PLACES = {
    "model.layers.3.mlp.up_proj.weight": Place("model.layers.", 3, ".mlp.up_proj.weight"),
    "model.layers.61.mlp.experts.7.up.weight": Place("model.layers.", 61, ".mlp.experts.7.up.weight"),
    "transformer.h.0.attn.c_attn.weight": Place("transformer.h.", 0, ".attn.c_attn.weight"),
    "h.11.ln_1.bias": Place("h.", 11, ".ln_1.bias"),
    "visual.blocks.2.norm1.weight": Place("visual.blocks.", 2, ".norm1.weight"),
    "encoder.block.1.layer.0.SelfAttention.q.w": Place("encoder.block.", 1, ".layer.0.SelfAttention.q.w"),
    "bert.encoder.layer.5.output.dense.weight": Place("bert.encoder.layer.", 5, ".output.dense.weight"),
    "model.embed_tokens.weight": None,
    "visual.merger.mlp.0.weight": None,
    "model.layers.weight": None,
    "model.layers.12345678.w": None,
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_place(name: str) -> None:
    place = place_of(name)
    assert place == PLACES[name]
    if place is not None:
        assert place.at(place.layer) == name


# As mergekit's architecture tables have them.
FIRST = (
    "model.embed_tokens.weight", "model.language_model.embed_tokens.weight", "transformer.wte.weight",
    "wpe.weight", "gpt_neox.embed_in.weight", "model.tok_embeddings.weight", "backbone.embeddings.weight",
    "shared.weight", "bert.embeddings.LayerNorm.weight", "transformer.word_embeddings.weight",
    "model.embedding_norm.weight", "transformer.embd.wte.weight", "conv1.weight", "model.encoder.conv2.bias",
    "visual.patch_embed.proj.weight", "vision_tower.patch_conv.weight", "vision_tower.ln_pre.weight",
    "vision_model.class_embedding", "transformer.rotary_pos_emb.inv_freq",
    "model.per_layer_model_projection.weight",
)  # fmt: skip
LAST = (
    "lm_head.weight", "model.norm.weight", "gpt_neox.final_layer_norm.bias", "embed_out.weight",
    "output.weight", "transformer.ln_f.weight", "score.weight", "backbone.norm_f.weight",
    "transformer.output_layer.weight", "classifier.dense.weight", "bert.pooler.dense.weight",
    "vision_tower.post_layernorm.weight", "unembed.weight", "cls.predictions.decoder.weight",
)  # fmt: skip


def test_before_and_after_the_layers() -> None:
    assert [name for name in FIRST if not is_first(name)] == []
    assert [name for name in LAST if is_first(name)] == []


def test_stacks_and_the_main_one() -> None:
    names = ["model.layers.0.a", "model.layers.2.a", "visual.blocks.0.a", "x"]
    assert stacks(names) == {"model.layers.": 3, "visual.blocks.": 1}
    assert main_stack({"model.layers.": 3, "mtp.layers.": 1}) == "model.layers."
    assert main_stack({"model.layers.": 3, "visual.blocks.": 1}) is None
    assert main_stack({}) is None


@pytest.mark.parametrize(
    ("stack", "kind"),
    [
        ("model.layers.", "text"),
        ("model.language_model.layers.", "text"),
        ("model.visual.blocks.", "vision"),
        ("vision_tower.vision_model.encoder.layers.", "vision"),
        ("audio_tower.layers.", "audio"),
        ("encoder.block.", "encoder"),
        ("model.decoder.layers.", "decoder"),
        ("mtp.layers.", "predictor"),
        ("bert.encoder.layer.", "text"),
    ],
)
def test_kinds_of_stacks(stack: str, kind: str) -> None:
    assert kind_of_stack(stack) == kind


def test_modules() -> None:
    assert modules(["a", "model.layers.0.b"]) == {"default": ["a", "model.layers.0.b"]}
    whisper = [
        "model.encoder.conv1.weight",
        "model.encoder.layers.0.w",
        "model.decoder.layers.0.w",
        "proj_out.weight",
    ]
    assert {part: len(names) for part, names in modules(whisper).items()} == {"encoder": 2, "decoder": 2}
    gemma = [
        "language_model.model.layers.0.w", "multi_modal_projector.mm_soft_emb_norm.weight",
        "vision_tower.vision_model.encoder.layers.0.w", "audio_tower.layers.0.w",
        "language_model.lm_head.weight",
    ]  # fmt: skip
    assert {part: len(names) for part, names in modules(gemma).items()} == {
        "text_decoder": 2, "multi_modal_projector": 1, "vision_tower": 1, "audio_tower": 1,
    }  # fmt: skip
    found = split_by(gemma, ["text_decoder", "vision_model"])
    assert found is not None
    assert [len(found[part]) for part in ("text_decoder", "vision_model", "")] == [2, 1, 2]
    assert split_by(gemma, ["text_encoder"]) is None
    found = split_by(gemma, ["language_model.model.layers"])
    assert found is not None
    assert [len(found[part]) for part in ("language_model.model.layers", "")] == [1, 4]


# --- config.json --------------------------------------------------------------------------------------------


def edited(config: dict[str, Any], layers: list[int], kind: str = "text", other: Any = None) -> Any:
    return edits(config, kind, [Origin(other or config, layer) for layer in layers])


def test_counts_under_every_name() -> None:
    assert edited({"n_layer": 4}, [0, 1, 1, 2, 3]) == ({"n_layer": 5}, [])
    assert edited({"num_hidden_layers": 4, "num_layers": 7}, [0, 1]) == ({"num_hidden_layers": 2}, [])
    nested = {"text_config": {"num_hidden_layers": 4}, "vision_config": {"depth": 4}, "num_hidden_layers": 4}
    assert edited(nested, [0, 1])[0] == {"text_config.num_hidden_layers": 2, "num_hidden_layers": 2}
    assert edited(nested, [0, 1], "vision")[0] == {"vision_config.depth": 2}
    assert layer_count(nested, "vision") == 4
    assert layer_count({}, "text") is None
    assert layer_count({"num_hidden_layers": True}, "text") is None
    assert edited({"num_hidden_layers": 4}, [0, 1, 2, 3]) == ({}, [])


def test_an_entry_per_layer() -> None:
    config = {
        "num_hidden_layers": 3, "layer_types": ["f", "s", "t"], "layers_block_type": ["a", "b", "c"],
        "no_rope_layers": [1, 0, 1], "hybrid_override_pattern": "M*-", "block_configs": [1, 2, 3],
        "eos_token_id": [1, 2, 3], "vision_feature_layer": [1, 2, 3], "mtp_layer_types": ["x", "y", "z"],
    }  # fmt: skip
    changes, problems = edited(config, [0, 2, 2])
    assert changes == {
        "layer_types": ["f", "t", "t"], "layers_block_type": ["a", "c", "c"], "no_rope_layers": [1, 1, 1],
        "hybrid_override_pattern": "M--", "block_configs": [1, 3, 3],
    }  # fmt: skip
    assert problems == []
    other = {"num_hidden_layers": 5, "layer_types": list("vwxyz")}
    changes, _ = edits(config, "text", [Origin(config, 0), Origin(other, 4)])
    assert changes["layer_types"] == ["f", "z"]


@pytest.mark.parametrize(("theirs", "wanted"), [([], []), ([0], [1]), (True, [1]), ("x", [1]), (None, [1])])
def test_a_list_of_numbers_that_another_model_has_empty_or_damaged(theirs: object, wanted: list[int]) -> None:
    base = {"num_hidden_layers": 2, "mlp_only_layers": [0]}
    other = {"num_hidden_layers": 2, "mlp_only_layers": theirs}
    changes, _ = edits(base, "text", [Origin(base, 1), Origin(other, 0)])
    assert changes.get("mlp_only_layers", [0]) == wanted


def test_lists_of_layer_numbers() -> None:
    config = {"num_hidden_layers": 6, "mlp_only_layers": [0, 5], "cross_attention_layers": []}
    assert edited(config, [0, 1, 4, 5, 0])[0] == {"num_hidden_layers": 5, "mlp_only_layers": [0, 3, 4]}


@pytest.mark.parametrize(
    ("config", "layers", "changes", "problems"),
    [
        ({"max_window_layers": 4}, [0, 1], {"max_window_layers": 2}, []),
        ({"max_window_layers": 28}, [0, 1, 2, 3, 3], {"max_window_layers": 29}, []),
        ({"max_window_layers": 3}, [0, 1, 1, 2, 3], {"max_window_layers": 4}, []),
        ({"max_window_layers": 2}, [3, 0], {"max_window_layers": 0}, []),
        (
            {"max_window_layers": 2, "use_sliding_window": True},
            [3, 0],
            {"max_window_layers": 0},
            ["max_window_layers"],
        ),
        (
            {"max_window_layers": 2, "use_sliding_window": True, "layer_types": ["f", "f", "s", "s"]},
            [3, 0],
            {"max_window_layers": 0, "layer_types": ["s", "f"]},
            [],
        ),
        ({"first_k_dense_replace": 1}, [0, 0, 1, 2, 3], {"first_k_dense_replace": 2}, []),
        ({"first_k_dense_replace": 1}, [0, 1, 0], {}, ["first_k_dense_replace"]),
        ({"first_k_dense_replace": 0}, [0, 1, 0], {}, []),
        ({"num_kv_shared_layers": 2}, [0, 1, 2, 2, 3], {"num_kv_shared_layers": 3}, []),
        ({"num_kv_shared_layers": 2}, [2, 3, 0], {"num_kv_shared_layers": 0}, ["num_kv_shared_layers"]),
        ({"sliding_window_pattern": 2}, [0, 1, 2, 3, 0, 1], {}, []),
        ({"sliding_window_pattern": 2}, [0, 2, 3], {}, ["sliding_window_pattern"]),
        ({"sliding_window_pattern": "LG"}, [0, 2, 3], {}, ["sliding_window_pattern"]),
        (
            {"sliding_window_pattern": 2, "layer_types": list("fsfs")},
            [0, 2, 3],
            {"layer_types": list("ffs")},
            [],
        ),
        ({"decoder_sparse_step": 1}, [0, 2, 3], {}, []),
        ({"attn_layer_period": 2, "attn_layer_offset": 1}, [0, 1, 2, 3, 2, 3], {}, []),
        ({"attn_layer_period": 2, "attn_layer_offset": 1}, [1, 2], {}, ["attn_layer_period"]),
    ],
)  # fmt: skip
def test_patterns(
    config: dict[str, Any], layers: list[int], changes: dict[str, Any], problems: list[str]
) -> None:
    found, broken = edited({"num_hidden_layers": 4, **config}, layers)
    found.pop("num_hidden_layers", None)
    assert found == changes
    assert broken == problems
