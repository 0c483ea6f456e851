"""Recipes as YAML: strict, with lines, and safe against files made to harm."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from support.recipes import LINEAR, SAME_AS_MERGEKIT, SLICE, TIES, mistake
from taskvec.errors import NotFoundError, RecipeError
from taskvec.methods.catalogue import METHODS
from taskvec.recipe.load import load
from taskvec.recipe.model_ref import parse_model
from taskvec.recipe.parse import parse


def plain(text: str) -> Any:
    return parse(text, "r.yaml")[0].plain()


def test_scalars_are_read_as_yaml_has_them_but_dates_stay_text() -> None:
    text = "a: 1e-5\nb: 1.0e-5\nc: on\nd: 0x1F\ne: 2024-01-01\nf: ~\ng: '3'\nh: 1_000\ni: !!str 4\nj: .5\n"
    assert plain(text) == {
        "a": "1e-5", "b": 1e-5, "c": True, "d": 31, "e": "2024-01-01", "f": None, "g": "3", "h": 1000,
        "i": "4", "j": 0.5,
    }  # fmt: skip


def test_anchors_and_merged_mappings() -> None:
    text = "a: &x {p: 1, q: 2}\nb: *x\nc: {<<: *x, q: 3}\nd: {<<: [{p: 5}, *x], r: 4}\n"
    assert plain(text) == {
        "a": {"p": 1, "q": 2},
        "b": {"p": 1, "q": 2},
        "c": {"p": 1, "q": 3},
        "d": {"p": 5, "q": 2, "r": 4},
    }


def test_agrees_with_pyyaml_on_every_published_feature() -> None:
    for text in [*SAME_AS_MERGEKIT.values(), *(method.example for method in METHODS.values())]:
        assert plain(text) == yaml.safe_load(text)


YAML_MISTAKES = {
    "duplicate key": ("a: 1\nb: 2\na: 3", "r.yaml:3: key `a` is written twice, first on line 1"),
    "duplicate merge": ("a: &x {}\nb: {<<: *x, <<: *x}", "r.yaml:2: key `<<` is written twice"),
    "tab": ("a:\n\tb: 1\n", "r.yaml:2: a tab in the indentation"),
    "later tab": ("a:\n  b: 1\n\tc: 2", "r.yaml:3: a tab in the indentation"),
    "cycle": ("a: &a [*a]", "r.yaml:1: alias `*a` stands inside of what it refers to"),
    "unknown alias": ("x: &base 1\na: *bse", "r.yaml:2: alias `*bse` has no anchor before it"),
    "empty": ("", "r.yaml: the recipe is empty"),
    "comment": ("# nothing\n", "r.yaml: the recipe is empty"),
    "empty documents": ("---\n---\n", "r.yaml: the recipe is empty"),
    "list": ("- a\n", "r.yaml:1: a recipe is a mapping of keys, found a list"),
    "text": ("just words\n", "r.yaml:1: a recipe is a mapping of keys, found the text `just words`"),
    "python": ("a: !!python/name:os.system x", "has no meaning in a recipe"),
    "binary": ("a: !!binary aGk=", "has no meaning in a recipe"),
    "tagged list": ("a: !!set {x, y}", "has no meaning in a recipe"),
    "no number": ("a: !!int zz", "r.yaml:1: `zz` is not a number"),
    "complex key": ("? [a]\n: 1", "r.yaml:1: a key has to be text, found a list or mapping"),
    "alias as key": ("a: &x y\n*x : 1", "r.yaml:2: a key has to be text, found an alias"),
    "anchored key": ("&x a: 1", "r.yaml:1: a key with an anchor"),
    "merge of a scalar": ("a: {<<: 3}", "r.yaml:1: `<<` takes a mapping"),
    "control character": ('a: "\x00"', "r.yaml:1: control characters are not allowed"),
    "colon": ("\na: b: c", "r.yaml:2: not valid YAML: mapping values are not allowed"),
    "open quote": ("a: 'x", "r.yaml:1: not valid YAML"),
}


@pytest.mark.parametrize("name", YAML_MISTAKES)
def test_yaml_that_is_not_strict(name: str) -> None:
    text, message = YAML_MISTAKES[name]
    with pytest.raises(RecipeError) as caught:
        parse(text, "r.yaml")
    assert message in str(caught.value)


def test_a_file_is_named_as_the_user_wrote_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(LINEAR + "lamda: 1\n")
    message, hint = mistake("recipe.yaml")
    assert message == "recipe.yaml:4: unknown key `lamda`"
    assert hint.startswith("remove it: `lambda` is a parameter of `task_arithmetic`, ")
    assert hint.endswith(" and `linear` does not have it")
    Path("ties.yaml").write_text(TIES + "models: [{model: b, parameters: {weight: 1}}]\nlamda: 1\n")
    assert mistake("ties.yaml")[1] == "`lambda` belongs under `parameters`"
    with pytest.raises(NotFoundError, match="is not found"):
        load("other.yaml")
    with pytest.raises(NotFoundError, match="is not a file"):
        load(tmp_path)
    os.mkfifo("pipe.yaml")
    with pytest.raises(NotFoundError, match="is not a file") as caught:
        load("pipe.yaml")
    assert caught.value.hint == "give what comes through a pipe as `-`, by standard input"
    Path("latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    assert mistake("latin.yaml")[0] == "latin.yaml:2: not UTF-8 text"
    Path("mark.yaml").write_bytes(b"\xef\xbb\xbf" + LINEAR.encode())
    assert load("mark.yaml").final.merge_method == "linear"
    Path("large.yaml").write_bytes(b"#" * (1 << 20) + b"\n")
    assert "larger than 1.05 MB" in mistake("large.yaml")[0]


LEVEL = "b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
HOSTILE = {
    "aliases of aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(LEVEL.replace("b", chr(98 + i)).replace("*a", "*" + chr(97 + i)) for i in range(12)),
    "deep lists": "a: " + "[" * 500_000,
    "deep mappings": "a: " + "{a: " * 100_000,
    "deep indentation": "\n".join(" " * i + "a:" for i in range(1000)),
    "deep aliases": "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3000)),
    "many values": "a: [" + "0," * 400_000 + "]",
    "many keys": "".join(f"{i}: 1\n" for i in range(90_000)),
    "many documents": "a: 1\n---\n" * 5000,
    "many models": "merge_method: passthrough\nmodels:\n" + "- model: m\n" * 7000,
    "many parameters": "merge_method: linear\nparameters:\n" + "".join(f"  w{i}: 1\n" for i in range(9000)),
    "many filters": LINEAR.replace(
        "1", "[" + ",".join(f"{{filter: f{i}, value: 1}}" for i in range(4000)) + "]"
    ),
    "many modules": "merge_method: linear\nmodules:\n" + "".join(f"  m{i}: {{}}\n" for i in range(9000)),
    "a long number": LINEAR.replace("1", "9" * 900_000),
    "a long sum of sixties": LINEAR.replace("1", "1:1" * 300_000),
    "a long key": LINEAR + "k" * 1000 + ": 1\n",
    "a long model": LINEAR.replace("model: a", f"model: '{'+' * 900_000}'"),
    "a long method": LINEAR.replace("linear", "ties" * 200_000),
    "a long pattern": LINEAR + "include: '" + "(" * 5000 + "'\n",
    "a billion layers": SLICE.replace("[0, 4]", "[0, 1000000000]"),
    "layers of minus one": SLICE.replace("[0, 4]", "[-1, 4]"),
    "a circle of 250": "".join(
        LINEAR.replace("model: a", f"model: d{(i + 1) % 250}") + f"name: d{i}\n---\n" for i in range(250)
    ),
    "names close to each other": "".join(
        "merge_method: linear\nparameters: {weight: 1}\n"
        f"models: [{','.join(f'{{model: ee{j}}}' for j in range(50))}]\nname: dd{i}\n---\n"
        for i in range(150)
    ),
    "not a number": LINEAR.replace("1", ".nan"),
    "infinity": LINEAR.replace("1", "1e999"),
    "a zero byte in a name": LINEAR.replace("model: a", 'model: "a\\0b"'),
    "binary": "\x89PNG\r\n\x1a\n" + "\x00" * 1000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_recipes_are_errors_at_once(name: str) -> None:
    best = 9.0
    for _ in range(3):
        start = time.process_time()
        with pytest.raises(RecipeError) as caught:
            load(HOSTILE[name] + "\n")
        best = min(best, time.process_time() - start)
        if best < 1:
            break
    assert best < 1
    assert str(caught.value).startswith("recipe:")
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def outcome(recipe: Any) -> RecipeError | None:
    try:
        load(recipe)
    except RecipeError as error:
        return error
    return None


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda data: data.decode("latin-1")))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_recipe_or_a_recipe_error(text: str) -> None:
    error = outcome(text + "\n")
    assert error is None or str(error).startswith("recipe:")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "model",
                    "models",
                    "slices",
                    "sources",
                    "parameters",
                    "weight",
                    "filter",
                    "value",
                    "layer_range",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "merge_method",
                "models",
                "slices",
                "modules",
                "parameters",
                "alpha",
                "base_model",
                "dtype",
                "tokenizer",
                "seed",
                "name",
                "include",
            ]
        ),
        VALUES,
    )
)
@settings(max_examples=300, deadline=None)
def test_any_mapping_is_a_recipe_or_a_recipe_error(value: dict[str, Any]) -> None:
    error = outcome({"merge_method": "linear", "models": [{"model": "a"}], **value})
    assert error is None or str(error).startswith("recipe")


@pytest.mark.parametrize(
    "spec", ["+" * 1_000_000, "a+" * 500_000, "a+b+" + "c" * 1_000_000, "+", "a+", "+a", "a+" * 17]
)
def test_signs_between_model_and_adapter_are_looked_at_up_to_a_number(spec: str) -> None:
    with pytest.raises(ValueError, match="not of the form MODEL") as caught:
        parse_model(spec)
    assert "one model takes one adapter" in caught.value.args[1]
