"""Spaces: free values found and put in place, and every mistake with its line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from taskvec.errors import RecipeError
from taskvec.evaluation.search.space import Space, load_space

ALPHA = "alpha: {search: {low: 0, high: 2}}"
HEAD = "tasks: [sums]\n"
RECIPE = """recipe:
  merge_method: ties
  base_model: base
  models:
    - {model: a, parameters: {weight: W, density: 0.5}}
    - {model: b, parameters: {weight: 0.5, density: D}}
"""


def space(text: str, tmp_path: Path) -> Space:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return load_space(path)


def recipe(weight: object = "0.5", density: object = "{search: {low: 0.2, high: 0.9}}") -> str:
    return HEAD + RECIPE.replace("W", str(weight)).replace("D", str(density))


def test_free_values_are_found_in_their_order(tmp_path: Path) -> None:
    found = space(
        recipe("{search: {low: 0.001, high: 1, log: true, init: 0.1}}", "{search: [0.25, 0.75]}"), tmp_path
    )
    assert [(free.name, free.kind) for free in found.free] == [
        ("models.0.parameters.weight", "number"),
        ("models.1.parameters.density", "choice"),
    ]
    weight, density = found.free
    assert weight.start == pytest.approx(2 / 3)  # of the way from 0.001 to 1, by the logarithm
    assert weight.value(0.0) == 0.001
    assert weight.value(0.5) == pytest.approx(math.sqrt(0.001), rel=1e-5)
    assert weight.value(1.0) == 1
    assert [density.value(at) for at in (0, 1)] == [0.25, 0.75]
    made = found.recipe((0.5, 1)).documents[0]
    assert made["models"][0]["parameters"] == {"weight": 0.0316228, "density": 0.5}
    assert made["models"][1]["parameters"] == {"weight": 0.5, "density": 0.75}


def test_groups_are_a_gradient_over_the_layers(tmp_path: Path) -> None:
    found = space(recipe("{search: {low: 0, high: 2, init: [0, 1, 2], groups: 3}}", 0.5), tmp_path)
    assert [free.name for free in found.free] == [f"models.0.parameters.weight[{at}]" for at in range(3)]
    assert found.recipe(found.start()).documents[0]["models"][0]["parameters"]["weight"] == [0, 1, 2]


def test_whole_numbers_and_any_kind_of_choice(tmp_path: Path) -> None:
    text = (
        recipe().replace("ties", "{search: [ties, dare_ties]}")
        + "  seed: {search: {low: 1, high: 9, integer: true}}\n"
    )
    text += "  parameters: {search: [{normalize: true}, {normalize: false}]}\n"
    found = space(text, tmp_path)
    assert [free.kind for free in found.free] == ["choice", "number", "integer", "choice"]
    made = found.recipe((1, 0.5, 7, 1)).documents[0]
    assert (made["merge_method"], made["seed"], made["parameters"]) == ("dare_ties", 7, {"normalize": False})


def test_a_transfer_is_the_recipe_that_says_the_same(tmp_path: Path) -> None:
    text = f"{HEAD}transfer: {{target: t, donor: d, reference: r, {ALPHA}, preset: no-embed}}\n"
    found = space(text, tmp_path)
    assert [free.name for free in found.free] == ["alpha"]
    assert found.recipe((0.25,)).documents == (
        {
            "merge_method": "task_arithmetic",
            "base_model": "t",
            "models": [{"model": "d", "relative_to": "r", "parameters": {"weight": 1.0}}],
            "alpha": 0.5,
            "preset": "no-embed",
        },
    )
    text = text.replace("high: 2", "high: 2, groups: 2")
    found = space(text, tmp_path)
    assert [free.name for free in found.free] == ["alpha[0]", "alpha[1]"]
    assert found.recipe((0.25, 1.0)).documents[0]["models"][0]["parameters"] == {"weight": [0.5, 2.0]}


def test_plain_recipes_have_weights_of_one_and_begin_elsewhere_at_the_start(tmp_path: Path) -> None:
    found = space(
        recipe("{search: {low: 0, high: 2, init: 0.3}}", "{search: {low: 0.2, high: 0.9, init: 0.8}}")
        + "compare: {alphas: [0.5, 1]}\n",
        tmp_path,
    )
    rows = list(found.plain_points())
    assert [(name, alpha) for name, alpha, _ in rows] == [("alpha=0.5", 0.5), ("alpha=1", 1.0)]
    made = found.recipe(rows[0][2], 0.5).documents[0]
    assert made["models"][0]["parameters"]["weight"] == 1
    assert made["models"][1]["parameters"]["density"] == 0.8
    assert made["alpha"] == 0.5
    # a method without a step from a base has no alpha
    models = (
        "{model: a, parameters: {weight: {search: {low: 0, high: 2}}}}, {model: b, parameters: {weight: 1}}"
    )
    text = f"{HEAD}recipe:\n  merge_method: linear\n  models: [{models}]\n"
    (row,) = space(text, tmp_path).plain_points()
    assert row[:2] == ("plain", None)


def test_budget_is_told_in_candidates_or_generations(tmp_path: Path) -> None:
    found = space(recipe() + "optimiser: {generations: 3, population: 5}\n", tmp_path)
    assert (found.population, found.budget, found.random_budget) == (5, 15, 15)
    assert found.with_options(budget=7).budget == 7
    assert space(recipe(), tmp_path).budget == 100
    half = space(recipe() + "compare: {random: 0.5}\noptimiser: {budget: 8}\n", tmp_path)
    assert half.random_budget == 4
    assert space(recipe() + "optimiser: {name: random, budget: 8}\n", tmp_path).random_budget == 0


MISTAKES = [
    ("weigth: {sums: 1}\n", 8, "unknown key `weigth`", "did you mean `weights`?"),
    ("weights: {sum: 1}\n", 8, "`sum` is not among the tasks", "did you mean `sums`?"),
    ("weights: {sums: 0}\n", 8, "above 0", None),
    ("development: 1\n", 8, "`development`", None),
    ("optimiser: {name: cmaes}\n", 8, "`optimiser.name`", "did you mean `cma`?"),
    ("optimiser: {budget: 5, generations: 2}\n", 8, "`budget` and `generations` together", "keep one"),
    ("optimiser: {population: 1}\n", 8, "out of range", None),
    ("optimiser: {sigma: 0}\n", 8, "`sigma`", None),
    ("compare: {random: 2}\n", 8, "share of the budget", None),
    ("compare: {alphas: [0.5, x]}\n", 8, "alpha", None),
    ("evaluation: {limt: 5}\n", 8, "unknown key `limt`", "did you mean `limit`?"),
    ("evaluation: {seed: {search: {low: 1, high: 2}}}\n", 8, "cannot be searched", "`recipe`"),
    ("transfer: {target: t}\n", 8, "`recipe` and `transfer` together", "exactly one"),
    ("genome: {}\n", 8, "mergekit-evolve", "under `recipe`"),
]


@pytest.mark.parametrize(
    ("more", "line", "message", "hint"), MISTAKES, ids=[row[0][:30].strip() for row in MISTAKES]
)
def test_a_mistake_in_a_space_has_its_line(
    more: str, line: int, message: str, hint: str | None, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        space(recipe() + more, tmp_path)
    assert f"space.yaml:{line}: " in str(caught.value)
    assert message in str(caught.value)
    if hint is not None:
        assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "the space is empty", "under `recipe:`"),
        ("[1]\n", "a space is a mapping of keys, found a list", "`tasks: [...]`"),
        ("recipe: r.yaml\ntasks: [sums]\n", "`recipe` is a mapping", "the recipe itself"),
        (recipe().replace("tasks: [sums]\n", ""), "`tasks` is missing", "`tasks: [gsm8k, sciq]`"),
        (recipe() + "---\n" + recipe(), "one document", "a file of its own"),
        (recipe("{search: {low: 0, high: 1}, value: 2}"), "`value` next to `search`", "nothing else"),
    ],
)
def test_what_is_no_space_is_told_what_one_is(text: str, message: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        space(text, tmp_path)
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("what", ["recipe", "transfer"])
def test_a_recipe_cannot_be_free_as_a_whole(what: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"space.yaml:2: `{what}` as a whole cannot be searched"):
        space(f"tasks: [sums]\n{what}: {{search: [1, 2]}}\n", tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"budget": each} for each in (0, -3, 1.5, "x", True)]
    + [{"seed": each} for each in (-1, 2**64, 1.5, "x", True)],
)
def test_options_are_checked_as_the_values_of_a_file_are(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"optimiser: `{next(iter(options))}` is "):
        space(recipe(), tmp_path).with_options(**options)


VALUES = [
    (f"{{search: {{low: 1{'0' * 400}, high: 1}}}}", "`low` is a number"),
    ("{search: 3}", "a range or a list of choices"),
    ("{search: {low: 0}}", "`high` is missing"),
    ("{search: {low: 0, high: 1, step: 2}}", "unknown key `step`"),
    ("{search: {low: 1, high: 1}}", "`low` is the smaller one"),
    ("{search: {low: a, high: 1}}", "`low` is a number"),
    ("{search: {low: 0, high: .inf}}", "`high` is a number"),
    ("{search: {low: 0, high: 1, log: true}}", "above 0"),
    ("{search: {low: 0.5, high: 2, integer: true}}", "whole ends"),
    ("{search: {low: 1, high: 2, log: true, integer: true}}", "not for whole numbers"),
    ("{search: {low: 0, high: 1, groups: 1}}", "`groups`"),
    ("{search: {low: 0, high: 1, init: 2}}", "not in the range"),
    ("{search: {low: 0, high: 1, init: [0, 1]}}", "`init` is a number"),
    ("{search: {low: 0, high: 1, groups: 3, init: [0, 1]}}", "2 values for 3 groups"),
    ("{search: [0.5]}", "at least two"),
    ("{search: [0.5, 0.5]}", "listed twice"),
    ("{search: {choices: [0.5, 1], init: 2}}", "is not one of the choices"),
    ("{search: {choices: [0.5, 1], low: 2}}", "`choices` and `low` together"),
    # the recipe's own checks at the ends of a range, and with every choice
    ("{search: {low: 0.2, high: 1.5}}", "density"),
    ("{search: [0.5, much]}", "density"),
]


@pytest.mark.parametrize(("value", "message"), VALUES, ids=[row[0] for row in VALUES])
def test_a_mistake_in_a_free_value_has_its_line(value: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        space(recipe(density=value), tmp_path)
    assert "space.yaml:7: " in str(caught.value)
    assert message in f"{caught.value} {caught.value.hint}"


def test_a_recipe_without_a_free_value_is_no_space(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"space.yaml:3: nothing is free in `recipe`"):
        space(recipe(density=0.5), tmp_path)
    with pytest.raises(RecipeError, match="neither `recipe` nor `transfer`"):
        space(HEAD, tmp_path)


def test_a_choice_that_does_not_fit_the_rest_is_found_at_once(tmp_path: Path) -> None:
    text = recipe().replace("ties", "{search: [ties, tiess]}")
    with pytest.raises(RecipeError, match=r"space.yaml:3: .*tiess"):
        space(text, tmp_path)
    with pytest.raises(RecipeError, match=r"space.yaml:8: several values of alpha"):
        space(recipe() + "  alpha: [0.5, 1]\n", tmp_path)
    with pytest.raises(RecipeError, match=r"space.yaml:2: several values of alpha"):
        space(
            HEAD
            + "transfer: {target: t, donor: d, reference: r, alpha: [1, 2], layers: {search: ['0', '1']}}\n",
            tmp_path,
        )
    with pytest.raises(RecipeError, match=r"space.yaml:2: unknown key `donr` in `transfer`"):
        space(HEAD + "transfer: {target: t, donr: d, reference: r, alpha: {search: [1, 2]}}\n", tmp_path)
