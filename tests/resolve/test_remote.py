"""Models and vectors on the hub: planned from headers, downloaded for a run, recorded with their commits."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.hub_server import Hub, Repo
from support.models import Trio, read_safetensors, write_trio, write_weights
from support.oracle import same_files
from taskvec.errors import FormatError

REPOSITORIES = ("org/target", "org/donor", "org/reference")


@pytest.fixture
def remote(hub: Hub, tmp_path: Path) -> Trio:
    """Three repositories, and the folders that they were made from."""
    trio = write_trio(tmp_path / "source", shards=(2, 3, 1), hidden=128, intermediate=512, vocabulary=400)
    for name, folder in zip(REPOSITORIES, trio, strict=True):
        hub.repos[name] = Repo.from_folder(folder)
    return trio


def test_a_plan_fetches_headers_alone(remote: Trio, hub: Hub) -> None:
    plan = tv.plan_transfer(*REPOSITORIES, alpha=0.5)
    sizes = [sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in remote]
    assert hub.weight_bytes_sent() < sum(sizes) / 2
    assert [source.revision for source in plan.sources] == [hub.repos[name].commit for name in REPOSITORIES]
    for source, size in zip(plan.sources, sizes, strict=True):
        assert size <= source.download < 1.5 * size
    assert plan.recipe["donor"] == f"hf://org/donor@{hub.repos['org/donor'].commit}"
    tv.open("org/target").materialise()
    assert tv.plan_transfer(*REPOSITORIES, alpha=0.5).json == plan.json


@pytest.mark.parametrize("allowed", [0, 1])
def test_headers_come_with_as_many_threads_as_there_are(
    remote: Trio, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    from taskvec.resolve import headers, threads

    started = []

    class Scarce(threading.Thread):
        def start(self) -> None:
            if len(started) >= allowed:
                raise RuntimeError("can't start new thread")
            started.append(self)
            super().start()

    contents = {path.name: path.read_bytes() for path in remote.donor.glob("*.safetensors")}

    class Local:
        def size(self, name: str) -> int:
            return len(contents[name])

        def read(self, name: str, ranges: list[tuple[int, int]]) -> list[bytes]:
            return [contents[name][start:stop] for start, stop in ranges]

    monkeypatch.setattr(threads.threading, "Thread", Scarce)
    found = headers.headers(Local(), sorted(contents))  # type: ignore[arg-type]
    assert len(started) == allowed
    assert sorted(found) == sorted(contents)
    for name, header in found.items():
        assert contents[name].startswith(header)
        assert len(header) >= 8 + int.from_bytes(contents[name][:8], "little")


def test_a_run_downloads_and_records_them(remote: Trio, tmp_path: Path) -> None:
    phases = []
    tv.transfer(*REPOSITORIES, tmp_path / "out", alpha=0.5, progress=lambda event: phases.append(event.phase))
    assert list(dict.fromkeys(phases)) == ["download", "merge", "publish"]
    tv.transfer(*remote, tmp_path / "local", alpha=0.5)
    for path in (tmp_path / "local").iterdir():
        if path.name not in ("taskvec.json", "taskvec_recipe.yaml", "README.md"):
            assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    data = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    for source, folder in zip(data["sources"], remote, strict=True):
        assert source["repository"] in REPOSITORIES
        assert len(source["revision"]) == 40
        assert {file["name"] for file in source["files"]} == {p.name for p in folder.glob("*.safetensors")}
        assert all(len(file["sha256"]) == 64 for file in source["files"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert '- "org/donor"' in card
    assert tv.verify(tmp_path / "out").ok


def test_the_recorded_command_pins_the_commits(remote: Trio, hub: Hub, tmp_path: Path) -> None:
    import shlex

    from taskvec.cli import run

    tv.transfer(*REPOSITORIES, tmp_path / "out")
    words = shlex.split(json.loads((tmp_path / "out" / "taskvec.json").read_text())["command"])
    hub.repos["org/donor"] = Repo.from_folder(remote.reference, commit="1" * 40)
    words[words.index("OUT")] = str(tmp_path / "again")
    assert run([*words[1:], "--quiet"]) == 0
    one, other = (tmp_path / name / "model-00001-of-00002.safetensors" for name in ("out", "again"))
    assert one.read_bytes() == other.read_bytes()


def test_a_vector_on_the_hub(remote: Trio, hub: Hub, tmp_path: Path) -> None:
    tv.extract(remote.donor, remote.reference, tmp_path / "vec", max_shard_size=100_000)
    hub.repos["org/vector"] = Repo.from_folder(tmp_path / "vec")
    tv.apply(remote.target, "org/vector", out=tmp_path / "out", alpha=0.5)
    tv.apply(remote.target, tmp_path / "vec", out=tmp_path / "local", alpha=0.5)
    data = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    assert data["recipe"]["vectors"] == [f"hf://org/vector@{hub.repos['org/vector'].commit}"]
    for path in (tmp_path / "local").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_an_interrupted_download_goes_on(remote: Trio, tmp_path: Path) -> None:
    def progress(event: tv.Progress) -> None:
        if event.phase == "download" and event.done_bytes > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tv.transfer(*REPOSITORIES, tmp_path / "out", progress=progress)
    assert not (tmp_path / "out").exists()
    tv.transfer(*REPOSITORIES, tmp_path / "out")
    tv.transfer(*REPOSITORIES, tmp_path / "again")
    same_files(tmp_path / "out", tmp_path / "again")
    del remote


def test_modules_on_the_hub_come_along(remote: Trio, hub: Hub, tmp_path: Path) -> None:
    write_weights(remote.target / "2_Dense", {"linear.weight": np.ones((2, 2), np.float32)})
    (remote.target / "modules.json").write_text(json.dumps([{"path": "2_Dense"}]))
    hub.repos["org/target"] = Repo.from_folder(remote.target)
    report = tv.transfer(*REPOSITORIES, tmp_path / "out")
    made = read_safetensors(tmp_path / "out" / "2_Dense" / "model.safetensors")
    assert made["linear.weight"].tolist() == [[1, 1], [1, 1]]
    assert "files-kept" in [each.id for each in report.findings]


def test_a_variant_alone_on_the_hub(remote: Trio, hub: Hub) -> None:
    index = remote.target / "model.safetensors.index.json"
    for path in remote.target.glob("model-*"):
        path.rename(path.with_name(path.name.replace("model-", "model.fp16-")))
    index.with_name("model.safetensors.index.fp16.json").write_text(
        index.read_text().replace("model-", "model.fp16-")
    )
    index.unlink()
    hub.repos["org/target"] = Repo.from_folder(remote.target)
    with pytest.raises(FormatError, match="index of a variant"):
        tv.open("org/target")
    assert len(tv.open("org/target?variant=fp16")) == len(tv.open(remote.donor))
