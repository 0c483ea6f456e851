"""Recipes with every feature of mergekit's format, over five small models.

`a`, `b` and `c` have five layers, `big` eight and `one` a single one; all are Qwen2-shaped and untied.
"""

from __future__ import annotations

from typing import Any

import pytest

from support.models import qwen2_config, qwen2_shapes
from taskvec.errors import RecipeError
from taskvec.recipe.expand import expand, sources
from taskvec.recipe.expanded import ExpandedMerge, Facts
from taskvec.recipe.load import load

LAYERS = {"a": 5, "b": 5, "c": 5, "big": 8, "one": 1}


def facts_of(layers: int, **config: Any) -> Facts:
    """A model of that many layers."""
    settings = qwen2_config(layers=layers, tied=False, **config)
    return Facts(list(qwen2_shapes(settings)), settings)


FACTS = {name: facts_of(layers) for name, layers in LAYERS.items()}


def expanded(recipe: Any, **facts: Facts) -> ExpandedMerge:
    """A recipe against the five models, and others given by name."""
    step = load(recipe).steps[-1]
    return expand(step, {ref: (facts | FACTS)[ref.spec] for ref in sources(step)})


LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}]\n"
SLICE = "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 4]}]\n"
TASK = "merge_method: task_arithmetic\nbase_model: base\nparameters: {weight: 1}\n"
TIES = "merge_method: ties\nbase_model: a\n"


def mistake(recipe: Any, *overrides: str) -> tuple[str, str]:
    """Message and hint of the error that a recipe is."""
    with pytest.raises(RecipeError) as caught:
        load(recipe, overrides)
    return str(caught.value), caught.value.hint or ""


SAME_AS_MERGEKIT = {
    "gradients and filters": """
models:
  - {model: a, parameters: {weight: [0, 1, 3], density: [{filter: mlp, value: 0.5}, {value: [1, 0.2]}]}}
  - {model: b, parameters: {weight: 1}}
merge_method: ties
base_model: c
parameters: {lambda: [0, 1], normalize: [true, false, true], int8_mask: true}
""",
    "a single layer": """
models:
  - {model: one, parameters: {weight: [0.25, 1]}}
merge_method: linear
""",
    "the base as one more input": """
models:
  - {model: a, parameters: {weight: 1}}
base_model: b
parameters: {weight: 0.5}
merge_method: linear
""",
    "slices": """
slices:
  - sources:
      - {model: a, layer_range: [0, 3], parameters: {weight: [0, 1]}}
      - model: b
        layer_range: [2, 5]
        parameters: {weight: [{filter: layers.2, value: 7}, {filter: layers.0, value: 8}]}
    parameters: {weight: 4}
  - sources:
      - {model: big, layer_range: [5, 8]}
    parameters: {weight: [1, 2]}
merge_method: linear
parameters: {weight: 9, normalize: [{filter: layers.3, value: false}]}
""",
    "layers stacked, and a slice without any": """
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources:
      - {model: a, layer_range: [1, 3], parameters: {scale: [{filter: down_proj, value: 0.0}]}}
  - sources: [{model: b, layer_range: [0, 0]}]
merge_method: passthrough
base_model: c
""",
    "numbers and truth values as text": """
models:
  - {model: a, parameters: {weight: 1e-1}}
  - {model: b, parameters: {weight: "2"}}
merge_method: linear
parameters: {normalize: "no"}
""",
    "slerp by part and layer": """
models:
  - model: a
  - model: b
merge_method: slerp
base_model: b
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
""",
    "whole numbers along a gradient": """
models: [{model: a}, {model: b}]
merge_method: karcher
parameters: {max_iter: [1, 9]}
""",
    "a module's parameters": """
modules:
  default:
    models: [{model: a, parameters: {weight: {value: 2}}}, {model: b}]
    parameters: {weight: 0.5}
merge_method: linear
parameters: {weight: 1}
""",
    "scopes fall through where no filter matches": """
slices:
  - sources:
      - {model: a, layer_range: [0, 5], parameters: {weight: {filter: q_proj, value: 1}}}
      - {model: b, layer_range: [0, 5], parameters: {weight: {filter: "*", value: 3}, density: 0.25}}
      - {model: c, layer_range: [0, 5]}
    parameters: {weight: {filter: k_proj, value: 2}}
merge_method: dare_ties
base_model: c
parameters: {weight: [4, 5], density: [{filter: mlp, value: 0.75}], rescale: [{filter: mlp, value: false}]}
""",
    "a base per slice": """
slices:
  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [1, 3]}]
  - sources: [{model: a, layer_range: [2, 5]}, {model: big, layer_range: [0, 3]}]
    base_model: a
merge_method: slerp
base_model: b
parameters: {t: [0.1, 0.9]}
""",
    "differences on the sphere": """
models:
  - {model: a, parameters: {weight: 0.25}}
  - {model: b, parameters: {weight: 0.75}}
merge_method: nuslerp
base_model: c
parameters: {nuslerp_flatten: false, nuslerp_row_wise: [{filter: mlp, value: true}]}
""",
    "every parameter of della": """
models:
  - {model: a, parameters: {weight: 0.25, density: 0.5, epsilon: [0.1, 0.3]}}
  - {model: b, parameters: {weight: [{filter: embed, value: -1}, {filter: norm, value: 0.5}, {value: 2}]}}
  - model: c
merge_method: della
base_model: c
parameters: {density: 0.6, epsilon: 0.2, lambda: 1.5, rescale: false, normalize: false}
""",
    "every parameter of breadcrumbs": """
models:
  - {model: a, parameters: {weight: 0.25, density: 0.5, gamma: 0.1}}
  - {model: b, parameters: {weight: 1}}
merge_method: breadcrumbs_ties
base_model: c
parameters: {gamma: [0.01, 0.05], density: 0.9}
""",
    "ram": """
models: [{model: a}, {model: b}]
merge_method: ramplus_tl
base_model: c
parameters: {r: 0.2, alpha: 0.4, epsilon: 1e-4}
""",
}
