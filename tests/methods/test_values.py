"""Parameter values by mergekit's rules: types, gradients, filters and the order in which scopes are asked.

The expected numbers were measured on mergekit 0.1.5; parity_mergekit.py measures them again.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskvec.methods.method import Parameter
from taskvec.methods.values import SettingError, coerce, evaluate, lookup, parse

NUMBER = Parameter("x", "float", "merge", 7.0, "")
SHARE = Parameter("x", "float", "merge", 1.0, "", low=0.0, high=1.0)
POSITIVE = Parameter("x", "float", "merge", 1.0, "", low=0.0, above=True)
WHOLE = Parameter("x", "int", "merge", 3, "", low=1, high=10)
TRUTH = Parameter("x", "bool", "merge", False, "")
CHOICE = Parameter("x", "choice", "merge", "l1", "", choices=("l1", "expectation"))
REQUIRED = Parameter("x", "float", "merge", None, "", required=True)


def at(value: Any, position: float = 0.0, name: str = "model.layers.3.mlp.up_proj.weight", parameter=NUMBER):
    return evaluate(parameter, parse(value), name, position)


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        (NUMBER, 1, 1.0),
        (NUMBER, -2.5, -2.5),
        (NUMBER, "1e-5", 1e-5),
        (WHOLE, 4, 4),
        (WHOLE, 4.0, 4),
        (WHOLE, "5", 5),
        (TRUTH, True, True),
        (TRUTH, 0, False),
        (TRUTH, 1.0, True),
        (TRUTH, "Yes", True),
        (TRUTH, "off", False),
        (CHOICE, "expectation", "expectation"),
        (SHARE, 0, 0.0),
        (SHARE, 1, 1.0),
    ],
)
def test_values_become_the_parameters_type(parameter: Parameter, value: Any, expected: Any) -> None:
    found = coerce(parameter, value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        (NUMBER, True, "`x` is a number, found the truth value `true`"),
        (NUMBER, "a lot", "`x` is a number, found the text `a lot`"),
        (NUMBER, math.nan, "`x` is not finite"),
        (NUMBER, math.inf, "`x` is not finite"),
        (NUMBER, "nan", "`x` is not finite"),
        (NUMBER, "-inf", "`x` is not finite"),
        (NUMBER, 10**400, "`x` is not finite"),
        (SHARE, -0.1, "`x` is a number from 0 to 1, found -0.1"),
        (SHARE, 1.01, "`x` is a number from 0 to 1, found 1.01"),
        (POSITIVE, 0.0, "`x` is a number above 0, found 0"),
        (WHOLE, 0, "`x` is a whole number from 1 to 10, found 0"),
        (WHOLE, 11, "`x` is a whole number from 1 to 10, found 11"),
        (WHOLE, 2.5, "`x` is a whole number, found 2.5"),
        (TRUTH, 2, "`x` is true or false, found the number `2`"),
        (TRUTH, "perhaps", "`x` is true or false, found the text `perhaps`"),
        (CHOICE, "l2", "`x` is l1 or expectation, found the text `l2`"),
        (CHOICE, True, "`x` is l1 or expectation, found the truth value `true`"),
    ],
)
def test_values_that_do_not_fit(parameter: Parameter, value: Any, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        coerce(parameter, value)
    assert message in caught.value.message


def test_gradients() -> None:
    assert [at([0, 1, 3], p) for p in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 2, 3]
    assert at([5], 0.7) == 5
    assert at([0.25, 1], 1) == 1
    assert at(["1e-1", 0.3], 0.5) == pytest.approx(0.2)
    # a step for what has nothing in between
    assert [at([True, False, True], p, parameter=TRUTH) for p in (0, 0.25, 0.5, 0.75, 1)] == [
        True, True, False, False, True,
    ]  # fmt: skip
    assert at(["l1", "expectation"], 0.99, parameter=CHOICE) == "l1"


def test_gradients_of_whole_numbers() -> None:
    assert [at([1, 9], i / 4, parameter=WHOLE) for i in range(5)] == [1, 3, 5, 7, 9]
    assert [at([1, 8], i / 7, parameter=WHOLE) for i in range(8)] == list(range(1, 9))
    with pytest.raises(SettingError, match=r"this gradient gives 3\.5") as caught:
        at([1, 6], 0.5, parameter=WHOLE)
    assert caught.value.hint == "name the layers with filters instead"


def test_filters() -> None:
    setting = [{"filter": "self_attn", "value": 1}, {"filter": "mlp", "value": [2, 4]}, {"value": 9}]
    assert at(setting, 0.5) == 3
    assert at(setting, name="model.layers.0.self_attn.q_proj.weight") == 1
    assert at(setting, name="lm_head.weight") == 9
    # the first that matches decides
    assert at([{"filter": "up", "value": 1}, {"filter": "mlp", "value": 2}]) == 1
    # `*`, no text and nothing match all
    for everything in ("*", "", None):
        assert at([{"filter": everything, "value": 1}, {"filter": "mlp", "value": 2}]) == 1
    assert at({"filter": "mlp", "value": 2}) == 2
    assert at({"filter": "attn", "value": 2}) is None
    # a number is found anywhere: layers.3 is also in layers.30
    assert at({"filter": "layers.3", "value": 2}, name="model.layers.30.mlp.up_proj.weight") == 2


def test_scopes_from_narrow_to_wide() -> None:
    attention, everything = parse({"filter": "attn", "value": 1}), parse(2)
    name = "model.layers.0.mlp.up_proj.weight"
    assert lookup(NUMBER, [{"x": attention}, {"x": everything}], name, 0) == 2
    assert lookup(NUMBER, [{"x": attention}, {"y": everything}], name, 0) == 7.0
    assert lookup(NUMBER, [None, {}], name, 0) == 7.0
    assert lookup(NUMBER, [{"x": everything}, {"x": parse(3)}], name, 0) == 2
    assert lookup(REQUIRED, [{"x": attention}], name, 0) is None


def test_what_a_setting_says_of_itself() -> None:
    setting = parse([{"filter": "a", "value": [1, 2]}, {"filter": "*", "value": 3}])
    assert setting.varies
    assert list(setting.filters) == ["a"]
    assert list(setting.leaves()) == [((0, "value", 0), 1), ((0, "value", 1), 2), ((1, "value"), 3)]
    assert list(parse(4).leaves()) == [((), 4)]
    assert list(parse([4, 5]).leaves()) == [((0,), 4), ((1,), 5)]
    assert not parse(4).varies


@pytest.mark.parametrize(
    ("value", "message", "path"),
    [
        (None, "nothing where a value belongs", ()),
        ([], "an empty list", ()),
        ([[1]], "a list in a gradient", (0,)),
        ([1, None], "nothing in a gradient", (1,)),
        ([1, {"value": 2}], "the number `1` among filters", (0,)),
        ({"value": []}, "an empty list", ("value",)),
        ({"value": {"value": 1}}, "a mapping where a value belongs", ("value",)),
        ({"filter": "x"}, "a filter without `value`", ()),
        ([{"value": 1, "filtr": "x"}], "unknown key `filtr`", (0, "filtr")),
        ({"value": 1, "filter": 3}, "a filter is text", ("filter",)),
    ],
)
def test_values_of_no_form(value: Any, message: str, path: tuple[Any, ...]) -> None:
    with pytest.raises(SettingError) as caught:
        parse(value)
    assert message in caught.value.message
    assert caught.value.path == path


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6),
    st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))),
)
def test_a_gradient_stays_between_its_neighbours(values: list[float], layer: tuple[int, int]) -> None:
    index, count = layer
    position = index / (count - 1) if count > 1 else 1.0
    found = at(values, position)
    assert found is not None
    left = min(int(position * (len(values) - 1)), len(values) - 1)
    right = min(left + 1, len(values) - 1)
    low, high = sorted((values[left], values[right]))
    assert low - 1e-6 <= float(found) <= high + 1e-6
    if index == 0 and count > 1:
        assert found == values[0]
    if index == count - 1:
        assert found == pytest.approx(values[-1])
