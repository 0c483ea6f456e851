"""What a recipe may say: every mistake is named with its key, its line and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from support.recipe_corpus import ACCEPTED, MISTAKES
from support.recipes import LINEAR, SAME_AS_MERGEKIT, TIES, mistake
from taskvec.errors import RecipeError
from taskvec.recipe.load import RecipeFile, load
from taskvec.recipe.model_ref import ModelRef


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_name_key_line_and_the_way_out(name: str) -> None:
    recipe, message, hint = MISTAKES[name]
    found = mistake(recipe)
    assert message in found[0]
    assert found[0].startswith("recipe:")
    assert hint in found[1]


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_mappings_are_named_without_lines(name: str) -> None:
    recipe, message, hint = MISTAKES[name]
    found = mistake(yaml.safe_load(recipe))
    assert found[0].startswith("recipe: ")
    assert message.partition(": ")[2].removesuffix("`")[:30] in found[0]
    assert hint in found[1]


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str) -> None:
    assert load(ACCEPTED[name]).final
    assert load(yaml.safe_load(ACCEPTED[name])).final


@pytest.mark.parametrize("name", SAME_AS_MERGEKIT)
def test_every_feature_of_mergekits_format(name: str) -> None:
    assert load(SAME_AS_MERGEKIT[name]).remarks == ()


def test_values_of_our_additions() -> None:
    recipe = load(ACCEPTED["everything of ours"]).final
    assert recipe.alpha == (0.5, 1.0, -1.0)
    assert (recipe.seed, recipe.rounding, recipe.out_dtype) == (7, "stochastic", "F32")
    assert recipe.selection.include == ("mlp",)
    assert (recipe.selection.preset, recipe.selection.layers) == ("no-embed", "2-9")
    assert recipe.models is not None
    assert recipe.models[0].relative_to == ModelRef("c")
    assert recipe.models[1].ref == ModelRef("v.vec", "vector")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters:\n  t: 0.5\n  normalize: 1\n",
         {6: "normalize"}),
        (TIES + "models:\n- model: b\n  parameters:\n    weight: 1\n    gamma: 0.1\n", {7: "gamma"}),
        ("merge_method: karcher\nmodels:\n- model: a\n  parameters:\n    weight: 1\n- model: b\nparameters:\n"
         "  int8_mask: true\n  embed_slerp: true\n", {5: "weight", 8: "int8_mask", 9: "embed_slerp"}),
    ],
)  # fmt: skip
def test_words_of_other_methods_are_remarked_upon_with_their_lines(text: str, words: dict[int, str]) -> None:
    found = load(text).last.remarks
    assert {(each.subject, each.id) for each in found} == {
        (f"recipe:{line}", "recipe-ignored") for line in words
    }
    assert all(any(f"`{word}` is not a parameter" in each.found for each in found) for word in words.values())


def test_models_and_adapters() -> None:
    recipe = load(ACCEPTED["adapters"]).final
    assert recipe.models is not None
    assert recipe.models[0].ref == ModelRef("org/a@main", adapter="org/adapter@v2")
    assert recipe.models[0].ref.path == "org/a"
    assert str(recipe.models[0].ref) == "org/a@main+org/adapter@v2"
    recipe = load(ACCEPTED["mergekit's long form"]).final
    assert recipe.models is not None
    assert recipe.models[0].ref == ModelRef("a@r", adapter="b")


def test_a_folder_with_a_plus_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a+b@c").mkdir()
    recipe = load({"merge_method": "karcher", "models": [{"model": str(tmp_path / "a+b@c")}]}).final
    assert recipe.models is not None
    assert recipe.models[0].ref == ModelRef(str(tmp_path / "a+b@c"))
    assert recipe.models[0].ref.path == str(tmp_path / "a+b@c")


def test_opened_checkpoints_and_paths_in_a_mapping() -> None:
    class Opened:
        spec = "org/name"

    opened = Opened()
    found = load({"merge_method": "karcher", "models": [{"model": opened}, {"model": Path("b")}]})
    assert found.final.models is not None
    assert found.final.models[0].ref.opened is opened
    assert found.final.models[1].ref == ModelRef("b")
    assert found.documents[0]["models"] == [{"model": "org/name"}, {"model": "b"}]
    assert yaml.safe_load(found.text) == found.documents[0]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (3, "a recipe is a path, a mapping or a list of mappings, found the number `3`"),
        ([], "a recipe is a path, a mapping or a list of mappings"),
        ({1: 2}, "recipe: a key has to be text, found the number `1`"),
        ([LINEAR], "recipe: a recipe is a mapping of keys"),
        ([{"merge_method": "x"}, 3], r"recipe[1]: a recipe is a mapping of keys, found the number `3`"),
        ({"merge_method": "linear", "models": object()}, "`models` is a list"),
    ],
)
def test_values_that_are_no_recipe(recipe: Any, message: str) -> None:
    assert message in mistake(recipe)[0]


def test_a_mapping_inside_of_itself() -> None:
    value: dict[str, Any] = {"merge_method": "linear"}
    value["models"] = [value]
    assert "nested more than" in mistake(value)[0]


# --- overrides --------------------------------------------------------------------------------------------

TWO = (
    TIES + "models:\n  - {model: b, parameters: {weight: 1, density: [1, 0.5]}}\n"
    "  - {model: c, parameters: {weight: 2}}\n"
)


def weights(found: RecipeFile) -> list[Any]:
    return [entry["parameters"]["weight"] for entry in found.documents[0]["models"]]


def test_overrides() -> None:
    assert weights(load(TWO, ["models.1.parameters.weight=0.3"])) == [1, 0.3]
    gradient = load(TWO, ["models.0.parameters.weight=[0, 0.5]", "merge_method=dare_ties"])
    assert weights(gradient) == [[0, 0.5], 2]
    found = load(TWO, ["models.0.parameters.weight={filter: mlp, value: 2}", "models.0.model=d"])
    assert found.documents[0]["models"][0]["model"] == "d"
    module = (
        "merge_method: linear\nparameters: {weight: 1}\nmodules: {model.layers: {models: [{model: a}]}}\n"
    )
    changed = load(module, ["modules.model.layers.models.0.model=b"]).documents[0]
    assert changed["modules"]["model.layers"]["models"] == [{"model": "b"}]


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("models.1.parameters.wieght=3", "there is no `wieght`", "did you mean `weight`?"),
        ("models.2.model=x", "there is no entry `2`", "numbered 0 to 1"),
        ("models.x=1", "there is no entry `x`", "numbered"),
        ("models.-1=1", "there is no entry `-1`", "numbered"),
        ("nothing=1", "there is no `nothing`", "there is `merge_method`"),
        ("base_model.x=1", "`x` is below the text `a`, which has nothing in it", "the value itself"),
        ("models.0.parameters.weight", "is not of the form PATH=VALUE", "--set models.1"),
        ("=3", "is not of the form PATH=VALUE", "--set models.1"),
        ("base_model=", "no value", "after `=`"),
        ("base_model=[a", "`[a` is not a YAML value", ""),
        ("base_model=!!python/name:os x", "is not a YAML value", ""),
        ("models.0.parameters.weight=abc", "`weight` is a number, found the text `abc`", ""),
        ("models.0.parameters={wieght: 1}", "`wieght` is not a parameter of `ties`", "`weight`"),
        ("models.0=5", "`models.0` is a mapping, found the number `5`", ""),
    ],
)
def test_overrides_that_fit_nowhere(override: str, message: str, hint: str) -> None:
    found = mistake(TWO, override)
    assert found[0].startswith("--set ")
    assert message in found[0]
    assert hint in found[1]


def test_errors_are_recipe_errors_of_the_package() -> None:
    assert issubclass(RecipeError, ValueError)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("merge_method: fisher\nmodels:\n- {model: a, parameters: {importance: i}}\n- {model: b}\n",
         "`{model: NAME, importance: ...}`"),
        (TIES + "models:\n- {model: b, parameters: {weight: 1, relative_to: c}}\n", "relative_to: ...}`"),
        (TIES + "models:\n- {model: b}\nparameters: {dtype: float32}\n", "of the recipe itself"),
    ],
)  # fmt: skip
def test_keys_among_parameters_are_told_their_place(text: str, hint: str) -> None:
    assert hint in mistake(text)[1]
