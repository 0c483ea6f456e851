"""Outputs of several folders: in parts, in an object store, on the hub, streamed, whoever is killed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from support.oracle import same_files
from support.pipelines import COMPONENTS, pipeline
from support.s3_server import S3
from taskvec.run import part_work


@pytest.fixture
def local(tmp_path: Path) -> list[Path]:
    return [pipeline(tmp_path / name, seed) for seed, name in enumerate("tdr")]


@pytest.fixture
def addresses(s3: S3, local: list[Path]) -> list[str]:
    s3.client.create_bucket(Bucket="results")
    return [s3.put("models", folder.name, folder) for folder in local]


def fetched(s3: S3, folder: Path, prefix: str = "out/") -> Path:
    for each in s3.client.list_objects_v2(Bucket="results", Prefix=prefix)["Contents"]:
        path = folder / each["Key"].removeprefix(prefix)
        if path.name != "written.json":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(s3.client.get_object(Bucket="results", Key=each["Key"])["Body"].read())
    return folder


def test_parts_and_a_kill_between_them(local: list[Path], tmp_path: Path) -> None:
    plan = tv.plan_transfer(*local, alpha=0.5)
    plan.run(tmp_path / "one" / "out")
    for number in (1, 2):
        assert plan.part(number, 3).run(tmp_path / "out").report is None
    with pytest.MonkeyPatch.context() as patch:

        def stopped(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(part_work.Shards, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            plan.part(0, 3).run(tmp_path / "out")
    assert not (tmp_path / "out/taskvec.json").exists()
    assert plan.part(0, 3).run(tmp_path / "out").report is not None
    same_files(tmp_path / "one" / "out", tmp_path / "out")
    assert tv.verify(tmp_path / "out").ok


def test_from_buckets_into_a_bucket_and_a_folder(s3: S3, addresses: list[str], tmp_path: Path) -> None:
    with tv.storage(scratch=tmp_path / "elsewhere"):
        tv.transfer(*addresses, tmp_path / "one" / "out", alpha=0.5)
    tv.transfer(*addresses, "s3://results/out", alpha=0.5)
    same_files(tmp_path / "one" / "out", fetched(s3, tmp_path / "out"))
    tv.transfer(*addresses, tmp_path / "two" / "out", alpha=0.5, stream=True)
    same_files(tmp_path / "one" / "out", tmp_path / "two" / "out")
    assert tv.transfer(*addresses, "s3://results/out", alpha=0.5).already_done
    plan = tv.plan_transfer(*addresses, alpha=0.5)
    reports = [plan.part(number, 2).run("s3://results/parts").report for number in range(2)]
    assert reports[-1] is not None
    same_files(tmp_path / "one" / "out", fetched(s3, tmp_path / "three" / "out", "parts/"))


def test_the_same_bytes_as_each_sub_model_alone(local: list[Path], tmp_path: Path) -> None:
    tv.transfer(*local, tmp_path / "out", alpha=0.5)
    for folder in COMPONENTS:
        alone = tmp_path / "alone" / folder
        tv.transfer(*(path / folder for path in local), alone, alpha=0.5)
        for file in alone.glob("*.safetensors*"):
            assert file.read_bytes() == (tmp_path / "out" / folder / file.name).read_bytes(), file
    shutil.rmtree(tmp_path / "alone")
