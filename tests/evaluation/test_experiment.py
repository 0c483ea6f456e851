"""Sweep files: strict, and every mistake named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskvec.errors import NotFoundError, RecipeError
from taskvec.evaluation.experiment import Experiment, experiment, load_experiment, recipes
from taskvec.evaluation.settings import PAPER_TASKS, THINK
from taskvec.evaluation.sweep.sweep import planned_arms

WHOLE = """\
target: org/target
donor: donor
reference: reference
base: base
alphas: [-1, 0, 0.25, 2]
tasks: [gsm8k, sciq]
think: Reason first.
perturb: [typo, numbers]
development: 0.4
controls: {random: 5, permuted: 2}
evaluation:
  backend: vllm
  batch_size: auto
  limit: 100
  chat_template: true
  max_gen_toks: 512
  seed: 7
  model_args: {dtype: bfloat16, tensor_parallel_size: 2, enforce_eager: true}
  metrics: {gsm8k: exact_match}
  confirm_run_unsafe_code: true
merge:
  exclude: [lm_head]
  preset: no-embed
  out_dtype: float32
  rounding: stochastic
  force: [chat-template]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def test_a_whole_file(tmp_path):
    found = load_experiment(write(tmp_path, WHOLE))
    assert found.alphas == (-1.0, 0.0, 0.25, 2.0)
    assert found.tasks == ("gsm8k", "sciq")
    assert (found.controls.random, found.controls.permuted) == (5, 2)
    settings = found.settings()
    assert settings.backend == "vllm"
    assert settings.batch == "auto"
    assert settings.limit == 100
    assert settings.chat_template
    assert settings.model_args == (
        ("dtype", "bfloat16"), ("enforce_eager", "true"), ("tensor_parallel_size", "2"),
    )  # fmt: skip
    assert settings.metric_for("gsm8k") == "exact_match"
    assert settings.allow_unsafe_code
    assert found.merge.preset == "no-embed"


def test_what_is_left_out_has_its_default(tmp_path):
    found = load_experiment(write(tmp_path, "target: t\nvector: v\n"))
    assert found.alphas == (-1.0, 0.0, 0.5, 1.0)
    assert found.tasks == PAPER_TASKS
    assert (found.controls.random, found.controls.permuted) == (3, 1)
    assert found.development == 0.3
    assert found.think is None
    assert [arm.name for arm in planned_arms(found)] == [
        "baseline",
        "alpha=-1",
        "alpha=0",
        "alpha=0.5",
        "alpha=1",
    ]


@pytest.mark.parametrize("text", [WHOLE, "target: t\nvector: v\n", "target: t\nvector: v\nthink: true\n"])
def test_a_written_experiment_is_read_again(tmp_path, text):
    found = load_experiment(write(tmp_path, text))
    assert load_experiment(write(tmp_path, found.to_yaml())) == found


def test_rivals_are_named_by_the_end_of_their_path():
    base = {"target": "t", "donor": "d", "reference": "r"}
    found = experiment({**base, "rivals": ["org/more-sft", "other/more-sft", "x y"]})
    assert found.rival_models == {"more-sft": "org/more-sft", "more-sft-2": "other/more-sft", "x-y": "x y"}
    assert found.models == ("t", "d", "r", "org/more-sft", "other/more-sft", "x y")
    assert experiment({**base, "rivals": "one"}).rivals == ("one",)


def test_think_is_a_text_or_the_papers():
    base = {"target": "t", "vector": "v"}
    assert experiment({**base, "think": True}).think == THINK
    assert experiment({**base, "think": False}).think is None
    assert experiment({**base, "think": "Go."}).think == "Go."


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("target: t\nvector: v\nalphass: [1]\n", r":3: `alphass`: no such key", "`alphas`"),
        ("target: t\nvector: v\nevaluation:\n  chat_tempalte: true\n", r":4: .*no such", "`chat_template`"),
        ("target: t\nvector: v\nmerge: {prest: full}\n", r":3: .*no such key", "`preset`"),
        ("target: t\nvector: v\nzzz: 1\n", r"no such key", "the keys are target"),
        ("target: t\n", r"name `donor` and `reference`, or a saved `vector`", None),
        ("target: t\ndonor: d\n", r"name `donor` and `reference`", None),
        ("donor: d\nreference: r\n", r"`target`: is needed, and not named", None),
        ("target: t\nvector: v\nalphas: [1, x]\n", r":3: .*`x` is not a number", None),
        ("target: t\nvector: v\nalphas: [1, 1.0]\n", r"given twice", None),
        ("target: t\nvector: v\nalphas: [.nan]\n", r"not finite", None),
        ("target: t\nvector: v\nalphas: true\n", r"alphas are numbers", None),
        ("target: t\nvector: v\nperturb: [typos]\n", r":3: .*`typos` is not a perturbation", None),
        ("target: t\nvector: v\ndevelopment: 1.0\n", r":3: `development`", None),
        ("target: t\nvector: v\nthink_only: true\n", r"`think_only` needs `think`", None),
        ("target: t\nvector: v\ncontrols: {random: -1}\n", r"controls.random", None),
        ("target: t\nvector: v\nevaluation: {backend: onnx}\n", r"evaluation.backend", None),
        ("target: t\nvector: v\nevaluation: {limit: many}\n", r"evaluation.limit", None),
        ("target: 3\nvector: v\n", r":1: `target`", None),
        ("target: t\ntarget: u\nvector: v\n", r"`target`", None),
        ("a: 1\n---\nb: 2\n", r"holds one document", None),
        ("", r"sweep\.yaml", None),
        ("- a\n", r"mapping", None),
        ("target: t\nvector: v\nrivals: [r]\n", r"`rivals`: `reference` is needed", None),
        ("target: t\nvector: v\nreference: r\nrivals: [s, s]\n", r":4: .*`s` is named twice", None),
        ("target: t\nvector: v\nsft_alphas: [2]\n", r"`sft_alphas`: `reference` and `base` are needed", None),
        ("target: t\nvector: v\nchoose: twice\n", r":3: `choose`", None),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, text, said, hint):
    with pytest.raises(RecipeError, match=said) as error:
        load_experiment(write(tmp_path, text))
    if hint:
        assert hint in (error.value.hint or "")


def test_a_missing_file_or_name_is_said(tmp_path):
    with pytest.raises(NotFoundError, match=r"nothing\.yaml"):
        load_experiment(tmp_path / "nothing.yaml")
    with pytest.raises(NotFoundError, match="`qwen2") as error:
        load_experiment("qwen2.5-7b")
    assert "qwen2.5-7b-instruct" in (error.value.hint or "")


@pytest.mark.parametrize("name", sorted(recipes()))
def test_shipped_sweeps_are_whole_experiments(name):
    found = load_experiment(name)
    assert isinstance(found, Experiment)
    assert found.donor
    assert found.reference
    names = [arm.name for arm in planned_arms(found)]
    assert {
        "baseline",
        "baseline+think",
        "alpha=1+think",
        "alpha=-1",
        "alpha=0",
        "donor",
        "reference",
    } <= set(names)
    assert 0 < found.development < 1


def test_the_published_triples_ship():
    assert {load_experiment(name).target for name in recipes()} == {
        "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-Math-1.5B",
    }  # fmt: skip
