"""The callback in a real training of a tiny model, and the plugin and command of axolotl by its interface."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner

import taskvec as tv
from taskvec.integrations.trainer import TaskVectorCallback


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    place = tmp_path_factory.mktemp("models") / "base"
    transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(place)
    return place


class Sentences(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(12) * (number + 3)) % 64
        return {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones(12, dtype=torch.long)}


def train(base: Path, out: Path, callback: Any, *, lora: bool = False, steps: int = 4) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    if lora:
        import peft

        model = peft.get_peft_model(
            model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        )
    arguments = transformers.TrainingArguments(
        output_dir=str(out), max_steps=steps, save_steps=2, learning_rate=1e-2, report_to=[], use_cpu=True,
        per_device_train_batch_size=2, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    transformers.Trainer(model=model, args=arguments, train_dataset=Sentences(), callbacks=[callback]).train()


def test_vectors_and_merges_of_a_real_training(base: Path, tmp_path: Path) -> None:
    callback = TaskVectorCallback(
        base, tmp_path / "made", target=base, alpha=0.5, average=2, stop_on_error=True
    )
    train(base, tmp_path / "run", callback)
    names = ["vector-2", "merged-2", "vector-4", "merged-4", "average"]
    assert callback.saved == [str(tmp_path / "made" / name) for name in names]
    for step in (2, 4):
        trained = tmp_path / "run" / f"checkpoint-{step}"
        tv.apply(base, tmp_path / "made" / f"vector-{step}", out=tmp_path / f"again-{step}")
        assert tv.check_merge(base, trained, tmp_path / f"again-{step}", alpha=1.0)
        assert tv.check_merge(base, trained, tmp_path / "made" / f"merged-{step}", alpha=0.5)
        assert tv.verify(tmp_path / "made" / f"vector-{step}")
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "made" / "average")


def test_a_recipe_is_run_for_each_checkpoint(base: Path, tmp_path: Path) -> None:
    recipe = {
        "merge_method": "slerp", "base_model": str(base), "models": [{"model": "{checkpoint}"}],
        "parameters": {"t": 0.5},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for given in (recipe, tmp_path / "recipe.yaml"):
        callback = TaskVectorCallback(
            base, tmp_path / "made", vectors=False, recipe=given, stop_on_error=True
        )
        train(base, tmp_path / "run", callback, steps=2)
        assert callback.saved == [str(tmp_path / "made" / "merged-2")]
        manifest = json.loads((tmp_path / "made" / "merged-2" / "taskvec.json").read_text())
        assert str(tmp_path / "run" / "checkpoint-2") in json.dumps(manifest["recipe"])


def test_an_adapter_is_merged_into_a_target(base: Path, tmp_path: Path) -> None:
    callback = TaskVectorCallback(base, tmp_path / "made", target=base, stop_on_error=True)
    train(base, tmp_path / "run", callback, lora=True, steps=2)
    assert callback.saved == [str(tmp_path / "made" / "merged-2")]
    assert tv.check_merge(base, tmp_path / "run" / "checkpoint-2", tmp_path / "made" / "merged-2")


def test_an_error_does_not_end_the_training(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "taskvec"):
        train(base, tmp_path / "run", TaskVectorCallback(tmp_path / "nothing", tmp_path / "made"), steps=2)
    assert "nothing" in caplog.text
    assert "the training goes on" in caplog.text
    assert (tmp_path / "run" / "checkpoint-2").exists()
    with pytest.raises(tv.Error):
        train(
            base,
            tmp_path / "run2",
            TaskVectorCallback(tmp_path / "no", tmp_path / "m", stop_on_error=True),
            steps=2,
        )


@pytest.mark.parametrize(
    "given",
    [
        {"recipe": {"merge_method": "linear"}},
        {"average": 1},
        {"recipe": {"x": "{checkpoint}"}, "target": "t"},
    ],
)
def test_what_makes_no_sense_is_refused_before_the_training(given: dict[str, Any]) -> None:
    with pytest.raises(tv.RecipeError) as caught:
        TaskVectorCallback("base", "out", **given)
    assert caught.value.hint


# --- axolotl ----------------------------------------------------------------------------------------------
@pytest.fixture
def axolotl(monkeypatch: pytest.MonkeyPatch) -> type:
    """The part of axolotl that calls plugins, as its base class documents it."""
    base = types.ModuleType("axolotl.integrations.base")

    class BasePlugin:
        def get_input_args(self) -> str | None: ...
        def add_callbacks_pre_trainer(self, *_: Any) -> list[Any]:
            return []

        def add_callbacks_post_trainer(self, *_: Any) -> list[Any]:
            return []

    base.BasePlugin = BasePlugin  # type: ignore[attr-defined]
    for name in ("axolotl", "axolotl.integrations"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "axolotl.integrations.base", base)
    monkeypatch.delitem(sys.modules, "taskvec.integrations.axolotl", raising=False)
    return BasePlugin


def loaded(name: str) -> Any:
    """A plugin by its name in a configuration: a module and a class."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)()


def test_the_plugin_adds_the_callback_that_the_configuration_asks_for(axolotl: type) -> None:
    plugin = loaded("taskvec.integrations.axolotl.TaskVectorPlugin")
    assert isinstance(plugin, axolotl)
    module, _, attribute = plugin.get_input_args().rpartition(".")
    fields = getattr(importlib.import_module(module), attribute)
    cfg = {"base_model": "org/base", "output_dir": "runs", "task_vector": {"target": "org/t", "alpha": 0.5}}
    assert fields(**cfg).task_vector == cfg["task_vector"]
    (callback,) = plugin.add_callbacks_post_trainer(cfg, None)
    assert isinstance(callback, transformers.TrainerCallback)
    assert (callback.reference, callback.target, callback.alpha) == ("org/base", "org/t", 0.5)
    assert callback.out == Path("runs/task-vectors")
    with pytest.raises(tv.RecipeError) as caught:
        plugin.add_callbacks_post_trainer({**cfg, "task_vector": {"tarqet": "x"}}, None)
    assert caught.value.hint == "did you mean `target`?"


def entry_point() -> EntryPoint:
    """What pyproject.toml declares for axolotl's group of commands."""
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["axolotl.cli_commands"].items()
    return EntryPoint(name, value, "axolotl.cli_commands")


def test_the_command_of_axolotl(base: Path, tmp_path: Path) -> None:
    command = entry_point().load()
    assert isinstance(command, click.Command)
    train(base, tmp_path / "run", TaskVectorCallback(base, tmp_path / "x", vectors=False), steps=2)
    trained = tmp_path / "run" / "checkpoint-2"
    config = tmp_path / "config.yml"
    config.write_text(yaml.safe_dump({"base_model": str(base), "output_dir": str(trained), "datasets": []}))
    done = CliRunner().invoke(command, [str(config)])
    assert done.exit_code == 0, done.output
    assert tv.load_vector(f"{trained}-task-vector")
    done = CliRunner().invoke(
        command, [str(config), "--target", str(base), "--alpha", "0.5", "-o", str(tmp_path / "m")]
    )
    assert done.exit_code == 0, done.output
    assert tv.check_merge(base, trained, tmp_path / "m", alpha=0.5)


@pytest.mark.parametrize("text", ["- a\n", "base_model: x\n", "a: [\n", ""])
def test_a_configuration_without_models_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yml").write_text(text)
    done = CliRunner().invoke(entry_point().load(), [str(tmp_path / "c.yml")])
    assert done.exit_code == 1
    assert "hint:" in done.output
