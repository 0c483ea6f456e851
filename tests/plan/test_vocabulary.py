"""Merges of models whose tokenizers differ, row by row against NumPy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import taskvec as tv
from support.models import read_tensors, safetensors_bytes
from support.pipelines import pipeline
from support.vocabularies import EMBEDDING, ENGLISH, FRENCH, HEAD, byte_tokenizer, write_model

WEIGHTS = {"a": 0.4, "b": 0.35, "c": 0.25}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {
        "a": byte_tokenizer(ENGLISH, 300, ["<|im_start|>", "<|im_end|>"]),
        "b": byte_tokenizer(FRENCH, 310, ["<|think|>", "<|im_end|>"]),
        "c": byte_tokenizer(ENGLISH, 290, ["<|im_end|>"]),
    }


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory, tokenizers: Mapping[str, Tokenizer]) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("vocabularies")
    made = {
        name: write_model(folder / name, tokenizer, seed, padding=5 if name == "c" else 0)
        for seed, (name, tokenizer) in enumerate(tokenizers.items())
    }
    return {
        "folder": folder,
        "tensors": made,
        "ids": {name: each.get_vocab() for name, each in tokenizers.items()},
    }


def recipe(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "merge_method": "linear",
        "base_model": str(folder / "a"),
        "models": [
            {"model": str(folder / name), "parameters": {"weight": weight}}
            for name, weight in WEIGHTS.items()
        ],
        **more,
    }


def expected_row(trio: Mapping[str, Any], tensor: str, token: str, **forced: np.ndarray) -> np.ndarray:
    """The weighted sum of a token's rows, with the base's row, or the mean of all, where a model has none."""
    rows = {
        name: trio["tensors"][name][tensor][ids[token]].astype(np.float64)
        for name, ids in trio["ids"].items()
        if token in ids
    }
    other = rows["a"] if "a" in rows else np.mean(list(rows.values()), axis=0)
    return sum(weight * forced.get(name, rows.get(name, other)) for name, weight in WEIGHTS.items())  # type: ignore[return-value]


@pytest.mark.parametrize("source", ["union", "base", "b", "c"])
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_go_by_token(trio: dict[str, Any], tmp_path: Path, source: str, threads: int) -> None:
    folder = trio["folder"]
    chosen = source if source in ("union", "base") else str(folder / source)
    tv.merge(recipe(folder, tokenizer_source=chosen), tmp_path / "out", threads=threads)
    out = read_tensors(tmp_path / "out")
    ids = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).get_vocab()
    wanted = {"base": "a"}.get(source, source)
    if source == "union":
        assert set(ids) == {token for known in trio["ids"].values() for token in known}
        assert all(ids[token] == number for token, number in trio["ids"]["a"].items())
        assert sorted(ids.values()) == list(range(len(ids)))
        rows = len(ids)
    else:
        assert ids == trio["ids"][wanted]
        rows = len(trio["tensors"][wanted][EMBEDDING])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == rows
    for tensor in (EMBEDDING, HEAD):
        assert out[tensor].shape == (rows, 32)
        for token, number in ids.items():
            np.testing.assert_allclose(
                out[tensor][number], expected_row(trio, tensor, token), rtol=0, atol=3e-8
            )
        for number in range(len(ids), rows):  # behind the tokens: the chosen model's
            np.testing.assert_allclose(
                out[tensor][number], trio["tensors"][wanted][tensor][number], atol=1e-8
            )
    other = "model.layers.0.mlp.up_proj.weight"
    plain = sum(w * trio["tensors"][name][other].astype(np.float64) for name, w in WEIGHTS.items())
    np.testing.assert_allclose(out[other], plain, atol=1e-7)


def test_the_union_cuts_texts_of_all_its_models(trio: dict[str, Any], tmp_path: Path) -> None:
    import transformers  # slow to import

    tv.merge(recipe(trio["folder"], tokenizer_source="union"), tmp_path / "out")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for text in (*ENGLISH[:3], *FRENCH[:3], "<|think|> le monde <|im_end|>", "ünïcode 漢字 🙂"):
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert tokenizer.decode(ids[0], clean_up_tokenization_spaces=False) == text
        assert model(ids).logits.shape[-1] == len(tokenizer)
    french = tokenizer.tokenize("la maison est grande")
    assert any(token in trio["ids"]["b"] and token not in trio["ids"]["a"] for token in french)
    assert "<|think|>" in tokenizer.get_added_vocab()


def test_single_tokens_have_the_rows_that_the_recipe_names(trio: dict[str, Any], tmp_path: Path) -> None:
    folder = trio["folder"]
    tokens = {
        "<|think|>": {"source": {"kind": "zero"}},
        "<|im_start|>": {"source": {"kind": "model_token", "model": str(folder / "c"), "token_id": 7}},
        "Ġworld": {
            "source": {"kind": "model_token", "model": str(folder / "a"), "token": "Ġthe"}, "force": True
        },
        "<|im_end|>": {"source": str(folder / "b")},
    }  # fmt: skip
    settings = {"source": "union", "tokens": tokens, "pad_to_multiple_of": 64}
    tv.merge(recipe(folder, tokenizer=settings), tmp_path / "out")
    out = read_tensors(tmp_path / "out")
    ids = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).get_vocab()
    rows = out[HEAD].shape[0]
    assert rows == -(-len(ids) // 64) * 64
    assert not out[HEAD][len(ids) :].any()
    own = {name: (trio["ids"][name], trio["tensors"][name][HEAD].astype(np.float64)) for name in WEIGHTS}

    def row(name: str, token: str) -> np.ndarray:
        known, table = own[name]
        return table[known[token]]

    zero = np.zeros(32)
    wanted = {
        "<|think|>": {"a": zero, "b": row("b", "<|think|>"), "c": zero},
        "<|im_start|>": {"a": row("a", "<|im_start|>"), "b": own["c"][1][7], "c": own["c"][1][7]},
        "Ġworld": dict.fromkeys(WEIGHTS, row("a", "Ġthe")),
        "<|im_end|>": {name: row(name, "<|im_end|>") for name in WEIGHTS},
    }
    for token, rows_of in wanted.items():
        expected = sum(WEIGHTS[name] * value for name, value in rows_of.items())
        np.testing.assert_allclose(out[HEAD][ids[token]], expected, atol=3e-8, err_msg=token)


def test_ids_of_single_tokens_are_those_of_the_chosen_tokenizer(trio: dict[str, Any], tmp_path: Path) -> None:
    folder = trio["folder"]
    tv.merge(recipe(folder, tokenizer_source=str(folder / "b")), tmp_path / "out")
    ids = trio["ids"]["b"]
    assert ids["<|im_end|>"] != trio["ids"]["a"]["<|im_end|>"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert config["eos_token_id"] == ids["<|im_end|>"]
    assert generation["eos_token_id"] == [ids["<|im_end|>"]]
    assert generation["top_k"] == 5


@pytest.mark.parametrize("source", ["union", "base", "target", "donor"])
def test_a_transfer_goes_by_token(trio: dict[str, Any], tmp_path: Path, source: str) -> None:
    folder = trio["folder"]
    tensors, ids = trio["tensors"], trio["ids"]
    tuned_folder = tmp_path / "donor"
    rng = np.random.default_rng(9)
    donor = {
        name: (each + rng.standard_normal(each.shape) * 0.01).astype(np.float32)
        for name, each in tensors["b"].items()
    }
    tuned_folder.mkdir()
    for file in (folder / "b").iterdir():
        (tuned_folder / file.name).write_bytes(file.read_bytes())
    (tuned_folder / "model.safetensors").write_bytes(safetensors_bytes(donor))
    report = tv.transfer(
        folder / "a", tuned_folder, folder / "b", tmp_path / "out", alpha=0.8, tokenizer=source,  # type: ignore[arg-type]
    )  # fmt: skip
    assert not [each for each in report.findings if each.level == "error"]
    out = read_tensors(tmp_path / "out")
    got = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).get_vocab()
    wanted = {"union": {*ids["a"], *ids["b"]}, "donor": {*ids["b"]}}.get(source, {*ids["a"]})
    assert set(got) == wanted
    for tensor in (EMBEDDING, HEAD):
        assert out[tensor].shape[0] == len(got)
        for token, number in got.items():
            theirs, own = ids["b"].get(token), ids["a"].get(token)
            step = (
                donor[tensor][theirs].astype(np.float64) - tensors["b"][tensor][theirs]
                if theirs is not None
                else 0
            )
            start = tensors["a"][tensor][own] if own is not None else tensors["b"][tensor][theirs]
            np.testing.assert_allclose(out[tensor][number], start + 0.8 * step, atol=3e-8, err_msg=token)
    assert tv.verify(tmp_path / "out").ok


def test_a_transfer_between_equal_vocabularies_takes_the_plain_way(
    trio: dict[str, Any], tmp_path: Path
) -> None:
    models = [trio["folder"] / "a"] * 3
    tv.transfer(*models, tmp_path / "one", tokenizer="union", force="zero-vector")
    tv.transfer(*models, tmp_path / "two", force="zero-vector")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (
        tmp_path / "two/model.safetensors"
    ).read_bytes()


def test_bfloat16_means_are_rounded_once(tmp_path: Path, tokenizers: Mapping[str, Tokenizer]) -> None:
    made = {
        name: write_model(tmp_path / name, tokenizer, seed, dtype="BF16")
        for seed, (name, tokenizer) in enumerate(tokenizers.items())
    }
    document = recipe(tmp_path, tokenizer_source="union", merge_method="linear")
    del document["base_model"]
    document["tokenizer_source"] = str(tmp_path / "b")
    tv.merge(document, tmp_path / "out")
    out = read_tensors(tmp_path / "out")[EMBEDDING]
    assert out.dtype == made["a"][EMBEDDING].dtype
    vocabularies = {name: each.get_vocab() for name, each in tokenizers.items()}
    for token, number in vocabularies["b"].items():
        rows = {
            n: made[n][EMBEDDING][v[token]].astype(np.float32) for n, v in vocabularies.items() if token in v
        }
        mean = sum(rows.values()) / np.float32(len(rows))
        exact = sum(np.float64(w) * rows.get(n, mean) for n, w in WEIGHTS.items())
        nearest = np.asarray(exact, np.float32).astype(out.dtype)
        steps = np.abs(nearest.view(np.uint16).astype(int) - out[number].view(np.uint16).astype(int))
        assert steps.max() <= 1
        assert (steps == 0).mean() > 0.9


def test_an_adapter_or_vector_on_the_rows_is_refused(trio: dict[str, Any], tmp_path: Path) -> None:
    folder = trio["folder"]
    tv.extract(folder / "a", folder / "a", tmp_path / "zero.vec")  # zero everywhere: has no rows
    document = recipe(folder, tokenizer_source="union", merge_method="task_arithmetic")
    document["models"] = [document["models"][1], {"vector": str(tmp_path / "zero.vec")}]
    document["models"][1]["parameters"] = {"weight": 1.0}
    tv.merge(document, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "base", "tokens": {"nowhere": {"source": {"kind": "zero"}}}}, "`nowhere` is not a token"),
        ({"source": "base", "tokens": {"<|im_start|>": {"source": "B"}}}, "does not have the token"),
        ({"source": "base", "tokens": {"<s>": {"source": "/x/y"}}}, "not one of the models"),
        ({"source": "base", "tokens": {"<s>": {"source": {"kind": "copy"}}}}, "unknown kind of source"),
        ({"source": "base", "tokens": {"<s>": {"force": True}}}, "`force` without a `source`"),
        ({"source": "base", "pad_to_multiple_of": 0}, "whole number"),
    ],
)
def test_mistakes_are_named(
    trio: dict[str, Any], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    text = json.dumps(settings).replace('"B"', json.dumps(str(trio["folder"] / "b")))
    document = recipe(trio["folder"], tokenizer=json.loads(text))
    with pytest.raises(tv.RecipeError, match=message):
        tv.merge(document, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_file_has_no_union(trio: dict[str, Any], tmp_path: Path) -> None:
    for name in WEIGHTS:
        for file in (trio["folder"] / name).iterdir():
            (tmp_path / name).mkdir(exist_ok=True)
            if name != "b" or file.name != "tokenizer.json":
                (tmp_path / name / file.name).symlink_to(file)
    document = recipe(tmp_path, tokenizer_source="union")
    with pytest.raises(tv.RecipeError, match=r"has no `tokenizer.json`"):
        tv.merge(document, tmp_path / "out")


def test_equal_vocabularies_take_the_plain_way(trio: dict[str, Any], tmp_path: Path) -> None:
    folder = trio["folder"]
    shutil.copytree(folder / "a", tmp_path / "a")
    document = recipe(folder, tokenizer_source="union")
    document["models"] = document["models"][:2]
    document["models"][1]["model"] = str(tmp_path / "a")
    plain = {key: value for key, value in document.items() if key != "tokenizer_source"}
    tv.merge(document, tmp_path / "union")
    tv.merge(plain, tmp_path / "plain")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "union" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"vocab": {"a": 10**12}},
        {"vocab": {"a": -1}},
        {"vocab": {"a": True}},
        {"vocab": "a"},
        {"vocab": [["a", 0.5], ["b"]]},
        {"vocab": None},
        {"merges": [1, 2]},
        {"merges": ["ab"]},
        {"merges": {"a": "b"}},
        {"merges": [["a", "b", "c"]]},
        None,
        [],
    ],
    ids=str,
)
def test_a_damaged_tokenizer_is_an_error(trio: dict[str, Any], tmp_path: Path, change: Any) -> None:
    for name in WEIGHTS:
        shutil.copytree(trio["folder"] / name, tmp_path / name)
    path = tmp_path / "b" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"] = {**content["model"], **change} if isinstance(change, dict) else change
    path.write_text(json.dumps(content))
    document = recipe(tmp_path, tokenizer_source="union")
    with pytest.raises(tv.Error):
        tv.merge(document, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_several_models_has_no_vocabulary(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        pipeline(tmp_path / name, seed)
    models = [{"model": str(tmp_path / name), "parameters": {"weight": 0.5}} for name in ("one", "two")]
    document = {"merge_method": "linear", "models": models, "tokenizer_source": "union"}
    with pytest.raises(tv.RecipeError, match="has models in sub-folders") as caught:
        tv.merge(document, tmp_path / "out")
    assert "leave out" in (caught.value.hint or "")
    with pytest.raises(tv.RecipeError, match="has models in sub-folders"):
        tv.tokens(tmp_path / "one", tmp_path / "two", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["base", "union"])
def test_one_vocabulary_in_other_numbers_of_rows_goes_by_token(
    source: str, tmp_path: Path, tokenizers: Mapping[str, Tokenizer]
) -> None:
    one = tokenizers["a"]
    made = {
        name: write_model(tmp_path / name, one, seed, padding=padding)
        for seed, (name, padding) in enumerate((("a", 0), ("b", 8), ("c", 3)))
    }
    plain = recipe(tmp_path)
    with pytest.raises(tv.CompatibilityError):
        tv.merge(plain, tmp_path / "refused")
    tv.merge({**plain, "tokenizer_source": source}, tmp_path / "out")
    out, count = read_tensors(tmp_path / "out"), one.get_vocab_size()
    for name in (EMBEDDING, HEAD):
        expected = sum(weight * made[of][name][:count].astype(np.float64) for of, weight in WEIGHTS.items())
        assert out[name].shape == made["a"][name].shape
        np.testing.assert_allclose(out[name], expected, rtol=1e-5, atol=1e-6)
    # forced, the base's are kept, and all else is merged
    tv.merge({**plain, "merge_method": "linear"}, tmp_path / "forced", force="vocabulary-rows")
    forced = read_tensors(tmp_path / "forced")
    for name, value in out.items():
        kept = made["a"][name] if name in (EMBEDDING, HEAD) else value
        assert np.array_equal(forced[name], kept), name
