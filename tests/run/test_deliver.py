"""Outputs in an object store: the bytes and the report of a local run, range by range, whoever is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from support.models import Trio, write_trio
from support.oracle import same_files
from support.packed_models import BY_NAME, packed_trio
from support.s3_server import S3
from taskvec.cli import run
from taskvec.errors import HubError, OutputError
from taskvec.resolve.store.write import StorePlace
from taskvec.run import finish as ending
from taskvec.run import part_work
from taskvec.run.store_sink import StoreSink

SIZE = 6000  # bytes of a weight file: some twenty files
ROLES = ("target", "donor", "reference")


@pytest.fixture
def local(tmp_path: Path) -> Trio:
    return write_trio(tmp_path / "source", shards=(2, 3, 1))


@pytest.fixture
def addresses(s3: S3, local: Trio) -> list[str]:
    return [s3.put("models", f"some/{role}", folder) for role, folder in zip(ROLES, local, strict=True)]


@pytest.fixture
def bucket(s3: S3) -> S3:
    s3.client.create_bucket(Bucket="results")
    return s3


def fetched(s3: S3, folder: Path, prefix: str = "out/", bucket: str = "results") -> Path:
    """The objects below a prefix as files, by boto3."""
    pages = s3.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    for each in (each for page in pages for each in page.get("Contents", ())):
        path = folder / each["Key"].removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(s3.client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read())
    return folder


def names(s3: S3, prefix: str = "out/") -> set[str]:
    listed = s3.client.list_objects_v2(Bucket="results", Prefix=prefix).get("Contents", ())
    return {each["Key"].removeprefix(prefix) for each in listed}


def states(s3: S3) -> dict[str, Any]:
    listed = s3.client.list_objects_v2(Bucket="results", Prefix="out/").get("Contents", ())
    return {each["Key"]: (each["ETag"], each["LastModified"]) for each in listed}


def without_state(folder: Path) -> Path:
    for path in list(folder.rglob("written.json")):
        path.unlink()
        path.parent.rmdir()
    return folder


def figures(report: tv.Report | None) -> Any:
    assert report is not None
    outputs = [{**each.to_dict(), "folder": Path(each.folder).name} for each in report.outputs]
    findings = [{**each.to_dict(), "message": ""} for each in report.findings]
    for each in findings:
        if each["id"] == "rounded-away":  # it names the output
            each["subject"] = Path(each["subject"]).name
    return outputs, report.plan, findings


def test_a_local_model_into_a_bucket(bucket: S3, local: Trio, tmp_path: Path) -> None:
    expected = tv.transfer(*local, tmp_path / "one" / "out", alpha=0.7, max_shard_size=SIZE)
    report = tv.transfer(*local, "s3://results/out", alpha=0.7, max_shard_size=SIZE)
    assert figures(report) == figures(expected)
    assert report.outputs[0].folder == "s3://results/out"
    same_files(tmp_path / "one" / "out", without_state(fetched(bucket, tmp_path / "out")))
    assert names(bucket) >= {"taskvec.json", ".taskvec/written.json"}
    assert not [name for name in names(bucket) if name.startswith(".taskvec/") and "written" not in name]
    assert not list((tmp_path / "scratch" / "runs").iterdir())
    again = tv.transfer(*local, "s3://results/out", alpha=0.7, max_shard_size=SIZE)
    assert again.already_done
    assert figures(again) == figures(expected)
    assert tv.verify("s3://results/out").ok
    assert tv.verify("s3://results/out", rehash=True).ok


@pytest.mark.parametrize("alpha", [0.7, (0.5, 1, -1)])
def test_from_buckets_into_a_bucket(
    bucket: S3, addresses: list[str], tmp_path: Path, alpha: float | tuple[float, ...]
) -> None:
    """Range by range; no model and no output is in the scratch folder as a whole."""
    options: dict[str, Any] = {"alpha": alpha, "max_shard_size": SIZE}
    with tv.storage(scratch=tmp_path / "elsewhere"):
        expected = tv.transfer(*addresses, tmp_path / "one" / "out", **options)
    report = tv.transfer(*addresses, "s3://results/out", **options)
    assert figures(report) == figures(expected)
    same_files(tmp_path / "one" / "out", without_state(fetched(bucket, tmp_path / "out")))
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))


def test_from_buckets_into_a_folder(addresses: list[str], tmp_path: Path) -> None:
    options: dict[str, Any] = {"alpha": 0.7, "max_shard_size": SIZE}
    with tv.storage(scratch=tmp_path / "elsewhere"):
        expected = tv.transfer(*addresses, tmp_path / "one" / "out", **options)
    report = tv.transfer(*addresses, tmp_path / "out", **options, stream=True)
    assert figures(report) == figures(expected)
    same_files(tmp_path / "one" / "out", tmp_path / "out")
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))


@pytest.mark.parametrize("number", [1, 4])
def test_streamed_into_a_folder_and_killed(addresses: list[str], tmp_path: Path, number: int) -> None:
    """Among the weight files, and when only the others were missing: the next run streams on."""
    options: dict[str, Any] = {"alpha": 0.7, "max_shard_size": SIZE, "stream": True}
    with tv.storage(scratch=tmp_path / "elsewhere"):
        tv.transfer(*addresses, tmp_path / "one" / "out", **{**options, "stream": False})
    with pytest.MonkeyPatch.context() as patch:
        if number == 1:
            patch.setattr(ending, "end_assembled", stopped)
        else:
            write, count = part_work.Shards.write, iter(range(100))

            def few(self: part_work.Shards, *given: Any) -> int:
                if next(count) == number:
                    stopped()
                return write(self, *given)

            patch.setattr(part_work.Shards, "write", few)
        with pytest.raises(KeyboardInterrupt):
            tv.transfer(*addresses, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "taskvec.json").exists()
    tv.transfer(*addresses, tmp_path / "out", **options)
    same_files(tmp_path / "one" / "out", tmp_path / "out")
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))


def test_other_content_is_refused(bucket: S3, local: Trio) -> None:
    bucket.client.put_object(Bucket="results", Key="out/notes.txt", Body=b"mine")
    with pytest.raises(OutputError, match=r"holds files such as `notes\.txt`"):
        tv.transfer(*local, "s3://results/out")
    with pytest.raises(OutputError, match="no checkpoint to be replaced"):
        tv.transfer(*local, "s3://results/out", overwrite=True)
    assert names(bucket) == {"notes.txt"}


def test_an_output_is_replaced_when_that_is_asked_for(bucket: S3, local: Trio, tmp_path: Path) -> None:
    tv.transfer(*local, "s3://results/out", max_shard_size=SIZE)
    with pytest.raises(OutputError, match="holds a finished output"):
        tv.transfer(*local, "s3://results/out", alpha=0.5)
    tv.transfer(*local, "s3://results/out", alpha=0.5, overwrite=True)
    tv.transfer(*local, tmp_path / "one" / "out", alpha=0.5)
    same_files(tmp_path / "one" / "out", without_state(fetched(bucket, tmp_path / "out")))


def test_parts(bucket: S3, addresses: list[str], tmp_path: Path) -> None:
    plan = tv.plan_transfer(*addresses, alpha=0.7, max_shard_size=SIZE)
    parts = [plan.part(number, 4).run("s3://results/out") for number in (2, 0, 3)]
    assert [part.report for part in parts] == [None] * 3
    with pytest.raises(OutputError, match=r"are missing.*"):
        tv.finish("s3://results/out")
    last = plan.part(1, 4).run("s3://results/out")
    with tv.storage(scratch=tmp_path / "elsewhere"):
        expected = plan.run(tmp_path / "one" / "out")
    assert figures(last.report) == figures(expected)
    same_files(tmp_path / "one" / "out", without_state(fetched(bucket, tmp_path / "out")))
    assert plan.part(1, 4).run("s3://results/out").report is not None


def test_a_store_that_removes_nothing(bucket: S3, local: Trio) -> None:
    """The state of the run stays, and the output is complete all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StorePlace, "delete", refused)
        tv.transfer(*local, "s3://results/out", max_shard_size=SIZE)
        assert ".taskvec/run.json" in names(bucket)
        assert tv.verify("s3://results/out").ok
        assert tv.transfer(*local, "s3://results/out", max_shard_size=SIZE).already_done
    assert tv.transfer(*local, "s3://results/out", max_shard_size=SIZE).already_done
    assert ".taskvec/run.json" not in names(bucket)


def refused(*_: object) -> None:
    raise HubError("the store answered 501", "none")


def test_a_vector(bucket: S3, local: Trio, tmp_path: Path) -> None:
    tv.extract(local.donor, local.reference, tmp_path / "one" / "out")
    tv.extract(local.donor, local.reference, "s3://results/out")
    same_files(tmp_path / "one" / "out", without_state(fetched(bucket, tmp_path / "out")))
    tv.apply(local.target, "s3://results/out", out="s3://results/applied")
    tv.apply(local.target, tmp_path / "one" / "out", out=tmp_path / "applied")
    made = fetched(bucket, tmp_path / "there", "applied/")
    for path in (tmp_path / "applied").glob("*.safetensors"):
        assert path.read_bytes() == (made / path.name).read_bytes()


def test_finish_by_hand(bucket: S3, local: Trio, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plan = tv.plan_transfer(*local, max_shard_size=SIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreSink, "_put_manifest", stopped)
        with pytest.raises(KeyboardInterrupt):
            plan.run("s3://results/out")
    assert "taskvec.json" not in names(bucket)
    assert run(["finish", "s3://results/out"]) == 0
    assert "s3://results/out" in capsys.readouterr().out
    plan.run(tmp_path / "one" / "out")
    same_files(tmp_path / "one" / "out", without_state(fetched(bucket, tmp_path / "out")))
    before = states(bucket)
    assert run(["finish", "s3://results/out"]) == 0
    assert "already done s3://results/out" in capsys.readouterr().err
    assert states(bucket) == before
    assert run(["finish", "s3://results/nothing"]) == 2


def stopped(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_the_command_line(bucket: S3, addresses: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    models = [word for role, at in zip(ROLES, addresses, strict=True) for word in (f"--{role}", at)]
    assert run(["transfer", *models, "-o", "s3://results/out", "--json", "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["moves"] == {
        "fetch": plan["bytes_in"],
        "send": plan["bytes_out"],
        "scratch": max(each["bytes"] for each in plan["shards"]) * 4,
    }
    assert run(["transfer", *models, "-o", "s3://results/out", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["out"] == "s3://results/out"
    assert run(["verify", "s3://results/out"]) == 0
    bucket.client.put_object(Bucket="results", Key="out/config.json", Body=b"{}")
    assert run(["verify", "s3://results/out"]) == 1
    assert run(["transfer", *models, "-o", "https://results/out"]) == 2
    assert "cannot be written to" in capsys.readouterr().err
    assert not Path("https:").exists()


@pytest.mark.parametrize(
    "name",
    [
        "block FP8, BF16 scales",
        "FP8 per tensor",
        "CT INT8 group 32",
        "CT NVFP4",
        "GPTQ 4 bits act",
        "NF4 nested",
    ],
)
@pytest.mark.parametrize("out_dtype", ["bfloat16", None])
def test_packed_models_range_by_range(bucket: S3, tmp_path: Path, name: str, out_dtype: str | None) -> None:
    """The engine says which ranges it reads: nothing that it needs is a hole."""
    local, _ = packed_trio(tmp_path / "source", BY_NAME[name], shards=2)
    far = [bucket.put("models", f"{role}", folder) for role, folder in zip(ROLES, local, strict=True)]
    options: dict[str, Any] = {"out_dtype": out_dtype, "max_shard_size": 3 * SIZE}
    with tv.storage(scratch=tmp_path / "elsewhere"):
        expected = tv.transfer(*far, tmp_path / "one" / "out", **options)
    report = tv.transfer(*far, "s3://results/out", **options)
    assert figures(report) == figures(expected)
    same_files(tmp_path / "one" / "out", without_state(fetched(bucket, tmp_path / "out")))


def test_a_recipe_of_several_documents(bucket: S3, addresses: list[str], tmp_path: Path) -> None:
    """Results of earlier documents lie in the scratch folder until the output is there."""
    models = "".join(f"\n  - model: {at}" for at in addresses[1:])
    linear = "merge_method: linear\nparameters: {weight: 0.5}\nmodels:"
    recipe = f"{linear}{models}\nname: first\n---\n{linear}\n  - model: first\n  - model: {addresses[0]}\n"
    expected = tv.merge(recipe, tmp_path / "one" / "out", max_shard_size=SIZE)
    report = tv.merge(recipe, "s3://results/out", max_shard_size=SIZE)
    assert [each.shards for each in report.outputs] == [each.shards for each in expected.outputs]
    made = fetched(bucket, tmp_path / "out")
    for path in (tmp_path / "one" / "out").glob("*.safetensors"):
        assert path.read_bytes() == (made / path.name).read_bytes()
    assert tv.merge(recipe, "s3://results/out", max_shard_size=SIZE).already_done
    assert not list((tmp_path / "scratch").glob("steps/*"))


def test_a_conversion(bucket: S3, addresses: list[str], local: Trio, tmp_path: Path) -> None:
    tv.convert(addresses[0], "s3://results/out", out_dtype="float16", max_shard_size=SIZE)
    tv.convert(local.target, tmp_path / "out", out_dtype="float16", max_shard_size=SIZE)
    made = fetched(bucket, tmp_path / "there")
    for path in (tmp_path / "out").glob("*.safetensors"):
        assert path.read_bytes() == (made / path.name).read_bytes()


def test_tensors_in_memory(bucket: S3, local: Trio, tmp_path: Path) -> None:
    target, donor = tv.open(local.target), tv.open(local.donor)
    donor = tv.from_state_dict({name: donor[name] for name in donor}, config=donor.config)
    merged = target + 0.5 * (donor - tv.open(local.reference))
    merged.save("s3://results/out", force="tokenizer-missing")
    merged.save(tmp_path / "out", force="tokenizer-missing")
    made = fetched(bucket, tmp_path / "there")
    for path in (tmp_path / "out").glob("*.safetensors"):
        assert path.read_bytes() == (made / path.name).read_bytes()
    assert not list((tmp_path / "scratch").glob("outputs/*"))


def test_rehash_finds_what_was_put_in_the_place_of_a_file(bucket: S3, local: Trio, tmp_path: Path) -> None:
    plan = tv.plan_transfer(*local, max_shard_size=SIZE)
    first = plan.part(0, 2).run("s3://results/out").shards[0].name
    expected = plan.run(tmp_path / "out")
    data = (tmp_path / "out" / first).read_bytes()
    bucket.client.put_object(Bucket="results", Key=f"out/{first}", Body=b"\1" * len(data))
    report = plan.run("s3://results/out")
    assert figures(report) == figures(expected)
    found = bucket.client.get_object(Bucket="results", Key=f"out/{first}")["Body"].read()
    assert found == data
    bucket.client.put_object(Bucket="results", Key=f"out/{first}", Body=b"\1" * len(data))
    assert [file.name for file in tv.verify("s3://results/out").problems] == [first]
