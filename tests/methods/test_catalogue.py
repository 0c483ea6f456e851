"""The catalogue of methods, and the operation that each makes of its parameters."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import taskvec as tv
from support.method_lists import STUB, stub
from support.models import DTYPES, write_weights
from support.recipes import expanded
from taskvec import _core
from taskvec.errors import RecipeError
from taskvec.methods.catalogue import METHODS, PARAMETERS, get, owners
from taskvec.methods.listing import explain, table
from taskvec.methods.operation import COPY, Term, operation
from taskvec.methods.values import SettingError
from taskvec.recipe.expand import expand, sources
from taskvec.recipe.expanded import Facts
from taskvec.recipe.load import load

# mergekit 0.1.5's registry, read from it: per method the parameters of the merge and of each model with their
# defaults ("!" is required), whether a base is needed, and fewest and most models next to it.
TRIM = {"int8_mask": False, "normalize": False, "rescale": False, "lambda": 1.0}
DROP = {**TRIM, "rescale": True}
EACH = {"weight": "!", "density": 1.0}
MERGEKIT: dict[str, tuple[dict[str, Any], dict[str, Any], str, int, int | None]] = {
    "arcee_fusion": ({}, {}, "required", 1, 1),
    "breadcrumbs": (TRIM, {**EACH, "gamma": 0.01}, "required", 0, None),
    "breadcrumbs_ties": (TRIM, {**EACH, "gamma": 0.01}, "required", 0, None),
    "dare_linear": (DROP, EACH, "required", 0, None),
    "dare_ties": (DROP, EACH, "required", 0, None),
    "della": ({**DROP, "normalize": True}, {**EACH, "epsilon": 0.15}, "required", 0, None),
    "della_linear": (DROP, {**EACH, "epsilon": 0.15}, "required", 0, None),
    "karcher": ({"max_iter": 10, "tol": 1e-05}, {}, "input", 1, None),
    "linear": ({"normalize": True}, {"weight": "!"}, "input", 1, None),
    "model_stock": ({"filter_wise": False}, {}, "required", 2, None),
    "multislerp": ({"normalize_weights": True, "eps": 1e-08}, {"weight": "!"}, "optional", 1, None),
    "nearswap": ({"t": "!"}, {}, "required", 1, 1),
    "nuslerp": (
        {"nuslerp_row_wise": False, "nuslerp_flatten": True}, {"weight": "!"}, "optional", 2, 2,
    ),
    "passthrough": ({}, {"scale": None}, "input", 1, 1),
    "ram": ({"epsilon": 1e-05}, {}, "required", 0, None),
    "ramplus_tl": ({"r": 0.1, "alpha": 0.2, "epsilon": 1e-05}, {}, "required", 0, None),
    "sce": ({"int8_mask": False, "select_topk": 1.0}, {}, "required", 0, None),
    "slerp": ({"t": "!"}, {}, "required", 1, 1),
    "task_arithmetic": (TRIM, EACH, "required", 0, None),
    "ties": ({**TRIM, "normalize": True}, EACH, "required", 0, None),
}  # fmt: skip
# Ours beside mergekit's.
ADDED = {"rescale_norm"}


@pytest.mark.parametrize("name", MERGEKIT)
def test_names_defaults_and_scopes_are_mergekits(name: str) -> None:
    method = get(name)
    merge, model, base, least, most = MERGEKIT[name]
    for scope, expected in (("merge", merge), ("model", model)):
        found = {
            p.name: "!" if p.required else p.default
            for p in method.parameters
            if p.scope == scope and p.name not in ADDED
        }
        assert found == expected
    assert (method.base, method.most) == (base, most)
    # A base alone, which mergekit copies, is a mistake here.
    assert method.least == max(least, 1)
    assert method.mergekit


def test_every_method_of_mergekit_is_there() -> None:
    found = {method.name for method in METHODS.values() if method.mergekit}
    assert found == set(MERGEKIT), "the row of a method that mergekit lacks says `mergekit=False`"


def test_unknown_methods_have_a_nearest_one() -> None:
    with pytest.raises(RecipeError, match="unknown merge method `tise`") as caught:
        get("tise")
    assert caught.value.hint == "did you mean `ties`?"
    with pytest.raises(RecipeError) as caught:
        get("quite different")
    assert caught.value.hint == "`taskvec methods` lists them"


def test_owners() -> None:
    assert owners("gamma") == ["breadcrumbs", "breadcrumbs_ties"]
    assert {"weight", "density", "t"} <= PARAMETERS


# --- names ------------------------------------------------------------------------------------------------


def test_each_is_a_function_of_the_package_but_the_controls() -> None:
    for name in METHODS:
        assert hasattr(tv, name) != name.startswith("control_")
        assert (name in tv.__all__) == (name in dir(tv)) == hasattr(tv, name)
    assert tv.ties is tv.ties
    assert (tv.ties.__name__, METHODS["ties"].summary in tv.ties.__doc__) == ("ties", True)
    with pytest.raises(AttributeError, match="no attribute `tise`"):
        _ = tv.tise


def test_type_checkers_know_them(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-lists"):
        STUB.write_text(stub(), encoding="utf-8")
    assert STUB.read_text(encoding="utf-8") == stub(), "run with --update-lists"


def test_importing_the_package_imports_no_catalogue() -> None:
    code = "import sys, taskvec; print([name for name in sys.modules if name.startswith('taskvec')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['taskvec']\n"


# --- texts --------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_per_method() -> None:
    rows = table()
    assert [row["name"] for row in rows] == list(METHODS)
    assert all(row["summary"] and row["formula"] for row in rows)
    by_name = {row["name"]: row for row in rows}
    assert by_name["ties"]["parameters"] == (
        "weight (required), density (1.0), normalize (true), lambda (1.0), rescale (false)"
    )
    assert by_name["passthrough"]["parameters"] == "scale (none)"
    json.dumps(rows)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_explained_with_a_recipe_that_runs_as_it_is(name: str) -> None:
    found = explain(name)
    assert found["recipe"] == METHODS[name].example
    assert yaml.safe_load(found["recipe"])["merge_method"] == name
    assert load(found["recipe"]).remarks == ()
    assert all(p["text"] and p["range"] for p in found["parameters"])
    json.dumps(found)


def test_ranges_in_words() -> None:
    ranges = {p["name"]: p["range"] for name in METHODS for p in explain(name)["parameters"]}
    assert ranges["weight"] == "any finite number"
    assert ranges["density"] == "number from 0 to 1"
    assert ranges["max_iter"] == "whole number from 1 to 10000"
    assert ranges["eps"] == "number above 0"
    assert ranges["tol"] == "number of at least 0"
    assert ranges["rescale_norm"] == "l1 or expectation"
    assert ranges["normalize"] == "true or false"


# --- operations ---------------------------------------------------------------------------------------------


def values(name: str, scope: str, **given: Any) -> dict[str, Any]:
    return {p.name: given.get(p.name, p.default) for p in get(name).parameters if p.scope == scope}


def made(name: str, *models: dict[str, Any], base: int | None = 0, **merge: Any) -> dict[str, Any]:
    """The operation of a method over one term per mapping; inputs are the base and the models."""
    first = 0 if base is None else 1
    reference = None if base is None or get(name).base == "input" else base
    reference = None if name == "slerp" else reference
    terms = [
        Term(first + i, reference, values(name, "model", **each), stream=i) for i, each in enumerate(models)
    ]
    return operation(get(name), terms, values(name, "merge", **merge), base=base)


def term(model: int, weight: float = 1.0, reference: int | None = 0, **more: Any) -> dict[str, Any]:
    return {"model": model, "reference": reference, "weight": weight, **more}


W = {"weight": 1.0}
MADE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": (
        made("linear", {"weight": 2.0}, {"weight": -1.0}, base=None),
        {"terms": [term(0, 2.0, None), term(1, -1.0, None)], "normalize": True},
    ),
    "task_arithmetic": (
        made("task_arithmetic", {"weight": 2.0}, W, **{"lambda": 0.5}),
        {"terms": [term(1, 2.0), term(2)], "lambda": 0.5},
    ),
    "task_arithmetic, normalized": (
        made("task_arithmetic", {"weight": 3.0}, W, normalize=True),
        {"terms": [term(1, 0.75), term(2, 0.25)], "lambda": 1.0},
    ),
    "ties": (
        made("ties", {**W, "density": 0.5}, rescale=True, int8_mask=True),
        {"terms": [term(1, density=0.5)], "normalize": True, "rescale": "l1", "lambda": 1.0},
    ),
    "dare_linear": (
        made("dare_linear", {**W, "density": 0.5}, W, rescale_norm="expectation", normalize=True),
        {
            "terms": [term(1, 0.5, density=0.5, stream=0), term(2, 0.5, density=1.0, stream=1)],
            "rescale": "expectation",
            "lambda": 1.0,
        },
    ),
    "dare_ties": (
        made("dare_ties", W, rescale=False, rescale_norm="expectation"),
        {"terms": [term(1, density=1.0, stream=0)], "normalize": False, "rescale": "none", "lambda": 1.0},
    ),
    "della": (
        made("della", {**W, "density": 0.5, "epsilon": 0.5}),
        {
            "terms": [term(1, density=0.5, epsilon=0.5, stream=0)],
            "normalize": True,
            "rescale": "l1",
            "lambda": 1.0,
        },
    ),
    "breadcrumbs": (
        made("breadcrumbs", {**W, "density": 0.5}),
        {"terms": [term(1, density=0.5, gamma=0.01)], "rescale": "none", "lambda": 1.0},
    ),
    "breadcrumbs_ties": (
        made("breadcrumbs_ties", W),
        {
            "terms": [term(1, density=1.0, gamma=0.01)],
            "normalize": False,
            "rescale": "none",
            "lambda": 1.0,
        },
    ),
    "slerp": (
        made("slerp", {}, t=-0.5),
        {"terms": [term(0, reference=None), term(1, reference=None)], "t": -0.5},
    ),
    "nuslerp": (
        made("nuslerp", {"weight": 1.0}, {"weight": 3.0}, nuslerp_row_wise=True, nuslerp_flatten=False),
        {"terms": [term(1), term(2, 3.0)], "base": 0, "flatten": False, "row_wise": True},
    ),
    "multislerp": (
        made("multislerp", {"weight": 1.0}, {"weight": 3.0}, base=None),
        {"terms": [term(0, 0.25, None), term(1, 0.75, None)], "base": None, "eps": 1e-8},
    ),
    "multislerp, weights as they are": (
        made("multislerp", {"weight": 1.0}, {"weight": -1.0}, normalize_weights=False),
        {"terms": [term(1), term(2, -1.0)], "base": 0, "eps": 1e-8},
    ),
    "karcher": (
        made("karcher", {}, {}, base=None),
        {"terms": [term(0, reference=None), term(1, reference=None)], "max_iter": 10, "tol": 1e-5},
    ),
    "model_stock": (made("model_stock", {}, {}), {"terms": [term(1), term(2)], "filter_wise": False}),
    "sce": (made("sce", {}, select_topk=0.5), {"terms": [term(1)], "select_topk": 0.5}),
    "ram": (made("ram", {}), {"terms": [term(1)], "epsilon": 1e-5}),
    "ramplus_tl": (made("ramplus_tl", {}), {"terms": [term(1)], "r": 0.1, "alpha": 0.2, "epsilon": 1e-5}),
    "nearswap": (made("nearswap", {}, t=0.1), {"terms": [term(1)], "t": 0.1}),
    "arcee_fusion": (made("arcee_fusion", {}), {"terms": [term(1)]}),
    "consensus": (
        made("consensus", {}, {}),
        {"terms": [term(1), term(2)], "tall_lambda": 0.6, "k": 2, "lambda": 1.0},
    ),
    "emr": (made("emr", {}), {"terms": [term(1)], "lambda": 1.0}),
    "localize": (made("localize", {"s": 0.2}), {"terms": [term(1, s=0.2)], "lambda": 1.0}),
    "control_random": (made("control_random", {}), {"terms": [term(1, stream=0)], "lambda": 1.0}),
    "passthrough": (
        made("passthrough", {"scale": 0.5}, base=None),
        {"terms": [term(0, 0.5, None)]},
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_the_operation(name: str) -> None:
    found, expected = MADE[name]
    assert found == {"kind": name.partition(",")[0], **expected}


def test_passthrough_without_a_factor_is_a_copy() -> None:
    assert made("passthrough", {}, base=None) == COPY
    assert made("passthrough", {"scale": 1.0}, base=None) == COPY


@pytest.mark.parametrize(
    ("name", "weights", "merge"),
    [
        ("linear", (1.0, -1.0), {}),
        ("linear", (0.0, 0.0), {}),
        ("linear", (0.1, 0.2, -0.3), {}),
        ("task_arithmetic", (1.0, -1.0), {"normalize": True}),
        ("ties", (1.0, -1.0), {}),
        ("dare_ties", (2.0, -2.0), {"normalize": True}),
        ("nuslerp", (1.0, -1.0), {}),
        ("nuslerp", (0.0, 0.0), {}),
        ("multislerp", (1.0, -1.0), {}),
    ],
)
def test_weights_that_sum_to_zero(name: str, weights: tuple[float, ...], merge: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="sum to zero") as caught:
        made(name, *({"weight": weight} for weight in weights), **merge)
    switch = {"nuslerp": "change a weight", "multislerp": "normalize_weights: false"}
    assert switch.get(name, "`normalize: false`") in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "weights", "merge"),
    [
        ("linear", (1.0, -1.0), {"normalize": False}),
        ("task_arithmetic", (1.0, -1.0), {}),
        ("ties", (0.0, 0.0), {}),
        ("task_arithmetic", (0.0,), {"normalize": True}),
        ("multislerp", (1.0, -1.0), {"normalize_weights": False}),
    ],
)
def test_weights_that_may_sum_to_zero(name: str, weights: tuple[float, ...], merge: dict[str, Any]) -> None:
    found = made(name, *({"weight": weight} for weight in weights), **merge)
    assert [term["weight"] for term in found["terms"]] == list(weights)


@pytest.mark.parametrize(("density", "epsilon", "fits"), [(0.1, 0.2, 0.1), (0.9, 0.15, 0.1)])
def test_della_leaves_the_range_of_probabilities(density: float, epsilon: float, fits: float) -> None:
    with pytest.raises(SettingError, match="leaves the range") as caught:
        made("della", {**W, "density": density, "epsilon": epsilon})
    assert caught.value.hint == f"epsilon of at most {fits:g} fits"


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_della_at_the_ends_has_no_probabilities(density: float) -> None:
    assert made("della", {**W, "density": density, "epsilon": 0.9})


def test_errors_of_one_tensor_name_it() -> None:
    text = """
merge_method: linear
models:
  - {model: a, parameters: {weight: [1, 0]}}
  - {model: b, parameters: {weight: [{filter: layers.4.mlp, value: 0}, {value: 1}]}}
"""
    with pytest.raises(RecipeError) as caught:
        expanded(text)
    assert str(caught.value) == (
        "recipe:4: the weights 0, 0 sum to zero, and are to be divided by their sum "
        "(in tensor `model.layers.4.mlp.down_proj.weight`)"
    )


# --- the engine knows them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_recipe_runs_in_the_engine(name: str, tmp_path: Path) -> None:
    step = load(METHODS[name].example).steps[-1]
    refs = sources(step)
    rng = np.random.default_rng(0)
    folders = {}
    for index, ref in enumerate(refs):
        folders[ref] = tmp_path / str(index)
        tensors = {"model.norm.weight": (6,), "model.layers.0.mlp.down_proj.weight": (6, 8)}
        made = {n: rng.standard_normal(s).astype(DTYPES["F32"]) for n, s in tensors.items()}
        if ref.kind == "importance":
            made = {name: np.abs(array) for name, array in made.items()}
        write_weights(folders[ref], made)
    opened = [_core.Checkpoint(str(folders[ref])) for ref in refs]
    stored = {name: (dtype, shape) for name, dtype, shape, *_ in opened[0].tensors()}
    merge = expand(step, {ref: Facts(list(stored)) for ref in refs})
    plan = {
        "format": 1,
        "arithmetic": 3,
        "sources": [
            {
                "kind": "checkpoint",
                "path": str(folders[ref]),
                "files": c.files(),
                "fingerprint": c.fingerprint,
            }
            for ref, c in zip(refs, opened, strict=True)
        ],
        "outputs": [{"folder": "", "alpha": 1.0}],
        "shards": ["model.safetensors"],
        "operations": list(merge.operations),
        "tensors": [
            (tensor.name, *stored[tensor.name], 0, tensor.operation, tensor.inputs)
            for tensor in merge.tensors
        ],
        "rounding": "nearest",
        "seed": 1,
    }
    report = json.loads(_core.run(json.dumps(plan).encode(), str(tmp_path / "out")))
    (output,) = report["outputs"]
    assert output["folder"] == ""
    assert math.isfinite(report["seconds"])
