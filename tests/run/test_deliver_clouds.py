"""Models and outputs at ``gs://`` and ``az://``, on servers that speak these protocols: as at ``s3://``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import taskvec as tv
from support.blob_server import SECRET, Blobs, running_blobs
from support.models import Trio, write_trio
from taskvec.errors import HubError, OutputError
from taskvec.resolve.store import write

SIZE = 6000
ROLES = ("target", "donor", "reference")
LARGE = {"hidden": 512, "intermediate": 2048, "vocabulary": 8000}

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(params=["gs", "az"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Blobs]:
    with running_blobs(request.param) as running, tv.storage(running.options, scratch=tmp_path / "scratch"):
        yield running


def sent(blobs: Blobs, trio: Trio) -> list[str]:
    """The models there; their addresses."""
    for role, folder in zip(ROLES, trio, strict=True):
        for path in folder.iterdir():
            blobs.put(f"models/{role}/{path.name}", path.read_bytes())
    return [f"{blobs.scheme}://models/{role}" for role in ROLES]


def weights(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.endswith(".safetensors")}


def local(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_from_buckets_into_a_bucket(blobs: Blobs, tmp_path: Path) -> None:
    trio = write_trio(tmp_path / "models", shards=(2, 3, 1))
    expected = tv.transfer(*trio, tmp_path / "one", max_shard_size=SIZE)
    out = f"{blobs.scheme}://results/out"
    models = sent(blobs, trio)
    report = tv.transfer(*models, out, max_shard_size=SIZE)
    assert [one.shards for one in report.outputs] == [one.shards for one in expected.outputs]
    files = blobs.below("results/out/")
    assert weights(files) == local(tmp_path / "one")
    assert {"taskvec.json", "config.json", "README.md", "tokenizer.json"} <= set(files)
    assert not [name for name in files if name.startswith(".taskvec/done/")]
    assert tv.verify(out, rehash=True).ok
    assert tv.transfer(*models, out, max_shard_size=SIZE).already_done
    assert SECRET.encode() not in b"".join(files.values())


def test_a_file_that_is_sent_in_parts(blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "PART", 5 << 20)
    trio = write_trio(tmp_path / "models", **LARGE)
    tv.transfer(*trio, tmp_path / "one")
    tv.transfer(*sent(blobs, trio), f"{blobs.scheme}://results/out")
    assert [
        path for method, path in blobs.seen if method == "PUT" and ("blockid" in path or "partNumber" in path)
    ]
    assert weights(blobs.below("results/out/")) == local(tmp_path / "one")


def test_parts_and_what_is_there(blobs: Blobs, tmp_path: Path) -> None:
    trio = write_trio(tmp_path / "models", shards=(2, 3, 1))
    tv.transfer(*trio, tmp_path / "one", max_shard_size=SIZE)
    plan, out = tv.plan_transfer(*sent(blobs, trio), max_shard_size=SIZE), f"{blobs.scheme}://results/out"
    assert plan.part(1, 2).run(out).report is None
    assert "taskvec.json" not in blobs.below("results/out/")
    assert plan.part(0, 2).run(out).report is not None
    assert weights(blobs.below("results/out/")) == local(tmp_path / "one")
    assert plan.run(out).already_done
    other = tv.plan_transfer(*sent(blobs, trio), alpha=0.5, max_shard_size=SIZE)
    with pytest.raises(OutputError, match="holds a finished output"):
        other.run(out)
    other.run(out, settings=tv.Settings(overwrite=True))
    assert weights(blobs.below("results/out/")) != local(tmp_path / "one")
    assert tv.verify(out).ok


def test_a_manifest_of_another_run_stays(blobs: Blobs, tmp_path: Path) -> None:
    trio = write_trio(tmp_path / "models")
    place = write.place_at(f"{blobs.scheme}://results/out")
    assert place.put_absent("taskvec.json", b"first")
    assert place.put_absent("taskvec.json", b"first")  # an answer that was lost
    assert not place.put_absent("taskvec.json", b"second")
    assert blobs.below("results/out/") == {"taskvec.json": b"first"}
    with pytest.raises(OutputError, match="holds"):
        tv.transfer(*trio, f"{blobs.scheme}://results/out")


def test_what_changes_and_what_is_missing_is_named(blobs: Blobs, tmp_path: Path) -> None:
    trio = write_trio(tmp_path / "models", shards=(2, 3, 1))
    plan = tv.plan_transfer(*sent(blobs, trio), max_shard_size=SIZE)
    name = "models/donor/model-00002-of-00003.safetensors"
    blobs.put(name, blobs.objects[name][0])
    with pytest.raises(HubError, match="has changed since"):
        plan.run(f"{blobs.scheme}://results/out")
    assert "taskvec.json" not in blobs.below("results/out/")
    with pytest.raises(tv.Error, match="nothing at"):
        tv.open(f"{blobs.scheme}://models/elsewhere")


def test_verify_finds_what_was_put_in_the_place_of_a_file(blobs: Blobs, tmp_path: Path) -> None:
    trio = write_trio(tmp_path / "models")
    out = f"{blobs.scheme}://results/out"
    tv.transfer(*trio, out)
    data, _ = blobs.objects["results/out/model.safetensors"]
    blobs.put("results/out/model.safetensors", b"\1" * len(data))
    assert [file.name for file in tv.verify(out).problems] == ["model.safetensors"]
    manifest = json.loads(blobs.objects["results/out/taskvec.json"][0])
    assert SECRET not in json.dumps(manifest)
