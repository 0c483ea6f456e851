"""Optimisers: they find a known optimum, keep to the space, and propose the same again."""

from __future__ import annotations

from typing import Any

import pytest

from taskvec.errors import EvaluationError
from taskvec.evaluation.search import optimiser
from taskvec.evaluation.search.form import Optimiser
from taskvec.evaluation.search.free import Free
from taskvec.evaluation.search.optimiser import losses, proposer
from taskvec.evaluation.search.space import Point
from taskvec.extras import install
from taskvec.recipe.document import Node


def number(name: str) -> Free:
    return Free(name, (name,), "number", 0.0, 1.0, False, (), 0.5)


NUMBERS = tuple(number(name) for name in "abc")
MIXED = (
    number("a"),
    Free("b", ("b",), "choice", 0, 0, False, tuple(map(Node, "xyz")), 0),
    Free("c", ("c",), "integer", 1, 9, False, (), 5),
    number("d"),
)
CHOICES = (MIXED[1], Free("e", ("e",), "choice", 0, 0, False, tuple(map(Node, "uv")), 0))
SPACES = {
    "numbers": NUMBERS,
    "one number": NUMBERS[:1],
    "mixed": MIXED,
    "choices": CHOICES,
    "whole": MIXED[2:3],
}


def loss(free: tuple[Free, ...], point: Point) -> float:
    """The least at 0.3, at the second choice, at 7."""
    aims = {"number": 0.3, "choice": 1, "integer": 7}
    return sum(
        float(at != aims["choice"])
        if each.kind == "choice"
        else abs(at - aims[each.kind]) / (each.high - each.low)
        for each, at in zip(free, point, strict=True)
    )


def run(free: tuple[Free, ...], name: str, generations: int, seed: int = 1) -> list[list[Point]]:
    given = Optimiser.model_validate({"name": name, "seed": seed})
    source = proposer(free, given, 8, tuple(each.start for each in free))
    asked = []
    for _ in range(generations):
        points = source.ask()
        source.tell([loss(free, point) for point in points])
        asked.append(points)
    return asked


@pytest.mark.parametrize("name", ["cma", "random", "tpe"])
@pytest.mark.parametrize("space", SPACES)
def test_points_are_in_the_space_and_the_same_from_the_same_seed(name: str, space: str) -> None:
    free = SPACES[space]
    asked = run(free, name, 4)
    assert [len(points) for points in asked] == [8] * 4
    for point in (point for points in asked for point in points):
        for each, at in zip(free, point, strict=True):
            if each.kind == "number":
                assert isinstance(at, float)
                assert 0 <= at <= 1
            else:
                low, high = (0, len(each.choices) - 1) if each.kind == "choice" else (each.low, each.high)
                assert isinstance(at, int)
                assert low <= at <= high
    assert run(free, name, 4) == asked
    assert run(free, name, 4, seed=2) != asked


@pytest.mark.parametrize("space", ["numbers", "one number", "mixed", "choices", "whole"])
def test_cma_comes_closer_to_the_optimum_than_random_points(space: str) -> None:
    free = SPACES[space]
    found = min(loss(free, point) for points in run(free, "cma", 40) for point in points)
    drawn = min(loss(free, point) for points in run(free, "random", 40) for point in points)
    assert found <= drawn
    assert found < 0.01


def test_what_has_no_score_is_worse_than_all_that_have() -> None:
    assert losses([0.5, None, 0.25]) == [-0.5, 0.75, -0.25]
    assert losses([-40.0, None]) == [40.0, 80.0]
    assert losses([None, None]) == [1.0, 1.0]


@pytest.mark.parametrize("space", ["numbers", "mixed"])
def test_a_generation_that_failed_as_a_whole_does_not_end_the_search(space: str) -> None:
    free = SPACES[space]
    source = proposer(free, Optimiser(), 6, tuple(each.start for each in free))
    for _ in range(3):
        source.tell(losses([None] * len(source.ask())))
    assert len(source.ask()) == 6


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    for name, package in (("cma", install("eval")), ("tpe", "pip install optuna")):
        with pytest.raises(EvaluationError) as caught:
            optimiser.proposer(NUMBERS, Optimiser.model_validate({"name": name}), 4, (0.5, 0.5, 0.5))
        assert package in str(caught.value.hint)
