"""The model card: front matter that parses, the facts of the merge, and names that stay names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import taskvec as tv
from support.models import Tensors, Trio, write_checkpoint
from taskvec.report.card import card, escape, formula
from taskvec.report.report import Survival

HOSTILE = "evil](http://x)|<script>alert(1)</script>\n---\n# `` ``` ~~~ $x$ \x1b[31m*_&amp;"


def facts(**changes: Any) -> dict[str, Any]:
    """Facts as the manifest has them, of models on the hub."""
    models = {role: f"org/{role}" for role in ("target", "donor", "reference")}
    return {
        "schema": 1,
        "kind": "checkpoint",
        "engine": {"name": "taskvec", "version": "1.2.3", "arithmetic": 1},
        "recipe": {"verb": "transfer", **models, "alpha": -0.5},
        "sources": [
            {
                "role": role,
                "model": model,
                "repository": model,
                "revision": "0" * 40,
                "fingerprint": "ab" * 32,
                "files": [],
            }
            for role, model in models.items()
        ],
        "findings": [{"level": "warning", "id": "tied-head", "message": "a|b"}],
        "survival": {
            "fields": list(Survival._fields),
            "total": [1.0, 0.9, 0.99, 0.1, 5.0, 50, 10, 100],
            "tensors": {},
        },
        "non_finite": [],
        **changes,
    }


def split(data: bytes) -> tuple[dict[str, Any], str]:
    """The front matter and the text."""
    _, front, text = data.decode().split("---\n", 2)
    return yaml.safe_load(front), text


def test_front_matter_names_the_models_of_the_hub() -> None:
    front, text = split(card(facts()))
    assert front == {
        "base_model": ["org/target", "org/donor", "org/reference"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "task-vector", "taskvec"],
    }
    assert "[org/target](https://huggingface.co/org/target)" in text
    assert "0" * 40 in text


def test_text_has_the_arithmetic_and_what_survived() -> None:
    _, text = split(card(facts()))
    assert "target + (-0.5) * (donor - reference)" in text
    assert "| of these, rounded away | 20.00% |" in text
    assert "wider type or stochastic rounding" in text
    assert "2509.01363" in text
    assert "- tied\\-head: a\\|b" in text
    assert "--alpha=-0.5" in text
    assert "tv.transfer(" in text


def test_folders_are_not_claimed_as_base_models(trio: Trio, tmp_path: Path) -> None:
    tv.transfer(*trio, tmp_path / "out")
    front, text = split((tmp_path / "out" / "README.md").read_bytes())
    assert "base_model" not in front
    assert text.startswith("\n# target with a task vector\n")


@pytest.mark.parametrize("field", ["model", "role"])
def test_hostile_names_stay_names(field: str) -> None:
    hostile = facts()
    for source in hostile["sources"]:
        source[field] = HOSTILE
        source.pop("repository")
    hostile["recipe"] = {**hostile["recipe"], "target": HOSTILE, "donor": "```\n# heading"}
    hostile["findings"] = [{"level": "warning", "id": HOSTILE, "message": HOSTILE}]
    data = card(hostile)
    front, text = split(data)
    assert set(front) == {"library_name", "tags"}
    outside = re.sub(r"^(`{3,})\w*\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script>" not in outside
    assert "](http://x)" not in outside
    assert "\x1b" not in outside
    assert [line for line in outside.splitlines() if line.startswith("#")] == [
        line for line in outside.splitlines() if re.match(r"# .* with a task vector|## [A-Z]", line)
    ]


@pytest.mark.parametrize("place", ['a"\n- b: {x', "/home/me/run/step-100", "s3://bucket/model"])
def test_only_names_on_the_hub_are_claimed_as_base_models(place: str) -> None:
    elsewhere = facts()
    elsewhere["sources"][0]["repository"] = place
    front, text = split(card(elsewhere))
    assert front["base_model"] == ["org/donor", "org/reference"]
    assert f"huggingface.co/{place}" not in text
    assert "/home" not in text


def test_escape_leaves_words_alone() -> None:
    assert escape("Qwen2 of three parts") == "Qwen2 of three parts"
    assert escape("a_b*c") == "a\\_b\\*c"
    assert escape("line\nbreak") == "line\\\\nbreak"


def test_formula_of_several_vectors() -> None:
    terms = [
        {"weight": 0.5, "donor": "a", "reference": "b"},
        {"weight": -2.0, "donor": "c", "reference": "d"},
    ]
    recipe = {"verb": "combine", "target": "t", "terms": terms, "alpha": 1.0}
    assert formula(recipe) == "target + 0.5 * (donor 1 - reference 1) + (-2) * (donor 2 - reference 2)"
    assert formula({**recipe, "alpha": 0.1}).startswith("target + 0.1 * (0.5 * (donor 1")


def test_a_zero_step_is_said_so() -> None:
    zero = facts()
    zero["survival"]["total"] = [0.0, 0.0, None, None, 5.0, 50, 50, 100]
    _, text = split(card(zero))
    assert "the output has the target's weights" in text


def test_a_merge_shows_its_recipe_and_cites_no_vector() -> None:
    document = {"merge_method": "ties", "models": ["```", "b"]}
    recipe = {"verb": "merge", "recipe": [document, {"name": "second"}], "alpha": 1.0, "out_dtype": "F32"}
    front, text = split(card(facts(recipe=recipe)))
    assert front["tags"] == ["merge", "taskvec"]
    block = re.search(r"^(`{3,})yaml\n(.*?)\n\1$", text, flags=re.DOTALL | re.MULTILINE)
    assert block is not None
    assert list(yaml.safe_load_all(block[2])) == [document, {"name": "second"}]
    assert "taskvec merge taskvec_recipe.yaml -o OUT" in text
    assert "2509.01363" not in text


def test_the_decoder_of_a_vector_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the card has it, with names put in: for every encoding, and for rounded values."""
    rng = np.random.default_rng(1)
    reference = rng.standard_normal((300, 40)).astype(np.float32)
    models: list[Tensors] = [{}, {}]
    for share in (0.01, 0.2, 1.0):
        moved = np.where(rng.random(reference.shape) < share, 0.02 * rng.standard_normal(reference.shape), 0)
        donor = (reference + moved).astype(np.float32)
        for tensors, array in zip(models, (donor, reference), strict=True):
            tensors[f"w{share}"] = array
    folders = [write_checkpoint(tmp_path / role, m) for role, m in zip("dr", models, strict=True)]
    tv.extract(*folders, tmp_path / "vec")
    blocks = re.findall(r"```python\n(.*?)```", (tmp_path / "vec" / "README.md").read_text(), re.DOTALL)
    (source,) = [block for block in blocks if "load_file" in block]
    rows = json.loads((tmp_path / "vec" / "taskvec.json").read_text())["vector"]["tensors"]
    assert {row["encoding"] for row in rows.values()} == {"index", "mask", "dense"}
    assert any(row.get("rounded") for row in rows.values())
    monkeypatch.chdir(tmp_path / "vec")
    for name, row in rows.items():
        names: dict[str, Any] = {}
        exec(source.replace("NAME", name).replace("FILE", row["file"]), names)
        donor, reference = (tensors[name].astype(np.float64) for tensors in models)
        np.testing.assert_array_equal(names["vector"], donor - reference)
