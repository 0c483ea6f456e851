"""Mixtures of experts of models in an object store, written there."""

from __future__ import annotations

from pathlib import Path

import pytest

import taskvec as tv
from support.models import read_tensors, write_weights
from support.moe import expert, recipe, write_models
from support.s3_server import S3
from taskvec.resolve.ranged import RangedWeights

FILES = "*.safetensors"


def at(addresses: dict[str, str], mode: str = "cheap_embed") -> dict[str, object]:
    """The recipe of models at addresses."""
    experts = [{**expert(name, mode), "source_model": addresses[name]} for name in "ab"]
    return {**recipe(mode), "base_model": addresses["base"], "experts": experts}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_models(tmp_path, "llama")
    for name in ("base", "a", "b"):
        tensors = read_tensors(tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
        write_weights(tmp_path / name, tensors, shards=3)
    return tmp_path


@pytest.fixture
def addresses(s3: S3, world: Path) -> dict[str, str]:
    s3.client.create_bucket(Bucket="results")
    return {name: s3.put("models", f"some/{name}", world / name) for name in ("base", "a", "b")}


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob(FILES)}


@pytest.mark.parametrize("mode", ["cheap_embed", "random"])
def test_of_models_at_addresses(mode: str, addresses: dict[str, str], world: Path) -> None:
    tv.moe(recipe(mode), world / "local", max_shard_size=3000)
    tv.moe(at(addresses, mode), world / "out", max_shard_size=3000)
    assert weights(world / "out") == weights(world / "local")


def test_gates_of_a_base_at_an_address_read_rows_alone(
    addresses: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    sample = RangedWeights.sample

    def counted(self: RangedWeights, name: str, start: int, count: int) -> bytes:
        asked.append(count)
        return sample(self, name, start, count)

    monkeypatch.setattr(RangedWeights, "sample", counted)
    plan = tv.open_moe(at(addresses)).plan()
    assert plan.download
    assert set(asked) == {16}


@pytest.mark.parametrize("from_away", [False, True])
def test_written_to_an_address(from_away: bool, addresses: dict[str, str], s3: S3, world: Path) -> None:
    given = at(addresses) if from_away else recipe()
    expected = tv.moe(given, world / "local", max_shard_size=3000)
    report = tv.moe(given, "s3://results/out", max_shard_size=3000)
    assert report.plan == expected.plan
    for name, data in weights(world / "local").items():
        assert s3.client.get_object(Bucket="results", Key=f"out/{name}")["Body"].read() == data
    assert tv.moe(given, "s3://results/out", max_shard_size=3000).already_done


def test_parts_at_an_address(addresses: dict[str, str], s3: S3, world: Path) -> None:
    plan = tv.open_moe(at(addresses), max_shard_size=3000).plan()
    plan.run(world / "local")
    for number in (1, 0):
        plan.part(number, 2).run("s3://results/out")
    for name, data in weights(world / "local").items():
        assert s3.client.get_object(Bucket="results", Key=f"out/{name}")["Body"].read() == data


def test_to_an_address_from_a_folder_that_holds_the_scratch_folder(
    addresses: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fetched lies below the current folder, and the gates, which are in memory, nowhere."""
    monkeypatch.chdir(tmp_path)
    with tv.storage(scratch=tmp_path / "below"):
        assert not tv.moe(at(addresses), "s3://results/out", max_shard_size=3000).already_done
