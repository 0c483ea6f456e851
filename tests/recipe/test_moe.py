"""Recipes of mixtures of experts: a corpus in the style of published ones, and mistakes with their lines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from support.command_line import invoke
from support.families import write_model
from taskvec.errors import CompatibilityError, RecipeError
from taskvec.recipe.moe import MoeFile, load

CORPUS = sorted((Path(__file__).parents[1] / "data" / "moe_recipes").iterdir())
BASE = "base_model: base\ngate_mode: cheap_embed\n"
ONE = "  - source_model: a\n    positive_prompts: [A]\n"
TWO = f"experts:\n{ONE}  - source_model: b\n    positive_prompts: [B]\n"


def write_models(file: MoeFile, family: str, layers: int) -> None:
    for number, ref in enumerate(file.recipe.models()):
        folder = Path(ref.spec.partition("@")[0])
        if not folder.exists():
            write_model(folder, family, layers, seed=number)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_published_recipe_is_planned(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = path.read_text(encoding="utf-8").replace("@main", "")
    Path(path.name).write_text(text, encoding="utf-8")
    family, layers = path.name.split("-")[:2]
    mixture = tv.open_moe(path.name)
    write_models(mixture.file, family, int(layers))
    plan = mixture.plan()
    assert plan.copied
    assert not [each for each in plan.findings if each.level == "error"]
    found = {int(each.subject.rpartition(":")[2]) for each in plan.findings if each.id == "recipe-ignored"}
    assert found == {n for n, line in enumerate(text.splitlines(), 1) if "# no effect" in line}


def test_the_corpus_has_every_layout_and_mode() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in CORPUS)
    assert len(CORPUS) >= 10
    assert set(re.findall(r"^gate_mode: (\w+)", text, re.MULTILINE)) == {"random", "cheap_embed"}
    assert set(re.findall(r"^architecture: (\w+)", text, re.MULTILINE)) >= {"qwen", "qwen3", "deepseek"}


MISTAKES = {
    "unknown key": (BASE + "expert_per_token: 2\n" + TWO, "recipe:3: unknown key `expert_per_token`",
                    "did you mean `experts_per_token`?"),
    "unknown key of an expert": (BASE + TWO + "    positve_prompts: [C]\n",
                                 "recipe:8: unknown key `positve_prompts` in `experts.1`",
                                 "did you mean `positive_prompts`?"),
    "unknown mode": (BASE.replace("cheap_embed", "cheap_embeds") + TWO, "recipe:2: `gate_mode` is",
                     "did you mean `cheap_embed`?"),
    "unknown layout": (BASE + "architecture: mixtrl\n" + TWO, "recipe:3: `architecture`: the text `mixtrl`",
                       "did you mean `mixtral`?"),
    "a list as layout": (BASE + "architecture: []\n" + TWO, "`architecture`: a list is not a layout",
                         "`mixtral`, `qwen`, `qwen3` and `deepseek` are"),
    "no experts": (BASE, "recipe:1: `experts` is missing", ""),
    "empty experts": (BASE + "experts: []\n", "recipe:3: `experts` is empty", "name at least one"),
    "no base": (TWO, "recipe:1: `base_model` is missing", ""),
    "more per token than there are": (BASE + "experts_per_token: 3\n" + TWO,
                                      "recipe:3: 3 experts per token of 2", "smaller `experts_per_token`"),
    "two by default": (BASE + "experts:\n" + ONE, "recipe:4: 2 experts per token of 1", "more experts"),
    "none per token": (BASE + "experts_per_token: 0\n" + TWO,
                       "recipe:3: `experts_per_token` is out of range", ""),
    "no prompts": (BASE + "experts:\n" + ONE + "  - source_model: b\n",
                   "recipe:6: `b` has no `positive_prompts`", "`gate_mode: random`"),
    "the same prompts": (BASE + "experts:\n" + ONE + ONE.replace("a", "b", 1),
                         "all experts have the same prompts", "`gate_mode: random`"),
    "an empty prompt": (BASE + TWO.replace("[B]", "['']"),
                        "recipe:7: `experts.1.positive_prompts.0` is empty", ""),
    "prompts are numbers": (BASE + TWO.replace("[B]", "[1]"),
                            "recipe:7: `experts.1.positive_prompts.0` is text, found the number `1`", ""),
    "a second shared expert": (
        BASE + TWO + "shared_experts:\n  - {source_model: a}\n  - {source_model: b}\n",
        "recipe:10: a second shared expert", "no layout"),
    "noise is no number": (BASE + TWO + "    noise_scale: .nan\n",
                           "recipe:8: `experts.1.noise_scale`", ""),
    "noise below zero": (BASE + TWO + "    noise_scale: -0.1\n",
                         "recipe:8: `experts.1.noise_scale`", ""),
    "scale is text": (BASE + TWO + "    residual_scale: small\n",
                      "recipe:8: `experts.1.residual_scale` is a number, found the text `small`", ""),
    "a merge": ("merge_method: linear\nmodels: [{model: a}]\n", "recipe:1: this is a recipe of a merge",
                "`taskvec merge`"),
    "two documents": (BASE + TWO + "---\n" + BASE + TWO, "a second document", "one document"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_line(name: str) -> None:
    text, message, hint = MISTAKES[name]
    with pytest.raises(RecipeError) as caught:
        load(text)
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")


def test_a_merge_says_what_runs_a_recipe_of_experts() -> None:
    with pytest.raises(RecipeError, match="recipe for `mergekit-moe`") as caught:
        tv.open_recipe(BASE + TWO)
    assert caught.value.hint == "run it with `taskvec moe`"


def test_strict_stops_a_word_without_effect() -> None:
    with pytest.raises(CompatibilityError, match="`seed` has no effect"):
        tv.open_moe(BASE + "seed: 3\n" + TWO, strict=True)
    assert tv.open_moe(BASE + TWO, strict=True)


def test_values_are_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experts = [{"source_model": "a"}] * 2
    given: dict[str, Any] = {
        "base_model": "b",
        "gate_mode": "hidden",
        "experts_per_token": 2,
        "experts": experts,
    }
    assert load(given, ["gate_mode=random", "experts_per_token=1"]).recipe.experts_per_token == 1
    assert invoke(capsys, "moe", tmp_path / "no.yaml", "out").code == 2
