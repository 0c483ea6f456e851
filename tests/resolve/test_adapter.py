"""Adapters at an address: headers first, fetched for a run, found again offline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import taskvec as tv
from support.hub_server import Hub, Repo
from taskvec.lazy.recipe import open_recipe
from taskvec.resolve.adapter import open_adapter

NAME = "model.layers.0.self_attn.q_proj"
RECIPE = {"merge_method": "passthrough", "models": [{"model": "org/base+org/adapter"}]}


@pytest.fixture
def want(hub: Hub, tmp_path: Path) -> np.ndarray:
    """The merged weight of a model and an adapter that the hub has."""
    rng = np.random.default_rng(0)
    # So large that the header is a small part of the file.
    base, a, b = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((512, 400), (200, 400), (512, 200))
    )
    for folder in ("base", "adapter"):
        (tmp_path / "source" / folder).mkdir(parents=True)
    source = tmp_path / "source"
    save_file({f"{NAME}.weight": base}, source / "base" / "model.safetensors", {"format": "pt"})
    (source / "base" / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
    factors = {f"base_model.model.{NAME}.lora_A.weight": a, f"base_model.model.{NAME}.lora_B.weight": b}
    save_file(factors, source / "adapter" / "adapter_model.safetensors")
    (source / "adapter" / "adapter_config.json").write_text(json.dumps({"r": 200, "lora_alpha": 400}))
    (source / "adapter" / "optimizer.pt").write_bytes(b"not wanted")
    for folder in ("base", "adapter"):
        hub.repos[f"org/{folder}"] = Repo.from_folder(source / folder)
    return base + 2 * (b @ a)


def result(folder: Path) -> np.ndarray:
    return load_file(folder / "model.safetensors")[f"{NAME}.weight"]


def test_headers_first_then_fetched_then_offline(
    hub: Hub, want: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = open_adapter("org/adapter@main")
    assert adapter.factors[f"{NAME}.weight"].scale == 2
    assert adapter.download_bytes == len(hub.repos["org/adapter"].files["adapter_model.safetensors"])
    assert hub.weight_bytes_sent() < adapter.download_bytes / 2
    plan = open_recipe(RECIPE).plan()
    assert plan.download > adapter.download_bytes
    tv.merge(RECIPE, tmp_path / "out")
    np.testing.assert_allclose(result(tmp_path / "out"), want, rtol=1e-4, atol=1e-4)
    assert tv.verify(tmp_path / "out").ok
    assert not any("optimizer" in request.path for request in hub.requests)
    sources = json.loads((tmp_path / "out" / "taskvec.json").read_text())["sources"]
    assert sources[1]["repository"] == "org/adapter"
    assert sources[1]["revision"] == hub.repos["org/adapter"].commit
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_adapter("org/adapter").download_bytes == 0
    tv.merge(RECIPE, tmp_path / "offline")
    assert result(tmp_path / "offline").tobytes() == result(tmp_path / "out").tobytes()


def test_an_adapter_of_a_full_commit(hub: Hub, want: np.ndarray, tmp_path: Path) -> None:
    spec = f"{tmp_path}/source/base+hf://org/adapter@{hub.repos['org/adapter'].commit}"
    tv.merge({"merge_method": "passthrough", "models": [{"model": spec}]}, tmp_path / "out")
    np.testing.assert_allclose(result(tmp_path / "out"), want, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("want")
def test_a_repository_without_an_adapter(hub: Hub) -> None:
    with pytest.raises(tv.NotFoundError, match="`org/base` holds no LoRA adapter"):
        open_adapter("org/base")
    with pytest.raises(tv.NotFoundError):
        open_adapter("org/nothing")
    hub.faults.status["*"] = 500
    with pytest.raises(tv.HubError):
        open_adapter("org/adapter")


def test_weights_that_change_between_plan_and_run(hub: Hub, want: np.ndarray, tmp_path: Path) -> None:
    assert want.size
    file = hub.repos["org/adapter"].files["adapter_model.safetensors"]
    hub.faults.content["adapter_model.safetensors"] = file.replace(b"lora_A", b"lora_C")
    with pytest.raises(tv.Error):
        tv.merge(RECIPE, tmp_path / "out")
    assert not (tmp_path / "out" / "taskvec.json").exists()
