"""Recipes end to end: planned, run, verified, and compared with a few lines of NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import taskvec as tv
from support.models import Trio, qwen2_config, qwen2_shapes, random_tensors, read_tensors, write_checkpoint

HIDDEN, LAYERS = 32, 4


def model(folder: Path, seed: int, *, layers: int = LAYERS) -> dict[str, np.ndarray]:
    """A float32 checkpoint with the names of a Qwen2 model; equal seeds are equal models."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (64, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(layers):
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (HIDDEN, 48)
        shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = (HIDDEN, HIDDEN)
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_hidden_layers": layers}
    config |= {"hidden_size": HIDDEN, "tie_word_embeddings": True, "layer_types": ["full_attention"] * layers}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return tensors


@pytest.fixture
def models(tmp_path: Path) -> dict[str, dict[str, np.ndarray]]:
    return {name: model(tmp_path / name, seed) for seed, name in enumerate(("base", "a", "b"))}


def recipe(tmp_path: Path, **document: Any) -> dict[str, Any]:
    """A recipe whose models ``base``, ``a`` and ``b`` are those of the test."""

    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: placed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [placed(item) for item in value]
        return str(tmp_path / value) if value in ("base", "a", "b") else value

    return placed(document)


def test_gradients_filters_and_overrides(tmp_path: Path, models: dict[str, dict[str, np.ndarray]]) -> None:
    text = yaml.safe_dump(
        recipe(
            tmp_path,
            merge_method="task_arithmetic",
            base_model="base",
            models=[
                {"model": "a", "parameters": {"weight": [0.0, 1.0]}},
                {
                    "model": "b",
                    "parameters": {"weight": [{"filter": "q_proj", "value": 0.5}, {"value": 0.25}]},
                },
            ],
            parameters={"lambda": 3.0},
        )
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    tv.merge(path, tmp_path / "out", overrides=["parameters.lambda=2.0"])
    got = load_file(tmp_path / "out" / "model.safetensors")
    base, a, b = models["base"], models["a"], models["b"]
    for name, array in got.items():
        layer = int(name.split(".")[2]) if ".layers." in name else 0
        first, second = layer / (LAYERS - 1), 0.5 if "q_proj" in name else 0.25
        step = first * (a[name] - base[name]) + second * (b[name] - base[name])
        np.testing.assert_allclose(array, base[name] + 2.0 * step, rtol=1e-5, atol=1e-5, err_msg=name)
    assert tv.verify(tmp_path / "out").ok
    manifest = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    assert "task_arithmetic" in json.dumps(manifest["recipe"])


def test_slices_renumber_layers_and_edit_the_config(
    tmp_path: Path, models: dict[str, dict[str, np.ndarray]]
) -> None:
    document = recipe(
        tmp_path,
        merge_method="passthrough",
        slices=[
            {"sources": [{"model": "a", "layer_range": [0, 3]}]},
            {"sources": [{"model": "b", "layer_range": [1, 4]}]},
        ],
    )
    tv.merge(document, tmp_path / "out")
    got = load_file(tmp_path / "out" / "model.safetensors")
    order = [("a", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3)]
    for layer, (name, origin) in enumerate(order):
        for part in ("mlp.down_proj", "self_attn.q_proj"):
            want = models[name][f"model.layers.{origin}.{part}.weight"]
            np.testing.assert_array_equal(got[f"model.layers.{layer}.{part}.weight"], want)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == len(config["layer_types"]) == 6
    np.testing.assert_array_equal(got["model.embed_tokens.weight"], models["a"]["model.embed_tokens.weight"])
    np.testing.assert_array_equal(got["model.norm.weight"], models["b"]["model.norm.weight"])


def test_documents_build_on_each_other(tmp_path: Path, models: dict[str, dict[str, np.ndarray]]) -> None:
    halves = [{"model": "a", "parameters": {"weight": 0.5}}, {"model": "b", "parameters": {"weight": 0.5}}]
    documents = [
        recipe(tmp_path, name="middle", merge_method="linear", models=halves),
        recipe(
            tmp_path,
            merge_method="task_arithmetic",
            base_model="base",
            models=[{"model": "middle", "parameters": {"weight": 2.0}}],
        ),
    ]
    tv.merge(documents, tmp_path / "out")
    got = load_file(tmp_path / "out" / "model.safetensors")
    for name, array in got.items():
        middle = (models["a"][name] + models["b"][name]) / 2
        want = models["base"][name] + 2 * (middle - models["base"][name])
        np.testing.assert_allclose(array, want, rtol=1e-5, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "base", "out"]


@pytest.mark.parametrize("stabilised", [False, True])
def test_an_adapter_on_top_of_its_model(
    stabilised: bool, tmp_path: Path, models: dict[str, dict[str, np.ndarray]]
) -> None:
    rng = np.random.default_rng(5)
    folder = tmp_path / "lora"
    folder.mkdir()
    module = "model.layers.1.self_attn.q_proj"
    a = rng.standard_normal((4, HIDDEN)).astype(np.float32)
    b = rng.standard_normal((HIDDEN, 4)).astype(np.float32)
    prefix = f"base_model.model.{module}"
    save_file(
        {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}, folder / "adapter_model.safetensors"
    )
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 4}}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": stabilised}))
    document = {
        "merge_method": "linear",
        "models": [{"model": f"{tmp_path / 'base'}+{folder}", "parameters": {"weight": 1.0}}],
    }
    tv.merge(document, tmp_path / "out")
    got = load_file(tmp_path / "out" / "model.safetensors")
    scale = 16 / (2 if stabilised else 4)
    for name, array in got.items():
        want = models["base"][name] + (scale * b @ a if name == f"{module}.weight" else 0)
        np.testing.assert_allclose(array, want, rtol=1e-5, atol=1e-5, err_msg=name)
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(tv.FormatError, match="DoRA"):
        tv.merge(document, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_every_method_has_a_function(tmp_path: Path, models: dict[str, dict[str, np.ndarray]]) -> None:
    pair = [tmp_path / "a", tmp_path / "b"]
    tv.ties(pair, base=tmp_path / "base", weight=[1.0, 0.5], density=0.5).save(tmp_path / "ties")
    tv.slerp([tmp_path / "a"], base=tmp_path / "base", t=0.5).save(tmp_path / "slerp")
    tv.karcher(pair).save(tmp_path / "karcher")
    lazy = tv.dare_ties(pair, base=tmp_path / "base", weight=0.5, density=0.3)
    assert lazy.plan().merged == len(models["base"])
    for name in ("ties", "slerp", "karcher"):
        assert tv.verify(tmp_path / name).ok
    with pytest.raises(tv.RecipeError, match="values for 2 models"):
        tv.ties(pair, base=tmp_path / "base", weight=[1.0])
    with pytest.raises(tv.RecipeError, match="`ties` needs `weight`") as caught:
        tv.ties(pair, base=tmp_path / "base", density=0.5)
    assert caught.value.hint == "give `weight=0.5` for all models, or a list of one per model"
    with pytest.raises(tv.RecipeError, match="`slerp` needs `t`"):
        tv.slerp(pair[:1], base=tmp_path / "base")


def test_tokenizer_and_chat_template_come_from_where_the_recipe_says(
    tmp_path: Path, models: dict[str, dict[str, np.ndarray]]
) -> None:
    for name in models:
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"x": 0}}}))
        (tmp_path / name / "tokenizer_config.json").write_text(
            json.dumps({"chat_template": name, "of": name})
        )
    halves = [{"model": "a", "parameters": {"weight": 0.5}}, {"model": "b", "parameters": {"weight": 0.5}}]
    document = recipe(tmp_path, merge_method="linear", models=halves, tokenizer_source="b")
    tv.merge({**document, "chat_template": "chatml"}, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings == {"of": "b"}
    assert "<|im_start|>" in (tmp_path / "out" / "chat_template.jinja").read_text()
    assert tv.verify(tmp_path / "out").ok


@pytest.mark.usefixtures("models")
def test_the_most_common_chat_template(tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "TOOLS"}, {"name": "default", "template": " COMMON"}]
    for name, template in (("base", "RARE"), ("a", "COMMON\n"), ("b", named)):
        settings = {"of": name, "chat_template": template}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(settings))
    half = {"parameters": {"weight": 0.5}}
    document = recipe(
        tmp_path,
        merge_method="task_arithmetic",
        base_model="base",
        models=[{"model": "a", **half}, {"model": "b", **half}],
        chat_template="auto",
    )
    tv.merge(document, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "COMMON"
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"of": "base"}
    (tmp_path / "a" / "chat_template.jinja").write_text("RARE")
    tv.merge(document, tmp_path / "file")
    assert (tmp_path / "file" / "chat_template.jinja").read_text() == "RARE"


UNIONS = ({"tokenizer_source": "union"}, {"tokenizer": {}}, {"tokenizer": {"source": "union"}})


def vocabulary(folder: Path, vocab: dict[str, int]) -> None:
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": []}})
    )


@pytest.mark.parametrize("keys", UNIONS)
def test_the_union_of_equal_vocabularies_is_the_base_s(
    keys: dict[str, Any], tmp_path: Path, models: dict[str, dict[str, np.ndarray]]
) -> None:
    for name in models:
        vocabulary(tmp_path / name, {"x": 0})
    halves = [{"model": "a", "parameters": {"weight": 0.5}}, {"model": "b", "parameters": {"weight": 0.5}}]
    tv.merge(recipe(tmp_path, merge_method="linear", models=halves, **keys), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "a/tokenizer.json").read_bytes()
    got = load_file(tmp_path / "out" / "model.safetensors")
    for name, array in got.items():
        np.testing.assert_allclose(array, (models["a"][name] + models["b"][name]) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("keys", UNIONS)
def test_without_a_tokenizer_file_a_union_is_an_error(keys: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        vocabulary(tmp_path / name, {name: 0})
    halves = [{"model": "a", "parameters": {"weight": 0.5}}, {"model": "b", "parameters": {"weight": 0.5}}]
    document = recipe(tmp_path, merge_method="linear", models=halves)
    with pytest.raises(tv.CompatibilityError, match="vocabulary"):
        tv.merge(document, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    tv.merge({**document, "tokenizer_source": "base", "preset": "no-embed"}, tmp_path / "out")
    (tmp_path / "b" / "tokenizer.json").unlink()
    with pytest.raises(tv.RecipeError, match="its tokens are not known"):
        tv.merge({**document, **keys}, tmp_path / "other")


@pytest.mark.usefixtures("models")
def test_no_chat_template_to_choose(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"merge_method: linear\nmodels:\n  - model: {tmp_path / 'a'}\n    parameters: {{weight: 1}}\n"
        "chat_template: auto\n"
    )
    with pytest.raises(
        tv.RecipeError, match=r"recipe\.yaml:5: `chat_template` is `auto`, and none"
    ) as caught:
        tv.merge(path, tmp_path / "out")
    assert "`chatml`" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_brings_its_own_chat_template(
    tmp_path: Path, models: dict[str, dict[str, np.ndarray]]
) -> None:
    for name in models:
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps({"chat_template": name}))
    (tmp_path / "a" / "chat_template.jinja").write_text("a")
    halves = [{"model": "a", "parameters": {"weight": 0.5}}, {"model": "b", "parameters": {"weight": 0.5}}]
    tv.merge(recipe(tmp_path, merge_method="linear", models=halves, tokenizer_source="b"), tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "b"


STEP = {"merge_method": "task_arithmetic", "base_model": "base"}


@pytest.mark.usefixtures("models")
def test_a_transfer_as_a_recipe_is_the_transfer(tmp_path: Path) -> None:
    model(tmp_path / "donor", 7)
    base, a, donor = tmp_path / "base", tmp_path / "a", tmp_path / "donor"
    alphas = [-0.5, 0.8]
    tv.transfer(base, donor, a, tmp_path / "wanted", alpha=alphas)
    tv.extract(donor, a, tmp_path / "vector")
    inputs: dict[str, dict[str, Any]] = {
        "relative": {"model": str(donor), "relative_to": str(a)},
        "saved": {"vector": str(tmp_path / "vector")},
    }
    for name, given in inputs.items():
        entry = {**given, "parameters": {"weight": 1.0}}
        tv.merge(recipe(tmp_path, **STEP, models=[entry], alpha=alphas), tmp_path / name)
        folders = sorted(path.name for path in (tmp_path / name).iterdir() if path.is_dir())
        assert folders == ["alpha=-0.5", "alpha=0.8"]
        for folder in folders:
            out, wanted = tmp_path / name / folder, tmp_path / "wanted" / folder
            got = (out / "model.safetensors").read_bytes()
            assert got == (wanted / "model.safetensors").read_bytes(), (name, folder)
            assert tv.verify(out).ok


def test_a_single_alpha_needs_no_folder_of_its_own(tmp_path: Path, trio: Trio) -> None:
    entry = {"model": trio.donor, "relative_to": trio.reference, "parameters": {"weight": 1.0}}
    document = {"merge_method": "task_arithmetic", "base_model": trio.target, "models": [entry], "alpha": 0.8}
    tv.merge(json.loads(json.dumps(document, default=str)), tmp_path / "out")
    tv.transfer(trio.target, trio.donor, trio.reference, tmp_path / "wanted", alpha=0.8)
    got = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert got == (tmp_path / "wanted" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["linear", "ties", "karcher"])
def test_tensors_of_other_shapes_are_the_bases_where_that_is_forced(method: str, tmp_path: Path) -> None:
    config = qwen2_config(layers=1, tied=False, dtype="float32")
    base = random_tensors(qwen2_shapes(config), dtype="F32")
    other, name = (
        random_tensors(qwen2_shapes(config), seed=1, dtype="F32"),
        "model.layers.0.mlp.up_proj.weight",
    )
    other[name] = other[name][:-1]
    write_checkpoint(tmp_path / "base", base, config)
    write_checkpoint(tmp_path / "a", other, config)
    models = [{"model": str(tmp_path / each)} for each in ("base", "a")]
    given: dict[str, Any] = {"merge_method": method, "models": models}
    if method == "ties":
        given |= {"base_model": models.pop(0)["model"]}
    if method != "karcher":
        given |= {"parameters": {"weight": 0.5}}
    with pytest.raises(tv.CompatibilityError):
        tv.merge(given, tmp_path / "out")
    tv.merge(given, tmp_path / "out", force="shape")
    out = read_tensors(tmp_path / "out")
    assert {key for key in out if np.array_equal(out[key], base[key])} == {name}
