"""A model that takes the weights of the next folder: what loading gives, or it is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from support.evaluation_models import tiny
from taskvec.errors import EvaluationError
from taskvec.evaluation.backend.held import let_go, load_held
from taskvec.evaluation.backend.load import load_model
from taskvec.evaluation.settings import Settings

SETTINGS = Settings(tasks=("tiny_choice",), device="cpu", batch_size=4)


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    let_go()
    yield
    let_go()


def weights(loaded: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in loaded.model.state_dict().items()}


def assert_as_loaded(loaded: Any, folder: Path) -> None:
    found, expected = weights(loaded), weights(load_model(folder, SETTINGS))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight  # tied, as before


def test_the_next_weights_are_put_into_the_same_model() -> None:
    models = tiny()
    first = load_held(str(models.donor), SETTINGS)
    first.batch_size_per_gpu = 1  # as a batch that did not fit leaves it
    second = load_held(str(models.reference), SETTINGS)
    assert second is first
    assert second.batch_size_per_gpu == 4
    assert_as_loaded(second, models.reference)


def altered(folder: Path, change: str) -> Path:
    """A neighbour that differs in more than its weights."""
    shutil.copytree(tiny().reference, folder)
    path, values = folder / "model.safetensors", load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    if change == "type":
        values = {name: value.bfloat16() for name, value in values.items()}
    elif change == "a tensor more":
        values["extra.weight"] = torch.zeros(2)
    elif change == "a tensor less":
        values.pop(next(name for name in values if "q_proj.bias" in name))
    elif change == "config":
        config["rms_norm_eps"] = 1e-3
    elif change == "quantised":
        config["quantization_config"] = {"quant_method": "none-such"}
    elif change == "code":
        config["auto_map"] = {"AutoModelForCausalLM": "other.Model"}
    save_file(values, path, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("change", ["type", "a tensor more", "a tensor less", "config"])
def test_other_models_are_loaded(change: str, tmp_path: Path) -> None:
    first = load_held(str(tiny().reference), SETTINGS)
    folder = altered(tmp_path / "other", change)
    second = load_held(str(folder), SETTINGS)
    assert second is not first
    if change != "a tensor less":  # transformers draws what is missing
        assert_as_loaded(second, folder)


@pytest.mark.parametrize("change", ["quantised", "code"])
def test_models_that_are_more_than_weights_are_left_to_their_own_loading(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskvec.evaluation.backend import held

    asked: list[str] = []
    monkeypatch.setattr(held, "load_model", lambda model, _: asked.append(model))
    folder = str(altered(tmp_path / "other", change))
    load_held(folder, SETTINGS)
    load_held(folder, SETTINGS)
    assert asked == [folder, folder]


def test_weights_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    load_held(str(tiny().reference), SETTINGS)
    shutil.copytree(tiny().donor, tmp_path / "donor")
    file = tmp_path / "donor" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(EvaluationError, match=r"cannot read `.*model\.safetensors`"):
        load_held(str(tmp_path / "donor"), SETTINGS)
    assert_as_loaded(load_held(str(tiny().donor), SETTINGS), tiny().donor)


@pytest.mark.parametrize("call", ["safe_open", "get_tensor"])
def test_an_error_of_torch_s_own_names_the_file(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load_held(str(tiny().reference), SETTINGS)
    inner = safetensors.safe_open

    class Failing:
        def __init__(self, path: Path, framework: str) -> None:
            self.file = inner(path, framework)
            self.get_tensor("", "safe_open")

        def __enter__(self) -> Failing:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def keys(self) -> list[str]:
            return self.file.keys()

        def get_slice(self, name: str) -> Any:
            return self.file.get_slice(name)

        def get_tensor(self, name: str, where: str = "get_tensor") -> Any:
            if where == call:
                raise RuntimeError("unable to stat the file: Stale file handle (116)")
            return self.file.get_tensor(name) if name else None

    monkeypatch.setattr(safetensors, "safe_open", Failing)
    with pytest.raises(EvaluationError, match="Stale file handle") as error:
        load_held(str(tiny().donor), SETTINGS)
    assert error.value.hint
    monkeypatch.undo()
    assert_as_loaded(load_held(str(tiny().donor), SETTINGS), tiny().donor)
