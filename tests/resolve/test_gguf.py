"""GGUF files written by the gguf package, read as models; gguf and transformers are the oracles."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import taskvec as tv
from support import gguf_models
from support.hub_server import Hub, Repo
from taskvec.errors import FormatError
from taskvec.extras import install

pytestmark = pytest.mark.filterwarnings("ignore")

ARCHITECTURES = tuple(gguf_models.CLASSES)
KINDS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TASKVEC_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def written(path: Path, architecture: str = "llama", kind: str = "Q8_0", **settings: object) -> Path:
    made = gguf_models.model(architecture)
    gguf_models.write(path, architecture, gguf_models.tensors_of(made, architecture), kind, **settings)
    return path


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_file_has_the_weights_that_transformers_decodes(
    architecture: str, kind: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "in/m.gguf", architecture, kind)
    tv.convert(path, tmp_path / "out", out_dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    tokens = torch.tensor([[1, 40, 7, 200, 13]])
    assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_plain_file_gives_the_model_that_it_was_written_from(
    architecture: str, tied: bool, tmp_path: Path
) -> None:
    made = gguf_models.model(architecture, tied=tied)
    gguf_models.write(tmp_path / "m.gguf", architecture, gguf_models.tensors_of(made, architecture))
    tv.convert(tmp_path / "m.gguf", tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokens = torch.tensor([[5, 6, 7, 8, 90]])
    assert torch.equal(again(tokens).logits, made(tokens).logits)
    assert again.config.tie_word_embeddings is tied


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_packed_types_of_256_are_decoded_as_gguf_does(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gguf writes none of these, so the bytes are drawn, small enough for every scale to be finite."""
    monkeypatch.setattr(gguf_models, "HIDDEN", 256)
    tensors = gguf_models.tensors_of(gguf_models.model("llama", tied=True), "llama")
    rows, size = len(gguf_models.TOKENS), gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    codes = np.random.default_rng(3).integers(0, 56, (rows, size), dtype=np.uint8)
    decoded = _write_mixed(tmp_path / "m.gguf", tensors, {"token_embd.weight": (kind, codes)}, monkeypatch)
    tv.convert(tmp_path / "m.gguf", tmp_path / "out")
    found = loaded(tmp_path / "out")["model.embed_tokens.weight"].numpy()
    assert found.dtype == np.float32
    assert len(np.unique(found)) > 100
    assert np.array_equal(found, decoded["token_embd.weight"])


def _write_mixed(
    path: Path,
    tensors: dict[str, np.ndarray],
    packed: dict[str, tuple[str, np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, np.ndarray]:
    """Some tensors as bytes of a packed type, the others in float32; what gguf decodes of the former."""
    add = gguf.GGUFWriter.add_tensor

    def add_tensor(self: object, name: str, data: np.ndarray, **rest: object) -> None:
        if name in packed:
            kind, rows = packed[name]
            add(self, name, rows, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            add(self, name, data, **rest)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", add_tensor)
    gguf_models.write(path, "llama", tensors, "F32")
    return {name: gguf.dequantize(rows, gguf.GGMLQuantizationType[k]) for name, (k, rows) in packed.items()}


def test_the_types_of_a_file_stay_where_safetensors_has_them(tmp_path: Path) -> None:
    for kind, dtype in {"F16": "F16", "BF16": "BF16", "Q4_1": "F32"}.items():
        opened = tv.open(written(tmp_path / kind / "m.gguf", kind=kind))
        assert opened.tensors["model.layers.0.mlp.up_proj.weight"].dtype == dtype
        assert opened.tensors["model.norm.weight"].dtype == "F32"
        assert opened.config["torch_dtype"] == {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}[dtype]


def test_every_verb_takes_a_file_and_a_folder_with_one(tmp_path: Path) -> None:
    made = [gguf_models.model("qwen2", seed=seed) for seed in range(3)]
    paths = []
    for seed, each in enumerate(made):
        tensors = gguf_models.tensors_of(each, "qwen2")
        gguf_models.write(tmp_path / f"{seed}/m.gguf", "qwen2", tensors, "F32")
        paths.append(tmp_path / f"{seed}/m.gguf" if seed else tmp_path / "0")
        each.save_pretrained(tmp_path / f"plain{seed}")
    tv.transfer(*paths, tmp_path / "out")
    tv.transfer(*(tmp_path / f"plain{seed}" for seed in range(3)), tmp_path / "expected")
    found, expected = loaded(tmp_path / "out"), loaded(tmp_path / "expected")
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    tv.extract(paths[1], paths[2], tmp_path / "vector")
    tv.apply(paths[0], tmp_path / "vector", out=tmp_path / "again")
    assert all(torch.equal(value, found[name]) for name, value in loaded(tmp_path / "again").items())
    found_of = {each.subject: each for each in tv.check(*paths) if each.id == "gguf"}
    assert len(found_of) == 3
    assert found_of["weights of the donor"].found.startswith(f"GGUF: {len(expected)} F32 tensors")


def test_two_packed_models_are_warned_of(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{at}/m.gguf", kind=kind) for at, kind in enumerate(["F32", "Q4_0", "Q4_0"])]
    found = [each for each in tv.check(*paths) if each.id == "gguf"]
    assert sorted((each.level, each.subject) for each in found) == [
        ("note", "weights of the reference"),
        ("note", "weights of the target"),
        ("warning", "weights of the donor"),
    ]


def test_a_file_is_laid_out_once_and_again_when_it_changes(tmp_path: Path, scratch: Path) -> None:
    path = written(tmp_path / "m.gguf")
    first = tv.open(path)
    laid = list((scratch / "gguf").iterdir())
    assert tv.open(path).revision == first.revision
    assert list((scratch / "gguf").iterdir()) == laid
    other = gguf_models.tensors_of(gguf_models.model("llama", seed=9), "llama")
    gguf_models.write(path, "llama", other, "Q8_0")
    assert tv.open(path).revision != first.revision


def test_files_of_one_size_and_time_in_two_folders_are_two_models(tmp_path: Path) -> None:
    import os

    paths = []
    for seed in (1, 2):
        tensors = gguf_models.tensors_of(gguf_models.model("llama", seed=seed), "llama")
        gguf_models.write(tmp_path / f"{seed}/m.gguf", "llama", tensors)
        paths.append(tmp_path / f"{seed}/m.gguf")
        os.utime(paths[-1], ns=(10**18, 10**18))
    one, two = (tv.open(path) for path in paths)
    assert one.revision != two.revision
    assert not np.array_equal(one["model.norm.weight"], two["model.norm.weight"])


@pytest.mark.parametrize(
    ("pre", "expected"),
    {
        "smollm": ["x", "Ġthe", "Ġ", "1", "2", "Ġ", "2"],
        "gpt-2": ["x", "Ġthe", "Ġ", "12", "Ġ", "2"],
        "qwen2": ["x", "Ġthe", "Ġ", "1", "2", "Ġ", "2"],
        "llama-bpe": ["x", "Ġthe", "Ġ", "12", "Ġ", "2"],
    }.items(),
)
def test_a_tokenizer_splits_as_its_model_does(pre: str, expected: list[str], tmp_path: Path) -> None:
    tv.convert(written(tmp_path / "m.gguf", pre=pre), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("x the 12 2", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == expected
    assert tokenizer.decode(ids) == "x the 12 2"
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer("a<|im_end|>").input_ids[-1] == len(gguf_models.TOKENS) - 1
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n"


def test_a_tokenizer_beside_the_file_is_taken_in_place_of_its_own(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", pre="a-new-one")
    with pytest.raises(FormatError, match="splits text as `a-new-one`") as caught:
        tv.open(path)
    assert "tokenizer.json" in caught.value.hint
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    tv.convert(path, tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_text() == '{"model": {}}'


def test_the_first_token_is_put_before_texts_where_the_file_says_so(tmp_path: Path) -> None:
    first = len(gguf_models.TOKENS) - 3
    extra = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": first}
    tv.convert(written(tmp_path / "m.gguf", extra=extra), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("x").input_ids[0] == first


def test_the_rotation_of_llama_3_is_known_by_its_factors(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    made = gguf_models.model("llama", rope_theta=500_000.0, rope_scaling={**scaling, "rope_theta": 500_000.0})
    tensors = gguf_models.tensors_of(made, "llama")
    width = gguf_models.HIDDEN // gguf_models.HEADS
    plain = 500_000.0 ** (-torch.arange(0, width, 2).double() / width)
    factors = plain / made.model.rotary_emb.inv_freq.double()
    path = tmp_path / "m.gguf"
    gguf_models.write(
        path, "llama", tensors | {"rope_freqs.weight": factors.float().numpy()},
        extra={"llama.rope.freq_base": 500_000.0},
    )  # fmt: skip
    tv.convert(path, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(again.model.rotary_emb.inv_freq, made.model.rotary_emb.inv_freq)
    gguf_models.write(
        path, "llama", tensors | {"rope_freqs.weight": (factors * 1.1).float().numpy()},
        extra={"llama.rope.freq_base": 500_000.0},
    )  # fmt: skip
    with pytest.raises(FormatError, match="not those of Llama 3's rule"):
        tv.open(path)


# --- refusals
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extra": {"split.count": 3}}, "one of the 3 files of a split"),
        ({"extra": {"general.type": "adapter"}}, "type `adapter`"),
        ({"extra": {"llama.block_count": 3}}, "lacks 9 tensors of its 3 layers"),
        ({"extra": {"llama.block_count": 1}}, "says that it has 1 layer"),
        ({"extra": {"llama.embedding_length": 128}}, "its metadata say"),
        ({"extra": {"llama.rope.scaling.type": "longrope"}}, "by `longrope`"),
        ({"extra": {"llama.attention.head_count_kv": [2, 1]}}, "by layer"),
        ({"without": ("llama.feed_forward_length",)}, "says None as its `llama.feed_forward_length`"),
        ({"extra": {"tokenizer.ggml.model": "t5"}}, "kind `t5`"),
        ({"extra": {"tokenizer.ggml.tokens": ["a"]}}, "damaged tokenizer"),
        ({"extra": {"tokenizer.ggml.tokens": [*gguf_models.TOKENS, "more"]}}, "264 tokens, and 263 rows"),
        ({"extra": {"tokenizer.ggml.pre": ["smollm"]}}, "splits text as"),
        ({"extra": {"tokenizer.ggml.add_bos_token": "yes"}}, "says 'yes' as its"),
        ({"extra": {"tokenizer.chat_template": 1}}, "chat template that is not text"),
        ({"extra": {"split.count": "x"}}, "one of the x files"),
        ({"extra": {"llama.block_count": 4_294_967_295}}, "4,294,967,295 layers, and has 21 tensors"),
        ({"extra": {"llama.rope.freq_base": 0.0}}, "says 0.0 as its"),
        ({"extra": {"llama.rope.freq_base": True}}, "says True as its"),
        ({"extra": {"llama.attention.layer_norm_rms_epsilon": -1.0}}, "says -1.0 as its"),
        ({"extra": {"llama.attention.key_length": 15, "llama.attention.value_length": 15}}, "no halves"),
        ({"extra": {"llama.attention.sliding_window": 4096}}, "4096 as its `llama.attention.sliding_window`"),
        ({"extra": {"llama.attention.scale": 0.5}}, "0.5 as its `llama.attention.scale`"),
        ({"extra": {"llama.expert_count": 8}}, "`llama.expert_count`, which is not read"),
        ({"extra": {"llama.of_a_later_version": "x"}}, "`llama.of_a_later_version`, which is not read"),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    settings: dict[str, object], message: str, tmp_path: Path, scratch: Path
) -> None:
    path = written(tmp_path / "m.gguf", **settings)
    with pytest.raises(FormatError, match=message) as caught:
        tv.open(path)
    assert caught.value.hint
    assert not list((scratch / "gguf").iterdir()), "a refused file leaves nothing behind"


def test_settings_that_change_nothing_are_taken(tmp_path: Path) -> None:
    plain = loaded_config(written(tmp_path / "m.gguf"), tmp_path / "plain")
    width = plain["head_dim"]
    extra = {
        "llama.attention.sliding_window": 0,
        "llama.attention.causal": True,
        "llama.attention.scale": float(width**-0.5),
        "llama.expert_count": 0,
        "llama.vocab_size": len(gguf_models.TOKENS),
        "llama.rope.scaling.finetuned": True,
        "qwen2.attention.sliding_window": 7,  # of another architecture
        "general.source.url": "x",
    }
    assert loaded_config(written(tmp_path / "n.gguf", extra=extra), tmp_path / "with") == plain


def loaded_config(path: Path, out: Path) -> dict[str, Any]:
    tv.convert(path, out)
    return json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("name", ["bos", "eos", "padding", "eot", "eom", "unknown"])
@pytest.mark.parametrize("value", ["x", [1, 2], True, 1.5])
def test_a_token_that_is_not_a_number_is_refused(name: str, value: object, tmp_path: Path) -> None:
    key = f"tokenizer.ggml.{name}_token_id"
    with pytest.raises(FormatError, match=rf"as its `{key}`"):
        tv.open(written(tmp_path / "m.gguf", extra={key: value}))


def test_a_token_without_a_row_is_left_out(tmp_path: Path) -> None:
    extra = {"tokenizer.ggml.bos_token_id": len(gguf_models.TOKENS), "tokenizer.ggml.add_bos_token": True}
    tv.convert(written(tmp_path / "m.gguf", extra=extra), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["bos_token_id"] is None
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")("x").input_ids) == 1


@pytest.mark.parametrize("number", ["00", "\u0660", "1" * 50])
def test_a_layer_has_one_spelling(number: str, tmp_path: Path) -> None:
    made = gguf_models.tensors_of(gguf_models.model("llama"), "llama")
    again = {f"blk.{number}.attn_q.weight": made["blk.0.attn_q.weight"] + 1}
    gguf_models.write(tmp_path / "m.gguf", "llama", made | again)
    with pytest.raises(FormatError, match=r"attn_q.weight`, which is not known"):
        tv.open(tmp_path / "m.gguf")


def test_an_unknown_architecture_and_an_unknown_tensor_are_named(tmp_path: Path) -> None:
    made = gguf_models.tensors_of(gguf_models.model("llama"), "llama")
    gguf_models.write(tmp_path / "m.gguf", "mamba", made)
    with pytest.raises(FormatError, match="architecture `mamba`"):
        tv.open(tmp_path / "m.gguf")
    gguf_models.write(tmp_path / "n.gguf", "llama", made | {"blk.0.ffn_gate_exps.weight": np.ones((4, 64))})
    with pytest.raises(FormatError, match=r"`blk.0.ffn_gate_exps.weight`, which is not known"):
        tv.open(tmp_path / "n.gguf")


def test_a_type_that_is_not_known_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = gguf_models.tensors_of(gguf_models.model("llama"), "llama")
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.IQ4_NL][1]
    rows = np.zeros((gguf_models.INNER, gguf_models.HIDDEN // 32 * size), np.uint8)
    _write_mixed(tmp_path / "m.gguf", made, {"blk.1.ffn_up.weight": ("IQ4_NL", rows)}, monkeypatch)
    with pytest.raises(FormatError, match=r"`blk.1.ffn_up.weight` in IQ4_NL"):
        tv.open(tmp_path / "m.gguf")


@pytest.mark.parametrize("cut", [0, 3, 24, 400, 9000, -100])
def test_a_damaged_file_is_named(cut: int, tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FormatError, match=r"m\.gguf"):
        tv.open(path)


def test_several_files_in_a_folder_are_listed(tmp_path: Path) -> None:
    for name in ("a-Q4.gguf", "b-Q8.gguf"):
        written(tmp_path / name)
    with pytest.raises(FormatError, match=r"several GGUF files: .*a-Q4.gguf.*b-Q8.gguf") as caught:
        tv.open(tmp_path)
    assert "a-Q4.gguf" in caught.value.hint


def test_safetensors_beside_a_file_are_what_a_folder_is(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf")
    tv.convert(path, tmp_path / "both")
    (tmp_path / "both/m.gguf").write_bytes(b"not read")
    assert not tv.open(tmp_path / "both").decoded


def test_the_package_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(FormatError, match="gguf, which reads it, is not installed") as caught:
        tv.open(path)
    assert install("gguf") in caught.value.hint


def test_a_file_on_the_hub_is_refused_with_the_way_out(tmp_path: Path, hub: Hub) -> None:
    path = written(tmp_path / "m.gguf")
    hub.repos["org/m"] = Repo({"m.gguf": path.read_bytes(), "config.json": b"{}"})
    with pytest.raises(FormatError, match="GGUF") as caught:
        tv.open("hf://org/m")
    assert "download" in caught.value.hint


def test_the_config_keeps_what_generation_ends_at(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", extra={"tokenizer.ggml.eot_token_id": 3})
    tv.convert(path, tmp_path / "out")
    made = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert made["eos_token_id"] == [len(gguf_models.TOKENS) - 1, 3]
