"""Selections: what each part means, how parts combine, and what is refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.models import qwen2_config, qwen2_shapes
from taskvec.errors import RecipeError
from taskvec.models.selection import Selection
from taskvec.models.tensor_names import is_vocabulary, layer_of

NAMES = list(qwen2_shapes(qwen2_config(layers=12, tied=False)))


@pytest.mark.parametrize(
    ("settings", "name", "selected"),
    [
        ({}, "anything.at.all", True),
        ({"include": ("self_attn",)}, "model.layers.0.self_attn.q_proj.weight", True),
        ({"include": ("self_attn",)}, "model.layers.0.mlp.up_proj.weight", False),
        ({"include": ("bias$", "mlp")}, "model.layers.0.mlp.up_proj.weight", True),
        ({"exclude": ("bias$",)}, "model.layers.0.self_attn.q_proj.bias", False),
        ({"include": ("self_attn",), "exclude": ("bias$",)}, "model.layers.0.self_attn.q_proj.bias", False),
        ({"preset": "no-embed"}, "model.embed_tokens.weight", False),
        ({"preset": "no-embed"}, "lm_head.weight", False),
        ({"preset": "no-embed"}, "lm_head.bias", False),
        ({"preset": "no-embed"}, "transformer.wte.weight", False),
        ({"preset": "no-embed"}, "transformer.word_embeddings.weight", False),
        ({"preset": "no-embed"}, "gpt_neox.embed_in.weight", False),
        ({"preset": "no-embed"}, "embed_out.weight", False),
        ({"preset": "no-embed"}, "transformer.output_layer.weight", False),
        ({"preset": "no-embed"}, "tok_embeddings.weight", False),
        ({"preset": "no-embed"}, "output.weight", False),
        ({"preset": "no-embed"}, "encoder.layer.0.attention.output.dense.weight", True),
        ({"preset": "no-embed"}, "model.norm.weight", True),
        ({"preset": "no-embed-norm"}, "model.norm.weight", False),
        ({"preset": "no-embed-norm"}, "model.layers.3.input_layernorm.weight", False),
        ({"preset": "no-embed-norm"}, "model.layers.3.self_attn.q_norm.weight", False),
        ({"preset": "no-embed-norm"}, "transformer.ln_f.bias", False),
        ({"preset": "no-embed-norm"}, "transformer.h.0.ln_1.weight", False),
        ({"preset": "no-embed-norm"}, "encoder.block.0.LayerNorm.weight", False),
        ({"preset": "no-embed-norm"}, "model.embed_tokens.weight", False),
        ({"preset": "no-embed-norm"}, "model.layers.3.mlp.up_proj.weight", True),
        ({"layers": "8-20"}, "model.layers.8.mlp.up_proj.weight", True),
        ({"layers": "8-20"}, "model.layers.20.mlp.up_proj.weight", True),
        ({"layers": "8-20"}, "model.layers.21.mlp.up_proj.weight", False),
        ({"layers": "0,3,5-7"}, "transformer.h.6.mlp.weight", True),
        ({"layers": " 0, 3 , 5 - 7 "}, "transformer.h.4.mlp.weight", False),
        ({"layers": "0-99"}, "model.norm.weight", False),
        ({"layers": "0-99"}, "lm_head.weight", False),
        ({"layers": "3"}, "model.visual.blocks.3.attn.weight", False),
        ({"layers": "3", "exclude": ("mlp",)}, "model.layers.3.mlp.up_proj.weight", False),
    ],
)
def test_matches(settings: dict, name: str, selected: bool) -> None:
    assert Selection(**settings).matches(name) is selected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"include": ("(",)}, "include `(` is not a regular expression"),
        ({"exclude": ("*bias",)}, "exclude `*bias` is not a regular expression"),
        ({"preset": "none"}, "preset `none` is not known"),
        ({"layers": "20-8"}, "ends before it starts"),
        ({"layers": ""}, "neither a number nor a range"),
        ({"layers": "1,,2"}, "neither a number nor a range"),
        ({"layers": "a-b"}, "`a-b`"),
        ({"layers": "-3"}, "`-3`"),
        ({"layers": "3-"}, "`3-`"),
        ({"layers": "9" * 40}, "neither a number nor a range"),
    ],
)
def test_refused(settings: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        Selection(**settings)
    assert caught.value.hint


def test_select_keeps_order_and_refuses_to_select_nothing() -> None:
    assert Selection().select(NAMES) == NAMES
    assert Selection(layers="3").select(NAMES) == [n for n in NAMES if ".layers.3." in n]
    with pytest.raises(RecipeError, match="matches none of") as caught:
        Selection(include=("self_atn",)).select(NAMES)
    assert "`model.layers." in str(caught.value.hint)


def test_unused_parts_are_named() -> None:
    selection = Selection(include=("mlp", "self_atn"), exclude=("bais",), layers="1-3,40,50-60")
    assert selection.unused(NAMES) == ["include `self_atn`", "exclude `bais`", "layer `40`", "layers `50-60`"]
    assert Selection(include=("mlp",), layers="0-11").unused(NAMES) == []


def test_description() -> None:
    assert str(Selection()) == "preset `full`"
    assert str(Selection(include=("a",), preset="no-embed", layers="1-2")) == (
        "preset `no-embed`, include `a`, layers `1-2`"
    )


def test_frozen_comparable_hashable() -> None:
    assert Selection(include=("a",)) == Selection(include=("a",))
    assert len({Selection(), Selection(), Selection(layers="1")}) == 2
    with pytest.raises(AttributeError):
        Selection().preset = "no-embed"  # type: ignore[misc]


def test_one_pattern_may_be_a_plain_string() -> None:
    assert Selection(include="mlp").include == ("mlp",)  # type: ignore[arg-type]


@given(st.sets(st.integers(0, 60), min_size=1))
def test_layer_lists_select_exactly_their_layers(layers: set[int]) -> None:
    selection = Selection(layers=",".join(map(str, layers)))
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(61)]
    assert {layer_of(name) for name in selection.select(names)} == layers


def test_layer_and_vocabulary_of_a_name() -> None:
    assert layer_of("model.layers.17.mlp.experts.3.up_proj.weight") == 17
    assert layer_of("encoder.layer.2.output.dense.weight") == 2
    assert layer_of("model.visual.blocks.3.attn.weight") is None
    assert layer_of("model.embed_tokens.weight") is None
    assert is_vocabulary("model.language_model.embed_tokens.weight")
    assert not is_vocabulary("model.layers.0.self_attn.o_proj.weight")
