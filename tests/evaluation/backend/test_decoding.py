"""Answers are decoded as the task says, and by a model's own habits where they are asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.evaluation_models import tiny
from taskvec.errors import EvaluationError, RecipeError
from taskvec.evaluation.backend.decoding import check_alike
from taskvec.evaluation.backend.evaluate import evaluate
from taskvec.evaluation.record import ArmRecord, setting_differences
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.tasks.defaults import task_defaults
from taskvec.evaluation.tasks.generation import generation

HABITS = {"repetition_penalty": 5.0, "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8}
SPECIAL = {"eos_token_id": [1, 5], "pad_token_id": 0}


@pytest.fixture(scope="module")
def habitual(tmp_path_factory) -> Path:
    """The tiny target with habits of its own, as instruct models have them."""
    folder = tmp_path_factory.mktemp("habitual") / "model"
    shutil.copytree(tiny().target, folder)
    (folder / "generation_config.json").write_text(json.dumps({**HABITS, **SPECIAL}))
    return folder


def run(model: Path, **more: Any) -> ArmRecord:
    settings = Settings(
        tasks=("tiny_gen",), device="cpu", batch_size=4, limit=4, include_path=tiny().tasks, **more
    )
    return evaluate(model, settings)


def outputs(record: ArmRecord) -> list[str]:
    return [sample.output for sample in record.samples["tiny_gen"]]


def by_transformers(model: Path, record: ArmRecord, **habits: Any) -> list[str]:
    """The same answers one at a time by `generate`, with nothing of the model's file but what is named."""
    weights, words = AutoModelForCausalLM.from_pretrained(tiny().target), AutoTokenizer.from_pretrained(model)
    found = []
    for sample in record.samples["tiny_gen"]:
        prompt = words(sample.question, return_tensors="pt")
        tokens = weights.generate(
            **prompt, max_new_tokens=12, do_sample=False, eos_token_id=[1, 5], pad_token_id=0, **habits
        )
        text = words.decode(tokens[0, prompt.input_ids.shape[1] :], skip_special_tokens=True)
        found.append(text.split("\n\n")[0])
    return found


def test_a_models_habits_are_not_followed_unasked(habitual):
    record = run(habitual)
    assert outputs(record) == by_transformers(habitual, record)
    assert record.settings["decoding"] == "neutral"
    assert "generation_config" not in record.settings


def test_habits_that_are_asked_for_are_followed_and_recorded(habitual):
    plain, own = run(habitual), run(habitual, decoding="model")
    assert outputs(own) == by_transformers(habitual, own, repetition_penalty=5.0)
    assert outputs(own) != outputs(plain)
    assert own.identity != plain.identity
    assert own.settings["generation_config"] == HABITS
    # another model's habits are no ground for a comparison
    (found,) = setting_differences(own, run(tiny().target, decoding="model"))
    assert found.startswith("generation_config: ")


def test_models_of_different_habits_are_refused_before_they_are_run(habitual, tmp_path):
    check_alike({"T": tiny().target, "D": tiny().donor, "R": tiny().reference})
    with pytest.raises(
        EvaluationError, match=r"`T` and `D` decode differently .*: do_sample is None and True"
    ):
        check_alike({"T": tiny().target, "D": habitual})
    (tmp_path / "generation_config.json").write_text("[1")
    with pytest.raises(EvaluationError, match=r"cannot read .*generation_config\.json"):
        check_alike({"T": tmp_path})


def test_vllm_has_no_habits_to_follow():
    with pytest.raises(RecipeError, match="decoding `model` needs the backend `hf`"):
        Settings(tasks=("t",), backend="vllm", decoding="model")
    with pytest.raises(RecipeError, match="decoding `x` is not one of"):
        Settings(tasks=("t",), decoding="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "neutral", "top_k"),
    [
        ({"do_sample": True, "temperature": 0.2}, True, 0),
        ({"do_sample": True, "temperature": 0.2, "top_k": 5}, True, 5),
        ({"do_sample": True, "temperature": 0.2}, False, None),
        ({"do_sample": False}, True, None),
    ],
)
def test_sampling_is_from_all_tokens_unless_the_task_says_otherwise(asked, neutral, top_k):
    found = generation(
        "t", asked, task_defaults("t"), chat=False, neutral=neutral, wanted=None, max_length=None
    )
    assert found.arguments.get("top_k") == top_k
