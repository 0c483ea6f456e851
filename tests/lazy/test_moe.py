"""Mixtures of experts made of dense models: bytes, gates, and what transformers makes of them."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taskvec as tv
from support.command_line import invoke
from support.families import write_adapter, write_model
from support.models import edit_json, read_tensors, safetensors_bytes
from support.moe import LAYERS, config_of, directions, expert, gate, parts, recipe, shared, write_models
from support.oracle import same_files
from taskvec.errors import CompatibilityError, NotFoundError, OutputError, RecipeError

MATRICES = ("gate_proj", "up_proj", "down_proj")
# Family of the dense models -> the layout, its words in a recipe, and where the shared expert is.
LAYOUTS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "mixtral": ("llama", "MixtralForCausalLM", {}, ""),
    "mixtral of mistral": ("mistral", "MixtralForCausalLM", {"architecture": "mixtral"}, ""),
    "qwen": ("qwen2", "Qwen2MoeForCausalLM", shared(residual_scale=0.5), "shared_expert"),
    "qwen of llama": ("llama", "Qwen2MoeForCausalLM", {"architecture": "qwen", **shared()}, "shared_expert"),
    "qwen3": ("qwen3", "Qwen3MoeForCausalLM", {}, ""),
    "deepseek": ("llama", "DeepseekForCausalLM", shared(residual_scale=0.1), "shared_experts"),
    "deepseek alone": ("mistral", "DeepseekForCausalLM", {"architecture": "deepseek"}, ""),
}
LOADED = ("mixtral", "mixtral of mistral", "qwen", "qwen of llama", "qwen3")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(root: Path, name: str, *, same: bool = False, **more: Any) -> Path:
    family, _, words, _ = LAYOUTS[name]
    if not (root / "base").exists():
        write_models(root, family, same=same)
    tv.moe(recipe(**{**words, **more}), root / "out")
    return root / "out"


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_tensor_is_the_one_that_it_should_be(name: str, world: Path) -> None:
    _, architecture, words, shared_name = LAYOUTS[name]
    out = parts(read_tensors(made(world, name)))
    base, experts = read_tensors(world / "base"), [read_tensors(world / each) for each in "ab"]
    expected = {key: each for key, each in base.items() if ".mlp." not in key}
    row = directions(world / "base")
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}.mlp."
        for number, tensors in enumerate(experts):
            for matrix in MATRICES:
                expected[f"{stem}experts.{number}.{matrix}.weight"] = tensors[f"{stem}{matrix}.weight"]
        if shared_name:
            scale = words["shared_experts"][0].get("residual_scale", 1.0)
            for matrix in MATRICES:
                value = read_tensors(world / "c")[f"{stem}{matrix}.weight"]
                if matrix == "down_proj":
                    value = (value.astype(np.float64) * scale).astype(value.dtype)
                expected[f"{stem}{shared_name}.{matrix}.weight"] = value
        gates = np.stack([gate(each, row) for each in "ab"])
        np.testing.assert_allclose(out.pop(f"{stem}gate.weight").astype(float), gates, atol=2**-8)
        if shared_name == "shared_expert":
            own = out.pop(f"{stem}shared_expert_gate.weight").astype(float)
            np.testing.assert_allclose(own, gate("c", row)[None], atol=2**-8)
    assert out.keys() == expected.keys()
    for key, each in expected.items():
        assert out[key].dtype == each.dtype
        assert out[key].tobytes() == each.tobytes(), key
    config = config_of(world / "out")
    assert config["architectures"] == [architecture]
    assert config["num_experts_per_tok"] == 2


def test_gates_in_float32_are_exact(world: Path) -> None:
    write_models(world, "llama")
    tv.moe(recipe(names="abc", dtype="float32"), "out")
    row = directions(world / "base")
    found = read_tensors(world / "out")
    for layer in range(LAYERS):
        own = found[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
        expected = np.stack([gate(each, row) for each in "abc"]).astype(np.float32)
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-7)
    assert config_of(world / "out")["dtype"] == "float32"


# Of mergekit 0.1.5 (`mergekit-moe`, cheap_embed, float32) on the models and prompts of `support.moe`: the
# first columns of the router of every layer, by tests/recipe/parity_mergekit_moe.py.
GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "mergekit_moe_gates.json"


def test_gates_are_mergekits(world: Path) -> None:
    write_models(world, "llama")
    tv.moe(recipe(names="abc", dtype="float32"), "out")
    golden = np.array(json.loads(GOLDEN.read_text())["router"], np.float32)
    found = read_tensors(world / "out")["model.layers.0.block_sparse_moe.gate.weight"]
    assert np.linalg.norm(found - golden) < 1e-6 * np.linalg.norm(golden)


def logits(folder: Path, ids: list[int]) -> Any:
    import torch
    import transformers

    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        tokens = model.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)
        assert tokens.shape[1] > len(ids)
        return type(model).__name__, model(torch.tensor([ids])).logits.double().numpy()


@pytest.mark.parametrize("name", LOADED)
@pytest.mark.parametrize("mode", ["cheap_embed", "random"])
def test_experts_that_are_the_base_are_the_base(name: str, mode: str, world: Path) -> None:
    family, architecture, words, shared_name = LAYOUTS[name]
    write_models(world, family, same=True)
    given = dict(words)
    if shared_name:  # which adds nothing
        given |= shared(mode, residual_scale=0.0)
    tv.moe(recipe(mode, **given), "out")
    kind, found = logits(world / "out", [5, 9, 33, 60, 7])
    _, expected = logits(world / "base", [5, 9, 33, 60, 7])
    assert kind == architecture
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def deepseek(folder: Path, ids: list[int]) -> np.ndarray:
    """The logits of a DeepSeek-MoE by its published architecture, which generates too."""
    import torch

    from support.deepseek import load

    with torch.no_grad():
        model = load(folder)
        tokens = model.generate(torch.tensor(ids), 3)
        assert len(tokens) == len(ids) + 3
        return model(torch.tensor(ids)).double().numpy()[None]


def test_deepseek_is_what_mixtral_is_of_the_same_experts(world: Path) -> None:
    """Both route by the largest of a softmax, brought to a sum of one; transformers has Mixtral."""
    write_models(world, "llama")
    for count in (1, 2):
        given = recipe(names="abc", experts_per_token=count, dtype="float32")
        tv.moe(given, "mixtral", overwrite=True)
        tv.moe({**given, "architecture": "deepseek"}, "out", overwrite=True)
        ids = [5, 9, 33, 60, 7, 21, 2]
        _, expected = logits(world / "mixtral", ids)
        np.testing.assert_allclose(deepseek(world / "out", ids), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["cheap_embed", "random"])
def test_deepseek_of_experts_that_are_the_base_is_the_base(mode: str, world: Path) -> None:
    """Routed experts alone, and the shared expert alone."""
    write_models(world, "llama", same=True)
    _, expected = logits(world / "base", [5, 9, 33, 60, 7])
    for routed, own in ((1.0, 0.0), (0.0, 1.0), (0.75, 0.25)):
        experts = [expert(name, mode, residual_scale=routed) for name in "ab"]
        tv.moe(
            {**recipe(mode, dtype="float32"), "experts": experts, **shared(mode, residual_scale=own)},
            "out",
            overwrite=True,
        )
        found = deepseek(world / "out", [5, 9, 33, 60, 7])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def noised(root: Path, name: str) -> dict[str, np.ndarray]:
    """What stands on each matrix of an expert more than on its model's, over its factor."""
    made, model = parts(read_tensors(root / "out")), read_tensors(root / name)
    number = "ab".index(name)
    found = {}
    for key, value in model.items():
        if ".mlp." in key:
            factor = 0.25 if "down_proj" in key else 1.0
            own = made[key.replace(".mlp.", f".mlp.experts.{number}.")].astype(np.float64)
            found[key] = own / factor - value.astype(np.float64)
    return found


def test_noise_is_normal_seeded_and_before_the_factor(world: Path) -> None:
    write_models(world, "llama", same=True)
    experts = [expert(name, "random", noise_scale=0.5, residual_scale=0.25) for name in "ab"]
    given = recipe("random", experts=experts, dtype="float32", seed=3)
    report = tv.moe(given, "out")
    assert "recipe-ignored" not in {each.id for each in report.findings}
    first, second = noised(world, "a"), noised(world, "b")
    for found in (first, second):
        draws = np.concatenate([each.ravel() for each in found.values()]) / 0.5
        assert abs(draws.mean()) < 5 / np.sqrt(draws.size)
        assert abs(draws.std() - 1) < 5 / np.sqrt(2 * draws.size)
    everything = [np.concatenate([each.ravel() for each in found.values()]) for found in (first, second)]
    assert abs(np.corrcoef(*everything)[0, 1]) < 5 / np.sqrt(everything[0].size)
    layers = [first[f"model.layers.{n}.mlp.up_proj.weight"].ravel() for n in (0, 1)]
    assert abs(np.corrcoef(*layers)[0, 1]) < 5 / np.sqrt(layers[0].size)
    bytes_of = (world / "out/model.safetensors").read_bytes()
    for more in ({"threads": 1}, {"max_shard_size": None}):
        tv.moe(given, "again", overwrite=True, **more)
        assert (world / "again/model.safetensors").read_bytes() == bytes_of
    tv.moe({**given, "seed": 4}, "other")
    assert (world / "other/model.safetensors").read_bytes() != bytes_of
    del given["seed"]
    tv.moe(given, "given", seed=3)
    assert (world / "given/model.safetensors").read_bytes() == bytes_of


def test_noise_with_gates_of_prompts_takes_the_seed_of_the_recipe(world: Path) -> None:
    write_models(world, "llama")
    experts = [expert("a", noise_scale=0.01), expert("b")]
    report = tv.moe(recipe(experts=experts, seed=5), "out")
    assert "recipe-ignored" not in {each.id for each in report.findings}
    plain, found = read_tensors(world / "b"), parts(read_tensors(world / "out"))
    key = "model.layers.1.mlp.up_proj.weight"
    assert found[key.replace(".mlp.", ".mlp.experts.1.")].tobytes() == plain[key].tobytes()
    manifest = json.loads((world / "out/taskvec.json").read_text())
    assert "seed" not in manifest["recipe"]
    plan = tv.open_moe(recipe(experts=experts), seed=5).plan()
    plan.run("again")
    for name in ("again",):
        assert (world / name / "model.safetensors").read_bytes() == (
            world / "out/model.safetensors"
        ).read_bytes()
    for number in (1, 0):
        plan.part(number, 2).run("parts")
    assert (world / "parts/model.safetensors").read_bytes() == (world / "out/model.safetensors").read_bytes()


def test_defaults_of_the_dense_family_are_written_out(world: Path) -> None:
    """Mixtral has other defaults than Llama: base of the rotary embedding, epsilon, heads of keys."""
    write_models(world, "llama", same=True)
    for name in ("base", "a", "b", "c"):
        edit_json(
            world / name / "config.json", rms_norm_eps=None, max_position_embeddings=None, head_dim=None
        )
    tv.moe(recipe(), "out")
    _, found = logits(world / "out", [5, 9, 33, 60, 7])
    _, expected = logits(world / "base", [5, 9, 33, 60, 7])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_hidden_gates_are_the_states_that_transformers_gives(world: Path) -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer

    for family in ("llama", "qwen2", "qwen3"):
        root = world / family
        write_models(root, family)
        words = {"architecture": "qwen", **shared()} if family == "qwen2" else {}
        given = recipe("hidden", dtype="float32", **words)
        for each in (given, *given["experts"], *given.get("shared_experts", ())):
            each |= {key: str(root / each[key]) for key in ("base_model", "source_model") if key in each}
        tv.moe(given, root / "out")
        found = parts(read_tensors(root / "out"))
        model = transformers.AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
        tokenizer = Tokenizer.from_file(str(root / "base" / "tokenizer.json"))
        states: list[dict[str, np.ndarray]] = [{} for _ in range(LAYERS)]
        for text in directions(root / "base"):
            ids = torch.tensor([tokenizer.encode(f"<s>{text}").ids])
            with torch.no_grad():
                hidden = model(ids, output_hidden_states=True).hidden_states
            for layer in range(LAYERS):
                states[layer][text] = hidden[layer][0, -1].double().numpy()
        for layer, known in enumerate(states):
            own = found[f"model.layers.{layer}.mlp.gate.weight"]
            expected = np.stack([gate(each, known, "hidden") for each in "ab"])
            np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5)


def test_random_gates_follow_from_the_seed(world: Path) -> None:
    write_models(world, "llama")
    for out, seed in (("one", 3), ("two", 3), ("three", 4)):
        tv.moe(recipe("random", dtype="float32"), out, seed=seed)
    tv.moe(recipe("random", dtype="float32", seed=3), "own")
    name = "model.layers.{}.block_sparse_moe.gate.weight".format
    one, two, three, own = (read_tensors(world / out) for out in ("one", "two", "three", "own"))
    for layer in range(LAYERS):
        assert np.array_equal(one[name(layer)], two[name(layer)])
        assert np.array_equal(one[name(layer)], own[name(layer)])
        assert not np.array_equal(one[name(layer)], three[name(layer)])
    assert not np.array_equal(one[name(0)], one[name(1)])
    drawn = np.concatenate([one[name(layer)].ravel() for layer in range(LAYERS)])
    assert 0.7 < drawn.std() < 1.3


def test_uniform_gates_are_bounded_as_a_linear_layer_of_torch(world: Path) -> None:
    write_models(world, "llama")
    for out, seed in (("one", 3), ("two", 3), ("three", 4)):
        tv.moe(recipe("random", dtype="float32", seed=seed) | {"gate_mode": "uniform_random"}, out)
    one, two, three = (read_tensors(world / out) for out in ("one", "two", "three"))
    gates = [name for name in one if name.endswith("block_sparse_moe.gate.weight")]
    assert len(gates) == LAYERS
    drawn = np.concatenate([one[name].ravel() for name in gates])
    bound = 1 / np.sqrt(one[gates[0]].shape[1])
    assert np.abs(drawn).max() <= bound
    assert np.abs(drawn).max() > 0.8 * bound
    assert abs(drawn.std() / (bound / np.sqrt(3)) - 1) < 0.15
    for name in gates:
        assert np.array_equal(one[name], two[name])
        assert not np.array_equal(one[name], three[name])


def killed(plan: tv.Plan, out: Path) -> None:
    """A run that was stopped when some weight files were there."""

    def stop(progress: tv.Progress) -> None:
        if progress.phase == "merge" and progress.done_bytes > progress.total_bytes // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan.run(out, progress=stop)


def test_a_killed_run_goes_on_and_a_finished_one_is_done(world: Path) -> None:
    write_models(world, "llama")
    mixture = tv.open_moe(recipe(), max_shard_size=3000)
    expected = mixture.save(world / "one" / "out")
    killed(mixture.plan(), world / "out")
    report = tv.moe(recipe(), world / "out", max_shard_size=3000)
    assert report.plan == expected.plan
    same_files(world / "one" / "out", world / "out")
    assert tv.moe(recipe(), world / "out", max_shard_size=3000).already_done
    with pytest.raises(OutputError):
        tv.moe(recipe(names="ba"), world / "out")
    assert not tv.moe(recipe(names="ba"), world / "out", overwrite=True).already_done


def test_parts_are_one_run(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_models(world, "llama")
    plan = tv.open_moe(recipe("random"), max_shard_size=3000).plan()
    plan.run(world / "one" / "out")
    for number in (2, 0, 1):
        pickle.loads(pickle.dumps(plan.part(number, 3))).run(world / "out")
    same_files(world / "one" / "out", world / "out")
    (world / "r.yaml").write_text(json.dumps(recipe("random")))
    for number in range(2):
        words = ("--max-shard-size", "3000", "--part", f"{number}/2")
        assert invoke(capsys, "moe", "r.yaml", "two/out", *words).code == 0
    assert read_tensors(world / "two" / "out").keys() == read_tensors(world / "out").keys()


def test_a_plan_as_a_file_holds_the_gates(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_models(world, "qwen2")
    given = recipe("random", **shared("random"))
    (world / "r.yaml").write_text(json.dumps(given))
    assert invoke(capsys, "plan", "moe", "r.yaml", "--to", "out", "-o", "plan.json").code == 0
    assert invoke(capsys, "run", "plan.json").code == 0
    tv.moe(given, "one")
    assert (world / "out/model.safetensors").read_bytes() == (world / "one/model.safetensors").read_bytes()
    plan = tv.open_moe(given).plan()
    again = tv.Plan.from_bytes(plan.to_bytes())
    assert again.digest == plan.digest


def test_a_quantised_expert_is_written_plain(world: Path) -> None:
    write_models(world, "llama")
    tv.convert(world / "b", world / "packed", out_dtype="fp8-channel")
    given = recipe(names="a")
    given["experts"].append({**expert("b"), "source_model": "packed"})
    tv.moe(given, "out")
    plain = read_tensors(world / "out")
    unpacked = tv.convert(world / "packed", world / "plain", out_dtype="bfloat16") and read_tensors(
        world / "plain"
    )
    own, name = (
        unpacked["model.layers.1.mlp.up_proj.weight"],
        "model.layers.1.block_sparse_moe.experts.1.w3.weight",
    )
    assert plain[name].tobytes() == own.tobytes()
    assert "quantization_config" not in config_of(world / "out")


def test_a_quantised_base_is_written_plain(world: Path) -> None:
    write_models(world, "llama")
    tv.convert(world / "base", world / "packed", out_dtype="fp8-channel")
    report = tv.moe({**recipe(), "base_model": "packed"}, "out")
    assert "quantization_config" not in config_of(world / "out")
    found, base = read_tensors(world / "out"), read_tensors(world / "base")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert found[name].shape == base[name].shape
    assert report.outputs[0].shards


def test_an_adapter_of_a_base(world: Path) -> None:
    write_models(world, "llama")
    write_adapter(world / "lora", "llama", LAYERS)
    tv.moe({**recipe(), "base_model": "base+lora"}, "out")
    tv.merge({"merge_method": "passthrough", "models": [{"model": "base+lora"}]}, "merged")
    found, merged = read_tensors(world / "out"), read_tensors(world / "merged")
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"):
        assert found[name].tobytes() == merged[name].tobytes()
    with pytest.raises(RecipeError, match="of a base with an adapter") as caught:
        tv.moe({**recipe("hidden"), "base_model": "base+lora"}, "other")
    assert "merge the adapter first" in (caught.value.hint or "")
    assert not (world / "other").exists()


def test_a_recipe_that_fits_no_layout(world: Path) -> None:
    write_models(world, "llama")
    write_model(world / "gemma", "gemma2", LAYERS, seed=1)
    write_model(world / "phi", "phi3", LAYERS, seed=1)
    write_model(world / "wide", "llama", LAYERS + 1, seed=1)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({**recipe(), "base_model": "gemma"}, "is of the family `gemma2`"),
        ({**recipe(), "base_model": "phi"}, "is of the family `phi3`"),
        (recipe(architecture="qwen3"), "the layout `qwen3_moe` is for `qwen3`"),
        (recipe(architecture="mixtral", **shared()), "the layout `mixtral` has no shared expert"),
        (recipe(architecture="qwen"), "has a shared expert, which sees every token"),
        (
            recipe(architecture="qwen", shared_experts=[{"source_model": "c"}]),
            "no `positive_prompts` of which it is made",
        ),
    ]
    for given, message in wrong:
        with pytest.raises(RecipeError, match=message):
            tv.moe(given, "out")
    with pytest.raises(CompatibilityError):
        tv.moe(recipe(experts=[expert("a"), {**expert("b"), "source_model": "phi"}]), "out")
    with pytest.raises(NotFoundError):
        tv.moe(recipe(experts=[expert("a"), {**expert("b"), "source_model": "nowhere"}]), "out")
    assert not (world / "out").exists()


def test_biases_and_windows_that_a_layout_lacks_are_refused(world: Path) -> None:
    write_models(world, "qwen2")
    for name in ("base", "a", "b", "c"):
        edit_json(world / name / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    with pytest.raises(RecipeError, match=r"has tensors that `mixtral` has no place for: .*q_proj.bias"):
        tv.moe(recipe(), "out")
    for name in ("base", "a", "b", "c"):
        write_model(world / f"m{name}", "mistral", LAYERS, seed=2)
        edit_json(world / f"m{name}" / "config.json", sliding_window=16)
    given = recipe(
        architecture="deepseek", experts=[{**expert(each), "source_model": f"m{each}"} for each in "ab"]
    )
    with pytest.raises(RecipeError, match="has a window"):
        tv.moe({**given, "base_model": "mbase"}, "out")
    tv.moe({**given, "base_model": "mbase", "architecture": "mixtral"}, "out")
    assert config_of(world / "out")["sliding_window"] == 16


def test_prompts_that_make_no_gate(world: Path) -> None:
    write_models(world, "llama")
    same = {"source_model": "a", "positive_prompts": ["AB"], "negative_prompts": ["AB"]}
    with pytest.raises(RecipeError, match="give no direction"):
        tv.moe(recipe(experts=[same, expert("b")]), "out")
    (world / "base" / "tokenizer.json").unlink()
    with pytest.raises(RecipeError, match=r"has no tokenizer.json"):
        tv.moe(recipe(), "out")
    tv.moe(recipe("random"), "out")


def test_a_beginning_of_texts_that_is_no_text_is_none(world: Path) -> None:
    write_models(world, "llama")
    edit_json(world / "base" / "config.json", bos_token_id=None)
    for value in (["<s>"], {"content": 5}, 7):
        edit_json(world / "base" / "tokenizer_config.json", bos_token=value)
        tv.moe(recipe(), world / "out", overwrite=True)
        rows = read_tensors(world / "base")["model.embed_tokens.weight"].astype(np.float64)
        own = gate("b", {"ZZ TOP": direction(world / "base", rows, "ZZ TOP")})
        got = read_tensors(world / "out")["model.layers.0.block_sparse_moe.gate.weight"][1]
        np.testing.assert_allclose(got.astype(np.float64), own, atol=4e-3)


def direction(folder: Path, rows: np.ndarray, text: str) -> np.ndarray:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return rows[tokenizer.encode(text, add_special_tokens=False).ids].sum(0)


@pytest.mark.parametrize("count", ["3", 2.0, 3.0, True, None, 0, -3, 10**12, [3], "x" * 200])
def test_a_number_of_layers_that_the_weights_have_not(world: Path, count: Any) -> None:
    write_models(world, "llama")
    edit_json(world / "base" / "config.json", num_hidden_layers=count)
    with pytest.raises(RecipeError, match=r"has 9 matrices of MLPs, and by its config\.json") as caught:
        tv.moe(recipe(), "out")
    assert len(str(caught.value)) < 300
    assert not (world / "out").exists()


@pytest.mark.parametrize("mode", ["random", "cheap_embed"])
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.2.input_layernorm.weight",
    ],
)
def test_a_base_that_is_not_whole_is_refused(world: Path, name: str, mode: str) -> None:
    write_models(world, "llama")
    change(world / "base", name, None)
    with pytest.raises(RecipeError, match=rf"`base` has no `{re.escape(name)}`(\n|$)"):
        tv.moe(recipe(mode), "out")
    assert not (world / "out").exists()


def test_an_embedding_of_another_form_is_refused(world: Path) -> None:
    write_models(world, "llama")
    change(world / "base", "model.embed_tokens.weight", np.ones(16, np.float32))
    with pytest.raises(RecipeError, match=r"an embedding of the shape \[16\]"):
        tv.moe(recipe("random"), "out")


@pytest.mark.parametrize("name", ["0.mlp.gate_proj.bias", "1.mlp.down_proj.bias", "0.mlp.extra.weight"])
def test_a_tensor_of_an_expert_that_would_be_left_out_is_refused(world: Path, name: str) -> None:
    write_models(world, "llama")
    change(world / "b", f"model.layers.{name}", np.ones(16, np.float32))
    with pytest.raises(RecipeError, match=rf"the MLPs of `b` have tensors .*`model.layers.{name}`(\n|$)"):
        tv.moe(recipe("random"), "out")
    change(world / "b", f"model.layers.{name}", None)
    tv.moe(recipe("random"), "out")


def change(folder: Path, name: str, array: np.ndarray | None) -> None:
    """Set a tensor of a model, or take it out."""
    tensors = {key: each for key, each in read_tensors(folder).items() if key != name}
    if array is not None:
        tensors[name] = array
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))


def test_hints_on_experts_name_no_options_of_other_verbs(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_models(world, "llama")
    tv.moe(recipe(), "mixture")
    given = recipe(experts=[{**expert("a"), "source_model": "mixture"}, expert("b")])
    (world / "r.yaml").write_text(json.dumps(given))
    done = invoke(capsys, "moe", "r.yaml", "out")
    assert done.code == 1
    assert "error[tensor-missing]" in done.err
    assert "give experts of the base's family and shape" in done.err
    assert "--preset" not in done.err
    assert "--exclude" not in done.err


def test_gates_that_are_not_finite_are_named(world: Path) -> None:
    write_models(world, "llama")
    rows = read_tensors(world / "base")["model.embed_tokens.weight"]
    change(world / "base", "model.embed_tokens.weight", rows * np.array(np.nan, rows.dtype))
    with pytest.raises(RecipeError, match="what the gate of `a` is made of is not finite"):
        tv.moe(recipe(), "out")
    assert not (world / "out").exists()


def test_an_adapter_of_an_expert_that_changes_no_mlp_is_remarked(world: Path) -> None:
    write_models(world, "llama")
    write_adapter(world / "lora", "llama", LAYERS)
    given = recipe(experts=[{**expert("a"), "source_model": "a+lora"}, expert("b")])
    report = tv.moe(given, "out")
    (found,) = [each for each in report.findings if each.id == "recipe-ignored"]
    assert "the adapter has no effect" in found.message
    with pytest.raises(CompatibilityError):
        tv.moe(given, "strict", strict=True)
    tv.moe(recipe(), "plain")
    assert (world / "out" / "model.safetensors").read_bytes() == (
        world / "plain" / "model.safetensors"
    ).read_bytes()


def test_large_seeds_are_not_rounded(world: Path) -> None:
    """A seed of 64 bits next to a small number is a float to NumPy."""
    write_models(world, "llama")
    seeds = [2**63, 2**63 + 1, 2**64 - 1]
    for seed in seeds:
        tv.moe(recipe("random", seed=seed, dtype="float32"), f"out{seed}")
    name = "model.layers.2.block_sparse_moe.gate.weight"
    for seed in seeds:
        key = np.array([seed, 2], np.uint64)
        want = np.random.Generator(np.random.Philox(key=key)).standard_normal((2, 16), dtype=np.float32)
        np.testing.assert_array_equal(read_tensors(world / f"out{seed}")[name], want)


def test_summary_card_and_manifest_name_all(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_models(world, "qwen2")
    (world / "r.yaml").write_text(json.dumps(recipe(**shared(residual_scale=0.1))))
    dry = invoke(capsys, "moe", "r.yaml", "out", "--dry-run", "--json")
    assert dry.code == 0
    assert json.loads(dry.out)["plan"]["recipe"]["layout"] == "qwen2_moe"
    assert not (world / "out").exists()
    done = invoke(capsys, "moe", "r.yaml", "out")
    assert done.code == 0
    assert "2 experts of r.yaml" in done.err
    card = (world / "out" / "README.md").read_text()
    assert "# base and 2 experts as qwen2\\_moe" in card
    assert "taskvec merge taskvec_recipe.yaml -o OUT" in card
    assert "tv.repeat('taskvec_recipe.yaml', 'OUT')" in card
    manifest = json.loads((world / "out" / "taskvec.json").read_text())
    assert [each["role"] for each in manifest["sources"]] == [
        "base",
        "expert 0",
        "expert 1",
        "shared expert",
        "gates",
    ]
    # of an expert the MLPs are read, which may be less than half of it
    found = {each["content"].partition(":")[0] for each in manifest["sources"][:4]}
    assert found <= {"blake3", "not-read-whole"}
    assert tv.verify("out").ok
    for number, name in enumerate(("taskvec.json", "taskvec_recipe.yaml")):
        again = invoke(capsys, "merge", f"out/{name}", "-o", f"again{number}")
        assert again.code == 0, again.err
        same_files(world / "out", world / f"again{number}")
