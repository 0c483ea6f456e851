"""Layouts: the same weights stored in another way give the same result, against transfers in one layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import taskvec as tv
from support.layouts import (
    ATTENTION,
    FP8,
    HIDDEN,
    INNER,
    LAYERS,
    LAYOUTS,
    Tensors,
    as_gpt_oss,
    as_phi3,
    biased,
    decoded,
    fused,
    near,
    numbers,
    one_by_one,
    plus,
    quantised,
    same,
    save,
)


@pytest.fixture(scope="module")
def models() -> tuple[Tensors, Tensors, Tensors]:
    reference = one_by_one()
    return plus(reference, one_by_one(0.1)), plus(reference, one_by_one(0.01)), reference


def transfer(
    folder: Path, target: Tensors, donor: Tensors, reference: Tensors, **settings: object
) -> Tensors:
    paths = [save(folder / role, each) for role, each in zip("tdr", (target, donor, reference), strict=True)]
    tv.transfer(*paths, out=folder / "out", **settings)
    return load_file(folder / "out" / "model.safetensors")


@pytest.mark.parametrize("theirs", LAYOUTS)
@pytest.mark.parametrize("mine", LAYOUTS)
def test_every_layout_meets_every_other(
    tmp_path: Path, models: tuple[Tensors, Tensors, Tensors], mine: str, theirs: str
) -> None:
    target, donor, reference = models
    plain = transfer(tmp_path / "plain", *models)
    found = transfer(
        tmp_path / "other", LAYOUTS[mine](target), LAYOUTS[theirs](donor), LAYOUTS[theirs](reference)
    )
    same(found, LAYOUTS[mine](plain))


def test_padded_vocabularies_share_their_common_rows(
    tmp_path: Path, models: tuple[Tensors, Tensors, Tensors]
) -> None:
    target, donor, reference = models
    names = ("model.embed_tokens.weight", "lm_head.weight")
    plain = transfer(tmp_path / "plain", *models)
    rest = {name: numbers(8, HIDDEN) for name in names}
    for value in rest.values():
        value[3, 5] = -0.0
    more = {**target, **{name: np.concatenate([target[name], rest[name]]) for name in names}}
    found = transfer(tmp_path / "more", more, donor, reference)
    same(found, {**plain, **{name: np.concatenate([plain[name], more[name][32:]]) for name in names}})
    fewer = {**target, **{name: target[name][:20] for name in names}}
    found = transfer(tmp_path / "fewer", fewer, donor, reference)
    same(found, {**plain, **{name: plain[name][:20] for name in names}})
    longer = {**donor, **{name: np.concatenate([donor[name], numbers(8, HIDDEN)]) for name in names}}
    found = transfer(tmp_path / "longer", target, longer, reference)
    same(found, plain)
    findings = tv.check(*(tmp_path / "more" / role for role in "tdr"))
    warned = [each.message for each in findings if each.id == "vocabulary-padded"]
    assert len(warned) == 2
    assert "32 rows in common; the target's other 8 are kept, expected 40 rows" in warned[0]


def test_layers_for_multi_token_prediction(tmp_path: Path, models: tuple[Tensors, Tensors, Tensors]) -> None:
    target, donor, reference = models
    plain = transfer(tmp_path / "plain", *models)
    stem = f"model.layers.{LAYERS}"
    copies = {
        f"{stem}.embed_tokens.weight": "model.embed_tokens.weight",
        f"{stem}.shared_head.head.weight": "lm_head.weight",
    }
    own = {f"{stem}.enorm.weight": numbers(HIDDEN)}
    stored = {**target, **{copy: target[name] for copy, name in copies.items()}, **own}
    found = transfer(tmp_path / "mtp", stored, donor, reference)
    same(found, {**plain, **{copy: plain[name] for copy, name in copies.items()}, **own})
    other = {next(iter(copies)): numbers(32, HIDDEN)}
    same(transfer(tmp_path / "apart", {**target, **other}, donor, reference), {**plain, **other})


def three(
    folder: Path,
    models: list[Tensors],
    layouts: tuple[Callable[[Tensors], Tensors], Callable[[Tensors], Tensors]],
    config: dict,
) -> Tensors:
    """What a transfer gives of a target in one layout, and donor and reference in another."""
    made = [layouts[0](models[0]), *map(layouts[1], models[1:])]
    paths = [save(folder / role, each, config) for role, each in zip("tdr", made, strict=True)]
    tv.transfer(*paths, out=folder / "out")
    return load_file(folder / "out" / "model.safetensors")


def test_interleaved_experts_with_biases(tmp_path: Path) -> None:
    models = [biased(one_by_one()) for _ in range(3)]
    config = {"model_type": "gpt_oss"}
    plain = three(tmp_path / "plain", models, (dict, dict), config)
    for number, layouts in enumerate([(as_gpt_oss, dict), (dict, as_gpt_oss), (as_gpt_oss, as_gpt_oss)]):
        same(three(tmp_path / str(number), models, layouts, config), layouts[0](plain))


def test_queries_keys_and_values_in_one(tmp_path: Path) -> None:
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "model_type": "phi3"}
    shapes = {f"self_attn.{kind}": (size, HIDDEN) for kind, size in ATTENTION.items()}
    shapes |= {f"mlp.{kind}": (INNER, HIDDEN) for kind in ("gate_proj", "up_proj")}
    models = [
        {f"model.layers.0.{name}.weight": numbers(*shape) for name, shape in shapes.items()}
        | {"model.norm.weight": numbers(HIDDEN)}
        for _ in range(3)
    ]
    plain = three(tmp_path / "plain", models, (dict, dict), config)
    same(three(tmp_path / "target", models, (as_phi3, dict), config), as_phi3(plain))
    same(three(tmp_path / "donor", models, (dict, as_phi3), config), plain)


def test_a_weight_that_is_stored_twice(tmp_path: Path, models: tuple[Tensors, Tensors, Tensors]) -> None:
    target, donor, reference = models
    twice = {**fused(donor), **{n: v for n, v in donor.items() if ".experts.0." in n}}
    with pytest.raises(tv.CompatibilityError, match=r"stores .* twice"):
        transfer(tmp_path, target, twice, reference)


@pytest.mark.parametrize("theirs", ["one by one", "fused", "transposed", "wrapped"])
@pytest.mark.parametrize("mine", ["one by one", "fused", "transposed"])
def test_a_saved_vector_of_another_layout(
    tmp_path: Path, models: tuple[Tensors, Tensors, Tensors], mine: str, theirs: str
) -> None:
    target, donor, reference = models
    same_parts = {name: reference[name] for name in list(reference)[4:9]}  # zero in the vector
    donor = {**donor, **same_parts}
    plain = transfer(tmp_path / "plain", target, donor, reference)
    paths = [
        save(tmp_path / role, LAYOUTS[theirs](each))
        for role, each in zip("dr", (donor, reference), strict=True)
    ]
    tv.extract(*paths, out=tmp_path / "v")
    tv.apply(save(tmp_path / "t", LAYOUTS[mine](target)), tmp_path / "v", out=tmp_path / "out")
    same(load_file(tmp_path / "out" / "model.safetensors"), LAYOUTS[mine](plain))


def test_fused_plain_experts_meet_quantised_ones(
    tmp_path: Path, models: tuple[Tensors, Tensors, Tensors]
) -> None:
    target, donor, reference = models
    stored = quantised(target)
    plain = transfer(tmp_path / "plain", decoded(stored), donor, reference, out_dtype="bfloat16")
    paths = [
        save(tmp_path / "t", stored, FP8),
        save(tmp_path / "d", fused(donor)),
        save(tmp_path / "r", fused(reference)),
    ]
    tv.transfer(*paths, out=tmp_path / "out", out_dtype="bfloat16")
    near(load_file(tmp_path / "out" / "model.safetensors"), plain)


@pytest.mark.parametrize("layout", ["fused", "wrapped, fused"])
def test_quantised_experts_in_another_layout(
    tmp_path: Path, models: tuple[Tensors, Tensors, Tensors], layout: str
) -> None:
    target, donor, reference = models
    moved = [quantised(LAYOUTS[layout](each)) for each in (donor, reference)]
    same_model = [fused(each) for each in (donor, reference)]
    plain = transfer(
        tmp_path / "plain", target, *(decoded(quantised(each)) for each in same_model), out_dtype="bfloat16"
    )
    paths = [save(tmp_path / "t", target)]
    paths += [save(tmp_path / role, each, FP8) for role, each in zip("dr", moved, strict=True)]
    tv.transfer(*paths, out=tmp_path / "out", out_dtype="bfloat16")
    near(load_file(tmp_path / "out" / "model.safetensors"), plain)


@pytest.mark.parametrize("theirs", ["one by one", "fused", "transposed"])
@pytest.mark.parametrize("mine", ["one by one", "fused", "transposed", "w1 w2 w3"])
def test_a_saved_vector_gives_back_the_donor_exactly(tmp_path: Path, mine: str, theirs: str) -> None:
    """Elements that reference + difference does not give back: negative zeros, and donors far from it."""
    reference = one_by_one()
    donor = plus(reference, one_by_one(0.1))
    for value in donor.values():
        value.reshape(-1)[1:4] = (-0.0, 1e38, 1e-38)
    for value in reference.values():
        value.reshape(-1)[2:4] = (-1e38, 7.0)
    paths = [
        save(tmp_path / role, LAYOUTS[theirs](each))
        for role, each in zip("dr", (donor, reference), strict=True)
    ]
    tv.extract(*paths, out=tmp_path / "v")
    target = save(tmp_path / "t", LAYOUTS[mine](reference))
    tv.apply(target, tmp_path / "v", out=tmp_path / "out")
    same(load_file(tmp_path / "out" / "model.safetensors"), LAYOUTS[mine](donor))


def test_the_note_names_the_rows_of_the_table(
    tmp_path: Path, models: tuple[Tensors, Tensors, Tensors]
) -> None:
    target, donor, reference = models
    paths = [
        save(tmp_path / role, each) for role, each in (("t", fused(target)), ("d", donor), ("r", reference))
    ]
    (note,) = (each.message for each in tv.check(*paths) if each.id == "layout")
    stem = "model.layers.0.mlp.experts"
    assert f"{2 * LAYERS} tensors are stored in another layout and matched" in note
    words = "`gate_proj` and `up_proj`, one after the other of every expert"
    assert f"`{stem}.gate_up_proj` from `{stem}.0.gate_proj.weight` ({words})" in note
    assert f"`{stem}.down_proj` from `{stem}.0.down_proj.weight` (`down_proj` of every expert)" in note


def test_a_filter_of_a_part_is_a_warning(tmp_path: Path, models: tuple[Tensors, Tensors, Tensors]) -> None:
    paths = [save(tmp_path / role, fused(each)) for role, each in zip("tdr", models, strict=True)]
    weight = [{"filter": "experts.1.", "value": 1.0}, {"value": 0.5}]
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(path), "parameters": {"weight": weight}} for path in paths],
    }
    report = tv.merge(recipe, tmp_path / "out")
    found = [each for each in report.findings if each.id == "recipe-filter"]
    assert len(found) == len(paths)
    assert "`model.layers.0.mlp.experts.1." in found[0].message
    assert "is stored as a part of" in found[0].message
    with pytest.raises(tv.CompatibilityError, match="recipe-filter"):
        tv.merge(recipe, tmp_path / "strict", strict=True)
    weight[0]["filter"] = "experts.gate_up_proj"
    report = tv.merge(recipe, tmp_path / "named")
    assert not [each for each in report.findings if each.id == "recipe-filter"]


@pytest.mark.parametrize(
    "wrapped",
    [
        "_fsdp_wrapped_module.{}", "_orig_mod.{}", "pretrained_model.{}", "_forward_module.module.{}",
        "model.{}", "module._orig_mod.{}",
    ],
)  # fmt: skip
def test_names_in_the_module_of_a_trainer(wrapped: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight")
    made = [{name: rng.standard_normal((4, 4)).astype(np.float32) for name in names} for _ in range(3)]
    for folder, tensors in zip(("t", "d", "r"), made, strict=True):
        (tmp_path / folder).mkdir()
        stored = tensors if folder == "t" else {wrapped.format(name): a for name, a in tensors.items()}
        inner = {
            name.replace(".mlp.", "._checkpoint_wrapped_module.mlp.") if folder == "d" else name: array
            for name, array in stored.items()
        }
        save_file(inner, tmp_path / folder / "model.safetensors")
        (tmp_path / folder / "config.json").write_text('{"model_type": "llama"}')
    tv.transfer(*(tmp_path / folder for folder in ("t", "d", "r")), tmp_path / "out")
    for name, array in load_file(tmp_path / "out" / "model.safetensors").items():
        target, donor, reference = (tensors[name].astype(np.float64) for tensors in made)
        np.testing.assert_allclose(array, target + (donor - reference), rtol=1e-6, atol=1e-6)


def test_a_prefix_that_is_not_known_is_named(tmp_path: Path) -> None:
    for folder, prefix in (("t", ""), ("d", "actor."), ("r", "actor.")):
        (tmp_path / folder).mkdir()
        tensors = {f"{prefix}model.layers.{n}.up.weight": np.ones((2, 2), np.float32) for n in range(3)}
        save_file(tensors, tmp_path / folder / "model.safetensors")
        (tmp_path / folder / "config.json").write_text("{}")
    with pytest.raises(tv.CompatibilityError) as caught:
        tv.transfer(*(tmp_path / folder for folder in ("t", "d", "r")), tmp_path / "out")
    assert "`actor.` in front of the names" in str(caught.value.hint)
