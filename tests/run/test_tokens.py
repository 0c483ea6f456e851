"""``taskvec tokens``: rows of other tokens against NumPy, the tokenizers library and transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from ml_dtypes import bfloat16
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import taskvec as tv
from support.command_line import invoke
from support.models import (
    Tensors,
    qwen2_config,
    qwen2_shapes,
    random_tensors,
    read_tensors,
    safetensors_bytes,
    write_checkpoint,
)
from support.oracle import same_files
from support.s3_server import S3
from support.vocabularies import EMBEDDING, ENGLISH, FRENCH, HEAD, byte_tokenizer, write_model
from taskvec.files.manifest_schema import schema
from taskvec.run import deliver_whole, tokens

TEXTS = (*ENGLISH[:3], *FRENCH[:3], "def f(x):\n    return x + 42", "ünïcode 漢字 🙂")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A target and another model, of byte-level tokenizers that share half of their pieces."""
    folder = tmp_path_factory.mktemp("tokens")
    tokenizers = {
        "target": byte_tokenizer(ENGLISH, 330, ["<|im_start|>", "<|im_end|>"]),
        "other": byte_tokenizer(FRENCH, 340, ["<|think|>", "<|im_end|>"]),
    }
    tensors = {
        name: write_model(folder / name, tokenizer, seed, padding=3 if name == "other" else 0)
        for seed, (name, tokenizer) in enumerate(tokenizers.items())
    }
    ids = {name: tokenizer.get_vocab() for name, tokenizer in tokenizers.items()}
    return {"folder": folder, "tensors": tensors, "ids": ids, "tokenizers": tokenizers}


def pursued(row: np.ndarray, atoms: np.ndarray, k: int) -> tuple[list[int], np.ndarray]:
    """Orthogonal matching pursuit: the atom nearest to what is left, then least squares over all taken."""
    chosen, weights, left = [], np.zeros(0), row
    for _ in range(k):
        products = np.abs(atoms @ left)
        products[chosen] = -1
        chosen.append(int(products.argmax()))
        weights = np.linalg.lstsq(atoms[chosen].T, row, rcond=None)[0]
        left = row - weights @ atoms[chosen]
    return chosen, weights


def expected(pair: Mapping[str, Any], tensor: str, token: str, k: int) -> tuple[np.ndarray, float]:
    """The row of a token that the target lacks, and what is left of the other model's in its space."""
    ids, tensors = pair["ids"], pair["tensors"]
    shared = [each for each in ids["other"] if each in ids["target"]]
    theirs = tensors["other"][tensor].astype(np.float64)
    atoms = theirs[[ids["other"][each] for each in shared]]
    row = theirs[ids["other"][token]]
    chosen, weights = pursued(row, atoms, k)
    own = tensors["target"][tensor].astype(np.float64)[[ids["target"][shared[at]] for at in chosen]]
    return weights @ own, float(np.linalg.norm(row - weights @ atoms[chosen]) / np.linalg.norm(row))


@pytest.mark.parametrize("k", [1, 5, 12])
def test_rows_are_those_of_matching_pursuit(pair: dict[str, Any], tmp_path: Path, k: int) -> None:
    folder, ids = pair["folder"], pair["ids"]
    report = tv.tokens(folder / "target", folder / "other", tmp_path / "out", method="omp", k=k)
    out = read_tensors(tmp_path / "out")
    assert report.tokens is not None
    lacking = [token for token in ids["other"] if token not in ids["target"]]
    assert report.tokens["computed"] == len(lacking) > 40
    assert report.tokens["round_trip"] == {"texts": 5, "changed": []}
    assert report.tokens["copied"] == len(ids["other"]) - len(lacking)
    rows = len(pair["tensors"]["other"][EMBEDDING])
    for tensor in (EMBEDDING, HEAD):
        assert out[tensor].shape == (rows, 32)
        left = []
        for token, number in ids["other"].items():
            if token in ids["target"]:
                np.testing.assert_array_equal(
                    out[tensor][number], pair["tensors"]["target"][tensor][ids["target"][token]]
                )
                continue
            row, residual = expected(pair, tensor, token, k)
            np.testing.assert_allclose(out[tensor][number], row, rtol=0, atol=2e-6, err_msg=token)
            left.append(residual)
        assert not out[tensor][len(ids["other"]) :].any()
        found = report.tokens["residual"][tensor]
        assert found["max"] == pytest.approx(max(left), rel=1e-4)
        assert found["median"] == pytest.approx(np.median(left), rel=1e-4)
    for name, array in pair["tensors"]["target"].items():
        if name not in (EMBEDDING, HEAD):
            np.testing.assert_array_equal(out[name], array)


@pytest.mark.parametrize("k", [None, 3])
def test_rows_of_the_nearest_tokens(pair: dict[str, Any], tmp_path: Path, k: int | None) -> None:
    folder, ids, tensors = pair["folder"], pair["ids"], pair["tensors"]
    tv.tokens(folder / "target", folder / "other", tmp_path / "out", method="nearest", k=k)
    out = read_tensors(tmp_path / "out")
    shared = [each for each in ids["other"] if each in ids["target"]]
    for tensor in (EMBEDDING, HEAD):
        theirs = tensors["other"][tensor].astype(np.float64)
        unit = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
        for token in (each for each in ids["other"] if each not in ids["target"]):
            angles = unit[[ids["other"][each] for each in shared]] @ unit[ids["other"][token]]
            nearest = [ids["target"][shared[at]] for at in np.argsort(-angles)[: k or 1]]
            row = tensors["target"][tensor].astype(np.float64)[nearest].mean(axis=0)
            np.testing.assert_allclose(out[tensor][ids["other"][token]], row, rtol=0, atol=1e-7)


def test_rows_of_pieces(pair: dict[str, Any], tmp_path: Path) -> None:
    folder, ids = pair["folder"], pair["ids"]
    report = tv.tokens(folder / "target", folder / "other", tmp_path / "out", method="subword")
    out = read_tensors(tmp_path / "out")
    letters = decoders.ByteLevel()
    for token in (each for each in ids["other"] if each not in ids["target"]):
        text = token if token == "<|think|>" else letters.decode([token])
        pieces = pair["tokenizers"]["target"].encode(text, add_special_tokens=False).ids
        for tensor in (EMBEDDING, HEAD):
            row = pair["tensors"]["target"][tensor][pieces].astype(np.float64).mean(axis=0)
            np.testing.assert_allclose(out[tensor][ids["other"][token]], row, rtol=0, atol=1e-7)
    assert report.tokens is not None
    assert report.tokens["subword"] > 40


@pytest.mark.parametrize("method", ["omp", "nearest", "subword"])
def test_the_output_loads_and_gives_texts_back(pair: dict[str, Any], tmp_path: Path, method: str) -> None:
    import transformers  # slow to import

    folder = pair["folder"]
    tv.tokens(folder / "target", folder / "other", tmp_path / "out", method=method)  # type: ignore[arg-type]
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert ids[0].tolist() == pair["tokenizers"]["other"].encode(text).ids
        assert tokenizer.decode(ids[0], clean_up_tokenization_spaces=False) == text
        assert model(ids).logits.shape[-1] == len(pair["tensors"]["other"][EMBEDDING])
    end = pair["ids"]["other"]["<|im_end|>"]
    assert model.config.eos_token_id == tokenizer.eos_token_id == end
    assert model.generation_config.eos_token_id in (end, [end])
    assert model.config.vocab_size == len(pair["tensors"]["other"][EMBEDDING])


def test_a_moved_model_takes_the_vectors_of_the_other_family(pair: dict[str, Any], tmp_path: Path) -> None:
    folder = pair["folder"]
    tuned = {name: array + np.float32(0.01) for name, array in pair["tensors"]["other"].items()}
    shutil.copytree(folder / "other", tmp_path / "tuned")
    (tmp_path / "tuned" / "model.safetensors").write_bytes(safetensors_bytes(tuned))
    before = {each.id: each for each in tv.check(folder / "target", tmp_path / "tuned", folder / "other")}
    assert "taskvec tokens" in (before["tokenizer-vocabulary"].fix or "")
    assert before["tokenizer-vocabulary"].level == "error"
    tv.tokens(folder / "target", folder / "other", tmp_path / "moved", k=4)
    after = tv.check(tmp_path / "moved", tmp_path / "tuned", folder / "other")
    assert not [each for each in after if each.level == "error" or each.id.startswith("tokenizer")]
    tv.transfer(tmp_path / "moved", tmp_path / "tuned", folder / "other", tmp_path / "out")
    moved, out = read_tensors(tmp_path / "moved"), read_tensors(tmp_path / "out")
    np.testing.assert_allclose(out[HEAD], moved[HEAD] + np.float32(0.01), atol=1e-6)


def test_one_rounding_in_every_type(pair: dict[str, Any], tmp_path: Path) -> None:
    folder = pair["folder"]
    narrow = {name: array.astype(bfloat16) for name, array in pair["tensors"]["target"].items()}
    shutil.copytree(folder / "target", tmp_path / "narrow")
    (tmp_path / "narrow" / "model.safetensors").write_bytes(safetensors_bytes(narrow))
    tv.tokens(tmp_path / "narrow", folder / "other", tmp_path / "out", k=6)
    tv.tokens(tmp_path / "narrow", folder / "other", tmp_path / "wide", k=6, out_dtype="float32")
    out, wide = read_tensors(tmp_path / "out"), read_tensors(tmp_path / "wide")
    assert out[EMBEDDING].dtype == bfloat16
    np.testing.assert_array_equal(out[EMBEDDING], wide[EMBEDDING].astype(bfloat16))
    own = {**pair, "tensors": {"target": narrow, "other": pair["tensors"]["other"]}}
    token = next(each for each in pair["ids"]["other"] if each not in pair["ids"]["target"])
    row, _ = expected(own, EMBEDDING, token, 6)
    np.testing.assert_allclose(wide[EMBEDDING][pair["ids"]["other"][token]], row, atol=2e-6)


def sentencepiece(folder: Path, seed: int, **config: Any) -> tuple[Tokenizer, Tensors]:
    """A model whose tokenizer writes spaces as Llama 2's, with bytes and other names of special tokens."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    marks = ["<unk>", "<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[*marks, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([text for text in FRENCH for _ in range(2)], trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [each for each in document["added_tokens"] if each["content"] in marks]
    tokenizer = Tokenizer.from_str(json.dumps({**document, "pre_tokenizer": None}))
    made = qwen2_config(
        layers=1, vocabulary=tokenizer.get_vocab_size(), tied=True, bos_token_id=1, eos_token_id=2, **config
    )
    tensors = random_tensors(qwen2_shapes(made), seed=seed)
    write_checkpoint(folder, tensors, made)
    (folder / "generation_config.json").unlink()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<unk>"}))
    return tokenizer, tensors


def test_bytes_spaces_and_roles_of_sentencepiece(pair: dict[str, Any], tmp_path: Path) -> None:
    folder, own = pair["folder"], pair["tensors"]["target"][EMBEDDING].astype(np.float32)
    tokenizer, _ = sentencepiece(tmp_path / "pieces", 5)
    report = tv.tokens(folder / "target", tmp_path / "pieces", tmp_path / "out", method="subword")
    out, ids = read_tensors(tmp_path / "out")[EMBEDDING], pair["ids"]["target"]
    theirs = tokenizer.get_vocab()
    same = {"▁": "Ġ", "<0xE6>": "æ", "<0x0A>": "Ċ", "<0x41>": "A", "<bos>": "<s>", "<eos>": "<|im_end|>"}
    for token, mine in same.items():
        np.testing.assert_array_equal(out[theirs[token]], own[ids[mine]], err_msg=token)
    assert report.tokens is not None
    assert report.tokens["roles"] == ["<bos>", "<eos>"]
    assert "▁monde" in theirs
    pieces = pair["tokenizers"]["target"].encode(" monde").ids
    np.testing.assert_allclose(out[theirs["▁monde"]], own[pieces].mean(axis=0), atol=1e-7)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, [2])


def test_from_sentencepiece_to_bytes(pair: dict[str, Any], tmp_path: Path) -> None:
    tokenizer, tensors = sentencepiece(tmp_path / "pieces", 6)
    tv.tokens(tmp_path / "pieces", pair["folder"] / "other", tmp_path / "out", method="subword")
    out, ids, own = read_tensors(tmp_path / "out")[EMBEDDING], pair["ids"]["other"], tensors[EMBEDDING]
    theirs = tokenizer.get_vocab()
    for token, mine in {"Ġmonde": "▁monde", "æ": "<0xE6>", "Ċ": "<0x0A>", "A": "<0x41>"}.items():
        np.testing.assert_array_equal(out[ids[token]], own[theirs[mine]], err_msg=token)


def test_tokens_without_anything_are_named(pair: dict[str, Any], tmp_path: Path) -> None:
    """A word tokenizer has no pieces for what it does not know."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "hello": 1, "world": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = qwen2_config(layers=1, vocabulary=3, tied=True)
    write_checkpoint(tmp_path / "words", random_tensors(qwen2_shapes(config), seed=1), config)
    tokenizer.save(str(tmp_path / "words" / "tokenizer.json"))
    plan = tv.plan_tokens(tmp_path / "words", pair["folder"] / "other", method="subword")
    found = {each.id: each for each in plan.findings}
    assert found["token-rows-missing"].level == "warning"
    with pytest.raises(tv.CompatibilityError, match="rows of zeros"):
        tv.plan_tokens(tmp_path / "words", pair["folder"] / "other", method="subword", strict=True)
    report = plan.run(tmp_path / "out")
    assert report.tokens is not None
    assert report.tokens["zero"] > 200
    out = read_tensors(tmp_path / "out")[EMBEDDING]
    assert not out[pair["ids"]["other"][report.tokens["zero_tokens"][0]]].any()


def test_rows_of_the_other_model_that_say_nothing_are_told(pair: dict[str, Any], tmp_path: Path) -> None:
    folder, ids = pair["folder"], pair["ids"]
    lacking = [token for token in ids["other"] if token not in ids["target"]]
    tensors = {name: array.copy() for name, array in pair["tensors"]["other"].items()}
    tensors[EMBEDDING][ids["other"][lacking[0]]] = 0
    tensors[EMBEDDING][ids["other"][lacking[1]]] = np.nan
    tensors[EMBEDDING][ids["other"]["a"]] = np.inf  # a shared one
    shutil.copytree(folder / "other", tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    report = tv.tokens(folder / "target", tmp_path / "other", tmp_path / "out", k=4)
    assert report.tokens is not None
    row = report.tokens["residual"][EMBEDDING]
    assert sorted(row["without_tokens"]) == sorted(lacking[:2])
    out = read_tensors(tmp_path / "out")[EMBEDDING]
    assert np.isfinite(out).all()
    assert not out[[ids["other"][token] for token in lacking[:2]]].any()
    assert "rows of zeros" in str(report)


@pytest.mark.parametrize("method", ["omp", "nearest"])
@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_rows_of_the_target_that_are_not_finite_stand_for_no_others(
    pair: dict[str, Any], tmp_path: Path, name: str, method: Any
) -> None:
    folder, ids = pair["folder"], pair["ids"]
    shared = [token for token in ids["other"] if token in ids["target"]]
    tensors = {key: array.copy() for key, array in pair["tensors"]["target"].items()}
    odd = shared[::3]
    tensors[name][[ids["target"][token] for token in odd]] = np.inf
    shutil.copytree(folder / "target", tmp_path / "target")
    (tmp_path / "target" / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    tv.tokens(tmp_path / "target", folder / "other", tmp_path / "out", method=method, k=4)
    out = read_tensors(tmp_path / "out")[name]
    bad = set(np.flatnonzero(~np.isfinite(out).all(axis=1)).tolist())
    assert bad == {ids["other"][token] for token in odd}  # copied, as they are


@pytest.mark.parametrize("factor", [1e30, 1e-36])
@pytest.mark.parametrize("method", ["omp", "nearest"])
def test_the_scale_of_the_other_model_does_not_matter(
    pair: dict[str, Any], tmp_path: Path, factor: float, method: Any
) -> None:
    """Products of its rows in float32 would overflow, or be zero."""
    folder = pair["folder"]
    factor = 2.0 ** round(np.log2(factor))
    tensors = {key: array * np.float32(factor) for key, array in pair["tensors"]["other"].items()}
    shutil.copytree(folder / "other", tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    for number, model in enumerate((folder / "other", tmp_path / "other")):
        tv.tokens(folder / "target", model, tmp_path / f"out{number}", method=method, k=4)
    for name in (EMBEDDING, HEAD):
        first, second = (read_tensors(tmp_path / f"out{number}")[name] for number in range(2))
        np.testing.assert_allclose(second, first, rtol=1e-5, atol=1e-7)


def test_a_row_of_zeros_is_nearest_to_nothing() -> None:
    from taskvec.run.atoms import Atoms
    from taskvec.run.pursuit import nearest

    rows = np.array([[0, 0], [-1, 0], [-1, -1]], np.float32)
    assert nearest(np.array([[1, 0]], np.float32), Atoms(rows), 1).atoms.tolist() == [[2]]


@pytest.mark.parametrize("part", ["pre_tokenizer", "decoder", "normalizer"])
@pytest.mark.parametrize(
    "value", [{"type": []}, {"type": {}}, {"type": "Sequence", "pretokenizers": 5, "decoders": 5}]
)
def test_a_damaged_tokenizer_is_named(pair: dict[str, Any], tmp_path: Path, part: str, value: Any) -> None:
    folder = pair["folder"]
    for name in ("target", "other"):
        shutil.copytree(folder / name, tmp_path / name)
        document = json.loads((tmp_path / name / "tokenizer.json").read_text())
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({**document, part: value}))
        models = {"target": folder / "target", "other": folder / "other", name: tmp_path / name}
        with pytest.raises(tv.FormatError, match=r"`tokenizer\.json` of .* is not read by the package"):
            tv.plan_tokens(models["target"], models["other"])


def test_a_head_with_other_rows_is_refused(pair: dict[str, Any], tmp_path: Path) -> None:
    folder = pair["folder"]
    for name in ("target", "other"):
        shutil.copytree(folder / name, tmp_path / name)
        tensors = {**pair["tensors"][name], HEAD: pair["tensors"][name][HEAD][:50]}
        (tmp_path / name / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        models = {"target": folder / "target", "other": folder / "other", name: tmp_path / name}
        with pytest.raises(tv.RecipeError, match=r"`lm_head\.weight` of .* rows as"):
            tv.plan_tokens(models["target"], models["other"])


def test_help_has_no_options_that_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    shown = invoke(capsys, "tokens", "--help").out
    assert "--max-memory" in shown
    for option in ("--part", "--ray", "--stream"):
        assert option not in shown


def test_it_is_made_again_from_its_recipe(
    pair: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tv.tokens(pair["folder"] / "target", pair["folder"] / "other", tmp_path / "out", k=4)
    sources = json.loads((tmp_path / "out" / "taskvec.json").read_text())["sources"]
    # of the other model nothing but embedding and head is read
    assert {each["content"].partition(":")[0] for each in sources} <= {"blake3", "not-read-whole"}
    again = invoke(capsys, "merge", tmp_path / "out" / "taskvec_recipe.yaml", "-o", tmp_path / "again")
    assert again.code == 0, again.err
    same_files(tmp_path / "out", tmp_path / "again")


@pytest.mark.parametrize("method", ["omp", "nearest"])
def test_the_bytes_do_not_depend_on_threads(pair: dict[str, Any], tmp_path: Path, method: Any) -> None:
    folder = pair["folder"]
    for threads in (1, 3):
        out = tmp_path / f"out{threads}"
        tv.tokens(folder / "target", folder / "other", out, method=method, k=7, threads=threads)
    same_files(tmp_path / "out1", tmp_path / "out3")


def test_a_killed_run_goes_on_with_the_next_chunk(
    pair: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskvec.plan import token_work
    from taskvec.run import tokens as rows

    folder, found = pair["folder"], []
    monkeypatch.setattr(rows, "chunk_of", lambda *_: 10)
    assert token_work.chunk_of(896, 64) > 100
    whole = tv.tokens(folder / "target", folder / "other", tmp_path / "whole", k=5)
    monkeypatch.setattr(rows, "pursue", lambda *each: found.append(each) or stopping(found, *each))

    def stopping(calls: list[Any], *each: Any) -> Any:
        if len(calls) == 4:
            raise KeyboardInterrupt
        return pursue(*each)

    from taskvec.run.pursuit import pursue

    with pytest.raises(KeyboardInterrupt):
        tv.tokens(folder / "target", folder / "other", tmp_path / "out", k=5)
    done = len(found) - 1
    tv.tokens(folder / "target", folder / "other", tmp_path / "out", k=5)
    assert whole.tokens is not None
    chunks = 2 * -(-whole.tokens["computed"] // 10)
    assert len(found) == chunks + 1 == done + 1 + (chunks - done)
    same_files(tmp_path / "whole", tmp_path / "out")
    again = tv.tokens(folder / "target", folder / "other", tmp_path / "out", k=5)
    assert again.already_done
    assert again.tokens == whole.tokens
    assert len(found) == chunks + 1


def test_it_is_another_run_with_another_k(pair: dict[str, Any], tmp_path: Path) -> None:
    folder = pair["folder"]
    tv.tokens(folder / "target", folder / "other", tmp_path / "out", k=2)
    with pytest.raises(tv.OutputError, match=r"holds a finished output|not empty"):
        tv.tokens(folder / "target", folder / "other", tmp_path / "out", k=3)
    tv.tokens(folder / "target", folder / "other", tmp_path / "out", k=3, overwrite=True)
    tv.tokens(folder / "target", folder / "other", tmp_path / "new", k=3)
    same_files(tmp_path / "out", tmp_path / "new")
    assert tv.verify(tmp_path / "out").ok


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "mean"}, "choose one of"),
        ({"method": "subword", "k": 3}, "leave it out"),
        ({"k": 0}, "expected a whole number from 1 to 1024"),
        ({"k": 1.5}, "expected a whole number from 1 to 1024"),
        ({"k": "3"}, "expected a whole number from 1 to 1024"),
        ({"max_memory": 1 << 10}, "allow more memory"),
        ({"stream": True}, "leave out `--stream`"),
        ({"out_dtype": "fp8-block"}, "convert the result"),
    ],
)
def test_what_cannot_be_is_refused(pair: dict[str, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(tv.RecipeError) as caught:
        tv.plan_tokens(pair["folder"] / "target", pair["folder"] / "other", **options)
    assert words in f"{caught.value.message}; {caught.value.hint}"


def test_models_without_what_is_needed_are_refused(pair: dict[str, Any], tmp_path: Path) -> None:
    folder = pair["folder"]
    with pytest.raises(tv.RecipeError, match="the same tokenizer"):
        tv.plan_tokens(folder / "target", folder / "target")
    shutil.copytree(folder / "other", tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    with pytest.raises(tv.RecipeError, match=r"no `tokenizer\.json`"):
        tv.plan_tokens(folder / "target", tmp_path / "bare")
    shutil.copytree(folder / "other", tmp_path / "damaged")
    document = json.loads((tmp_path / "damaged" / "tokenizer.json").read_text())
    document["model"]["type"] = "Nonsense"
    (tmp_path / "damaged" / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(tv.FormatError, match="is not read by the package"):
        tv.plan_tokens(folder / "target", tmp_path / "damaged")
    plan = tv.plan_tokens(folder / "target", folder / "other")
    with pytest.raises(tv.RecipeError, match="computed by one process"):
        plan.part(0, 2, out=tmp_path / "out").run()
    with pytest.raises(tv.RecipeError, match="cannot be run elsewhere"):
        plan.to_bytes()
    assert not (tmp_path / "out").exists()


def test_special_ids_and_texts_that_do_not_agree_are_told(pair: dict[str, Any], tmp_path: Path) -> None:
    folder = pair["folder"]
    shutil.copytree(folder / "other", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "eos_token_id": 7}))
    (tmp_path / "other" / "chat_template.jinja").write_text("<|im_start|>{{ messages }}<|im_end|>")
    tokenizer = Tokenizer.from_file(str(tmp_path / "other" / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(tmp_path / "other" / "tokenizer.json"))
    plan = tv.plan_tokens(folder / "target", tmp_path / "other", method="subword")
    told = [(each.id, each.subject) for each in plan.findings if each.level == "warning"]
    assert ("token-ids", "`eos_token_id` of config.json") in told
    assert ("token-ids", "chat template") in told
    assert "tokenizer-round-trip" in dict(told)


def test_tokens_that_no_model_has_a_row_for_are_told_in_a_transfer(
    pair: dict[str, Any], tmp_path: Path
) -> None:
    folder = pair["folder"]
    shutil.copytree(folder / "other", tmp_path / "other")
    tokenizer = Tokenizer.from_file(str(tmp_path / "other" / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(f"<|extra_{number}|>", special=True) for number in range(9)])
    tokenizer.save(str(tmp_path / "other" / "tokenizer.json"))
    plan = tv.plan_transfer(folder / "target", tmp_path / "other", tmp_path / "other", tokenizer="union")
    (found,) = (each for each in plan.findings if each.id == "token-rows-missing")
    assert found.level == "warning"
    assert "6 tokens" in found.found
    assert "<|extra_3|>" in found.found
    with pytest.raises(tv.CompatibilityError, match="token-rows-missing"):
        tv.plan_transfer(
            folder / "target", tmp_path / "other", tmp_path / "other", tokenizer="union", strict=True
        )


def test_on_the_command_line(
    pair: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = pair["folder"], str(tmp_path / "out")
    words = ["tokens", str(folder / "target"), "--from", str(folder / "other"), "-o", out, "-k", "4"]
    dry = invoke(capsys, *words, "--dry-run", "--json")
    plan = json.loads(dry.out)["plan"]
    assert plan["recipe"]["method"] == "omp"
    assert "tokens-approximated" in {each["id"] for each in plan["findings"]}
    assert not (tmp_path / "out").exists()
    for more in (["--part", "0/2"], ["--part", "0/1"]):
        done = invoke(capsys, *words, *more)
        assert done.code == 2
        assert "no such option `--part`" in done.err
    assert not (tmp_path / "out").exists()
    done = invoke(capsys, *words)
    assert done.code == 0, done.err
    assert "by orthogonal matching pursuit" in done.err
    manifest = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    jsonschema.validate(manifest, schema())
    assert manifest["tokens"]["k"] == 4
    assert "--from" in manifest["command"]
    assert "by orthogonal matching pursuit" in (tmp_path / "out" / "README.md").read_text()
    found = invoke(capsys, *words, "--json")
    assert json.loads(found.out)["already_done"]


def test_from_buckets_into_a_bucket(pair: dict[str, Any], s3: S3, tmp_path: Path) -> None:
    folder = pair["folder"]
    target, other = (s3.put("models", name, folder / name) for name in ("target", "other"))
    s3.client.create_bucket(Bucket="results")
    report = tv.tokens(target, other, "s3://results/out", k=4)
    near = tv.tokens(folder / "target", folder / "other", tmp_path / "near", k=4)
    here = tv.tokens(target, other, tmp_path / "here", k=4)
    assert report.tokens == here.tokens == near.tokens
    sent = s3.client.get_object(Bucket="results", Key="out/model.safetensors")["Body"].read()
    assert sent == (tmp_path / "near" / "model.safetensors").read_bytes()
    assert (tmp_path / "here" / "model.safetensors").read_bytes() == sent
    assert not list((tmp_path / "scratch" / "outputs").iterdir())
    assert tv.tokens(target, other, "s3://results/out", k=4).already_done


def test_a_packed_target_keeps_its_format(pair: dict[str, Any], tmp_path: Path) -> None:
    folder = pair["folder"]
    tv.convert(folder / "target", tmp_path / "packed", out_dtype="int8-channel")
    tv.tokens(tmp_path / "packed", folder / "other", tmp_path / "out", k=4)
    tv.tokens(tmp_path / "packed", folder / "other", tmp_path / "plain", k=4, out_dtype="float32")
    before, out, plain = (read_tensors(tmp_path / name) for name in ("packed", "out", "plain"))
    for name in before.keys() - {EMBEDDING, HEAD}:
        np.testing.assert_array_equal(out[name], before[name], err_msg=name)
    assert out.keys() == before.keys()
    wanted = [token for token in pair["ids"]["other"] if token not in pair["ids"]["target"]]
    row, _ = expected(pair, EMBEDDING, wanted[0], 4)
    for tensors in (out, plain):
        np.testing.assert_allclose(tensors[EMBEDDING][pair["ids"]["other"][wanted[0]]], row, atol=2e-6)
    assert plain["model.layers.0.mlp.up_proj.weight"].dtype == np.float32
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_a_tied_target_has_one_matrix_and_another_width(pair: dict[str, Any], tmp_path: Path) -> None:
    """Architectures and sizes need not be the same: weights are carried over, not rows."""
    _, tensors = sentencepiece(tmp_path / "small", 7, hidden=16)
    report = tv.tokens(tmp_path / "small", pair["folder"] / "other", tmp_path / "out", k=4)
    out = read_tensors(tmp_path / "out")
    assert HEAD not in out
    assert out[EMBEDDING].shape == (len(pair["tensors"]["other"][EMBEDDING]), tensors[EMBEDDING].shape[1])
    assert report.tokens is not None
    assert list(report.tokens["residual"]) == [EMBEDDING]
    assert report.tokens["role"] > 0


def test_a_bias_of_the_head_goes_with_it(pair: dict[str, Any], tmp_path: Path) -> None:
    folder, ids = pair["folder"], pair["ids"]
    tensors = pair["tensors"]["target"]
    bias = np.linspace(-1, 1, len(tensors[HEAD]), dtype=np.float32)
    shutil.copytree(folder / "target", tmp_path / "biased")
    (tmp_path / "biased" / "model.safetensors").write_bytes(
        safetensors_bytes({**tensors, "lm_head.bias": bias})
    )
    tv.tokens(tmp_path / "biased", folder / "other", tmp_path / "out", k=3)
    out = read_tensors(tmp_path / "out")["lm_head.bias"]
    own = {**pair, "tensors": {**pair["tensors"], "target": {**tensors, HEAD: bias[:, None]}}}
    for token, number in ids["other"].items():
        row = bias[ids["target"][token]] if token in ids["target"] else expected(own, HEAD, token, 3)[0]
        np.testing.assert_allclose(out[number], row, atol=2e-5, err_msg=token)


def test_equal_rows_are_chosen_in_their_order() -> None:
    """Rows that were never trained are often alike."""
    from taskvec.run.pursuit import Atoms, nearest, pursue

    rng = np.random.default_rng(3)
    rows = rng.standard_normal((40, 8)).astype(np.float32)
    rows[20:] = rows[:20]
    wanted = rng.standard_normal((12, 8)).astype(np.float32)
    wanted[0] = 0
    for find in (pursue, nearest):
        found = find(wanted, Atoms(rows), 2)
        assert (found.atoms[1:, 0] < 20).all()
        assert (found.atoms[0] == -1).all()
    # as many as there are columns span all; more are not taken
    whole = pursue(wanted, Atoms(rows), 30)
    assert ((whole.atoms >= 0).sum(axis=1) <= 8).all()
    assert (whole.residual < 1e-5).all()
    products = np.einsum("nk,nkc->nc", whole.weights, rows[whole.atoms].astype(np.float64))
    np.testing.assert_allclose(products, wanted, atol=1e-5)


@pytest.mark.parametrize("to", ["folder", "bucket"])
def test_killed_after_the_end_of_the_output_the_next_run_ends_the_scratch(
    pair: dict[str, Any], s3: S3, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.client.create_bucket(Bucket="results")
    folder, out = pair["folder"], {"folder": tmp_path / "out", "bucket": "s3://results/out"}[to]

    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    def run() -> Any:
        return tv.tokens(folder / "target", folder / "other", out, k=4)

    with monkeypatch.context() as patch:
        patch.setattr({"folder": tokens, "bucket": deliver_whole}[to], "forget", stop)
        with pytest.raises(KeyboardInterrupt):
            run()
    kept = tmp_path / "scratch" / "outputs"
    assert list(kept.iterdir())
    assert run().already_done
    assert not list(kept.iterdir())
