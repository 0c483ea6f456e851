"""Frankenmerges of families whose layer pattern stands in no config."""

from __future__ import annotations

from typing import Any

import pytest

from taskvec.recipe.config_edits import Origin, edits


def edited(config: dict[str, Any], layers: list[int]) -> tuple[dict[str, Any], list[str]]:
    return edits(config, "text", [Origin(config, layer) for layer in layers])


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "gpt_oss", "cohere2", "qwen3_next"])
def test_the_list_is_the_one_that_the_class_made(kind: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    own = CONFIG_MAPPING[kind](num_hidden_layers=12).layer_types
    layers = [*range(7), *range(4, 12)]
    changes, problems = edited({"model_type": kind, "num_hidden_layers": 12}, layers)
    assert changes["num_hidden_layers"] == 15
    assert changes["layer_types"] == [own[layer] for layer in layers]
    assert problems == []


def test_nothing_is_written_where_the_pattern_goes_on() -> None:
    changes, problems = edited({"model_type": "gemma2", "num_hidden_layers": 6}, [0, 1, 2, 3])
    assert (changes, problems) == ({"num_hidden_layers": 4}, [])


def test_a_period_that_the_config_leaves_to_its_default() -> None:
    _, problems = edited({"model_type": "jamba", "num_hidden_layers": 16}, [0, 1, 2, 4, 5])
    assert "attn_layer_period" in problems


def test_a_list_in_an_inner_section() -> None:
    inner = {"model_type": "gemma3_text", "num_hidden_layers": 12}
    changes, problems = edited({"model_type": "gemma3", "text_config": inner}, [*range(8), *range(5, 12)])
    assert len(changes["text_config.layer_types"]) == 15
    assert problems == []
