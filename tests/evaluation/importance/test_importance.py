"""Importance maps of a tiny model: against per-sample gradients of torch.func, and what may go wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import taskvec as tv
from support.evaluation_models import tiny, word_problems, write_tokenizer
from support.s3_server import S3
from taskvec import errors
from taskvec.evaluation.importance import delivered, kept, make, squares


def importance(out: Path | str, tasks: str = "tiny_gen,tiny_choice", **more: Any) -> Any:
    given = {"include_path": tiny().tasks, "limit": 3, "device": "cpu", **more}
    return tv.importance(given.pop("model", tiny().target), out, tasks=tasks, **given)


def texts(count: int) -> list[tuple[str, str]]:
    """The prompts and answers of the two tasks, as their YAML says."""
    choices = ["four", "seventeen", "blue", "nine"]
    found = [(f"Question: {row['question']}\nAnswer:", f" {row['answer']}") for row in word_problems(count)]
    for index, row in enumerate(word_problems(count, seed=1)):
        found.append((f"Question: {row['question']}\nAnswer:", f" {choices[index % 4]}"))
    return found


def test_the_map_is_the_mean_of_squared_per_sample_gradients(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = importance(tmp_path / "map", model_args={"dtype": "float64"})
    model = AutoModelForCausalLM.from_pretrained(tiny().target, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny().target)
    parameters = dict(model.named_parameters())

    def log_likelihood(values: Any, ids: Any, answer: int) -> Any:
        logits = torch.func.functional_call(model, values, (), {"input_ids": ids[None, :-1]}).logits[0]
        return torch.log_softmax(logits, -1)[range(len(ids) - 1), ids[1:]][-answer:].sum()

    want = dict.fromkeys(parameters, 0.0)
    tokens = 0
    for context, answer in texts(3):
        ids = torch.tensor(tokenizer(context + answer)["input_ids"])
        count = len(tokenizer(answer)["input_ids"])
        for name, gradient in torch.func.grad(log_likelihood)(parameters, ids, count).items():
            want[name] = want[name] + gradient.detach() ** 2 / 6
        tokens += count
    got = load_file(tmp_path / "map" / "model.safetensors")
    assert got.keys() == load_file(tiny().target / "model.safetensors").keys()
    for name, array in got.items():
        np.testing.assert_allclose(array, want[name].numpy(), rtol=1e-6, atol=1e-30, err_msg=name)
    assert (report.documents, report.tokens) == ({"tiny_gen": 3, "tiny_choice": 3}, tokens)
    assert report.tensors == len(got)
    assert not report.without_gradient
    assert not report.unknown
    # the square of a batch's gradient is another number
    assert float(got["model.norm.weight"].max()) > 0


def test_it_is_a_whole_folder_that_a_recipe_names(tmp_path: Path) -> None:
    for name in ("target", "donor"):
        importance(tmp_path / name, model=getattr(tiny(), name), dtype="bfloat16")
    assert tv.verify(tmp_path / "target").ok
    again = importance(tmp_path / "target", dtype="bfloat16")
    assert again.already_done
    models = [tiny().target, tiny().donor]
    tv.fisher(models, importance=[tmp_path / "target", tmp_path / "donor"]).save(tmp_path / "out")
    read = [load_file(Path(m) / "model.safetensors") for m in models]
    from safetensors.torch import load_file as load_torch

    maps = [load_torch(tmp_path / name / "model.safetensors") for name in ("target", "donor")]
    for name, array in load_file(tmp_path / "out" / "model.safetensors").items():
        x, y = (each[name].astype(np.float64) for each in read)
        f, g = (each[name].double().numpy() for each in maps)
        total = f + g
        mean = np.where(total > 0, (f * x + g * y) / np.where(total > 0, total, 1), (x + y) / 2)
        np.testing.assert_allclose(array, mean, rtol=1e-6, err_msg=name)


def test_experts_that_the_loaded_model_has_in_one_tensor_are_found_by_their_layout(tmp_path: Path) -> None:
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=264, hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_experts=4,
        num_experts_per_tok=2, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=512, initializer_range=0.3, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    for seed in range(2):
        torch.manual_seed(seed)
        Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / f"m{seed}")
        write_tokenizer(tmp_path / f"m{seed}")
        report = importance(tmp_path / f"f{seed}", "tiny_choice", model=tmp_path / f"m{seed}")
        assert not report.unknown
    models, maps = ([tmp_path / f"{kind}{seed}" for seed in range(2)] for kind in "mf")
    tv.fisher(models, importance=maps).save(tmp_path / "out")
    files = [load_file(each / "model.safetensors") for each in (*models, *maps, tmp_path / "out")]
    own, fused = "model.layers.0.mlp.experts.2.down_proj.weight", "model.layers.0.mlp.experts.down_proj"
    assert own in files[0]
    x, y, out = (each[own].astype(np.float64) for each in (files[0], files[1], files[4]))
    f, g = (each[own] if own in each else each[fused][2] for each in files[2:4])
    total = f.astype(np.float64) + g
    want = np.where(total > 0, (f * x + g * y) / np.where(total > 0, total, 1), (x + y) / 2)
    np.testing.assert_allclose(out, want, rtol=1e-5)


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    importance(tmp_path / "map", limit=1)
    models = [{"model": str(tiny().target), "importance": str(tmp_path / "map")}]
    models.append({**models[0], "model": str(tiny().reference)})
    asked = {"merge_method": "fisher", "models": models}
    tv.open_recipe(asked).plan()
    asked["tokenizer"] = {"source": "union", "pad_to_multiple_of": 512}
    with pytest.raises(errors.RecipeError, match="no rows for another vocabulary"):
        tv.open_recipe(asked).plan()


def test_stopped_it_goes_on_and_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importance(tmp_path / "whole")

    def stop(_task: str, done: int, _total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        importance(tmp_path / "map", progress=stop)
    assert not (tmp_path / "map" / "model.safetensors").exists()
    assert not (tmp_path / "map" / "taskvec.json").exists()
    seen = []
    report = importance(tmp_path / "map", progress=lambda *each: seen.append(each[1]))
    assert (report.resumed, seen) == (4, [5, 6])
    whole, resumed = (tmp_path / name / "model.safetensors" for name in ("whole", "map"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert not (tmp_path / "map" / ".taskvec").exists()
    # and of one that was killed in the middle of writing its sums
    monkeypatch.setattr(make, "_EVERY", -1.0)
    saved = kept.keep

    def die(place: Path, sums: Any, counts: Any) -> None:
        if counts.seen == 3:
            raise RuntimeError("killed")
        saved(place, sums, counts)

    monkeypatch.setattr(make, "keep", die)
    with pytest.raises(RuntimeError):
        importance(tmp_path / "killed")
    monkeypatch.setattr(make, "keep", saved)
    assert importance(tmp_path / "killed").resumed == 2
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == whole.read_bytes()


def test_answers_drawn_from_the_model_are_seeded_and_its_own(tmp_path: Path) -> None:
    first = importance(tmp_path / "a", labels="model", seed=1)
    importance(tmp_path / "b", labels="model", seed=1)
    importance(tmp_path / "c", labels="model", seed=2)
    read = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert read[0] == read[1] != read[2]
    assert first.tokens > 0


def test_drawn_tokens_have_the_models_probabilities() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from taskvec.evaluation.importance.answers import Tokens

    model = AutoModelForCausalLM.from_pretrained(tiny().target, dtype=torch.float32).eval()
    tokens = Tokens((20, 30, 40, 50), 1)
    made = [squares.drawn(model, tokens, seed, frozenset()).ids for seed in range(600)]
    assert {each[:3] for each in made} == {(20, 30, 40)}
    shares = torch.softmax(model(torch.tensor([[20, 30, 40]])).logits[0, -1], -1).detach().numpy()
    counts = np.bincount([each[3] for each in made], minlength=shares.size)
    spread = np.sqrt(np.maximum(shares * (1 - shares), 1e-4) / 600)
    assert (abs(counts / 600 - shares) < 5 * spread).all()


def test_tensors_that_have_no_part_are_named(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny().target, model)
    from safetensors.numpy import save_file

    arrays = load_file(model / "model.safetensors")
    save_file(
        {**arrays, "extra.weight": np.ones(4, np.float32)}, model / "model.safetensors", {"format": "pt"}
    )
    report = importance(tmp_path / "map", model=model)
    assert report.unknown == ("extra.weight",)
    assert "extra.weight" not in load_file(tmp_path / "map" / "model.safetensors")
    manifest = json.loads((tmp_path / "map" / "taskvec.json").read_text())
    assert manifest["importance"]["unknown"] == ["extra.weight"]


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"model": "base+adapter"}, errors.RecipeError, "without an adapter"),
        ({"labels": "mine"}, errors.RecipeError, "`labels` is reference or model"),
        ({"dtype": "int8"}, errors.RecipeError, "`dtype` is float32 or bfloat16"),
        ({"backend": "vllm"}, errors.RecipeError, "gives no gradients"),
        ({"tasks": "nothing_like_it"}, errors.EvaluationError, "nothing_like_it"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    more: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        importance(tmp_path / "map", **more)
    assert not (tmp_path / "map").exists()


def test_killed_after_a_map_was_sent_the_next_run_ends_the_scratch(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.client.create_bucket(Bucket="maps")

    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(delivered, "forget", stop)
        with pytest.raises(KeyboardInterrupt):
            importance("s3://maps/of/target", "tiny_choice", limit=1)
    kept = tmp_path / "scratch" / "outputs"
    assert list(kept.iterdir())
    assert importance("s3://maps/of/target", "tiny_choice", limit=1).already_done
    assert not list(kept.iterdir())


def test_a_map_goes_to_a_bucket_that_a_recipe_names(s3: S3, tmp_path: Path) -> None:
    s3.client.create_bucket(Bucket="maps")
    importance(tmp_path / "near")
    report = importance("s3://maps/of/target")
    assert (report.out, report.already_done) == ("s3://maps/of/target", False)

    def there(name: str) -> bytes:
        return s3.client.get_object(Bucket="maps", Key=f"of/target/{name}")["Body"].read()

    listed = s3.client.list_objects_v2(Bucket="maps", Prefix="of/target/")["Contents"]
    own = sorted(path.name for path in (tmp_path / "near").iterdir())
    keys = {each["Key"].removeprefix("of/target/") for each in listed}
    assert keys == {*own, ".taskvec/written.json"}
    for name in own:
        if name != "taskvec.json":
            assert there(name) == (tmp_path / "near" / name).read_bytes(), name
    again = importance("s3://maps/of/target")
    assert again.already_done
    assert again.documents == report.documents
    assert tv.verify("s3://maps/of/target").ok
    assert not list((tmp_path / "scratch" / "outputs").glob("*"))
    with pytest.raises(errors.OutputError, match="s3://maps/of/target"):
        importance("s3://maps/of/target", seed=7)
    models = [tiny().target, tiny().donor]
    tv.fisher(models, importance=["s3://maps/of/target", tmp_path / "near"]).save(tmp_path / "far")
    tv.fisher(models, importance=[tmp_path / "near"] * 2).save(tmp_path / "here")
    far, here = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("far", "here"))
    assert far == here
    importance("s3://maps/of/target", limit=2, overwrite=True)
    assert there("model.safetensors") != (tmp_path / "near" / "model.safetensors").read_bytes()


def test_a_map_that_was_made_and_not_sent_is_sent_by_the_next_call(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskvec.evaluation.importance import delivered

    s3.client.create_bucket(Bucket="maps")
    with monkeypatch.context() as patch:
        patch.setattr(delivered, "_send", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            importance("s3://maps/map")
    asked: list[Any] = []
    monkeypatch.setattr(make, "_make", lambda *given: asked.append(given))
    report = importance("s3://maps/map")
    assert not asked
    assert not report.already_done
    assert tv.verify("s3://maps/map").ok


def test_other_addresses_and_a_folder_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.RecipeError, match="addresses of ftp:// cannot be written to"):
        importance("ftp://bucket/map")
    importance(tmp_path / "map")
    with pytest.raises(errors.OutputError):
        importance(tmp_path / "map", seed=7)
    before = (tmp_path / "map" / "model.safetensors").read_bytes()
    importance(tmp_path / "map", limit=2, overwrite=True)
    assert (tmp_path / "map" / "model.safetensors").read_bytes() != before
    assert tv.verify(tmp_path / "map").ok


@pytest.mark.parametrize("tasks", ["", [], [""]])
def test_without_a_task_the_hint_names_an_option_of_the_verb(tmp_path: Path, tasks: Any) -> None:
    with pytest.raises(errors.RecipeError, match="no task was named") as caught:
        tv.importance(tiny().target, tmp_path / "out", tasks=tasks)
    assert caught.value.hint == "name tasks with `--tasks gsm8k,sciq`"
