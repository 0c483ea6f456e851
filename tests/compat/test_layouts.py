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


def test_padded_vocabularies_share_their_common_rows(
    tmp_path: Path, models: tuple[Tensors, Tensors, Tensors]
) -> None:
    target, donor, reference = models
    names = ("model.embed_tokens.weight", "lm_head.weight")
    plain = transfer(tmp_path / "plain", *models)
    more = {**target, **{name: np.concatenate([target[name], numbers(8, HIDDEN)]) for name in names}}
    found = transfer(tmp_path / "more", more, donor, reference)
    same(found, {**plain, **{name: np.concatenate([plain[name], more[name][32:]]) for name in names}})
    fewer = {**target, **{name: target[name][:20] for name in names}}
    found = transfer(tmp_path / "fewer", fewer, donor, reference)
    same(found, {**plain, **{name: plain[name][:20] for name in names}})
    longer = {**donor, **{name: np.concatenate([donor[name], numbers(8, HIDDEN)]) for name in names}}
    found = transfer(tmp_path / "longer", target, longer, reference)
    same(found, plain)
    findings = tv.check(*(tmp_path / "more" / role for role in "tdr"))
    warned = [each.message for each in findings if each.id == "vocabulary-padded"]
    assert len(warned) == 2
    assert "32 rows in common; the target's other 8 are kept, expected 40 rows" in warned[0]


def test_layers_for_multi_token_prediction(tmp_path: Path, models: tuple[Tensors, Tensors, Tensors]) -> None:
    target, donor, reference = models
    plain = transfer(tmp_path / "plain", *models)
    stem = f"model.layers.{LAYERS}"
    copies = {
        f"{stem}.embed_tokens.weight": "model.embed_tokens.weight",
        f"{stem}.shared_head.head.weight": "lm_head.weight",
    }
    own = {f"{stem}.enorm.weight": numbers(HIDDEN)}
    stored = {**target, **{copy: target[name] for copy, name in copies.items()}, **own}
    found = transfer(tmp_path / "mtp", stored, donor, reference)
    same(found, {**plain, **{copy: plain[name] for copy, name in copies.items()}, **own})
    other = {next(iter(copies)): numbers(32, HIDDEN)}
    same(transfer(tmp_path / "apart", {**target, **other}, donor, reference), {**plain, **other})


def biased(model: Tensors) -> Tensors:
    """The model with a bias of every expert's weight."""
    sizes = {"gate_proj": INNER, "up_proj": INNER, "down_proj": HIDDEN}
    stems = [f"model.layers.{layer}.mlp.experts.{e}" for layer in range(LAYERS) for e in range(EXPERTS)]
    return {**model, **{f"{s}.{kind}.bias": numbers(size) for s in stems for kind, size in sizes.items()}}


def as_gpt_oss(model: Tensors) -> Tensors:
    """The same with weights and biases of experts fused, transposed, and gate and up row by row in turn."""
    weights = {name: value for name, value in model.items() if not name.endswith(".bias")}
    made = fused(weights, transposed=True, interleaved=True)
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}.mlp.experts"
        up = [
            np.stack([model[f"{stem}.{e}.{kind}.bias"] for kind in ("gate_proj", "up_proj")], 1).reshape(-1)
            for e in range(EXPERTS)
        ]
        made[f"{stem}.gate_up_proj_bias"] = np.stack(up)
        down = [model[f"{stem}.{e}.down_proj.bias"] for e in range(EXPERTS)]
        made[f"{stem}.down_proj_bias"] = np.stack(down)
    return made


def three(
    folder: Path,
    models: list[Tensors],
    layouts: tuple[Callable[[Tensors], Tensors], Callable[[Tensors], Tensors]],
    config: dict,
) -> Tensors:
    """What a transfer gives of a target in one layout, and donor and reference in another."""
    made = [layouts[0](models[0]), *map(layouts[1], models[1:])]
    paths = [save(folder / role, each, config) for role, each in zip("tdr", made, strict=True)]
    tv.transfer(*paths, out=folder / "out")
    return load_file(folder / "out" / "model.safetensors")


def test_interleaved_experts_with_biases(tmp_path: Path) -> None:
    models = [biased(one_by_one()) for _ in range(3)]
    config = {"model_type": "gpt_oss"}
    plain = three(tmp_path / "plain", models, (dict, dict), config)
    for number, layouts in enumerate([(as_gpt_oss, dict), (dict, as_gpt_oss), (as_gpt_oss, as_gpt_oss)]):
        same(three(tmp_path / str(number), models, layouts, config), layouts[0](plain))


ATTENTION = {"q_proj": 16, "k_proj": 8, "v_proj": 8}


def as_phi3(model: Tensors) -> Tensors:
    """Queries, keys and values in one tensor, gate and up in another."""

    def joined(block: str, kinds: list[str]) -> np.ndarray:
        return np.concatenate([model[f"model.layers.0.{block}.{kind}.weight"] for kind in kinds])

    return {
        "model.layers.0.self_attn.qkv_proj.weight": joined("self_attn", list(ATTENTION)),
        "model.layers.0.mlp.gate_up_proj.weight": joined("mlp", ["gate_proj", "up_proj"]),
        "model.norm.weight": model["model.norm.weight"],
    }


def test_queries_keys_and_values_in_one(tmp_path: Path) -> None:
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "model_type": "phi3"}
    shapes = {f"self_attn.{kind}": (size, HIDDEN) for kind, size in ATTENTION.items()}
    shapes |= {f"mlp.{kind}": (INNER, HIDDEN) for kind in ("gate_proj", "up_proj")}
    models = [
        {f"model.layers.0.{name}.weight": numbers(*shape) for name, shape in shapes.items()}
        | {"model.norm.weight": numbers(HIDDEN)}
        for _ in range(3)
    ]
    plain = three(tmp_path / "plain", models, (dict, dict), config)
    same(three(tmp_path / "target", models, (as_phi3, dict), config), as_phi3(plain))
    same(three(tmp_path / "donor", models, (dict, as_phi3), config), plain)


def test_a_weight_that_is_stored_twice(tmp_path: Path, models: tuple[Tensors, Tensors, Tensors]) -> None:
    target, donor, reference = models
    twice = {**fused(donor), **{n: v for n, v in donor.items() if ".experts.0." in n}}
    with pytest.raises(tv.CompatibilityError, match=r"stores .* twice"):
        transfer(tmp_path, target, twice, reference)


@pytest.mark.parametrize("theirs", ["one by one", "fused", "transposed", "wrapped"])
@pytest.mark.parametrize("mine", ["one by one", "fused", "transposed"])
def test_a_saved_vector_of_another_layout(
    tmp_path: Path, models: tuple[Tensors, Tensors, Tensors], mine: str, theirs: str
) -> None:
    target, donor, reference = models
    same_parts = {name: reference[name] for name in list(reference)[4:9]}  # zero in the vector
    donor = {**donor, **same_parts}
    plain = transfer(tmp_path / "plain", target, donor, reference)
    paths = [
        save(tmp_path / role, LAYOUTS[theirs](each))
        for role, each in zip("dr", (donor, reference), strict=True)
    ]
    tv.extract(*paths, out=tmp_path / "v")
    tv.apply(save(tmp_path / "t", LAYOUTS[mine](target)), tmp_path / "v", out=tmp_path / "out")
    same(load_file(tmp_path / "out" / "model.safetensors"), LAYOUTS[mine](plain))


BLOCK = 8
FP8 = {
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
    },
}


def quantised(model: Tensors) -> Tensors:
    """The model with its experts in blocks of FP8, and scales in float32."""
    made: Tensors = {}
    for name, value in model.items():
        if ".experts." not in name:
            made[name] = value
            continue
        rows, columns = value.shape[-2] // BLOCK, value.shape[-1] // BLOCK
        blocks = value.astype(np.float32).reshape(*value.shape[:-2], rows, BLOCK, columns, BLOCK)
        scale = np.abs(blocks).max((-3, -1)) / np.float32(448)
        codes = (blocks / scale[..., :, None, :, None]).reshape(value.shape)
        made[name] = codes.astype(ml_dtypes.float8_e4m3fn)
        made[f"{name}_scale_inv"] = scale.astype(np.float32)
    return made


def decoded(model: Tensors) -> Tensors:
    """The same as plain numbers, in float32."""
    made: Tensors = {}
    for name, value in model.items():
        if f"{name}_scale_inv" in model:
            scale = model[f"{name}_scale_inv"].repeat(BLOCK, -2).repeat(BLOCK, -1)
            made[name] = value.astype(np.float32) * scale
        elif not name.endswith("_scale_inv"):
            made[name] = value
    return made


def near(one: Tensors, other: Tensors) -> None:
    """Equal up to a rounding to bfloat16: one of them may have been computed in a wider type."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.allclose(
            *(each.astype(np.float32) for each in (value, other[name])), rtol=2**-7, atol=1e-5
        ), name


def test_fused_plain_experts_meet_quantised_ones(
    tmp_path: Path, models: tuple[Tensors, Tensors, Tensors]
) -> None:
    target, donor, reference = models
    stored = quantised(target)
    plain = transfer(tmp_path / "plain", decoded(stored), donor, reference, out_dtype="bfloat16")
    paths = [
        save(tmp_path / "t", stored, FP8),
        save(tmp_path / "d", fused(donor)),
        save(tmp_path / "r", fused(reference)),
    ]
    tv.transfer(*paths, out=tmp_path / "out", out_dtype="bfloat16")
    near(load_file(tmp_path / "out" / "model.safetensors"), plain)


@pytest.mark.parametrize("layout", ["fused", "wrapped, fused"])
def test_quantised_experts_in_another_layout(
    tmp_path: Path, models: tuple[Tensors, Tensors, Tensors], layout: str
) -> None:
    target, donor, reference = models
    moved = [quantised(LAYOUTS[layout](each)) for each in (donor, reference)]
    same_model = [fused(each) for each in (donor, reference)]
    plain = transfer(
        tmp_path / "plain", target, *(decoded(quantised(each)) for each in same_model), out_dtype="bfloat16"
    )
    paths = [save(tmp_path / "t", target)]
    paths += [save(tmp_path / role, each, FP8) for role, each in zip("dr", moved, strict=True)]
    tv.transfer(*paths, out=tmp_path / "out", out_dtype="bfloat16")
    near(load_file(tmp_path / "out" / "model.safetensors"), plain)


@pytest.mark.parametrize(
    ("option", "pattern"),
    [("include", "q_proj"), ("exclude", r"self_attn\.k_proj"), ("include", "gate_proj")],
)
def test_a_selection_of_a_part_of_a_stored_tensor(tmp_path: Path, option: str, pattern: str) -> None:
    """On a fused tensor it is an error that names both; the stored name takes the whole."""
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "model_type": "phi3"}
    shapes = {f"self_attn.{kind}": (size, HIDDEN) for kind, size in ATTENTION.items()}
    shapes |= {f"mlp.{kind}": (INNER, HIDDEN) for kind in ("gate_proj", "up_proj")}
    paths = [
        save(
            tmp_path / role,
            as_phi3(
                {f"model.layers.0.{name}.weight": numbers(*shape) for name, shape in shapes.items()}
                | {"model.norm.weight": numbers(HIDDEN)}
            ),
            config,
        )
        for role in "tdr"
    ]
    with pytest.raises(tv.RecipeError, match=r"as a part of `model\.layers\.0\.\S+`"):
        tv.transfer(*paths, out=tmp_path / "out", **{option: [pattern]})
    with pytest.raises(tv.RecipeError, match="as a part of"):
        tv.extract(*paths[1:], out=tmp_path / "v", **{option: [pattern]})
    tv.transfer(*paths, out=tmp_path / "out", **{option: ["qkv_proj"]})


def test_an_adapter_on_a_part_of_a_stored_tensor(tmp_path: Path) -> None:
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "model_type": "phi3"}
    weights = {f"model.layers.0.self_attn.{kind}.weight": numbers(n, HIDDEN) for kind, n in ATTENTION.items()}
    weights |= {"model.norm.weight": numbers(HIDDEN)} | {
        f"model.layers.0.mlp.{kind}.weight": numbers(INNER, HIDDEN) for kind in ("gate_proj", "up_proj")
    }
    save(tmp_path / "m", as_phi3(weights), config)
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {
        f"{stem}.lora_A.weight": np.ones((1, HIDDEN), np.float32),
        f"{stem}.lora_B.weight": np.ones((ATTENTION["q_proj"], 1), np.float32),
    }
    (tmp_path / "a").mkdir()
    save_file(factors, tmp_path / "a" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(settings))
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path}/m+{tmp_path}/a"}]}
    with pytest.raises(tv.FormatError, match=r"q_proj\.weight`, which .* stores as a part of .*qkv_proj"):
        tv.merge(recipe, tmp_path / "out")
