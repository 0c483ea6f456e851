"""Models of a sweep that are named with an adapter: NumPy adds it as PEFT's formula says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from support.evaluation_models import small, tiny
from support.evaluation_records import arms_of
from support.models import read_tensors
from taskvec.errors import RecipeError
from taskvec.evaluation.sweep.adapters import FOLDER, adapted
from taskvec.evaluation.sweep.events import Event
from taskvec.evaluation.sweep.sweep import run_sweep

RANK, ALPHA = 2, 4
MODULE = "model.layers.{}.self_attn.q_proj"


def write_adapter(folder: Path, seed: int) -> dict[str, np.ndarray]:
    """An adapter of the queries; what it adds, by the names of weights."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    tensors, added = {}, {}
    for layer in range(2):
        down = rng.normal(0, 0.1, (RANK, 32)).astype(np.float32)
        up = rng.normal(0, 0.1, (32, RANK)).astype(np.float32)
        name = MODULE.format(layer)
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
        added[f"{name}.weight"] = ALPHA / RANK * (up.astype(np.float64) @ down)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return added


def test_a_rival_may_be_a_model_and_an_adapter(tmp_path: Path) -> None:
    added = write_adapter(tmp_path / "lora", 1)
    rival = f"{tiny().reference}+{tmp_path / 'lora'}"
    sweep = small(
        tasks=["tiny_choice"], perturb=[], alphas=[1], base=None, rivals=[rival],
        controls={"random": 0, "permuted": 0},
        evaluation={"device": "cpu", "include_path": str(tiny().tasks), "limit": 3}, development=0,
    )  # fmt: skip
    events: list[Event] = []
    out = tmp_path / "out"
    run_sweep(sweep, out, progress=events.append)
    assert {"rival-lora", "rival-lora@norm"} <= set(arms_of(out))
    (folder,) = (out / FOLDER).glob("*/lora")
    assert any(str(folder) in event.arm for event in events if event.kind == "note")
    merged, reference = read_tensors(folder), read_tensors(tiny().reference)
    for name, step in added.items():
        np.testing.assert_allclose(merged[name], reference[name] + step, atol=1e-6)
    changed = {name for name in reference if not np.array_equal(merged[name], reference[name])}
    assert changed == set(added)
    assert rival in (out / "experiment.yaml").read_text()
    times = {path: path.stat().st_mtime_ns for path in (out / "arms").glob("*.json")}
    run_sweep(sweep, out)  # nothing is merged or evaluated a second time
    assert {path: path.stat().st_mtime_ns for path in (out / "arms").glob("*.json")} == times
    (weights,) = folder.glob("*.safetensors")
    good = weights.read_bytes()
    weights.write_bytes(good[: len(good) // 2] + bytes(len(good) - len(good) // 2))
    run_sweep(sweep, out)
    assert weights.read_bytes() == good
    assert {path: path.stat().st_mtime_ns for path in (out / "arms").glob("*.json")} == times


def test_another_adapter_of_the_same_name_is_another_rival(tmp_path: Path) -> None:
    from taskvec.evaluation.sweep.adapters import with_adapters

    write_adapter(tmp_path / "lora", 1)
    sweep = small(rivals=[f"{tiny().reference}+{tmp_path / 'lora'}"])
    (first,) = with_adapters(sweep, tmp_path / "out", lambda _text: None).rivals
    before = read_tensors(Path(first))
    for path in (tmp_path / "lora").iterdir():
        path.unlink()
    (tmp_path / "lora").rmdir()
    write_adapter(tmp_path / "lora", 2)
    (second,) = with_adapters(sweep, tmp_path / "out", lambda _text: None).rivals
    assert second == first
    name = f"{MODULE.format(0)}.weight"
    assert not np.array_equal(read_tensors(Path(second))[name], before[name])


def test_a_folder_with_a_plus_in_its_name_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "a+b").mkdir()
    assert not adapted(str(tmp_path / "a+b"))
    assert not adapted("org/name")
    with pytest.raises(RecipeError, match=r"MODEL\+ADAPTER"):
        adapted("a+b+c")
