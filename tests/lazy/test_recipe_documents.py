"""Recipes of several documents that build on each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.recipes import mistake
from taskvec.recipe.load import RecipeFile, load
from taskvec.recipe.model_ref import ModelRef


def document(name: str | None, *models: str, method: str = "karcher") -> str:
    lines = [f"merge_method: {method}", "models:", *(f"  - model: {model}" for model in models)]
    return "\n".join([*lines, *([f"name: {name}"] if name else [])]) + "\n"


def names(found: RecipeFile) -> list[str | None]:
    return [step.recipe.name for step in found.steps]


def test_documents_run_in_the_order_of_what_they_need() -> None:
    text = "---\n".join([document(None, "two", "x"), document("two", "one", "y"), document("one", "x", "y")])
    found = load(text)
    assert names(found) == ["one", "two", None]
    assert found.final.name is None
    assert found.step_of(ModelRef("two")) is found.steps[1]
    assert found.step_of(ModelRef("one@main", adapter="l")) is found.steps[0]
    assert found.step_of(ModelRef("x")) is None
    assert found.step_of(ModelRef("two", "vector")) is None


def test_without_an_unnamed_document_the_last_in_the_chain_makes_the_output() -> None:
    found = load("---\n".join([document("b", "a", "x"), document("a", "x", "y")]))
    assert names(found) == ["a", "b"]
    both = "---\n".join([document("a", "x", "y"), document("b", "x", "y")])
    message, hint = mistake(both)
    assert "which document makes the output? `a`, `b` are used by no other" in message
    assert "leave out the `name:`" in hint


def test_documents_that_nothing_uses_get_a_remark() -> None:
    found = load("---\n".join([document("spare", "x", "y"), document(None, "x", "y")]))
    assert names(found) == [None]
    (remark,) = found.remarks
    assert remark.id == "recipe-unused"
    assert remark.subject == "recipe:5"
    assert "`spare`" in remark.found


def test_base_models_tokenizers_and_references_are_uses_as_well() -> None:
    later = "merge_method: task_arithmetic\nbase_model: one\nparameters: {weight: 1}\n"
    later += "models: [{model: x, relative_to: two}]\ntokenizer_source: three\n"
    found = load("---\n".join([later, *(document(n, "x", "y") for n in ("one", "two", "three"))]))
    assert names(found) == ["one", "two", "three", None]


CYCLES = {
    "itself": (document("a", "a", "x"), "recipe:3: document `a` is made from itself"),
    "two": (document("a", "b") + "---\n" + document("b", "a"), "`a` ← `b` ← `a`"),
    "behind the final one": (
        document(None, "a")
        + "---\n"
        + document("a", "b")
        + "---\n"
        + document("b", "c")
        + "---\n"
        + document("c", "b"),
        "`b` ← `c` ← `b`",
    ),
    "twice the same name": (
        document("a", "x") + "---\n" + document("a", "y"),
        "recipe:9: a second document named `a`, the first is at recipe:4",
    ),
    "two without a name": (
        document(None, "x") + "---\n" + document(None, "y"),
        "recipe:5: a second document without a name, the first is at recipe:1",
    ),
    "nearly a name": (
        document("first-merge", "x") + "---\n" + document(None, "frist-merge"),
        "recipe:8: there is no document or folder `frist-merge`",
    ),
}


@pytest.mark.parametrize("name", CYCLES)
def test_documents_that_do_not_fit_together(name: str) -> None:
    recipe, message = CYCLES[name]
    assert message in mistake(recipe)[0]


def test_a_document_that_names_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(document("recipe.yaml", "recipe.yaml", "x"))
    assert "recipe.yaml:3: document `recipe.yaml` is made from itself" in mistake("recipe.yaml")[0]


def test_overrides_of_several_documents() -> None:
    text = "---\n".join([document("one", "x", "y"), document(None, "one", "z")])
    found = load(text, ["one.models.1.model=w", "models.1.model=v"])
    assert [each["models"][1]["model"] for each in found.documents] == ["w", "v"]
    all_named = "---\n".join([document("one", "x"), document("two", "one")])
    message, hint = mistake(all_named, "models.0.model=w")
    assert "which document is meant?" in message
    assert "`one`, `two`" in hint
