"""Recipes as people publish them: a corpus in their style, each planned over tiny models of its family.

A file is called ``FAMILY-LAYERS-…``. Its comments say what is to be remarked upon: ``# no effect`` and
``# matches nothing`` stand on the lines that the remarks have to name.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import taskvec as tv
from support.command_line import invoke
from support.families import write_adapter, write_model
from support.models import read_tensors
from support.recipes import LINEAR, SLICE, TIES, mistake
from taskvec.errors import CompatibilityError, RecipeError
from taskvec.lazy.plan import Plan
from taskvec.plan.merge import plan_recipe
from taskvec.recipe.load import RecipeFile, load
from taskvec.recipe.model_ref import ModelRef

CORPUS = sorted((Path(__file__).parents[1] / "data" / "recipes").iterdir())
COMMENTS = {"recipe-ignored": "# no effect", "recipe-filter": "# matches nothing"}


def write_models(file: RecipeFile, family: str, layers: int) -> None:
    """Every model that a recipe names, in the working folder under the name that it has there."""
    for step in file.steps:
        for number, (ref, _) in enumerate(step.recipe.models_named()):
            folder = Path(ref.spec.partition("@")[0])
            if not folder.exists() and file.step_of(ref) is None:
                write_model(folder, family, layers, seed=len(str(ref)) * 31 + number)
            if ref.adapter is not None and not Path(ref.adapter).exists():
                write_adapter(Path(ref.adapter), family, layers)


def lines_with(text: str, comment: str) -> set[int]:
    return {number for number, line in enumerate(text.splitlines(), 1) if comment in line}


def test_the_corpus_is_large_and_has_every_method_of_mergekit() -> None:
    assert len(CORPUS) >= 70
    text = "\n".join(path.read_text(encoding="utf-8") for path in CORPUS)
    named = set(re.findall(r"^merge_method: (\w+)", text, re.MULTILINE))
    assert named >= {
        "linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear", "slerp",
        "breadcrumbs", "breadcrumbs_ties", "model_stock", "sce", "passthrough", "nuslerp", "multislerp",
        "karcher", "nearswap", "arcee_fusion", "ram",
    }  # fmt: skip


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_published_recipe_is_planned(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    text = path.read_text(encoding="utf-8")
    # A revision is the hub's: here the folder is called by the whole name.
    text = re.sub(r"^ +revision: main\n|@v2\b|(?<=7B), revision: main", "", text, flags=re.MULTILINE)
    Path(path.name).write_text(text, encoding="utf-8")
    family, layers = path.name.split("-")[:2]
    # Relative paths of Windows are read where their folders are there.
    for number, name in enumerate(dict.fromkeys(re.findall(r"model: (\S*\\\S*)", text))):
        write_model(Path(name.replace("\\", "/")), family, int(layers), seed=5 + number)
    merge = tv.open_recipe(path.name)
    write_models(merge.file, family, int(layers))
    found = set()
    for plan, place in merge.plans("out"):
        found |= {
            (each.id, int(each.subject.rpartition(":")[2]))
            for each in plan.findings
            if each.id in COMMENTS and each.subject.startswith(path.name)
        }
        assert plan.merged or plan.copied
        assert not [each for each in plan.findings if each.level == "error"]
        if place.name != "out":
            merge.run_document(plan, place, "out")
    wanted = {(id_, line) for id_, words in COMMENTS.items() for line in lines_with(text, words)}
    assert found == wanted


def test_a_card_is_run_and_strict_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    card = next(path for path in CORPUS if path.name == "qwen2-6-slerp-card.md")
    write_models(load(card), "qwen2", 6)
    with pytest.raises(CompatibilityError) as caught:
        tv.merge(card, "out", strict=True)
    assert [each.id for each in caught.value.findings] == ["recipe-ignored"]
    assert "`random_seed` has no effect" in str(caught.value)
    assert not Path("out").exists()
    tv.merge(card, "out", strict=True, force="recipe-ignored")
    assert read_tensors(Path("out"))
    recipe = json.loads((tmp_path / "out" / "taskvec.json").read_text())["recipe"]["recipe"][0]
    assert recipe["random_seed"] == 0


def test_strict_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("ab"):
        write_model(Path(name), "llama", 2, seed=number)
    text = TIES + "models: [{model: b, parameters: {weight: [{filter: mpl, value: 1}, {value: 0.5}]}}]\n"
    Path("r.yaml").write_text(text)
    done = invoke(capsys, "merge", "r.yaml", "out", "--strict", "--dry-run")
    assert done.code == 1
    assert "error[recipe-filter]: r.yaml:3: filter `mpl` of `weight` matches no tensor" in done.err
    assert "did you mean `mlp`?" in done.err
    done = invoke(capsys, "merge", "r.yaml", "out", "--dry-run")
    assert done.code == 0
    assert "warning[recipe-filter]" in done.out
    assert invoke(capsys, "merge", "r.yaml", "out", "--strict", "--force", "recipe-filter").code == 0
    assert invoke(capsys, "check", "a", "b", "a", "--strict").code == 1


# --- words --------------------------------------------------------------------------------------------------

WARNED = {
    "another method's parameter": (
        TIES + "models: [{model: b, parameters: {weight: 1, tall_lambda: 0.1}}]\n",
        (3, "`tall_lambda` is not a parameter of `ties`", "it belongs to `consensus`"),
    ),
    "one value per model": (
        "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 1, normalize: true}\n",
        (4, "`normalize` is one value for the whole merge, not one per model", "the recipe's `parameters`"),
    ),
    "one value per model of a slice": (
        "merge_method: linear\nparameters: {weight: 1}\nslices:\n- sources:\n"
        "  - {model: a, layer_range: [0, 2], parameters: {normalize: true}}\n",
        (5, "`normalize` is one value for the whole merge", "the slice's `parameters`"),
    ),
    "residual weight": (
        SLICE + "    residual_weight: 0.5\n",
        (4, "`residual_weight` has no effect", "mergekit reads it and does nothing with it"),
    ),
    "an option of mergekit": (LINEAR + "random_seed: 3\n", (4, "`random_seed` has no effect", "`seed: N`")),
    "an option, hyphenated": (
        LINEAR + "lazy-unpickle: true\n", (4, "`lazy-unpickle` has no effect", "read as they are needed")
    ),
    "a card's key": (LINEAR + "license: mit\n", (4, "`license` has no effect", "the model's card")),
    "layers of whole models": (
        LINEAR.replace("{model: a}", "{model: a, layer_range: [0, 2]}"),
        (3, "`layer_range` has no effect in `models`", "`slices`"),
    ),
    "a mask at the top": (LINEAR + "int8_mask: true\n", (4, "`int8_mask` has no effect", "no memory")),
    "in a module": (
        "merge_method: linear\nparameters: {weight: 1}\nmodules:\n  m:\n    models:\n"
        "    - {model: a, layer_range: [0, 2]}\n",
        (6, "`layer_range` has no effect in `modules`", "`slices`"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNED)
def test_words_without_effect_are_named_with_their_lines(name: str) -> None:
    text, (line, message, hint) = WARNED[name]
    (remark,) = load(text).last.remarks
    assert (remark.id, remark.level, remark.subject) == ("recipe-ignored", "warning", f"recipe:{line}")
    assert message in remark.found
    assert hint in remark.fix


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (LINEAR + "random_sed: 3\n", "unknown key `random_sed`", ""),
        (LINEAR.replace("model: a", "model: a@x, revision: y"), "has a revision already", "@revision"),
        (LINEAR.replace("model: a", "model: a, revision: [1]"), "a revision is the name of", "@rev"),
        (LINEAR.replace("model: a", "model: C:\\models\\a"), "`C:\\\\models", "a path of Windows"),
        (LINEAR.replace("model: a", "model: \\\\host\\a"), "is not found", "on this machine"),
        (LINEAR.replace("model: a", "model: models\\a"), "is not found", "Windows: write `models/a`"),
        (LINEAR.replace("model: a", "model: a+d:/lora"), "`d:/lora` is not found", "a path of Windows"),
        (LINEAR.replace("model: a", "model: {model: {path: 'd:\\a'}}"), "is not found", "a path of Windows"),
        (TIES + "models: [{vector: 'd:\\a.vec'}]\n", "is not found", "a path of Windows"),
        (LINEAR.replace("model: a", 'model: "C:\\models"'), "unknown escape character", "without quotes"),
        (LINEAR.replace("model: a", 'model: "C:\\new"'), "where a model belongs", "without quotes"),
        (LINEAR + "\u00a0\u00a0dtype: float32\n", "unknown key", "indent with plain spaces"),
        (LINEAR.replace("model: a", "model: “a”"), "a typographic quote", "straight quotes"),
        (LINEAR.replace("model: a", "model: a, density: 0.5"), "unknown key `density`", "does not have it"),
        (LINEAR + "tokenizer: union\n", "`tokenizer` is a mapping", "write `tokenizer_source: union`"),
        (TIES + "models: [a, b]\n", "`models.0` is a mapping", "write `- model: a`"),
        (TIES + "models: {a: {weight: 1}}\n", "`models` is a list", "an entry of a list"),
        (TIES.replace("ties", "ties_merging") + "models: [{model: a}]\n", "unknown merge", "mean `ties`"),
        (TIES.replace("ties", "della_ties") + "models: [{model: a}]\n", "unknown merge", "mean `della`"),
        (TIES.replace("ties", "model_stock") + "models: [{model: b}]\n", "found 1", "list more models"),
        (TIES.replace("ties", "arcee_fusion") + "models: [{model: b}, {model: c}]\n", "found 2", "leave"),
    ],
)  # fmt: skip
def test_words_that_get_a_hint(text: str, message: str, hint: str) -> None:
    found = mistake(text)
    assert found[0].startswith("recipe:")
    assert message in found[0] or message.replace("\\\\", "\\") in found[0]
    assert hint in found[1]


def ref_of(text: str) -> ModelRef:
    models = load(text).final.models
    assert models is not None
    return models[0].ref


def test_revisions(tmp_path: Path) -> None:
    assert ref_of(LINEAR.replace("model: a", "model: o/a, revision: v1")) == ModelRef("o/a@v1")
    adapted = LINEAR.replace("model: a", "model: o/a+o/b, revision: v1")
    assert ref_of(adapted) == ModelRef("o/a@v1", adapter="o/b")
    assert ref_of(LINEAR.replace("model: a", "model: o/a, revision: null")) == ModelRef("o/a")
    assert ref_of(LINEAR.replace("model: a", "model: {path: o/a, revision: v1}")) == ModelRef("o/a@v1")
    found = load(LINEAR.replace("model: a", f"model: {tmp_path}, revision: v1"))
    assert "is local" in found.last.remarks[0].found


LOCAL = [
    ("model: {model: a}", "model: {model: a@v1}"),
    ("model: {model: a}", "model: {model: {path: a, revision: v1}}"),
    ("model: {model: a}", "model: {path: a, revision: v1}"),
    ("model: {model: a}", "model: {model: {path: a, revision: v1}, lora: {path: d, revision: v2}}"),
    ("model: {model: a}", "model: a@v1+d@v2"),
    ("base_model: b", "base_model: b@v1"),
    ("tokenizer_source: a", "tokenizer_source: a@v1"),
    ("tokenizer_source: a", "tokenizer: {source: {path: a, revision: v1}}"),
]


@pytest.mark.parametrize(("old", "new"), LOCAL)
def test_a_revision_of_a_local_model_is_told_and_passed_over(
    old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mergekit passes over it as well: a folder has one state."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "d"):
        (tmp_path / name).mkdir()
    text = TIES + "models: [{model: {model: a}, parameters: {weight: 1}}]\ntokenizer_source: a\n"
    text = text.replace("base_model: a", "base_model: b")
    assert old in text
    found = load(text.replace(old, new)).last
    assert {each.id for each in found.remarks} == {"recipe-ignored"}
    assert all("is local" in each.found for each in found.remarks)
    assert all(each.subject.rpartition(":")[2].isdigit() for each in found.remarks)
    named = {ref.spec for ref, _ in found.recipe.models_named()}
    assert named == {"a", "b"}
    # Where there is no such folder, the revision is the hub's.
    (tmp_path / "a").rmdir()
    (tmp_path / "b").rmdir()
    refs = {ref.spec for ref, _ in load(text.replace(old, new)).final.models_named()}
    assert refs & {"a@v1", "b@v1"}


@pytest.mark.parametrize(
    "written",
    [
        LINEAR.replace("\n", "\r\n"),
        LINEAR.replace("\n", "\r"),
        "\ufeff" + LINEAR,
        LINEAR.replace(": ", ":\t").replace("\n", " \t\n"),
        "%YAML 1.1\n---\n" + LINEAR + "...\n",
        "# Zusammenführung 合并\n\n" + LINEAR + "---\n",
    ],
    ids=["crlf", "cr", "bom", "tabs", "directive", "trailing document"],
)
def test_texts_of_other_editors_are_the_same_recipe(written: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(written.encode("utf-8"))
    found = load(tmp_path / "recipe.yaml")
    assert found.documents == load(LINEAR).documents
    assert not found.last.remarks


def test_keys_that_hold_anchors_alone() -> None:
    text = "x-half: &half {weight: 0.5}\n" + LINEAR.replace("{weight: 1}", "*half")
    found = load(text)
    assert not found.last.remarks
    assert dict(found.final.parameters or {}).keys() == {"weight"}
    # Only at the top, and only with that name.
    assert "unknown key `half`" in mistake(text.replace("x-half", "half"))[0]
    assert "unknown key `x-y`" in mistake(LINEAR.replace("model: a", "model: a, x-y: 1"))[0]


def test_a_relative_path_of_windows_works_where_its_folder_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "a").mkdir(parents=True)
    assert ref_of(LINEAR.replace("model: a", "model: models\\a")) == ModelRef("models/a")
    (tmp_path / "x\\y").mkdir()
    assert ref_of(LINEAR.replace("model: a", "model: x\\y")) == ModelRef("x\\y")


# --- cards and notebooks ------------------------------------------------------------------------------------

CARD = "---\nlicense: mit\ntags: [merge]\n---\n# Title\n\n```yaml\n{}```\n"


def test_lines_of_a_card_are_those_of_the_file() -> None:
    assert mistake(CARD.format(LINEAR + "lamda: 1\n"))[0].startswith("recipe:11: unknown key `lamda`")
    assert mistake(CARD.format("\n" * 3 + LINEAR + "lamda: 1\n"))[0].startswith("recipe:14: ")
    cell = f'NAME = "x"\nCONFIG = """{LINEAR}lamda: 1\n"""\n'
    assert mistake(cell)[0].startswith("recipe:5: unknown key `lamda`")
    assert mistake("%%writefile x.yaml\n" + LINEAR + "lamda: 1\n")[0].startswith("recipe:5: ")


def test_a_card_keeps_its_recipe_alone() -> None:
    assert load(CARD.format(LINEAR)).text == LINEAR
    assert load("license: mit\n---\n" + LINEAR).final.merge_method == "linear"
    assert len(load("license: mit\n---\n" + LINEAR).documents) == 1
    template = LINEAR + "chat_template: |\n  {{ x }}\n  ```\n  code\n  ```\n"
    assert "```" in str(load(template).final.chat_template)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CARD.format("models: []\n"), "no recipe in this model card: none of its 1 blocks"),
        (CARD.format(LINEAR) + f"```\n{LINEAR}```\n", "2 recipes, on lines 8, 13"),
        (CARD.format("base_model: a\nexperts: []\n"), "this is a recipe for `mergekit-moe`"),
        ("license: mit\n", "`merge_method` is missing"),
        (LINEAR + "---\n" + LINEAR, "a second document without a name"),
    ],
)
def test_cards_that_hold_no_single_recipe(text: str, message: str) -> None:
    assert message in mistake(text)[0] + mistake(text)[1]


@pytest.mark.parametrize(
    "text", ["```" + " " * 900_000 + "`\n", " " * 900_000 + "\n", "a" * 900_000 + " =\n"]
)
def test_hostile_cards_are_no_recipes(text: str) -> None:
    with pytest.raises(RecipeError):
        load(text)


def test_a_filter_that_one_slice_alone_matches_is_no_slip(tmp_path: Path) -> None:
    """Filters of a source are looked for in its own names, those of the recipe in the output's."""
    write_model(tmp_path / "a", "llama", 4, seed=1)
    source = {"model": str(tmp_path / "a")}
    recipe = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{**source, "layer_range": [0, 2]}]},
            {
                "sources": [
                    {**source, "layer_range": [2, 4], "parameters": {"scale": [
                        {"filter": "layers.3.", "value": 2.0}, {"filter": "layers.1.", "value": 3.0}
                    ]}}
                ]
            },
        ],
        "parameters": {
            "scale": [{"filter": "layers.1.mlp", "value": 0.5}, {"filter": "layers.4", "value": 1}]
        },
    }  # fmt: skip
    (step,) = load(recipe).steps
    found = [each for each in Plan.of(plan_recipe(step)).findings if each.id == "recipe-filter"]
    texts = sorted(re.findall(r"filter `(.*?)`", " ".join(each.found for each in found)))
    assert texts == ["layers.1.", "layers.4"]
