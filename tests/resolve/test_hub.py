"""The hub: names, headers first, downloads, the cache, and every way in which a server can refuse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.hub_server import Hub, Repo
from support.models import (
    edit_json,
    qwen2_config,
    qwen2_shapes,
    random_tensors,
    read_tensors,
    write_checkpoint,
    write_trio,
)
from taskvec.errors import Error, FormatError, HubError, NotFoundError, RecipeError
from taskvec.lazy.checkpoint import open as open_checkpoint
from taskvec.progress import Progress
from taskvec.resolve.hub import parse
from taskvec.resolve.repository import HubName

COMMIT = Repo({}).commit


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sharded checkpoint with files that must not be downloaded next to it."""
    config = qwen2_config(hidden=128, intermediate=512, vocabulary=400, layers=3)
    folder = write_checkpoint(tmp_path / "source", random_tensors(qwen2_shapes(config)), config, shards=3)
    for name in (
        "original/params.json",
        "metal/model.bin",
        "pytorch_model.bin",
        "model.gguf",
        "onnx/config.json",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not wanted")
    (folder / "assets").mkdir()
    (folder / "assets" / "notes.txt").write_text("wanted")
    return folder


@pytest.fixture
def repo(hub: Hub, model: Path) -> Repo:
    hub.repos["org/name"] = Repo.from_folder(model)
    return hub.repos["org/name"]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch):
    """Call to go offline."""
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("org/name", HubName("org/name")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        ("org/name@refs/pr/4", HubName("org/name", "refs/pr/4")),
        ("Qwen/Qwen2.5-0.5B", HubName("Qwen/Qwen2.5-0.5B")),
        ("hf://org/name@main", HubName("org/name", "main")),
        ("hf://models/org/name", HubName("org/name")),
        ("hf://gpt2", HubName("gpt2")),
        ("https://huggingface.co/org/name", HubName("org/name")),
        ("https://huggingface.co/org/name/tree/dev", HubName("org/name", "dev")),
        ("https://hf.co/org/name/", HubName("org/name")),
        ("name", None),
        ("./org/name", None),
        ("/org/name", None),
        ("../name", None),
        ("a/b/c", None),
        ("org/na me", None),
        ("org/name@", None),
        ("org/.name", None),
    ],
)
def test_names(spec: str, expected: HubName | None) -> None:
    assert parse(spec) == expected


@pytest.mark.parametrize(
    "spec", ["hf://a/b/c", "hf://datasets/org/name", "hf://", "https://huggingface.co/", "hf://a/b@"]
)
def test_names_meant_for_the_hub_that_are_none(spec: str) -> None:
    with pytest.raises(RecipeError, match="is not a model repository") as caught:
        parse(spec)
    assert "hf://org/name" in str(caught.value.hint)


def test_headers_first(hub: Hub, repo: Repo, model: Path) -> None:
    checkpoint = open_checkpoint("org/name@main")
    local = open_checkpoint(model)
    assert checkpoint.path is None
    assert (checkpoint.repository, checkpoint.revision) == ("org/name", COMMIT)
    assert dict(checkpoint.tensors) == dict(local.tensors)
    assert list(checkpoint.tensors) == list(local.tensors)
    assert checkpoint.fingerprint == local.fingerprint
    assert checkpoint.config == local.config
    assert checkpoint.file_sizes == local.file_sizes
    weights = sum(checkpoint.file_sizes.values())
    assert hub.weight_bytes_sent() < weights / 2
    assert all(r.range for r in hub.requests if "/cdn/" in r.path and r.path.endswith(".safetensors"))
    wanted = {"README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(checkpoint.other_files) == wanted | {"assets/notes.txt"}
    assert "original/params.json" in checkpoint.left_files
    others = sum(len(repo.files[name]) for name in checkpoint.other_files if name != "config.json")
    assert checkpoint.download_bytes == weights + others
    with pytest.raises(HubError, match="have not been downloaded") as caught:
        checkpoint["model.norm.weight"]
    assert "materialise" in str(caught.value.hint)


def test_long_header_takes_a_second_request(hub: Hub, tmp_path: Path) -> None:
    shapes = {f"model.layers.{i}.mlp.experts.{j}.weight": (1,) for i in range(20) for j in range(100)}
    folder = write_checkpoint(tmp_path / "many", random_tensors(shapes), qwen2_config())
    hub.repos["org/many"] = Repo.from_folder(folder)
    assert len(open_checkpoint("org/many")) == 2000
    ranges = [r.range for r in hub.requests if "/cdn/" in r.path]
    assert len(ranges) == 2
    assert ranges[0] == "bytes=0-131071"
    assert str(ranges[1]).startswith("bytes=131072-")


@pytest.mark.usefixtures("hub", "repo")
def test_materialise(model: Path) -> None:
    events: list[Progress] = []
    remote = open_checkpoint("org/name")
    local = remote.materialise(events.append)
    assert local.path is not None
    assert (local.repository, local.revision, local.download_bytes) == ("org/name", COMMIT, 0)
    assert local.path.name == COMMIT
    expected = read_tensors(model)
    assert {name: array.tobytes() for name, array in local.items()} == {
        n: a.tobytes() for n, a in expected.items()
    }
    assert sorted(local.other_files) == sorted(remote.other_files)
    assert not (local.path / "pytorch_model.bin").exists()
    assert not (local.path / "original").exists()
    assert {event.phase for event in events} == {"download"}
    assert [e.done_bytes for e in events] == sorted(e.done_bytes for e in events)
    assert events[-1].done_bytes == events[-1].total_bytes == remote.download_bytes
    assert local.materialise() is local


@pytest.mark.usefixtures("repo")
def test_a_complete_cache_is_used(hub: Hub, offline) -> None:
    first = open_checkpoint("org/name").materialise()
    hub.requests.clear()
    again = open_checkpoint("org/name")
    assert again.path == first.path
    assert [r.path.partition("?")[0] for r in hub.requests] == ["/api/models/org/name"]
    hub.requests.clear()
    pinned = open_checkpoint(f"org/name@{COMMIT}")
    assert pinned.path == first.path
    assert pinned.revision == COMMIT
    assert hub.requests == []
    offline()
    assert open_checkpoint("org/name").path == first.path
    assert open_checkpoint(first.path.parent.parent).revision == COMMIT


@pytest.mark.usefixtures("repo")
def test_the_cache_stands_in_for_a_hub_that_is_down(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    first = open_checkpoint("org/name").materialise()
    hub.faults.status["*"] = 503
    assert open_checkpoint("org/name").path == first.path
    assert "taken from the cache" in caplog.text


@pytest.mark.usefixtures("repo")
def test_a_new_commit_is_noticed(hub: Hub, model: Path) -> None:
    open_checkpoint("org/name").materialise()
    edit_json(model / "config.json", rope_theta=5.0)
    hub.repos["org/name"] = Repo.from_folder(model, commit="f" * 40)
    checkpoint = open_checkpoint("org/name")
    assert checkpoint.revision == "f" * 40
    assert checkpoint.config["rope_theta"] == 5.0
    assert checkpoint.download_bytes > 0
    hub.requests.clear()
    assert checkpoint.materialise().path is not None
    # The weights are the same blobs: only the config was fetched again.
    assert not [r for r in hub.requests if "/cdn/" in r.path]


@pytest.mark.usefixtures("repo")
def test_a_partial_cache_is_completed(hub: Hub) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download("org/name", "model-00001-of-00003.safetensors", revision=COMMIT)
    checkpoint = open_checkpoint(f"org/name@{COMMIT}")
    assert checkpoint.path is None
    full = sum(checkpoint.file_sizes.values())
    assert checkpoint.download_bytes < full
    hub.requests.clear()
    checkpoint.materialise()
    assert not [r for r in hub.requests if r.method == "GET" and "00001-of-00003" in r.path]


@pytest.mark.usefixtures("repo")
def test_local_folder_wins(hub: Hub, tmp_path: Path) -> None:
    folder = write_trio(tmp_path / "org", hidden=16).target
    folder.rename(tmp_path / "org" / "name")
    assert open_checkpoint("org/name").repository is None
    assert hub.requests == []
    assert open_checkpoint("hf://org/name").repository == "org/name"


@pytest.mark.usefixtures("hub", "repo")
def test_revision_argument() -> None:
    assert open_checkpoint("org/name", revision="main").revision == COMMIT
    assert open_checkpoint("org/name@main", revision="main").revision == COMMIT
    with pytest.raises(RecipeError, match="names another revision"):
        open_checkpoint("org/name@main", revision="dev")


@pytest.mark.usefixtures("repo")
def test_files_are_fetched_into_a_folder(model: Path, tmp_path: Path) -> None:
    remote = open_checkpoint("org/name").remote
    assert remote is not None
    assert remote.identity == ("org/name", COMMIT, f"hf://org/name@{COMMIT}")
    names = ["assets/notes.txt", "model-00002-of-00003.safetensors"]
    assert remote.fetch(names, tmp_path / "mine") == tmp_path / "mine"
    for name in names:
        assert (tmp_path / "mine" / name).read_bytes() == (model / name).read_bytes()
        assert not (remote.folder / name).exists()


def test_ranges_are_read(hub: Hub, repo: Repo) -> None:
    remote = open_checkpoint("org/name").remote
    assert remote is not None
    name = "model-00002-of-00003.safetensors"
    hub.requests.clear()
    data, ranges = repo.files[name], [(100, 200), (1000, 1000 + (80 << 10)), (5, 6)]
    expected = [data[start:stop] for start, stop in ranges]
    assert list(remote.read(name, ranges)) == expected
    found = [r.range for r in hub.requests if "/cdn/" in r.path]
    assert found == [f"bytes={start}-{stop - 1}" for start, stop in ranges]
    remote.fetch([name])
    hub.requests.clear()
    assert list(remote.read(name, ranges)) == expected
    assert hub.requests == []
    with pytest.raises(NotFoundError, match="has no file `nothing`"):
        remote.read("nothing", ranges)


@pytest.mark.usefixtures("repo")
def test_tokenizer_files_are_read_through_the_cache(hub: Hub) -> None:
    checkpoint = open_checkpoint("org/name")
    assert json.loads(checkpoint.read_file("tokenizer.json"))["version"] == "1.0"
    hub.requests.clear()
    checkpoint.read_file("tokenizer.json")
    assert hub.requests == []
    with pytest.raises(NotFoundError, match=r"has no file `pytorch_model\.bin`"):
        checkpoint.read_file("pytorch_model.bin")


# --- refusals ---


def refused(kind: type[Error], spec: str = "org/name") -> Error:
    with pytest.raises(kind) as caught:
        open_checkpoint(spec).materialise()
    assert type(caught.value) is kind
    assert caught.value.hint
    return caught.value


def test_no_such_repository(hub: Hub) -> None:
    error = refused(NotFoundError, "org/nothing")
    assert "`org/nothing`" in str(error)
    assert hub.url in str(error)
    assert "hf auth login" in str(error.hint)


@pytest.mark.usefixtures("hub")
def test_no_such_repository_beside_a_similar_folder(tmp_path: Path) -> None:
    write_trio(tmp_path / "runs")
    error = refused(NotFoundError, "runs/donnor")
    assert "no local path `runs/donnor`" in str(error)
    assert "did you mean `runs/donor`?" in str(error.hint)


@pytest.mark.usefixtures("repo")
def test_no_such_revision() -> None:
    error = refused(NotFoundError, "org/name@v9")
    assert "no revision `v9`" in str(error)


def test_gated(repo: Repo, hub: Hub) -> None:
    repo.gated = True
    error = refused(HubError)
    assert "gated" in str(error)
    assert f"accept its licence at {hub.url}/org/name" in str(error.hint)


def test_token(repo: Repo, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    repo.token = "hf_secret"
    error = refused(HubError)
    assert "token" in str(error)
    assert "HF_TOKEN" in str(error.hint)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert open_checkpoint("org/name").materialise().path is not None
    # The token stays with the hub: the other origin, to which large files redirect, never sees it.
    assert not [r for r in hub.requests if "/cdn/" in r.path and r.authorization]


@pytest.mark.parametrize(("after", "text"), [(7, "in 7 seconds"), (None, "in a few minutes")])
@pytest.mark.usefixtures("repo")
def test_too_many_requests(hub: Hub, after: int | None, text: str) -> None:
    hub.faults.status["*"] = 429
    hub.faults.retry_after = after
    error = refused(HubError)
    assert "429" in str(error)
    assert text in str(error.hint)


@pytest.mark.usefixtures("repo")
def test_too_many_requests_half_way(hub: Hub) -> None:
    checkpoint = open_checkpoint("org/name")
    hub.faults.status["model-00002-of-00003.safetensors"] = 429
    with pytest.raises(HubError, match="429"):
        checkpoint.materialise()
    hub.faults.status.clear()
    hub.requests.clear()
    checkpoint.materialise()
    assert not [r for r in hub.requests if r.method == "GET" and "00001-of-00003" in r.path]


@pytest.mark.usefixtures("repo")
def test_server_error(hub: Hub) -> None:
    hub.faults.status["*"] = 500
    assert "500" in str(refused(HubError))


@pytest.mark.usefixtures("repo")
def test_offline_with_an_empty_cache(hub: Hub, offline, tmp_path: Path) -> None:
    offline()
    error = refused(HubError)
    assert "offline" in str(error)
    assert str(tmp_path / "cache") in str(error)
    assert "HF_HUB_OFFLINE" in str(error.hint)
    assert hub.requests == []


@pytest.mark.usefixtures("repo")
def test_offline_with_a_part_of_the_weights(offline) -> None:
    open_checkpoint("org/name")
    offline()
    refused(HubError)


@pytest.mark.usefixtures("hub")
def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    error = refused(HubError)
    assert "127.0.0.1:9" in str(error)
    assert "connection" in str(error.hint)


@pytest.mark.usefixtures("repo")
def test_dropped_connection_is_taken_up_again(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    # What has not filled a chunk (10 MiB) when the connection breaks is fetched again.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 20_000)
    checkpoint = open_checkpoint("org/name")
    name = "model-00002-of-00003.safetensors"
    hub.faults.drop[name] = (100_000, 1)
    hub.requests.clear()
    local = checkpoint.materialise()
    assert (local.path / name).read_bytes() == (model / name).read_bytes()  # type: ignore[operator]
    ranges = [r.range for r in hub.requests if r.method == "GET" and name in r.path and "/cdn/" in r.path]
    assert ranges == [None, "bytes=100000-"]


@pytest.mark.usefixtures("repo")
def test_dropped_connection_in_a_header(hub: Hub) -> None:
    hub.faults.drop["model-00002-of-00003.safetensors"] = (50, 2)
    assert len(open_checkpoint("org/name")) == len(qwen2_shapes(qwen2_config(layers=3)))


@pytest.mark.usefixtures("repo")
def test_a_server_that_ignores_ranges(hub: Hub, model: Path) -> None:
    hub.faults.ignore_ranges = True
    assert open_checkpoint("org/name").fingerprint == open_checkpoint(model).fingerprint


@pytest.mark.usefixtures("repo")
def test_wrong_etag(hub: Hub) -> None:
    name = "model-00001-of-00003.safetensors"
    checkpoint = open_checkpoint("org/name")
    hub.faults.etag[name] = "e" * 64
    with pytest.raises(HubError, match=f"file `{name}` .* has etag `e+`, the hub lists") as caught:
        checkpoint.materialise()
    assert "HF_ENDPOINT" in str(caught.value.hint)
    assert not [r for r in hub.requests if r.method == "GET" and name in r.path and r.range is None]


def test_wrong_size(repo: Repo, hub: Hub) -> None:
    name = "model-00003-of-00003.safetensors"
    hub.faults.listed_size[name] = len(repo.files[name]) + 1
    with pytest.raises(HubError, match="bytes, but the hub lists") as caught:
        open_checkpoint("org/name")
    assert "HF_ENDPOINT" in str(caught.value.hint)


def test_damaged_download_is_removed(repo: Repo, hub: Hub) -> None:
    name = "model-00002-of-00003.safetensors"
    checkpoint = open_checkpoint("org/name")
    good = repo.files[name]
    hub.faults.content[name] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(HubError, match=r"arrived with .* digest") as caught:
        checkpoint.materialise()
    assert "run the same command again" in str(caught.value.hint)
    hub.faults.content.clear()
    local = checkpoint.materialise()
    assert (local.path / name).read_bytes() == good  # type: ignore[operator]


@pytest.mark.usefixtures("repo")
def test_hostile_listing(hub: Hub) -> None:
    hub.faults.extra_listed = ["../../etc/passwd"]
    assert "`../../etc/passwd`" in str(refused(HubError))
    hub.faults.extra_listed = []
    hub.faults.commit = "../../../etc"
    assert "expected a commit hash" in str(refused(HubError))


@pytest.mark.usefixtures("hub")
def test_hostile_header(repo: Repo) -> None:
    name = "model-00001-of-00003.safetensors"
    repo.files[name] = b"\xff" * 8 + repo.files[name][8:]
    error = refused(FormatError)
    assert f"org/name/{name}" in str(error)
    assert "taskvec-headers" not in str(error)


def test_index_that_leaves_the_folder(repo: Repo) -> None:
    index = json.loads(repo.files["model.safetensors.index.json"])
    index["weight_map"]["model.norm.weight"] = "../other/model.safetensors"
    repo.files["model.safetensors.index.json"] = json.dumps(index).encode()
    assert "../other/model.safetensors" in str(refused(FormatError))


def test_index_and_headers_that_disagree(repo: Repo) -> None:
    index = json.loads(repo.files["model.safetensors.index.json"])
    del index["weight_map"]["model.norm.weight"]
    repo.files["model.safetensors.index.json"] = json.dumps(index).encode()
    assert "model.norm.weight" in str(refused(FormatError))


def test_missing_shard(repo: Repo) -> None:
    del repo.files["model-00002-of-00003.safetensors"]
    with pytest.raises(Error, match="model-00002-of-00003"):
        open_checkpoint("org/name")


@pytest.mark.parametrize(
    ("files", "kind", "text"),
    [
        (["config.json", "pytorch_model.bin"], FormatError, "pytorch_model.bin"),
        (["adapter_config.json", "adapter_model.safetensors"], FormatError, "adapter"),
        (["config.json", "README.md"], NotFoundError, "safetensors"),
    ],
)
def test_no_model_in_the_repository(hub: Hub, files: list[str], kind: type[Error], text: str) -> None:
    hub.repos["org/odd"] = Repo(dict.fromkeys(files, b"{}"))
    assert text in str(refused(kind, "org/odd"))


def test_config_that_is_no_json(repo: Repo) -> None:
    repo.files["config.json"] = b"{"
    assert "org/name/config.json" in str(refused(FormatError))


@pytest.mark.usefixtures("repo")
def test_environment_alone_is_enough(hub: Hub, tmp_path: Path) -> None:
    """A fresh process with HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE, as users set them; stderr stays empty."""
    code = (
        "import sys, taskvec as tv; c = tv.open('org/name'); c = c.materialise(); "
        "print(c.revision, len(c), c.download_bytes)"
    )
    home = str(tmp_path / "home")
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_HUB_OFFLINE": "0"}

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, **more},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    first = run()
    assert (first.stdout, first.stderr) == (f"{COMMIT} 38 0\n", "")
    hub.requests.clear()
    second = run(HF_HUB_OFFLINE="1")
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("model-00002-of-00003.safetensors", "tv.open('org/name')"),
        ("README.md", "tv.open('org/name').materialise()"),
    ],
)
@pytest.mark.usefixtures("repo")
def test_a_stalled_server_can_be_interrupted(hub: Hub, tmp_path: Path, name: str, code: str) -> None:
    hub.faults.stall = {name}
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", f"import taskvec as tv; {code}"],
        env=environment,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    assert hub.faults.stalled.wait(60)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)  # the server stalls until the test ends
    assert said.rstrip().endswith(b"KeyboardInterrupt")


@pytest.mark.usefixtures("repo")
def test_weights_agree_with_the_source(model: Path) -> None:
    local = open_checkpoint("org/name").materialise()
    np.testing.assert_array_equal(local["model.norm.weight"], read_tensors(model)["model.norm.weight"])
