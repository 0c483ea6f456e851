"""The other files of a target: pointers of git-lfs, weights of modules, integer buffers that others lack."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import taskvec as tv
from support.models import Trio, read_tensors, write_weights
from taskvec.errors import CompatibilityError, FormatError

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 11421896\n"


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer.model", "spiece.model", "notes/picture.png", "vocab.txt", "custom.py"],
)
def test_a_pointer_in_place_of_a_file_stops_the_run(trio: Trio, tmp_path: Path, name: str) -> None:
    for folder in trio:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(POINTER)
    with pytest.raises(CompatibilityError) as caught:
        tv.transfer(*trio, tmp_path / "out")
    finding = next(each for each in caught.value.findings if each.id == "lfs-pointer")
    assert name in finding.message
    assert "git lfs pull" in finding.fix
    assert not (tmp_path / "out").exists()
    tv.transfer(*trio, tmp_path / "out", force=["lfs-pointer"])
    assert (tmp_path / "out" / name).read_text() == POINTER


def test_a_pointer_in_another_model_cannot_be_compared(trio: Trio, tmp_path: Path) -> None:
    (trio.donor / "tokenizer.json").write_text(POINTER)
    report = tv.transfer(*trio, tmp_path / "out")
    assert [each.level for each in report.findings if each.id == "lfs-pointer"] == ["warning"]


def test_a_pointer_in_place_of_the_config(trio: Trio) -> None:
    (trio.target / "config.json").write_text(POINTER)
    with pytest.raises(FormatError, match="git-lfs pointer") as caught:
        tv.open(trio.target)
    assert "git lfs pull" in str(caught.value.hint)


def test_text_that_names_git_lfs_is_no_pointer(trio: Trio, tmp_path: Path) -> None:
    (trio.target / "notes.txt").write_text("See " + POINTER)
    tv.transfer(*trio, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("tokenizer.json", "", "empty"),
        ("generation_config.json", "", "empty"),
        ("tokenizer.model", "", "empty"),
        ("tokenizer.json", "<!doctype html><html></html>", "not JSON"),
        ("preprocessor_config.json", None, "a link to no file"),
    ],
)
def test_a_damaged_file_of_the_target_is_told(
    trio: Trio, tmp_path: Path, name: str, content: str | None, word: str
) -> None:
    (trio.target / name).unlink(missing_ok=True)
    if content is None:
        (trio.target / name).symlink_to(tmp_path / "not-there")
    else:
        (trio.target / name).write_text(content)
    report = tv.convert(trio.target, tmp_path / "out", out_dtype="float32")
    found = report.findings
    assert [word in each.found for each in found if each.id == "file-damaged"] == [True]
    assert [each.level for each in found if each.id == "file-damaged"] == ["warning"]


def put(folder: Path, name: str, content: str = "weights") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)


def test_modules_come_along(trio: Trio, tmp_path: Path) -> None:
    listed = [
        {"idx": i, "name": str(i), "path": path}
        for i, path in enumerate(("", "1_Pooling", "2_Dense", "3_Dense"))
    ]
    put(trio.target, "modules.json", json.dumps(listed))
    dense = {"linear.weight": np.ones((2, 2), np.float32)}
    write_weights(trio.target / "2_Dense", dense)
    put(trio.target, "2_Dense/pytorch_model.bin", "the same once more")
    put(trio.target, "3_Dense/pytorch_model.bin", "pickle")
    put(trio.target, "4_Other/model.safetensors")
    report = tv.transfer(*trio, tmp_path / "out")
    out = tmp_path / "out"
    assert read_tensors(out / "2_Dense")["linear.weight"].tolist() == dense["linear.weight"].tolist()
    assert (out / "3_Dense/pytorch_model.bin").read_text() == "pickle"
    assert not (out / "2_Dense/pytorch_model.bin").exists()
    assert not (out / "4_Other").exists()
    kept = [each for each in report.findings if each.id == "files-kept"]
    assert {each.level for each in kept} == {"warning"}
    # the others lack the first one, and the second one is a pickle
    assert any("`2_Dense/`" in each.found for each in kept)
    assert any("3_Dense/pytorch_model.bin" in each.found for each in kept)
    assert tv.verify(out).ok


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model_index.parts.json", {"vae": ["diffusers", "AutoencoderKL"]}),
        ("config.json.extra.json", {"path": "./vae/"}),
        ("parts.json", {"file": "vae/weights.safetensors"}),
    ],
)
def test_weights_that_a_file_names_are_not_left_in_silence(
    trio: Trio, tmp_path: Path, name: str, content: dict[str, object]
) -> None:
    put(trio.target, "vae/weights.safetensors")
    put(trio.target, "onnx/model.onnx")
    report = tv.transfer(*trio, tmp_path / "before")
    assert [each.level for each in report.findings if each.id == "files-left"] == ["note"]
    put(trio.target, name, json.dumps(content))
    report = tv.transfer(*trio, tmp_path / "out")
    warning = next(each for each in report.findings if each.id == "files-left" and each.level == "warning")
    assert "`vae/weights.safetensors`" in warning.found
    assert name in warning.found


def add(folder: Path, name: str, shape: tuple[int, ...], dtype: type = np.int64) -> None:
    tensors = {**read_tensors(folder), name: np.arange(np.prod(shape), dtype=dtype).reshape(shape)}
    write_weights(folder, tensors)


def test_an_integer_buffer_that_others_lack_is_the_targets(trio: Trio, tmp_path: Path) -> None:
    add(trio.target, "embeddings.position_ids", (1, 8))
    tv.transfer(*trio, tmp_path / "out")
    assert np.array_equal(read_tensors(tmp_path / "out")["embeddings.position_ids"], np.arange(8)[None])


def test_an_integer_buffer_of_another_length_is_the_targets(trio: Trio, tmp_path: Path) -> None:
    for folder, count in zip(trio, (8, 6, 7), strict=True):
        add(folder, "embeddings.position_ids", (1, count), np.int32)
    tv.transfer(*trio, tmp_path / "out")
    assert np.array_equal(read_tensors(tmp_path / "out")["embeddings.position_ids"], np.arange(8)[None])


@pytest.mark.parametrize("lacking", ["base", "model"])
def test_an_integer_buffer_that_one_model_of_a_recipe_lacks(trio: Trio, tmp_path: Path, lacking: str) -> None:
    add(trio.reference if lacking == "model" else trio.donor, "embeddings.position_ids", (1, 8))
    merge = tv.ties([trio.donor, trio.target], base=trio.reference, weight=0.5, density=0.5)
    merge.save(tmp_path / "out")
    assert ("embeddings.position_ids" in read_tensors(tmp_path / "out")) is (lacking == "model")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (4,)),
        ("h.0.attn.bias", (1, 1, 8, 8)),
        ("h.0.attn.masked_bias", ()),
    ],
)
def test_a_buffer_of_the_config_that_others_lack_is_the_targets(
    trio: Trio, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    add(trio.target, name, shape, np.float32)
    before = read_tensors(trio.target)[name]
    report = tv.transfer(*trio, tmp_path / "out")
    assert [each.level for each in report.findings if each.id == "buffers-kept"] == ["note"]
    np.testing.assert_array_equal(read_tensors(tmp_path / "out")[name], before)


@pytest.mark.parametrize(
    "factors",
    [
        {"lora_A.default.weight": (2, 8), "lora_B.default.weight": (8, 2)},
        {"lora_down.weight": (2, 8), "lora_up.weight": (8, 2)},
        {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8)},
        {"lokr_w1": (2, 2), "lokr_w2_a": (4, 2)},
        {"ia3_l.default": (8, 1)},
        {"scale": (8,)},
        {"scales": ()},
    ],
)
def test_factors_in_whole_models_are_told(
    trio: Trio, tmp_path: Path, factors: dict[str, tuple[int, ...]]
) -> None:
    for folder in trio:
        for factor, shape in factors.items():
            add(folder, f"model.layers.0.self_attn.q_proj.{factor}", shape, np.float32)
    report = tv.transfer(*trio, tmp_path / "out")
    assert [each.level for each in report.findings if each.id == "factors-apart"] == ["warning"]


def test_one_shard_of_several_is_not_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a.weight": np.ones((2, 2), np.float32)}, folder / "model-00001-of-00002.safetensors")
    with pytest.raises(FormatError, match="one of 2 shards"):
        tv.open(folder)
    assert list(tv.open(folder / "model-00001-of-00002.safetensors")) == ["a.weight"]


@pytest.mark.parametrize(
    ("content", "is_whole"),
    [
        (b'{"a": 1, "b', False),
        (b'{"a": 1}\0\0\0', False),
        (b"[" * 100_000, False),
        (b"\x1f\x8b\x08", False),
        (b"<!doctype html>", False),
        (b'{"a": "' + b"x" * (1 << 20), False),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}\n', True),
        (b"[1, 2]\n", True),
        (b"null", True),
        (b'\xef\xbb\xbf{"a": 1}', True),
    ],
    ids=lambda value: str(value)[:20],
)
def test_documents_that_were_cut_short_are_told(trio: Trio, content: bytes, is_whole: bool) -> None:
    (trio.target / "preprocessor_config.json").write_bytes(content)
    found = [each.message for each in tv.check(*trio) if each.id == "file-damaged"]
    assert bool(found) is not is_whole
    assert all("`preprocessor_config.json`" not in message or "cut short" in message for message in found)


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00"])
def test_a_config_with_a_byte_order_mark(trio: Trio, content: bytes) -> None:
    (trio.donor / "config.json").write_bytes(content)
    with pytest.raises(FormatError, match="byte order mark") as caught:
        tv.open(trio.donor)
    assert "UTF-8 without" in str(caught.value.hint)
