"""Adapters end to end against PEFT: what merge_and_unload of the same adapter gives."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file

import taskvec as tv

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 24, "n_positions": 16}),
    "llama": ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": False}),
    "tied": ("Qwen2", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
}
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 24,
}


def _head_model(kind: str) -> str:
    return "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"


def base(folder: Path, family: str) -> Any:
    torch.manual_seed(0)
    kind, settings = FAMILIES[family]
    config = getattr(transformers, f"{kind}Config")(**(settings if family == "gpt2" else SIZES | settings))
    model = getattr(transformers, _head_model(kind))(config)
    model.save_pretrained(folder)
    return model


def adapted(model: Any, folder: Path, along: Any = False, **settings: Any) -> None:
    """Save an adapter of random factors and modules; ``along`` says whether embedding and head are too."""
    peft = get_peft_model(model, LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.2)
    peft.save_pretrained(folder, save_embedding_layers=along)
    peft.unload()


def merged(tmp_path: Path, name: str = "out", spec: str | None = None) -> dict[str, np.ndarray]:
    recipe = {
        "merge_method": "passthrough",
        "models": [{"model": spec or f"{tmp_path}/base+{tmp_path}/lora"}],
    }
    tv.merge(recipe, tmp_path / name)
    return load_file(tmp_path / name / "model.safetensors")


def by_peft(tmp_path: Path, family: str) -> dict[str, np.ndarray]:
    kind = getattr(transformers, _head_model(FAMILIES[family][0]))
    model = PeftModel.from_pretrained(kind.from_pretrained(tmp_path / "base"), str(tmp_path / "lora"))
    model.merge_and_unload().save_pretrained(tmp_path / "peft")
    return load_file(tmp_path / "peft" / "model.safetensors")


CASES = {
    "linear": ("llama", {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 6}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "o_proj", "up_proj"], "r": 4, "use_rslora": True,
            "rank_pattern": {"o_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3},
        },
    ),
    "initialised": ("llama", {"target_modules": ["q_proj"], "r": 2, "init_lora_weights": "orthogonal"}),
    "embedding and head": ("llama", {"target_modules": ["embed_tokens", "lm_head"], "r": 2}),
    "tied head": ("tied", {"target_modules": ["lm_head", "q_proj"], "r": 2}),
    "tied embedding": ("tied", {"target_modules": ["embed_tokens"], "r": 2}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "r": 2, "fan_in_fan_out": True}),
    "conv1d and head": ("gpt2", {"target_modules": ["attn.c_proj", "lm_head"], "r": 2}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_of_merge_and_unload(case: str, tmp_path: Path) -> None:
    family, settings = CASES[case]
    adapted(base(tmp_path / "base", family), tmp_path / "lora", **settings)
    want, got = by_peft(tmp_path, family), merged(tmp_path)
    before = load_file(tmp_path / "base" / "model.safetensors")
    assert got.keys() == want.keys()
    assert any(not np.array_equal(got[name], before[name]) for name in got)
    for name, array in got.items():
        np.testing.assert_allclose(array, want[name], rtol=1e-5, atol=1e-6, err_msg=name)
    if family == "tied":
        recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path}/base+{tmp_path}/lora"}]}
        assert "tied-head" in [each.id for each in tv.merge(recipe, tmp_path / "again").findings]


WHOLE = {
    "head": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, ["lm_head.weight"]),
    "embedding and norm": (
        "llama",
        {"target_modules": ["q_proj", "o_proj"], "modules_to_save": ["embed_tokens", "model.norm"]},
        ["model.embed_tokens.weight", "model.norm.weight"],
    ),
    "a module of several": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["layers.1.mlp"]},
        [f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")],
    ),
    "with biases": (
        "gpt2",
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "modules_to_save": ["ln_f", "h.0.mlp"]},
        ["transformer.ln_f.bias", "transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc.bias"],
    ),
    "copies below factors": (
        "llama",
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "along": True},
        [],
    ),
    "saved along": ("llama", {"target_modules": ["q_proj"], "along": True}, []),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", WHOLE)
def test_whole_weights_take_the_place_of_the_models(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    family, settings, replaced = WHOLE[case]
    model = base(tmp_path / "base", family)
    adapted(model, tmp_path / "lora", r=2, **settings)
    kind = getattr(transformers, _head_model(FAMILIES[family][0]))
    kind.from_pretrained(tmp_path / "base", dtype=dtype).save_pretrained(tmp_path / "base")
    plain = kind.from_pretrained(tmp_path / "base", dtype=dtype)
    peft = PeftModel.from_pretrained(plain, str(tmp_path / "lora")).merge_and_unload()
    peft.save_pretrained(tmp_path / "peft")
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path}/base+{tmp_path}/lora"}]}
    tv.merge(recipe, tmp_path / "out")
    before, want, got = (
        safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("base", "peft", "out")
    )
    assert got.keys() == want.keys()
    for name, tensor in got.items():
        assert tensor.dtype == want[name].dtype
        if name in replaced:
            assert torch.equal(tensor, want[name]), name
            assert not torch.equal(tensor, before[name]), name
        # factors are merged in the adapter's type here, and in the model's by PEFT
        bound = 1e-6 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(tensor, want[name], rtol=bound, atol=bound, msg=name)


def test_a_copy_that_is_not_the_models_is_what_factors_change(tmp_path: Path) -> None:
    stored(tmp_path / "base", model__q=(4, 3))
    factors(tmp_path / "lora", {"model.q": (4, 3)})
    file = tmp_path / "lora" / "adapter_model.safetensors"
    copy = np.arange(12, dtype=np.float32).reshape(4, 3)
    save_file({**load_file(file), "base_model.model.model.q.base_layer.weight": copy}, file)
    np.testing.assert_array_equal(merged(tmp_path)["model.q.weight"], copy + 1)


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        ({"model.norm": (4,)}, "the names differ"),
        ({"lm_head": (5, 3)}, r"is \[5, 3\]"),
        ({"model.q": (4, 3)}, "twice"),
    ],
)
def test_whole_weights_that_do_not_fit_their_model(
    whole: dict[str, tuple[int, ...]], words: str, tmp_path: Path
) -> None:
    stored(tmp_path / "base", {"tie_word_embeddings": False}, model__q=(4, 3), lm_head=(4, 3))
    factors(tmp_path / "lora", {"model.q": (4, 3)}, modules_to_save=[*whole])
    file = tmp_path / "lora" / "adapter_model.safetensors"
    more = {f"base_model.model.{name}.weight": np.ones(shape, np.float32) for name, shape in whole.items()}
    save_file({**load_file(file), **more}, file)
    with pytest.raises(tv.FormatError, match=words):
        merged(tmp_path)


def test_whole_weights_of_a_tied_head(tmp_path: Path) -> None:
    config = {"tie_word_embeddings": True}
    stored(tmp_path / "base", config, model__embed_tokens=(4, 3), model__q=(4, 3))
    factors(tmp_path / "lora", {"model.q": (4, 3)}, modules_to_save=["lm_head"])
    file = tmp_path / "lora" / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.lm_head.weight": np.ones((4, 3), np.float32)}, file)
    with pytest.raises(tv.FormatError, match="ties embedding and head"):
        merged(tmp_path)


def test_whole_weights_relative_to_the_adapters_own_model(tmp_path: Path) -> None:
    """Factors alone would do without the model; whole weights need it."""
    stored(tmp_path / "base", {"tie_word_embeddings": False}, model__q=(4, 3), lm_head=(4, 3))
    factors(tmp_path / "lora", {"model.q": (4, 3)}, modules_to_save=["lm_head"])
    file = tmp_path / "lora" / "adapter_model.safetensors"
    head = np.arange(12, dtype=np.float32).reshape(4, 3)
    save_file({**load_file(file), "base_model.model.lm_head.weight": head}, file)
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": f"{tmp_path}/base",
        "models": [{"model": f"{tmp_path}/base+{tmp_path}/lora", "parameters": {"weight": 0.5}}],
    }
    tv.merge(recipe, tmp_path / "out")
    got = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(got["lm_head.weight"], head / 2)
    np.testing.assert_array_equal(got["model.q.weight"], np.full((4, 3), 0.5, np.float32))


def renamed(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    save_file({change(name): array for name, array in load_file(file).items()}, file, {"format": "pt"})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("alone", [False, True])
def test_a_checkpoint_with_names_as_published(alone: bool, tmp_path: Path) -> None:
    """GPT-2 is stored without the `transformer.` that its modules have in memory."""
    adapted(
        base(tmp_path / "base", "gpt2"), tmp_path / "lora", target_modules=["c_attn"], fan_in_fan_out=True
    )
    want = by_peft(tmp_path, "gpt2")
    renamed(tmp_path / "base", lambda name: name.removeprefix("transformer."))
    if alone:
        recipe = {
            "merge_method": "task_arithmetic",
            "base_model": f"{tmp_path}/base",
            "models": [{"model": f"{tmp_path}/base+{tmp_path}/lora", "parameters": {"weight": 1.0}}],
        }
        tv.merge(recipe, tmp_path / "out")
        got = load_file(tmp_path / "out" / "model.safetensors")
    else:
        got = merged(tmp_path)
    assert {f"transformer.{name}" for name in got} == want.keys()
    for name, array in got.items():
        np.testing.assert_allclose(array, want[f"transformer.{name}"], rtol=1e-5, atol=1e-6, err_msg=name)


def factors(folder: Path, modules: dict[str, tuple[int, int]], **settings: Any) -> None:
    """An adapter of ones: modules with their outputs and inputs."""
    folder.mkdir()
    tensors = {}
    for module, (outputs, inputs) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = np.ones((1, inputs), np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = np.ones((outputs, 1), np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def stored(folder: Path, config: dict[str, Any] | None = None, **shapes: tuple[int, ...]) -> None:
    folder.mkdir()
    zeros = {f"{name.replace('__', '.')}.weight": np.zeros(shape, "f4") for name, shape in shapes.items()}
    save_file(zeros, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config or {}))


def test_names_that_differ_are_said_to_differ(tmp_path: Path) -> None:
    stored(tmp_path / "base", model__decoder__blocks__0__q=(4, 3))
    factors(tmp_path / "lora", {"model.layers.0.q_proj": (4, 3)})
    with pytest.raises(tv.FormatError, match="the names differ") as caught:
        merged(tmp_path)
    assert "`model.layers.0.q_proj.weight`" in caught.value.message
    assert "`model.decoder.blocks.0.q.weight`" in caught.value.message
    assert "trained for" not in f"{caught.value.message} {caught.value.hint}"


def test_a_name_that_may_be_one_of_two(tmp_path: Path) -> None:
    stored(tmp_path / "base", model__q=(4, 3), language_model__q=(4, 3))
    factors(tmp_path / "lora", {"q": (4, 3)})
    with pytest.raises(tv.FormatError, match="may be any of"):
        merged(tmp_path)


def test_factors_as_a_model_in_memory_names_them(tmp_path: Path) -> None:
    model = base(tmp_path / "base", "llama")
    adapted(model, tmp_path / "lora", target_modules=["q_proj", "lm_head"], r=2)
    want = by_peft(tmp_path, "llama")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    names = {name: re.sub(r"(lora_[AB])\.", r"\1.default.", name) for name in load_file(file)}
    save_file({names[name]: array for name, array in load_file(file).items()}, file)
    for name, array in merged(tmp_path).items():
        np.testing.assert_allclose(array, want[name], rtol=1e-5, atol=1e-6, err_msg=name)


# What PEFT would have saved of each: a layer cut off, a target cut off, and what was never to have factors.
@pytest.mark.parametrize(
    ("settings", "cut", "lacking"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, r"layers\.1", ["q_proj", "v_proj"]),
        ({"target_modules": ["q_proj", "v_proj"]}, r"v_proj", ["v_proj", "v_proj"]),
        ({"target_modules": ["q_proj", "v_proj"]}, None, []),
        ({"target_modules": ["q_proj"], "layers_to_transform": [0]}, None, []),
        ({"target_modules": ["q_proj"], "exclude_modules": r".*layers\.0.*"}, None, []),
        ({"target_modules": r".*layers\.0.*q_proj"}, None, []),
        ({"target_modules": ["q_proj", "not_there"]}, None, []),
    ],
)
def test_a_file_that_lacks_factors(
    settings: dict[str, Any], cut: str | None, lacking: list[str], tmp_path: Path
) -> None:
    adapted(base(tmp_path / "base", "llama"), tmp_path / "lora", r=2, **settings)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    kept = {name: array for name, array in load_file(file).items() if cut is None or not re.search(cut, name)}
    save_file(kept, file)
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path}/base+{tmp_path}/lora"}]}
    found = [each for each in tv.merge(recipe, tmp_path / "out").findings if each.id == "adapter-partial"]
    assert [re.findall(r"(\w+)\.weight`", each.found) for each in found] == ([lacking] if lacking else [])


@pytest.mark.parametrize(
    ("settings", "beyond"),
    [
        ({"target_modules": ["q_proj"]}, {"v_proj"}),
        ({"target_modules": r".*\.q_proj"}, {"v_proj"}),
        ({"exclude_modules": ["v_proj"]}, {"v_proj"}),
        ({"exclude_modules": r".*\.layers\.1\..*"}, {"q_proj", "v_proj"}),
        ({"layers_to_transform": [0]}, {"q_proj", "v_proj"}),
        ({"layers_to_transform": 1}, {"q_proj", "v_proj"}),
        ({}, set()),
        ({"target_modules": "all-linear"}, set()),
    ],
)
def test_factors_that_peft_would_not_load(settings: dict[str, Any], beyond: set[str], tmp_path: Path) -> None:
    adapted(base(tmp_path / "base", "llama"), tmp_path / "lora", r=2, target_modules=["q_proj", "v_proj"])
    file = tmp_path / "lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path}/base+{tmp_path}/lora"}]}
    found = [each for each in tv.merge(recipe, tmp_path / "out").findings if each.id == "adapter-beyond"]
    assert {name for each in found for name in re.findall(r"(\w+)`", each.found)} == beyond
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(model, tmp_path / "lora").state_dict()
    stored_ = {
        name.replace(".weight", ".default.weight")
        for name in load_file(file.with_name("adapter_model.safetensors"))
    }
    assert bool(stored_ - loaded.keys()) is bool(beyond)


def test_folders_with_a_plus_in_their_names(tmp_path: Path) -> None:
    adapted(base(tmp_path / "a+b", "llama"), tmp_path / "lora+x", r=2, target_modules=["q_proj"])
    plain = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path}/a+b+{tmp_path}/lora+x"}]}
    parts = {"model": {"path": f"{tmp_path}/a+b"}, "lora": {"path": f"{tmp_path}/lora+x"}}
    tv.merge(plain, tmp_path / "one")
    tv.merge({"merge_method": "passthrough", "models": [{"model": parts}]}, tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(np.array_equal(one[name], two[name]) for name in two)
    plain["models"] = [{"model": f"{tmp_path}/a+b+{tmp_path}/not+there"}]
    with pytest.raises(tv.NotFoundError, match=r"not.there"):
        tv.merge(plain, tmp_path / "three")
    plain["models"] = [{"model": "a+b+c"}]
    with pytest.raises(tv.RecipeError, match=r"MODEL.ADAPTER") as caught:
        tv.merge(plain, tmp_path / "three")
    assert "lora: {path: ADAPTER}" in str(caught.value.hint)


@pytest.mark.parametrize("rows", [22, 18])
def test_a_base_without_the_rows_of_new_tokens(rows: int, tmp_path: Path) -> None:
    config = {"tie_word_embeddings": False}
    shapes = {"model__embed_tokens": (20, 3), "lm_head": (20, 3), "model__layers__0__q": (4, 3)}
    stored(tmp_path / "base", config, **shapes)
    factors(tmp_path / "lora", {"model.layers.0.q": (4, 3)}, modules_to_save=["embed_tokens"])
    file = tmp_path / "lora" / "adapter_model.safetensors"
    whole = {"base_model.model.model.embed_tokens.weight": np.zeros((rows, 3), np.float32)}
    save_file({**load_file(file), **whole}, file)
    with pytest.raises(tv.FormatError) as caught:
        merged(tmp_path)
    assert f"`resize_token_embeddings({rows})`" in str(caught.value.hint)


def test_two_modules_of_one_weight(tmp_path: Path) -> None:
    stored(tmp_path / "base", model__layers__0__q=(4, 3))
    factors(tmp_path / "lora", {"layers.0.q": (4, 3), "model.layers.0.q": (4, 3)})
    with pytest.raises(tv.FormatError, match="twice"):
        merged(tmp_path)


def test_head_and_embedding_that_are_one(tmp_path: Path) -> None:
    stored(tmp_path / "base", {"tie_word_embeddings": True}, model__embed_tokens=(4, 3))
    factors(tmp_path / "lora", {"lm_head": (4, 3), "model.embed_tokens": (4, 3)})
    with pytest.raises(tv.FormatError, match="tied to each other"):
        merged(tmp_path)


def test_a_head_that_is_stored_twice_stays_equal(tmp_path: Path) -> None:
    config = {"tie_word_embeddings": True}
    stored(tmp_path / "base", config, model__embed_tokens=(4, 3), lm_head=(4, 3))
    factors(tmp_path / "lora", {"lm_head": (4, 3)})
    got = merged(tmp_path)
    np.testing.assert_array_equal(got["lm_head.weight"], np.ones((4, 3)))
    np.testing.assert_array_equal(got["model.embed_tokens.weight"], np.ones((4, 3)))


def test_a_head_of_a_model_without_one(tmp_path: Path) -> None:
    stored(tmp_path / "base", {"tie_word_embeddings": False}, model__embed_tokens=(4, 3))
    factors(tmp_path / "lora", {"lm_head": (4, 3)})
    with pytest.raises(tv.FormatError, match="the names differ"):
        merged(tmp_path)


def test_another_size_and_a_quantised_weight(tmp_path: Path) -> None:
    stored(tmp_path / "base", model__q=(4, 3))
    factors(tmp_path / "lora", {"model.q": (5, 3)})
    with pytest.raises(tv.FormatError, match=r"3 inputs and 5 outputs.*\[4, 3\]"):
        merged(tmp_path)
    save_file({"model.q.weight": np.zeros((10, 1), np.uint8)}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(tv.FormatError, match="U8") as caught:
        merged(tmp_path)
    assert "before it was quantised" in (caught.value.hint or "")


@pytest.mark.parametrize(("kind", "transposed"), [("gpt2", True), ("gpt_bigcode", False), (None, True)])
def test_a_square_weight_lies_as_its_family_stores_it(
    kind: str | None, transposed: bool, tmp_path: Path
) -> None:
    stored(tmp_path / "base", {"model_type": kind}, h__0__attn__c_proj=(3, 3))
    factors(tmp_path / "lora", {"transformer.h.0.attn.c_proj": (3, 3)}, fan_in_fan_out=True)
    a = np.arange(3, dtype=np.float32).reshape(1, 3)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: a if "lora_A" in name else each for name, each in tensors.items()}, file)
    want = np.ones((3, 1)) @ a
    got = merged(tmp_path)["h.0.attn.c_proj.weight"]
    np.testing.assert_array_equal(got, want.T if transposed else want)
