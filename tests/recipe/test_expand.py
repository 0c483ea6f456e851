"""Recipes against tensor names: what every output tensor is made of.

Numbers said to be mergekit's were measured on mergekit 0.1.5; parity_mergekit.py measures all of them again.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from support.models import qwen2_config, qwen2_shapes
from support.recipes import FACTS, SAME_AS_MERGEKIT, expanded, facts_of
from taskvec.errors import RecipeError
from taskvec.recipe.expand import expand, sources
from taskvec.recipe.expanded import ExpandedMerge, Facts
from taskvec.recipe.load import load
from taskvec.recipe.model_ref import ModelRef

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def q(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.q_proj.weight"


def up(layer: int) -> str:
    return f"model.layers.{layer}.mlp.up_proj.weight"


def seen(merge: ExpandedMerge, name: str, *keys: str) -> Any:
    """Inputs of a tensor as (model, stored name, *values of its term)."""
    tensor = next(tensor for tensor in merge.tensors if tensor.name == name)
    terms = merge.operations[tensor.operation].get("terms", [])
    found = []
    for position, (model, stored) in enumerate(tensor.inputs):
        term = next((term for term in terms if term["model"] == position), {})
        found.append((str(merge.models[model]), stored, *(term.get(key) for key in keys)))
    return found


def kind(merge: ExpandedMerge, name: str) -> str:
    tensor = next(tensor for tensor in merge.tensors if tensor.name == name)
    return merge.operations[tensor.operation]["kind"]


def shared(merge: ExpandedMerge, name: str, key: str) -> Any:
    tensor = next(tensor for tensor in merge.tensors if tensor.name == name)
    return merge.operations[tensor.operation][key]


def mistake(recipe: Any, **facts: Facts) -> tuple[str, str]:
    with pytest.raises(RecipeError) as caught:
        expanded(recipe, **facts)
    return str(caught.value), caught.value.hint or ""


# --- mergekit's numbers -------------------------------------------------------------------------------------


def test_gradients_run_over_the_layers_and_start_outside_of_them() -> None:
    merge = expanded(SAME_AS_MERGEKIT["gradients and filters"])
    found = [seen(merge, q(i), "weight", "density")[1] for i in range(5)]
    assert [weight for *_, weight, _ in found] == [0.0, 0.5, 1.0, 2.0, 3.0]
    assert [density for *_, density in found] == [1.0, 0.8, 0.6, 0.4, 0.2]
    assert [seen(merge, up(i), "density")[1][-1] for i in range(5)] == [0.5] * 5
    assert [shared(merge, q(i), "lambda") for i in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [shared(merge, q(i), "normalize") for i in range(5)] == [True, True, False, False, True]
    for name in (EMBEDDING, HEAD, NORM):
        assert seen(merge, name, "weight", "density") == [
            ("c", name, None, None), ("a", name, 0.0, 1.0), ("b", name, 1.0, 1.0),
        ]  # fmt: skip
        assert shared(merge, name, "lambda") == 0.0
    assert merge.base == merge.config_from == 0
    assert [tensor.name for tensor in merge.tensors] == list(FACTS["c"].names)
    assert merge.config_edits == {}


def test_the_only_layer_has_the_last_value() -> None:
    merge = expanded(SAME_AS_MERGEKIT["a single layer"])
    assert seen(merge, q(0), "weight") == [("one", q(0), 1.0)]
    assert seen(merge, NORM, "weight") == [("one", NORM, 0.25)]


def test_slices_renumber_and_filters_see_the_name_that_each_scope_is_about() -> None:
    merge = expanded(SAME_AS_MERGEKIT["slices"])
    # the model's own name: layers.2 is the first of b's three; the recipe's: layers.3 of the output
    assert seen(merge, q(0), "weight") == [("a", q(0), 0.0), ("b", q(2), 7.0)]
    assert seen(merge, q(1), "weight") == [("a", q(1), 0.5), ("b", q(3), 4.0)]
    assert seen(merge, q(2), "weight") == [("a", q(2), 1.0), ("b", q(4), 4.0)]
    assert [seen(merge, q(i), "weight") for i in (3, 4, 5)] == [
        [("big", q(5), 1.0)], [("big", q(6), 1.5)], [("big", q(7), 2.0)],
    ]  # fmt: skip
    assert [shared(merge, q(i), "normalize") for i in range(6)] == [True, True, True, False, True, True]
    # what comes before the layers goes with the first slice, what comes after with the last
    assert seen(merge, EMBEDDING, "weight") == [("a", EMBEDDING, 0.0), ("b", EMBEDDING, 4.0)]
    assert seen(merge, NORM, "weight") == [("big", NORM, 1.0)]
    assert seen(merge, HEAD, "weight") == [("big", HEAD, 1.0)]
    assert merge.config_edits == {"num_hidden_layers": 6}
    assert len(merge.tensors) == 6 * 12 + 3


def test_a_slice_without_layers_lends_its_ends() -> None:
    merge = expanded(SAME_AS_MERGEKIT["layers stacked, and a slice without any"])
    assert [seen(merge, q(i))[0][:2] for i in range(4)] == [
        ("a", q(0)),
        ("a", q(1)),
        ("a", q(1)),
        ("a", q(2)),
    ]
    assert seen(merge, EMBEDDING) == [("a", EMBEDDING)]
    assert seen(merge, NORM) == [("b", NORM)]
    down = "model.layers.{}.mlp.down_proj.weight"
    assert [kind(merge, down.format(i)) for i in range(4)] == ["copy", "copy", "passthrough", "passthrough"]
    assert merge.config_edits == {"num_hidden_layers": 4}
    # c gives config and tokenizer, and is no base
    assert str(merge.models[merge.config_from]) == "c"
    assert merge.base is None


def test_scopes_fall_through() -> None:
    merge = expanded(SAME_AS_MERGEKIT["scopes fall through where no filter matches"])
    k = "model.layers.2.self_attn.k_proj.weight"
    assert seen(merge, q(2), "weight", "density") == [
        ("c", q(2), None, None), ("a", q(2), 1.0, 1.0), ("b", q(2), 3.0, 0.25),
    ]  # fmt: skip
    assert seen(merge, k, "weight")[1] == ("a", k, 2.0)
    assert seen(merge, up(2), "weight", "density")[1] == ("a", up(2), 4.5, 0.75)
    assert (shared(merge, up(2), "rescale"), shared(merge, q(2), "rescale")) == ("none", "l1")


def test_a_base_per_slice() -> None:
    merge = expanded(SAME_AS_MERGEKIT["a base per slice"])
    assert seen(merge, q(0)) == [("b", q(1)), ("a", q(0))]
    assert seen(merge, q(2)) == [("a", q(2)), ("big", q(0))]
    assert [shared(merge, q(i), "t") for i in range(5)] == [0.1, 0.9, 0.1, 0.5, 0.9]
    assert seen(merge, NORM) == [("a", NORM), ("big", NORM)]


# --- differences --------------------------------------------------------------------------------------------

TASK = "merge_method: task_arithmetic\nbase_model: c\nparameters: {weight: 1}\nmodels:\n"


def terms(merge: ExpandedMerge, name: str) -> list[dict[str, Any]]:
    tensor = next(tensor for tensor in merge.tensors if tensor.name == name)
    return merge.operations[tensor.operation].get("terms", [])


def test_relative_to_is_a_transfer() -> None:
    merge = expanded(TASK + "- {model: a, relative_to: b}\n")
    assert [str(ref) for ref in merge.models] == ["c", "a", "b"]
    assert seen(merge, q(0)) == [("c", q(0)), ("a", q(0)), ("b", q(0))]
    assert terms(merge, q(0)) == [{"model": 1, "reference": 2, "weight": 1.0}]
    # the same donor against two references is two differences
    merge = expanded(TASK + "- {model: a, relative_to: b}\n- {model: a}\n")
    assert [(t["model"], t["reference"]) for t in terms(merge, q(0))] == [(1, 2), (1, 0)]


def test_vectors_change_what_they_hold() -> None:
    merge = expanded(TASK + "- {vector: v.vec}\n", **{"v.vec": Facts([q(0), EMBEDDING])})
    assert merge.models == (ModelRef("c"), ModelRef("v.vec", "vector"))
    assert terms(merge, q(0)) == [{"model": 1, "reference": None, "weight": 1.0}]
    assert seen(merge, q(0)) == [("c", q(0)), ("v.vec", q(0))]
    # elsewhere nothing differs from the base
    assert kind(merge, q(1)) == "copy"
    assert seen(merge, q(1)) == [("c", q(1))]
    merge = expanded(TASK + "- {vector: v.vec}\n- {model: a}\n", **{"v.vec": Facts([q(0)])})
    assert [(t["model"], t["reference"]) for t in terms(merge, q(1))] == [(0, 0), (1, 0)]


def test_an_adapter_of_the_base_is_its_factors_alone() -> None:
    step = load(TASK + "- {model: c+lora}\n").steps[-1]
    adapter = ModelRef("lora", "adapter", made_for="c")
    assert sources(step) == (ModelRef("c"), adapter)
    merge = expand(step, {ModelRef("c"): FACTS["c"], adapter: Facts([q(0)])})
    assert terms(merge, q(0)) == [{"model": 1, "reference": None, "weight": 1.0}]
    assert seen(merge, q(0)) == [("c", q(0)), ("lora", q(0))]
    assert kind(merge, q(1)) == "copy"


def test_an_adapter_of_its_reference_is_its_factors_alone() -> None:
    step = load(TASK + "- {model: a+lora, relative_to: a}\n").steps[-1]
    assert sources(step) == (
        ModelRef("c"), ModelRef("lora", "adapter", made_for="a"), ModelRef("a"),
    )  # fmt: skip


def test_an_adapter_of_another_model_comes_with_it() -> None:
    adapted = ModelRef("a", adapter="lora")
    step = load(TASK + "- {model: a+lora}\n").steps[-1]
    assert sources(step) == (ModelRef("c"), adapted)
    merge = expand(step, {ModelRef("c"): FACTS["c"], adapted: FACTS["a"]})
    assert terms(merge, q(0)) == [{"model": 1, "reference": 0, "weight": 1.0}]
    whole = load(
        "merge_method: linear\nparameters: {weight: 1}\nbase_model: a\nmodels: [{model: a+lora}]\n"
    ).steps[-1]
    assert sources(whole) == (ModelRef("a"), adapted)


def test_streams_follow_the_model_through_slices() -> None:
    text = """
merge_method: dare_linear
base_model: c
parameters: {weight: 1, density: 0.5}
slices:
- sources: [{model: c, layer_range: [0, 2]}, {model: a, layer_range: [0, 2]}]
- sources: [{model: b, layer_range: [2, 5]}, {model: a, layer_range: [2, 5]}, {model: c, layer_range: [2, 5]}]
"""
    merge = expanded(text)
    assert [t["stream"] for t in terms(merge, q(0))] == [0]
    assert [t["stream"] for t in terms(merge, q(3))] == [1, 0]
    assert seen(merge, q(3)) == [("c", q(3)), ("b", q(3)), ("a", q(3))]


# --- selection, names, tensors that are missing -------------------------------------------------------------

LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"


def test_outside_of_the_selection_is_the_base() -> None:
    merge = expanded(LINEAR + "base_model: b\ninclude: mlp\nexclude: layers.4\n")
    assert kind(merge, up(0)) == "linear"
    assert kind(merge, up(4)) == kind(merge, q(0)) == kind(merge, EMBEDDING) == "copy"
    assert seen(merge, q(0)) == [("b", q(0))]
    merge = expanded(LINEAR + "preset: no-embed\nlayers: 0-1\n")
    assert [kind(merge, q(i)) for i in range(3)] == ["linear", "linear", "copy"]
    assert seen(merge, EMBEDDING) == [("a", EMBEDDING)]


def test_stored_names_may_differ() -> None:
    names = list(FACTS["b"].names)
    other = Facts({name: "language_" + name for name in names}, FACTS["b"].config)
    merge = expanded(LINEAR.replace("model: b", "model: other"), other=other)
    assert seen(merge, q(1)) == [("a", q(1)), ("other", "language_" + q(1))]
    first = expanded(LINEAR.replace("{model: a}, {model: b}", "{model: other}, {model: b}"), other=other)
    assert first.tensors[0].template == (0, "language_" + first.tensors[0].name)


def test_a_tensor_that_a_model_lacks_is_the_bases() -> None:
    tied = qwen2_config(layers=5)
    merge = expanded(LINEAR.replace("model: b", "model: tied"), tied=Facts(list(qwen2_shapes(tied)), tied))
    assert merge.missing == ((HEAD, (1,)),)
    assert seen(merge, HEAD) == [("a", HEAD)]
    assert kind(merge, HEAD) == "copy"


def test_settings_come_through() -> None:
    text = (
        LINEAR + "dtype: bfloat16\nout_dtype: float32\nrounding: stochastic\nseed: 9\ntokenizer_source: b\n"
    )
    merge = expanded(text + "chat_template: chatml\n")
    assert (merge.dtype, merge.out_dtype, merge.rounding, merge.seed) == ("BF16", "F32", "stochastic", 9)
    assert (merge.tokenizer_from, merge.config_from, merge.alphas, merge.chat_template) == (
        1,
        0,
        (1.0,),
        "chatml",
    )
    merge = expanded(TASK + "- {model: a}\nalpha: [0.5, 1]\ntokenizer: {source: base}\n")
    assert (merge.alphas, merge.tokenizer_from) == ((0.5, 1.0), 0)
    assert (merge.rounding, merge.seed) == (None, None)
    message, hint = mistake(LINEAR + "tokenizer_source: bb\n")
    assert message == "recipe:4: `bb` is not one of the models of this merge"
    assert hint == "did you mean `b`?"


def test_remarks() -> None:
    text = "merge_method: task_arithmetic\nbase_model: c\nmodels:\n- model: c\n  parameters: {weight: 2}\n"
    merge = expanded(text + "- {model: a, parameters: {weight: 1, density: 0.5}}\n")
    assert [(remark.id, remark.subject) for remark in merge.remarks] == [
        ("recipe-ignored", "recipe:5"), ("recipe-ignored", "recipe:6"),
    ]  # fmt: skip
    assert "no effect of `weight`" in merge.remarks[0].found
    assert "`density` has no effect in `task_arithmetic`" in merge.remarks[1].found


MISTAKES = {
    "layers of another number": (
        LINEAR.replace("model: b", "model: big"),
        "recipe:3: `big` has 8 layers, and `a` 5",
        "`slices`",
    ),
    "a range too long": (
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: a, layer_range: [0, 9]}\n",
        "recipe:4: layer range [0, 9] of `a`, which has 5 layers",
        "[0, 5]",
    ),
    "no layers": (
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 0]}]}]\n",
        "recipe:2: no layers at all",
        "",
    ),
    "too many layers": (
        "merge_method: passthrough\nslices:\n" + "- sources: [{model: big, layer_range: [0, 8]}]\n" * 1300,
        "more than 10000 layers in all",
        "",
    ),
    "an unknown module": (
        "merge_method: linear\nparameters: {weight: 1}\nmodules:\n  defualt: {models: [{model: a}]}\n",
        "recipe:4: `a` has no module `defualt`",
        "did you mean `default`?",
    ),
    "filters that miss": (
        "merge_method: linear\nparameters: {weight: {filter: mlp, value: 1}}\nmodels: [{model: a}]\n",
        "`weight` has no value for `model.embed_tokens.weight`: no filter matches it",
        "- value: 0.5",
    ),
    "a gradient of whole numbers": (
        "merge_method: karcher\nparameters: {max_iter: [1, 4]}\nmodels: [{model: a}, {model: b}]\n",
        "`max_iter` is a whole number, and this gradient gives 1.75 on the way",
        "",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    recipe, message, hint = MISTAKES[name]
    start = time.process_time()
    found = mistake(recipe)
    assert message in found[0]
    assert hint in found[1]
    assert time.process_time() - start < 5


# --- parts of a model ---------------------------------------------------------------------------------------


def multimodal(layers: int = 4, depth: int = 2) -> Facts:
    text = [f"model.{name.removeprefix('model.')}" for name in facts_of(layers).names if name != HEAD]
    vision = [f"visual.blocks.{i}.attn.qkv.weight" for i in range(depth)]
    names = ["visual.patch_embed.proj.weight", *vision, "visual.merger.mlp.0.weight", *text, HEAD]
    config = {"text_config": qwen2_config(layers=layers), "vision_config": {"depth": depth}}
    return Facts(names, config)


def test_modules_by_mergekits_names() -> None:
    text = """
merge_method: linear
modules:
  text_decoder:
    slices:
    - sources: [{model: m, layer_range: [0, 3]}]
    - sources: [{model: n, layer_range: [1, 4]}]
    parameters: {weight: 2, normalize: false}
  vision_tower: {models: [{model: m}, {model: n}], parameters: {weight: [0.5, 1]}}
"""
    merge = expanded(text, m=multimodal(), n=multimodal())
    assert [seen(merge, q(i), "weight") for i in (0, 5)] == [[("m", q(0), 2.0)], [("n", q(3), 2.0)]]
    block = "visual.blocks.{}.attn.qkv.weight"
    assert [seen(merge, block.format(i), "weight")[0][-1] for i in (0, 1)] == [0.5, 1.0]
    assert seen(merge, "visual.patch_embed.proj.weight", "weight")[1][-1] == 0.5
    # what is in no module of the recipe is copied, and said
    assert kind(merge, "visual.merger.mlp.0.weight") == "copy"
    assert [remark.id for remark in merge.remarks] == ["recipe-modules"]
    assert merge.config_edits == {"text_config.num_hidden_layers": 6}
    assert sorted({tensor.name for tensor in merge.tensors}) == sorted(
        tensor.name for tensor in merge.tensors
    )


def test_slices_of_a_model_with_towers_need_a_module() -> None:
    text = "merge_method: passthrough\nslices: [{sources: [{model: m, layer_range: [0, 2]}]}]\n"
    message, hint = mistake(text, m=multimodal())
    assert "layers of which part? There are `visual.blocks`, `model.layers`" in message
    assert "put the slices under `modules`: `vision_tower`, `multi_modal_projector`, `text_decoder`" in hint
    text = "merge_method: passthrough\nmodules: {multi_modal_projector: {slices: [{sources: [{model: m, "
    message, _ = mistake(text + "layer_range: [0, 2]}]}]}}\n", m=multimodal())
    assert "a part without layers has no slices" in message


def test_modules_by_the_name_of_their_layers() -> None:
    text = """
merge_method: linear
parameters: {weight: 1}
modules:
  model.layers: {models: [{model: a}, {model: b}]}
  default: {models: [{model: a}]}
"""
    merge = expanded(text)
    assert len(seen(merge, q(0))) == 2
    assert len(seen(merge, EMBEDDING)) == 1
    assert merge.remarks == ()


def test_encoder_and_decoder() -> None:
    names = ["shared.weight", "lm_head.weight"]
    names += [f"encoder.block.{i}.layer.0.SelfAttention.q.weight" for i in range(4)]
    names += [f"decoder.block.{i}.layer.0.SelfAttention.q.weight" for i in range(3)]
    facts = Facts([*names, "decoder.final_layer_norm.weight"], {"num_layers": 4, "num_decoder_layers": 3})
    text = """
merge_method: passthrough
modules:
  encoder: {slices: [{sources: [{model: t, layer_range: [0, 2]}]}]}
  decoder: {models: [{model: t}]}
  shared: {models: [{model: t}]}
"""
    merge = expanded(text, t=facts)
    assert merge.config_edits == {"num_layers": 2}
    assert {tensor.name for tensor in merge.tensors} == {
        *names, "decoder.final_layer_norm.weight",
    } - {f"encoder.block.{i}.layer.0.SelfAttention.q.weight" for i in (2, 3)}  # fmt: skip


def test_layers_that_the_config_does_not_count_stay_behind_the_last() -> None:
    five = facts_of(5)
    extra = "model.layers.5.eh_proj.weight"
    predictor = Facts([*five.names, extra, "mtp.layers.0.up.weight"], five.config)
    text = "merge_method: passthrough\nslices:\n- sources: [{model: p, layer_range: [0, 3]}]\n"
    text += "- sources: [{model: p, layer_range: [2, 5]}]\n"
    merge = expanded(text, p=predictor)
    assert seen(merge, "model.layers.6.eh_proj.weight") == [("p", extra)]
    assert seen(merge, "mtp.layers.0.up.weight") == [("p", "mtp.layers.0.up.weight")]
    assert "6]" in mistake(text.replace("5]", "6]"), p=predictor)[0]
    whole = expanded(
        "merge_method: linear\nparameters: {weight: [1, 2]}\nmodels: [{model: p}]\n", p=predictor
    )
    assert seen(whole, extra, "weight")[0][-1] == 2.0


# --- speed --------------------------------------------------------------------------------------------------


def test_a_hundred_thousand_tensors() -> None:
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
        for layer in range(60)
        for expert in range(556)
        for part in ("gate", "up", "down")
    ]
    text = """
merge_method: ties
base_model: a
models:
- model: b
  parameters:
    weight: [0, 1]
    density: [{filter: up, value: 0.4}, {filter: experts.1, value: 0.3}, {value: [0.1, 0.7]}]
- {model: c, parameters: {weight: 1}}
"""
    step = load(text).steps[-1]
    facts = {ref: Facts({n: n for n in names}, {"num_hidden_layers": 60}) for ref in sources(step)}
    best = 99.0
    for _ in range(3):
        start = time.process_time()
        merge = expand(step, facts)
        best = min(best, time.process_time() - start)
        if best < 1:
            break
    assert best < 1  # seconds
    assert len(merge.tensors) == len(names)
    # one operation per layer and set of filters that match
    assert len(merge.operations) == 60 * 3
