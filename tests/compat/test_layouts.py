"""Layouts: the same weights stored in another way give the same result, against transfers in one layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import taskvec as tv

Tensors = dict[str, np.ndarray]
EXPERTS, INNER, HIDDEN, LAYERS = 3, 24, 16, 2
RNG = np.random.default_rng(5)


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)


def one_by_one(scale: float = 1.0) -> Tensors:
    """A model of experts with every weight by itself, under Qwen3-MoE's names."""
    shapes = {
        "model.embed_tokens.weight": (32, HIDDEN),
        "lm_head.weight": (32, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}"
        shapes[f"{stem}.self_attn.q_proj.weight"] = (2 * HIDDEN, HIDDEN)
        shapes[f"{stem}.mlp.gate.weight"] = (EXPERTS, HIDDEN)
        for e in range(EXPERTS):
            for kind in ("gate_proj", "up_proj"):
                shapes[f"{stem}.mlp.experts.{e}.{kind}.weight"] = (INNER, HIDDEN)
            shapes[f"{stem}.mlp.experts.{e}.down_proj.weight"] = (HIDDEN, INNER)
    return {
        name: (numbers(*shape).astype(np.float32) * scale).astype(ml_dtypes.bfloat16)
        for name, shape in shapes.items()
    }


def plus(model: Tensors, other: Tensors) -> Tensors:
    return {
        name: (model[name].astype(np.float32) + other[name].astype(np.float32)).astype(ml_dtypes.bfloat16)
        for name in model
    }


def fused(model: Tensors, *, transposed: bool = False, interleaved: bool = False) -> Tensors:
    """The same with all experts of a layer in two tensors."""
    made = {name: value for name, value in model.items() if ".experts." not in name}
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}.mlp.experts"
        up, down = [], []
        for e in range(EXPERTS):
            gate, each = (model[f"{stem}.{e}.{kind}.weight"] for kind in ("gate_proj", "up_proj"))
            up.append(
                np.stack([gate, each], 1).reshape(2 * INNER, HIDDEN)
                if interleaved
                else np.concatenate([gate, each])
            )
            down.append(model[f"{stem}.{e}.down_proj.weight"])
        for kind, parts in (("gate_up_proj", up), ("down_proj", down)):
            whole = np.stack(parts)
            made[f"{stem}.{kind}"] = np.ascontiguousarray(whole.transpose(0, 2, 1)) if transposed else whole
    return made


def renamed(model: Tensors, rule: Callable[[str], str]) -> Tensors:
    return {rule(name): value for name, value in model.items()}


def w123(name: str) -> str:
    for old, new in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
        name = name.replace(old, new) if ".experts." in name else name
    return name.replace(".mlp.", ".block_sparse_moe.")


def wrapped(name: str) -> str:
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def old_wrapped(name: str) -> str:
    return f"language_model.{name}"


LAYOUTS: dict[str, Callable[[Tensors], Tensors]] = {
    "one by one": lambda model: model,
    "fused": fused,
    "transposed": lambda model: fused(model, transposed=True),
    "w1 w2 w3": lambda model: renamed(model, w123),
    "wrapped": lambda model: renamed(model, wrapped),
    "wrapped, fused": lambda model: renamed(fused(model), wrapped),
    "wrapped, old": lambda model: renamed(model, old_wrapped),
    "without a head class": lambda model: renamed(model, lambda name: name.removeprefix("model.")),
}


def save(folder: Path, tensors: Tensors, config: dict | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "qwen3_moe", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, **(config or {})}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def models() -> tuple[Tensors, Tensors, Tensors]:
    reference = one_by_one()
    return plus(reference, one_by_one(0.1)), plus(reference, one_by_one(0.01)), reference


def transfer(
    folder: Path, target: Tensors, donor: Tensors, reference: Tensors, **settings: object
) -> Tensors:
    paths = [save(folder / role, each) for role, each in zip("tdr", (target, donor, reference), strict=True)]
    tv.transfer(*paths, out=folder / "out", **settings)
    return load_file(folder / "out" / "model.safetensors")


def same(one: Tensors, other: Tensors) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize("theirs", LAYOUTS)
@pytest.mark.parametrize("mine", LAYOUTS)
def test_every_layout_meets_every_other(
    tmp_path: Path, models: tuple[Tensors, Tensors, Tensors], mine: str, theirs: str
) -> None:
    target, donor, reference = models
    plain = transfer(tmp_path / "plain", *models)
    found = transfer(
        tmp_path / "other", LAYOUTS[mine](target), LAYOUTS[theirs](donor), LAYOUTS[theirs](reference)
    )
    same(found, LAYOUTS[mine](plain))
