"""Adapters across layouts: factors of a weight that its model stores in another way, against NumPy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import taskvec as tv
from support.layouts import (
    ATTENTION,
    EXPERTS,
    FP8,
    HIDDEN,
    INNER,
    LAYOUTS,
    Tensors,
    as_gpt_oss,
    as_phi3,
    biased,
    decoded,
    load,
    near,
    numbers,
    one_by_one,
    quantised,
    save,
)

RANK, ALPHA = 2, 3.0
PREFIX = "base_model.model."


def adapter(folder: Path, changes: dict[str, tuple[int, int]], **config: object) -> dict[str, np.ndarray]:
    """Factors of modules, given with outputs and inputs, saved as PEFT does; the change of each weight."""
    rng = np.random.default_rng(7)
    stored, deltas = {}, {}
    for module, (outputs, inputs) in changes.items():
        a, b = (rng.standard_normal(shape, np.float32) for shape in ((RANK, inputs), (outputs, RANK)))
        stored |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
        deltas[f"{module}.weight"] = ALPHA / RANK * (b.astype(np.float64) @ a.astype(np.float64))
    return save_adapter(folder, stored, deltas, **config)


def save_adapter(
    folder: Path, stored: Tensors, deltas: dict[str, np.ndarray], **config: object
) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    save_file(stored, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return deltas


def merged(folder: Path, spec: str, **settings: object) -> Tensors:
    tv.merge({"merge_method": "passthrough", "models": [{"model": spec}]}, folder, **settings)
    return load(folder / "model.safetensors")


def with_change(model: Tensors, deltas: dict[str, np.ndarray]) -> Tensors:
    """In float64, rounded once."""
    return {
        name: (value.astype(np.float64) + deltas.get(name, 0.0)).astype(ml_dtypes.bfloat16)
        for name, value in model.items()
    }


CHANGES = {
    "model.layers.0.self_attn.q_proj": (2 * HIDDEN, HIDDEN),
    "model.layers.0.mlp.experts.1.gate_proj": (INNER, HIDDEN),
    "model.layers.0.mlp.experts.1.up_proj": (INNER, HIDDEN),
    "model.layers.1.mlp.experts.2.up_proj": (INNER, HIDDEN),
    "model.layers.1.mlp.experts.0.down_proj": (HIDDEN, INNER),
    "model.layers.1.mlp.gate": (EXPERTS, HIDDEN),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_adapter_of_single_experts_meets_every_layout(tmp_path: Path, layout: str) -> None:
    model = one_by_one()
    deltas = adapter(tmp_path / "a", CHANGES)
    save(tmp_path / "m", LAYOUTS[layout](model))
    found = merged(tmp_path / "out", f"{tmp_path}/m+{tmp_path}/a")
    near(found, LAYOUTS[layout](with_change(model, deltas)))
    untouched = [
        name for name, value in LAYOUTS[layout](model).items() if value.tobytes() == found[name].tobytes()
    ]
    assert len(untouched) >= 3


@pytest.mark.parametrize("theirs", LAYOUTS)
@pytest.mark.parametrize("mine", ["one by one", "fused", "transposed", "w1 w2 w3"])
def test_an_adapted_model_meets_a_base_of_another_layout(tmp_path: Path, mine: str, theirs: str) -> None:
    base, other = one_by_one(), one_by_one()
    deltas = adapter(tmp_path / "a", CHANGES)
    save(tmp_path / "b", LAYOUTS[mine](base))
    save(tmp_path / "m", LAYOUTS[theirs](other))
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": f"{tmp_path}/b",
        "models": [{"model": f"{tmp_path}/m+{tmp_path}/a", "parameters": {"weight": 0.5}}],
    }
    tv.merge(recipe, tmp_path / "out")
    expected = {
        name: (
            value.astype(np.float64)
            + 0.5 * (other[name].astype(np.float64) + deltas.get(name, 0.0) - value.astype(np.float64))
        ).astype(ml_dtypes.bfloat16)
        for name, value in base.items()
    }
    near(load(tmp_path / "out" / "model.safetensors"), LAYOUTS[mine](expected))


@pytest.mark.parametrize("theirs", ["one by one", "fused", "transposed", "wrapped, fused"])
@pytest.mark.parametrize("mine", ["one by one", "fused", "transposed", "w1 w2 w3"])
def test_an_adapter_taken_relative_to_its_own_model(tmp_path: Path, mine: str, theirs: str) -> None:
    """It is its change alone, on a base of another layout."""
    base, other = one_by_one(), one_by_one()
    deltas = adapter(tmp_path / "a", CHANGES)
    save(tmp_path / "b", LAYOUTS[mine](base))
    save(tmp_path / "m", LAYOUTS[theirs](other))
    own = f"{tmp_path}/m"
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": f"{tmp_path}/b",
        "models": [{"model": f"{own}+{tmp_path}/a", "relative_to": own, "parameters": {"weight": 0.5}}],
    }
    tv.merge(recipe, tmp_path / "out")
    expected = with_change(base, {name: 0.5 * delta for name, delta in deltas.items()})
    near(load(tmp_path / "out" / "model.safetensors"), LAYOUTS[mine](expected))


PHI3 = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "model_type": "phi3"}


def dense() -> Tensors:
    weights = {f"model.layers.0.self_attn.{kind}.weight": numbers(n, HIDDEN) for kind, n in ATTENTION.items()}
    weights |= {
        f"model.layers.0.mlp.{kind}.weight": numbers(INNER, HIDDEN) for kind in ("gate_proj", "up_proj")
    }
    return weights | {"model.norm.weight": numbers(HIDDEN)}


@pytest.mark.parametrize("names", [["self_attn.q_proj"], ["self_attn.v_proj", "mlp.up_proj"], []])
def test_an_adapter_of_projections_on_fused_rows(tmp_path: Path, names: list[str]) -> None:
    model = dense()
    sizes = {f"self_attn.{kind}": size for kind, size in ATTENTION.items()}
    sizes |= {"mlp.gate_proj": INNER, "mlp.up_proj": INNER}
    wanted = {f"model.layers.0.{name}": (sizes[name], HIDDEN) for name in names or sizes}
    deltas = adapter(tmp_path / "a", wanted)
    save(tmp_path / "m", as_phi3(model), PHI3)
    found = merged(tmp_path / "out", f"{tmp_path}/m+{tmp_path}/a")
    near(found, as_phi3(with_change(model, deltas)))


def test_an_adapter_of_fused_projections_on_single_ones(tmp_path: Path) -> None:
    model = dense()
    changes = {
        "model.layers.0.self_attn.qkv_proj": (sum(ATTENTION.values()), HIDDEN),
        "model.layers.0.mlp.gate_up_proj": (2 * INNER, HIDDEN),
    }
    deltas = adapter(tmp_path / "a", changes)
    save(tmp_path / "m", model, PHI3)
    found = merged(tmp_path / "out", f"{tmp_path}/m+{tmp_path}/a")
    near(as_phi3(found), with_change(as_phi3(model), deltas))


def test_an_adapter_of_heads_in_turn(tmp_path: Path) -> None:
    """GPT-NeoX stores the three for one head after the other."""
    config = {"num_attention_heads": 4, "hidden_size": HIDDEN, "model_type": "gpt_neox"}
    stem = "gpt_neox.layers.0.attention"
    single = {f"{stem}.{kind}_proj": (HIDDEN, HIDDEN) for kind in "qkv"}
    weights = {f"{name}.weight": numbers(HIDDEN, HIDDEN) for name in single}

    def by_head(model: Tensors) -> Tensors:
        parts = [model[f"{name}.weight"].reshape(4, 1, HIDDEN // 4, HIDDEN) for name in single]
        return {f"{stem}.query_key_value.weight": np.concatenate(parts, 1).reshape(3 * HIDDEN, HIDDEN)}

    deltas = adapter(tmp_path / "a", single)
    save(tmp_path / "m", by_head(weights), config)
    near(merged(tmp_path / "out", f"{tmp_path}/m+{tmp_path}/a"), by_head(with_change(weights, deltas)))
    deltas = adapter(tmp_path / "b", {f"{stem}.query_key_value": (3 * HIDDEN, HIDDEN)})
    save(tmp_path / "n", weights, config)
    found = by_head(merged(tmp_path / "other", f"{tmp_path}/n+{tmp_path}/b"))
    near(found, with_change(by_head(weights), deltas))


def parameter(folder: Path, names: dict[str, tuple[int, int]], order: str) -> dict[str, np.ndarray]:
    """Factors of experts as PEFT saves them for `target_parameters`; the change of each tensor."""
    rng = np.random.default_rng(3)
    stored, deltas, module = {}, {}, "model.layers.1.mlp.experts"
    for depth, (name, (outputs, inputs)) in enumerate(names.items()):
        a = rng.standard_normal((RANK * EXPERTS, inputs), np.float32)
        b = rng.standard_normal((outputs, RANK * EXPERTS), np.float32)
        key = f"{PREFIX}{module}{'.base_layer' * (len(names) - 1 - depth)}"
        stored |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        left = b.astype(np.float64).reshape(outputs, RANK, EXPERTS)
        right = a.astype(np.float64).reshape(EXPERTS, RANK, inputs)
        deltas[f"{module}.{name}"] = ALPHA / RANK * np.einsum(f"ore,eri->{order}", left, right)
    targets = [f"mlp.experts.{name}" for name in names]
    return save_adapter(folder, stored, deltas, target_parameters=targets, target_modules=[])


@pytest.mark.parametrize("layout", ["one by one", "fused", "transposed", "w1 w2 w3", "wrapped, fused"])
@pytest.mark.parametrize("names", [["gate_up_proj", "down_proj"], ["down_proj"], ["gate_up_proj"]])
@pytest.mark.parametrize("is_old", [False, True])
def test_an_adapter_of_experts_in_one_parameter(
    tmp_path: Path, layout: str, names: list[str], is_old: bool
) -> None:
    """``target_parameters``; releases of PEFT before 0.19 take what is stored first as the inputs."""
    sizes = {"gate_up_proj": (2 * INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    own = {name: sizes[name][:: -1 if is_old else 1] for name in names}
    deltas = parameter(tmp_path / "a", own, "eio" if is_old else "eoi")
    model = one_by_one()
    save(tmp_path / "m", LAYOUTS[layout](model))
    found = merged(tmp_path / "out", f"{tmp_path}/m+{tmp_path}/a")
    whole = with_change(LAYOUTS["fused"](model), deltas)
    stem = "model.layers.1.mlp.experts"
    single = dict(model)
    for e in range(EXPERTS):
        gate_up = whole[f"{stem}.gate_up_proj"][e]
        single[f"{stem}.{e}.gate_proj.weight"] = gate_up[:INNER]
        single[f"{stem}.{e}.up_proj.weight"] = gate_up[INNER:]
        single[f"{stem}.{e}.down_proj.weight"] = whole[f"{stem}.down_proj"][e]
    near(found, LAYOUTS[layout](single))


def test_an_adapter_of_interleaved_experts(tmp_path: Path) -> None:
    model = biased(one_by_one())
    config = {"model_type": "gpt_oss"}
    names = {"gate_up_proj": (2 * INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    deltas = parameter(tmp_path / "a", names, "eio")
    save(tmp_path / "m", as_gpt_oss(model), config)
    found = merged(tmp_path / "out", f"{tmp_path}/m+{tmp_path}/a")
    near(found, with_change(as_gpt_oss(model), deltas))
    save(tmp_path / "n", model, config)
    near(
        as_gpt_oss(merged(tmp_path / "one", f"{tmp_path}/n+{tmp_path}/a")),
        with_change(as_gpt_oss(model), deltas),
    )


@pytest.mark.parametrize("layout", ["one by one", "fused"])
@pytest.mark.parametrize("out_dtype", ["bfloat16", "target"])
def test_an_adapter_on_quantised_experts(tmp_path: Path, layout: str, out_dtype: str) -> None:
    stored = quantised(LAYOUTS[layout](one_by_one()))
    plain = decoded(stored)
    deltas = adapter(tmp_path / "a", CHANGES)
    save(tmp_path / "m", stored, FP8)
    found = merged(tmp_path / "out", f"{tmp_path}/m+{tmp_path}/a", out_dtype=out_dtype)
    changed: Callable[[str], np.ndarray] = lambda name: deltas.get(name, np.zeros(1))  # noqa: E731
    expected = {}
    if layout == "fused":
        zeros = {n: np.zeros(v.shape) for n, v in one_by_one().items()}
        moved = LAYOUTS["fused"]({n: (v + changed(n)).astype(np.float32) for n, v in zeros.items()})
        expected = {name: value.astype(np.float64) + moved[name] for name, value in plain.items()}
    else:
        expected = {name: value.astype(np.float64) + changed(name) for name, value in plain.items()}
    if out_dtype == "bfloat16":
        near(found, {name: value.astype(ml_dtypes.bfloat16) for name, value in expected.items()})
        return
    got = decoded(found)
    for name, value in expected.items():
        scale = np.abs(value).max()
        assert np.abs(got[name].astype(np.float64) - value).max() <= scale * 2**-4, name
        if np.array_equal(value, plain[name].astype(np.float64)):
            assert found[name].tobytes() == stored[name].tobytes()
