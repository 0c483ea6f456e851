"""Selections of a part of a stored tensor: rows and experts that take the step, and bytes that stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import taskvec as tv
from support.layouts import (
    ATTENTION,
    HIDDEN,
    INNER,
    LAYOUTS,
    Tensors,
    as_gpt_oss,
    as_phi3,
    biased,
    numbers,
    one_by_one,
    plus,
    same,
    save,
)
from taskvec.methods import catalogue
from taskvec.methods.method import Method

PHI3 = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "model_type": "phi3"}


def dense() -> Tensors:
    sizes = {f"self_attn.{kind}": size for kind, size in ATTENTION.items()}
    sizes |= {"mlp.gate_proj": INNER, "mlp.up_proj": INNER}
    weights = {f"model.layers.0.{name}.weight": numbers(size, HIDDEN) for name, size in sizes.items()}
    return weights | {"model.norm.weight": numbers(HIDDEN)}


def odd(model: Tensors, numbers: tuple[int, ...] = (0x8000,)) -> Tensors:
    """The model with numbers in every weight that arithmetic changes even where nothing is added."""
    made = {}
    for name, value in model.items():
        bits = value.copy().view(np.uint16)
        bits.reshape(-1)[: len(numbers)] = numbers
        made[name] = bits.view(value.dtype)
    return made


def transfer(
    folder: Path, layout: Callable[[Tensors], Tensors], models: list[Tensors], config: dict
) -> list[Path]:
    return [save(folder / role, layout(each), config) for role, each in zip("tdr", models, strict=True)]


SELECTIONS: list[dict[str, list[str]]] = [
    {"include": ["q_proj"]},
    {"include": ["v_proj"]},
    {"include": ["up_proj"]},
    {"exclude": [r"self_attn\.k_proj"]},
    {"include": ["self_attn"], "exclude": ["v_proj"]},
    {"include": ["gate_proj", "k_proj"]},
    {"exclude": ["q_proj", "k_proj", "v_proj"]},
]


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_projections_in_one_tensor(tmp_path: Path, selection: dict[str, list[str]]) -> None:
    """The same as where each is stored by itself, to the byte."""
    reference = dense()
    # a negative zero, and NaNs with a payload
    models = [odd(dense(), (0x8000, 0xFFC1, 0x7F81)), plus(reference, dense()), reference]
    options = {"force": ["non-finite"], **selection}
    for alpha in (1.0, 0.5, -1.0):
        single, whole = tmp_path / f"single {alpha}", tmp_path / f"fused {alpha}"
        tv.transfer(*transfer(single, dict, models, PHI3), out=single / "out", alpha=alpha, **options)
        tv.transfer(*transfer(whole, as_phi3, models, PHI3), out=whole / "out", alpha=alpha, **options)
        wanted = as_phi3(load_file(single / "out" / "model.safetensors"))
        same(load_file(whole / "out" / "model.safetensors"), wanted)


@pytest.mark.parametrize("pattern", ["qkv_proj", "gate_up_proj", "self_attn", r"layers\.0"])
def test_a_stored_name_means_all_of_it(tmp_path: Path, pattern: str) -> None:
    reference = dense()
    models = [dense(), plus(reference, dense()), reference]
    paths = transfer(tmp_path, as_phi3, models, PHI3)
    tv.transfer(*paths, out=tmp_path / "all")
    tv.transfer(*paths, out=tmp_path / "out", include=[pattern])
    found, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "all"))
    target = as_phi3(models[0])
    same(found, {name: (whole if pattern.replace("\\", "") in name else target)[name] for name in whole})


EXPERT_SELECTIONS: list[dict[str, list[str]]] = [
    {"include": [r"mlp\.experts\.1\."]},
    {"include": ["gate_proj"]},
    {"exclude": [r"layers\.1\.mlp\.experts\.0\.up_proj", "down_proj"]},
    {"include": [r"experts\.(0|2)\.down_proj", "q_proj"]},
]


@pytest.mark.parametrize("selection", EXPERT_SELECTIONS, ids=str)
@pytest.mark.parametrize("theirs", ["one by one", "fused"])
@pytest.mark.parametrize("mine", LAYOUTS)
def test_experts_in_every_layout(
    tmp_path: Path, mine: str, theirs: str, selection: dict[str, list[str]]
) -> None:
    reference = one_by_one()
    models = [odd(one_by_one()), plus(reference, one_by_one()), reference]
    tv.transfer(
        *transfer(tmp_path / "single", dict, models, {}), out=tmp_path / "single" / "out", **selection
    )
    target = save(tmp_path / "t", LAYOUTS[mine](models[0]))
    others = transfer(tmp_path / "o", LAYOUTS[theirs], models, {})[1:]
    tv.transfer(target, *others, out=tmp_path / "out", **selection)
    wanted = LAYOUTS[mine](load_file(tmp_path / "single" / "out" / "model.safetensors"))
    same(load_file(tmp_path / "out" / "model.safetensors"), wanted)


def test_interleaved_experts(tmp_path: Path) -> None:
    models = [odd(biased(one_by_one())) for _ in range(3)]
    config = {"model_type": "gpt_oss"}
    selection = {"include": [r"experts\.1\.gate_proj", r"up_proj\.bias"]}
    for name, layout in (("single", dict), ("fused", as_gpt_oss)):
        paths = transfer(tmp_path / name, layout, models, config)
        tv.transfer(*paths, out=tmp_path / name / "out", **selection)
    single, whole = (load_file(tmp_path / name / "out" / "model.safetensors") for name in ("single", "fused"))
    same(whole, as_gpt_oss(single))


@pytest.mark.parametrize("mine", ["one by one", "fused", "transposed"])
def test_saved_vectors(tmp_path: Path, mine: str) -> None:
    reference = one_by_one()
    models = [odd(one_by_one()), plus(reference, one_by_one()), reference]
    selection = {"include": [r"experts\.2\.", "q_proj"], "exclude": [r"layers\.1\.mlp\.experts\.2\.up_proj"]}
    single = transfer(tmp_path / "single", dict, models, {})
    tv.transfer(*single, out=tmp_path / "wanted", **selection)
    wanted = LAYOUTS[mine](load_file(tmp_path / "wanted" / "model.safetensors"))
    target = save(tmp_path / "t", LAYOUTS[mine](models[0]))
    for theirs in ("one by one", "fused"):
        others = transfer(tmp_path / theirs, LAYOUTS[theirs], models, {})[1:]
        tv.extract(*others, out=tmp_path / theirs / "v", **selection)
        tv.apply(target, tmp_path / theirs / "v", out=tmp_path / theirs / "out")
        same(load_file(tmp_path / theirs / "out" / "model.safetensors"), wanted)
        tv.extract(*others, out=tmp_path / theirs / "all")
        tv.apply(target, tmp_path / theirs / "all", out=tmp_path / theirs / "some", **selection)
        same(load_file(tmp_path / theirs / "some" / "model.safetensors"), wanted)


@pytest.mark.parametrize("theirs", ["one by one", "fused", "transposed"])
def test_two_vectors_on_different_parts(tmp_path: Path, theirs: str) -> None:
    reference = one_by_one()
    models = [odd(one_by_one()), plus(reference, one_by_one()), reference]
    results = {}
    for name in dict.fromkeys(("one by one", theirs)):
        target, donor, base = map(tv.open, transfer(tmp_path / name, LAYOUTS[name], models, {}))
        vector = donor - base
        first = vector.select(include=[r"experts\.1\."])
        second = 0.5 * vector.select(include=["gate_proj"])
        (target + first + second).save(tmp_path / name / "out")
        results[name] = load_file(tmp_path / name / "out" / "model.safetensors")
        assert np.isclose(first.norm(), one_norm(models, r".experts.1."), rtol=1e-5)
    same(results[theirs], LAYOUTS[theirs](results["one by one"]))


def one_norm(models: list[Tensors], part: str) -> float:
    _, donor, base = models
    differences = [donor[n].astype(np.float64) - base[n].astype(np.float64) for n in donor if part in n]
    return float(np.sqrt(sum(np.square(each).sum() for each in differences)))


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "ties"])
def test_merges(tmp_path: Path, method: str) -> None:
    """Where all of a tensor does not matter, the same as weights by themselves; else as all, on the part."""
    models = [odd(one_by_one()), one_by_one(), one_by_one()]
    found = {}
    for name in ("one by one", "fused"):
        paths = transfer(tmp_path / name, LAYOUTS[name], models, {})
        recipe = {
            "merge_method": method,
            "models": [
                {"model": str(path), "parameters": {"weight": 0.5, "density": 0.6}} for path in paths[1:]
            ],
            "include": [r"experts\.1\.", "q_proj"],
        }
        if method != "linear":
            recipe["base_model"] = str(paths[0])
        else:
            recipe["models"].insert(0, {"model": str(paths[0]), "parameters": {"weight": 0.25}})
            recipe["models"] = [
                {"model": each["model"], "parameters": {"weight": each["parameters"]["weight"]}}
                for each in recipe["models"]
            ]
        if method == "task_arithmetic":
            for each in recipe["models"]:
                del each["parameters"]["density"]
        tv.merge(recipe, tmp_path / name / "out")
        found[name] = load_file(tmp_path / name / "out" / "model.safetensors")
        del recipe["include"]
        tv.merge(recipe, tmp_path / name / "all")
        found[f"all {name}"] = load_file(tmp_path / name / "all" / "model.safetensors")
    if method != "ties":
        same(found["fused"], LAYOUTS["fused"](found["one by one"]))
    whole, target = found["all fused"], LAYOUTS["fused"](models[0])
    for name, value in found["fused"].items():
        wanted = target[name].copy()
        if ".experts." in name:
            wanted[1] = whole[name][1]
        elif "q_proj" in name:
            wanted = whole[name]
        assert value.tobytes() == wanted.tobytes(), name


RANDOM = np.random.default_rng(5)
METHODS = {name: method for name, method in catalogue.METHODS.items() if not method.is_control}


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_look_at_whole_tensors_say_so(tmp_path: Path, name: str) -> None:
    """Where what is not selected changes what comes of what is selected, there is a warning; else none."""
    base, results = one_by_one(), {}
    # each changes some elements that another one leaves alone
    others = [{key: mixed(value, base[key]) for key, value in one_by_one().items()} for _ in range(2)]
    for factor in (1, 16):
        changed = (
            [base, *others] if factor == 1 else [elsewhere(each, base) for each in (base, others[0], base)]
        )
        changed = [{**each, **one_of(model)} for each, model in zip(changed, [base, *others], strict=True)]
        folder = tmp_path / str(factor)
        recipe = recipe_of(METHODS[name], transfer(folder, LAYOUTS["fused"], changed, {}))
        report = tv.merge(recipe, folder / "out")
        results[factor] = load_file(folder / "out" / "model.safetensors")
    said = [each for each in report.findings if each.id == "selection-whole"]
    fused = [key for key in results[1] if ".experts." in key]
    assert bool(said) == any(results[1][key][1].tobytes() != results[16][key][1].tobytes() for key in fused)
    if said:
        assert "experts.gate_up_proj" in said[0].subject
        with pytest.raises(tv.CompatibilityError, match="selection-whole"):
            tv.merge(recipe, tmp_path / "strict", strict=True)
        assert not (tmp_path / "strict").exists()


def mixed(value: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.where(RANDOM.random(value.shape) < 0.5, value, other)


def elsewhere(model: Tensors, base: Tensors) -> Tensors:
    """Sixteen times as large, and where it is not the base, changed everywhere."""
    return {
        key: value * value.dtype.type(16) + value.dtype.type(model is not base)
        for key, value in model.items()
    }


def one_of(model: Tensors) -> Tensors:
    return {key: value for key, value in model.items() if ".experts.1." in key}


def recipe_of(method: Method, paths: list[Path]) -> dict[str, Any]:
    """A recipe of a method with values that make it drop or turn something, of one expert of fused ones."""
    values = {"weight": 0.5, "density": 0.6, "epsilon": 0.1, "gamma": 0.1, "select_topk": 0.4, "t": 0.3,
              "default_importance": 0.5}  # fmt: skip
    own, merged = (
        {
            each.name: values[each.name]
            for each in method.parameters
            if each.scope == scope and each.name in values and not each.ignored
        }
        for scope in ("model", "merge")
    )
    recipe: dict[str, Any] = {"merge_method": method.name, "include": [r"experts\.1\."]}
    if method.base == "required":
        recipe["base_model"], paths = str(paths[0]), paths[1:]
    recipe["models"] = [{"model": str(path), "parameters": own} for path in paths[: method.most]]
    return recipe | ({"parameters": merged} if merged else {})


def test_controls_that_look_at_whole_tensors_say_so(tmp_path: Path) -> None:
    reference = one_by_one()
    paths = transfer(tmp_path, LAYOUTS["fused"], [one_by_one(), plus(reference, one_by_one()), reference], {})
    for control in ("random", "permute", None):
        plan = tv.plan_transfer(*paths, include=[r"experts\.1\."], control=control)
        assert ("selection-whole" in [each.id for each in plan.findings]) == (control is not None)


def test_differences_of_a_part(tmp_path: Path) -> None:
    reference = one_by_one()
    models = [one_by_one(), plus(reference, one_by_one()), reference]
    _, donor, base = transfer(tmp_path, LAYOUTS["fused"], models, {})
    found = tv.diff(donor, base, include=[r"experts\.1\."])
    assert np.isclose(found.total.difference_norm, one_norm(models, ".experts.1."), rtol=1e-5)
