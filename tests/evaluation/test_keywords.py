"""Keyword arguments of the calls are the keys of a sweep file, of the same types."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import taskvec as tv
from taskvec.evaluation import keywords
from taskvec.evaluation.experiment import Controls, Evaluation, Experiment, Merge, Parts
from taskvec.evaluation.settings import OPTIONS, key_of


@pytest.mark.parametrize(
    ("options", "model"),
    [
        (keywords.SweepOptions, Experiment), (keywords.SettingOptions, Evaluation),
        (keywords.ControlOptions, Controls), (keywords.PartOptions, Parts), (keywords.MergeOptions, Merge),
    ],
    ids=lambda each: each.__name__,
)  # fmt: skip
def test_every_key_of_a_file_is_a_keyword(options: Any, model: Any) -> None:
    assert set(options.__annotations__) == set(model.model_fields)


def test_words_are_those_of_the_settings() -> None:
    found = get_type_hints(keywords.SweepOptions)
    for name in ("arms", "choose", "paper"):
        assert set(get_args(found[name])) == set(get_args(Experiment.model_fields[name].annotation))
    found = get_type_hints(keywords.MergeOptions)
    for name in ("preset", "rounding"):
        assert set(get_args(found[name])) == set(get_args(Merge.model_fields[name].annotation))


def test_what_a_map_does_not_honour_is_refused() -> None:
    for key in {key_of(name) for name in OPTIONS} - set(keywords.MapOptions.__annotations__) - {"tasks"}:
        with pytest.raises(TypeError, match=f"unknown setting `{key}`"):
            tv.importance("m", "o", tasks="t", **{key: 1})


def test_every_name_of_the_package_is_in_its_stub() -> None:
    tree = ast.parse((Path(tv.__file__).parent / "__init__.pyi").read_text())
    stated = {
        alias.name: f"{node.module}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert stated.pop("*") == "taskvec.lazy.methods"
    assert stated == {name: f"taskvec.{module}" for module, names in tv._MODULES.items() for name in names}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 2}, "`seed` needs `paper=True`"),
        ({"jobs": 2}, "`jobs` needs `paper=True`"),
        ({"paper": True, "threads": 2}, "`threads` is not for the demo with `paper`"),
        ({"paper": True, "overwrite": True}, "`overwrite` is not for the demo with `paper`"),
        ({"paper": True, "seed": 2, "pretrained": "a.zip"}, "`seed` goes with training"),
        ({"paper": True, "jobs": 0}, "`jobs` is a whole number, 1 or more"),
        ({"folder": ""}, "`folder` is an empty text"),
    ],
)
def test_mistakes_of_the_demo(
    arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(tv.RecipeError) as caught:
        tv.demo(**arguments)
    assert message in caught.value.message
    assert caught.value.hint
    assert not list(tmp_path.iterdir())
