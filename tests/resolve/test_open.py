"""Opening local checkpoints: what is found, what is read, and what a damaged or hostile folder says."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.models import (
    DTYPES,
    Trio,
    qwen2_config,
    qwen2_shapes,
    random_tensors,
    read_tensors,
    safetensors_bytes,
    write_checkpoint,
    write_trio,
    write_weights,
)
from taskvec.errors import Error, FormatError, HubError, NotFoundError, RecipeError
from taskvec.lazy.checkpoint import Checkpoint
from taskvec.lazy.checkpoint import open as open_checkpoint
from taskvec.models.model import TensorInfo


def test_single_file_folder(trio: Trio) -> None:
    checkpoint = open_checkpoint(trio.target)
    expected = read_tensors(trio.target)
    assert list(checkpoint) == list(checkpoint.keys()) == list(expected)
    assert len(checkpoint) == len(expected)
    assert checkpoint.path == trio.target
    assert (checkpoint.repository, checkpoint.revision, checkpoint.download_bytes) == (None, None, 0)
    assert checkpoint.config == json.loads((trio.target / "config.json").read_text())
    assert checkpoint.file_sizes == {"model.safetensors": (trio.target / "model.safetensors").stat().st_size}
    assert checkpoint.total_parameters == sum(array.size for array in expected.values())
    assert checkpoint.total_bytes == sum(array.nbytes for array in expected.values())
    first = checkpoint.tensors["model.embed_tokens.weight"]
    assert first == TensorInfo("model.embed_tokens.weight", "BF16", (96, 32), 6144, "model.safetensors")
    assert "model.norm.weight" in checkpoint
    assert "lm_head.weight" not in checkpoint
    assert checkpoint.materialise() is checkpoint


def test_shards_come_in_order(sharded_trio: Trio) -> None:
    checkpoint = open_checkpoint(str(sharded_trio.donor))
    assert list(checkpoint.file_sizes) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert list(checkpoint) == list(read_tensors(sharded_trio.donor))
    assert checkpoint.left_files == ()
    assert "model.safetensors.index.json" not in checkpoint.other_files


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    values = {"BOOL": 2, "F4": 16}.get(dtype, 256)
    bits = rng.integers(0, values, size=6 * DTYPES[dtype].itemsize, dtype=np.uint8)
    array = bits.view(DTYPES[dtype]).reshape(2, 3)
    tensors = {"a": array, "scalar": array[0, 0].reshape(()), "empty": array[:0]}
    if dtype == "F4":
        del tensors["scalar"]  # two elements share a byte
    write_weights(tmp_path, tensors)
    checkpoint = open_checkpoint(tmp_path)
    for name, expected in tensors.items():
        found = checkpoint[name]
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
    assert not checkpoint["a"].flags.writeable


def test_items_stream_every_tensor(sharded_trio: Trio) -> None:
    expected = read_tensors(sharded_trio.target)
    for name, array in open_checkpoint(sharded_trio.target).items():
        assert array.tobytes() == expected.pop(name).tobytes()
    assert expected == {}


def test_unknown_tensor(trio: Trio) -> None:
    with pytest.raises(NotFoundError, match="has no tensor `model.norm.wieght`") as caught:  # noqa: RUF043
        open_checkpoint(trio.target)["model.norm.wieght"]
    assert caught.value.hint == "did you mean `model.norm.weight`?"


def test_one_file(trio: Trio) -> None:
    checkpoint = open_checkpoint(trio.target / "model.safetensors")
    assert list(checkpoint) == list(open_checkpoint(trio.target))
    assert (checkpoint.config, checkpoint.other_files) == ({}, ())
    assert checkpoint.path == trio.target


def test_path_of_an_index(sharded_trio: Trio) -> None:
    checkpoint = open_checkpoint(sharded_trio.donor / "model.safetensors.index.json")
    assert checkpoint.path == sharded_trio.donor
    assert checkpoint.fingerprint == open_checkpoint(sharded_trio.donor).fingerprint
    assert checkpoint.config


def test_other_files(trio: Trio) -> None:
    folder = trio.target
    wanted = ["added/deep/notes.txt", "tokenizer.model", "training_args.bin", ".gitattributes", "LICENSE"]
    unwanted = [
        "pytorch_model.bin",
        "old/model.safetensors",
        "consolidated.00.pth",
        "model.gguf",
        "tf_model.h5",
    ]
    hidden = [".git/HEAD", ".cache/huggingface/x.metadata"]
    for name in [*wanted, *unwanted, *hidden]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (outside / "linked.txt").write_text("linked")
    (folder / "elsewhere").symlink_to(outside)
    (folder / "linked.txt").symlink_to(outside / "linked.txt")
    (folder / "broken.txt").symlink_to(outside / "nothing")
    os.mkfifo(folder / "pipe")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt")).write_text("no Unicode")
    checkpoint = open_checkpoint(folder)
    standard = {
        "README.md",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert set(checkpoint.other_files) == standard | set(wanted) | {"linked.txt"}
    assert set(checkpoint.left_files) == {*unwanted, "elsewhere/", "broken.txt", "pipe", "?.txt"}
    assert checkpoint.read_file("added/deep/notes.txt") == b"added/deep/notes.txt"
    assert checkpoint.read_file("linked.txt") == b"linked"
    for name in ("secret.txt", "../outside/secret.txt", "elsewhere/secret.txt", "model.safetensors"):
        with pytest.raises(NotFoundError):
            checkpoint.read_file(name)


def test_linked_shards_are_followed(sharded_trio: Trio, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    for path in sharded_trio.donor.glob("*.safetensors"):
        path.rename(disk / path.name)
        path.symlink_to(disk / path.name)
    link = tmp_path / "link"
    link.symlink_to(sharded_trio.donor)
    checkpoint = open_checkpoint(link)
    assert checkpoint["model.norm.weight"].tobytes() == read_tensors(disk)["model.norm.weight"].tobytes()


def test_a_folder_of_the_hub_cache(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / ("a" * 40)
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    source = write_trio(tmp_path / "source").target
    (repo / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(source.iterdir())):
        path.rename(repo / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    for spec in (repo, snapshot):
        checkpoint = open_checkpoint(spec)
        assert checkpoint.path == snapshot
        assert "tokenizer.json" in checkpoint.other_files
    assert open_checkpoint(repo).revision == "a" * 40


def test_local_models_need_no_huggingface_hub(trio: Trio) -> None:
    code = (
        "import sys, taskvec as tv; tv.open(sys.argv[1]); tv.plan_transfer(*sys.argv[1:]); "
        "print(*{'huggingface_hub', 'pydantic', 'yaml'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code, *trio], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_trio(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    for spec, near in (("runs/donr", None), (Path("runs/donr"), "runs/donor"), ("./runs/donr", "runs/donor")):
        with pytest.raises((NotFoundError, HubError)) as caught:
            open_checkpoint(spec)
        if near:
            assert isinstance(caught.value, FileNotFoundError)
            assert f"searched for a folder or file at `{tmp_path}/runs/donr`" in str(caught.value)
            assert caught.value.hint == f"did you mean `{near}`?"
    with pytest.raises(NotFoundError) as caught:
        open_checkpoint("rums/donor/")
    assert caught.value.hint == "did you mean `runs/donor`?"
    with pytest.raises(NotFoundError) as caught:
        open_checkpoint("something")
    assert "hf://org/name" in str(caught.value.hint)


def test_a_local_path_has_no_revision(trio: Trio) -> None:
    with pytest.raises(RecipeError, match="has no revision `main`"):
        open_checkpoint(trio.target, revision="main")


def test_an_opened_checkpoint_is_itself(trio: Trio) -> None:
    checkpoint = open_checkpoint(trio.target)
    assert open_checkpoint(checkpoint) is checkpoint


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1, 2]", "expected a JSON object"),
        (b'"text"', "expected a JSON object"),
        (b'{"a": 1, "a": 2}', "duplicate key `a`"),
        (b'{"a": {"b": 1, "b": 2}}', "duplicate key `b`"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b" " * ((16 << 20) + 1), "expected at most"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    ],
)
def test_hostile_config(trio: Trio, content: bytes, text: str) -> None:
    (trio.target / "config.json").write_bytes(content)
    with pytest.raises(FormatError, match=text) as caught:
        open_checkpoint(trio.target)
    assert "config.json" in str(caught.value)


def test_config_that_is_no_file(trio: Trio) -> None:
    (trio.target / "config.json").unlink()
    assert open_checkpoint(trio.target).config == {}
    os.mkfifo(trio.target / "config.json")
    with pytest.raises(FormatError, match="not a regular file"):
        open_checkpoint(trio.target)
    (trio.target / "config.json").unlink()
    (trio.target / "config.json").mkdir()
    with pytest.raises(FormatError):
        open_checkpoint(trio.target)


ONE_TENSOR = safetensors_bytes({"x": np.ones(2, np.float32)})


@pytest.mark.parametrize(
    ("files", "kind", "text"),
    [
        ({}, NotFoundError, "no `*.safetensors` file"),
        ({"pytorch_model.bin": b""}, FormatError, "pickle"),
        (
            {"adapter_config.json": b"{}", "adapter_model.safetensors": safetensors_bytes({})},
            FormatError,
            "LoRA",
        ),
        (
            {"model-00001-of-00002.safetensors": ONE_TENSOR, "model-00002-of-00002.safetensors": ONE_TENSOR},
            FormatError,
            "no index",
        ),
        (
            {"a.safetensors": ONE_TENSOR, "b.safetensors": ONE_TENSOR},
            FormatError,
            "`x` is in both `a.safetensors` and `b.safetensors`",
        ),
        ({"model.safetensors": b"\x00" * 8}, FormatError, "model.safetensors"),
        ({"model.safetensors": b""}, FormatError, "model.safetensors"),
    ],
)
def test_folders_without_a_model(
    tmp_path: Path, files: dict[str, bytes], kind: type[Error], text: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(kind) as caught:
        open_checkpoint(tmp_path)
    assert text in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "notes.txt"])
def test_files_that_are_no_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FormatError) as caught:
        open_checkpoint(tmp_path / name)
    assert caught.value.hint


def test_a_file_changed_since_it_was_opened(trio: Trio) -> None:
    checkpoint = open_checkpoint(trio.target)
    path = trio.target / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(FormatError, match="model.safetensors"):  # noqa: RUF043
        checkpoint["model.norm.weight"]


def test_fingerprint_is_of_the_headers(trio: Trio, tmp_path: Path) -> None:
    config = qwen2_config()
    same = write_checkpoint(tmp_path / "same", random_tensors(qwen2_shapes(config), seed=9), config)
    wider = qwen2_config(hidden=64)
    other = write_checkpoint(tmp_path / "other", random_tensors(qwen2_shapes(wider)), wider)
    assert open_checkpoint(same).fingerprint == open_checkpoint(trio.target).fingerprint
    assert open_checkpoint(other).fingerprint != open_checkpoint(same).fingerprint


def test_reprs(trio: Trio) -> None:
    checkpoint = open_checkpoint(trio.target)
    text = repr(checkpoint)
    for part in (
        str(trio.target),
        "Qwen2ForCausalLM",
        "tensors: 26",
        "parameters: 21.8 k",
        "BF16",
        "43.6 kB",
    ):
        assert part in text
    page = checkpoint._repr_html_()
    assert page.startswith("<table>")
    assert "Qwen2ForCausalLM" in page


def test_html_is_escaped(tmp_path: Path) -> None:
    config = {**qwen2_config(), "architectures": ["<script>"]}
    folder = write_checkpoint(tmp_path / "m", random_tensors(qwen2_shapes(config)), config)
    assert "<script>" not in open_checkpoint(folder)._repr_html_()


def test_frozen(trio: Trio) -> None:
    checkpoint = open_checkpoint(trio.target)
    with pytest.raises(AttributeError):
        checkpoint.spec = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        checkpoint.tensors["x"] = None  # type: ignore[index]
    assert isinstance(hash(checkpoint), int)


def test_dtypes(tmp_path: Path) -> None:
    tensors = {"a": np.zeros((4, 4), np.float32), "b": np.zeros(3, np.int64), "c": np.zeros(2, np.float32)}
    write_weights(tmp_path, tensors)
    assert open_checkpoint(tmp_path).dtypes == {"F32": 18, "I64": 3}


def test_errors_survive_a_pickle() -> None:
    for kind in (FormatError, HubError, NotFoundError):
        error = pickle.loads(pickle.dumps(kind("message", "hint")))
        assert (type(error), str(error), error.hint) == (kind, "message", "hint")


def test_subtraction_needs_a_checkpoint(trio: Trio) -> None:
    checkpoint = open_checkpoint(trio.target)
    with pytest.raises(TypeError):
        checkpoint - 1  # type: ignore[operator]
    assert isinstance(checkpoint, Checkpoint)
