"""Beside mergekit-moe: every tensor of mixtures of experts, and the figures of their gates.

Not part of a normal run: it needs mergekit 0.1.5 in an environment of its own. Run it by name::

    TASKVEC_MERGEKIT_PYTHON=/path/to/python pytest -rP tests/recipe/parity_mergekit_moe.py

mergekit runs in a process of its own, on models written here; only its output comes back.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import taskvec as tv
from support.models import Tensors, read_tensors
from support.moe import expert, parts, recipe, write_models

# mergekit does not open a shared expert that is no other expert
SHARED = {"shared_experts": [expert("a", residual_scale=0.1)]}
# which has no gate in this layout
PLAIN = {"shared_experts": [{"source_model": "a", "residual_scale": 0.1}]}
# Family of the dense models, and the words of the recipe.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("llama", {"names": "abc"}),
    "mistral": ("mistral", {"names": "ab", "experts_per_token": 1}),
    "qwen": ("qwen2", {"names": "abc", **SHARED}),
    "qwen3": ("qwen3", {"names": "abc"}),
    "deepseek": ("llama", {"names": "ab", "architecture": "deepseek", **PLAIN}),
}
GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "mergekit_moe_gates.json"


def unfused(tensors: Tensors) -> Tensors:
    """Experts one by one, as published checkpoints have them."""
    result: Tensors = {}
    for name, value in tensors.items():
        fused = re.fullmatch(r"(.*\.experts)\.(gate_up_proj|down_proj)", name)
        if not fused:
            result[name] = value
            continue
        words = ("gate_proj", "up_proj") if fused[2] == "gate_up_proj" else ("down_proj",)
        for number, matrix in enumerate(value):
            for word, part in zip(words, np.split(matrix, len(words)), strict=True):
                result[f"{fused[1]}.{number}.{word}.weight"] = part
    return result


# mergekit-moe, which loads the base in bfloat16 for `hidden`, with the base in a type of our choice.
IN_TYPE = """
import sys, torch, transformers
from mergekit.scripts.moe import main

load, dtype = transformers.AutoModelForCausalLM.from_pretrained, getattr(torch, sys.argv.pop(1))
transformers.AutoModelForCausalLM.from_pretrained = lambda *a, **k: load(*a, **{**k, "torch_dtype": dtype})
main()
"""


def theirs(given: dict[str, Any], folder: Path, dtype: str = "bfloat16") -> Tensors:
    (folder / "r.yaml").write_text(yaml.safe_dump(given))
    flags = ["--i-understand-this-is-not-useful-without-training", "--device", "cpu"]
    command = [os.environ["TASKVEC_MERGEKIT_PYTHON"], "-c", IN_TYPE, dtype, "r.yaml", "theirs", *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return parts(unfused(read_tensors(folder / "theirs")))


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_mergekits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    family, words = CASES[name]
    write_models(tmp_path, family)
    given = recipe(dtype="float32", **words)
    expected = theirs(given, tmp_path)
    tv.moe(given, "out")
    found = parts(read_tensors(tmp_path / "out"))
    assert found.keys() == expected.keys()
    worst = {"gates": 0.0, "scaled": 0.0, "others": 0.0}
    for key, value in expected.items():
        error = float(np.linalg.norm(found[key].astype(float) - value) / np.linalg.norm(value))
        is_scaled = "shared_expert" in key and "down_proj" in key
        kind = "gates" if "gate.weight" in key else "scaled" if is_scaled else "others"
        worst[kind] = max(worst[kind], error)
    print(f"{name}: {len(expected)} tensors, worst relative error {worst}")
    assert worst["gates"] < 1e-6
    # mergekit multiplies in the type of the model, bfloat16 here, and rounds twice
    assert worst["scaled"] < 2**-8
    assert worst["others"] == 0.0


# mergekit's own type of the base has its own rounding, which grows from layer to layer
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_gates_of_hidden_states_are_mergekits(
    dtype: str, error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_models(tmp_path, "llama")
    given = recipe("hidden", "abc", dtype="float32")
    expected = theirs(given, tmp_path, dtype)
    tv.moe(given, "out")
    found = parts(read_tensors(tmp_path / "out"))
    worst = 0.0
    for key in (key for key in expected if "gate.weight" in key):
        for own, other in zip(found[key].astype(float), expected[key].astype(float), strict=True):
            worst = max(worst, float(np.linalg.norm(own - other) / np.linalg.norm(other)))
    print(f"hidden, base in {dtype}: worst relative error of a gate {worst:.1e}")
    assert worst < error


def test_the_recorded_gates_are_mergekits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `tests/lazy/test_moe.py` compares with; written where it is missing."""
    monkeypatch.chdir(tmp_path)
    write_models(tmp_path, "llama")
    router = theirs(recipe(names="abc", dtype="float32"), tmp_path)["model.layers.0.mlp.gate.weight"]
    if not GOLDEN.exists():
        facts = {"of": "mergekit 0.1.5, mergekit-moe, cheap_embed, by tests/recipe/parity_mergekit_moe.py"}
        GOLDEN.write_text(json.dumps({**facts, "router": router.tolist()}) + "\n")
    assert np.array_equal(router, np.array(json.loads(GOLDEN.read_text())["router"], np.float32))
