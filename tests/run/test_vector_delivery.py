"""A vector that parts extract to an address, or from models at addresses: the bytes of one local run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taskvec as tv
from support.faulty_proxy import Proxy, running_proxy
from support.models import (
    Trio,
    qwen2_config,
    qwen2_shapes,
    random_tensors,
    read_tensors,
    write_checkpoint,
    write_trio,
)
from support.oracle import same_files
from support.packed_models import BY_NAME, packed_trio
from support.s3_server import S3
from taskvec.cli import run
from taskvec.errors import FormatError, OutputError
from taskvec.run.store_sink import StoreSink

SIZE = 6000
ROLES = ("donor", "reference")


@pytest.fixture
def local(tmp_path: Path) -> Trio:
    return write_trio(tmp_path / "source", shards=(2, 3, 1))


@pytest.fixture
def far(s3: S3, local: Trio) -> list[str]:
    s3.client.create_bucket(Bucket="results")
    return [s3.put("models", role, getattr(local, role)) for role in ROLES]


@pytest.fixture
def proxy(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with running_proxy(s3.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


def names(s3: S3) -> set[str]:
    listed = s3.client.list_objects_v2(Bucket="results", Prefix="out/").get("Contents", ())
    return {each["Key"].removeprefix("out/") for each in listed}


def fetched(s3: S3, folder: Path) -> Path:
    """The output as files, by boto3, without what the store has noted."""
    for name in names(s3) - {".taskvec/written.json"}:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(s3.client.get_object(Bucket="results", Key=f"out/{name}")["Body"].read())
    return folder


def figures(report: tv.Report | None) -> dict[str, Any]:
    assert report is not None
    (output,) = report.outputs
    return {"vector": report.vector, "shards": output.shards, "plan": report.plan}


def one_run(far: list[str], tmp_path: Path, **more: Any) -> tv.Report:
    """The same models, fetched as a whole, in one process."""
    with tv.storage(scratch=tmp_path / "elsewhere"):
        return tv.plan_extract(*far, max_shard_size=SIZE, **more).run(tmp_path / "one")


@pytest.mark.parametrize("count", [1, 3, 50])
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_parts_to_a_bucket(s3: S3, far: list[str], tmp_path: Path, count: int, dtype: str | None) -> None:
    expected = one_run(far, tmp_path, dtype=dtype)
    plan = tv.plan_extract(*far, max_shard_size=SIZE, dtype=dtype)
    done = [plan.part(number, count).run("s3://results/out") for number in reversed(range(count))]
    assert [part.report is None for part in done] == [True] * (count - 1) + [False]
    assert figures(done[-1].report) == figures(expected)
    same_files(tmp_path / "one", fetched(s3, tmp_path / "out"))
    assert not [name for name in names(s3) if name.startswith(".taskvec/") and "written" not in name]
    assert tv.verify("s3://results/out").ok
    assert tv.verify("s3://results/out", rehash=True).ok
    assert plan.part(0, count).run("s3://results/out").report.already_done  # type: ignore[union-attr]
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))


def test_parts_of_local_models_and_of_packed_ones(s3: S3, tmp_path: Path) -> None:
    s3.client.create_bucket(Bucket="results")
    trio, _ = packed_trio(tmp_path / "packed", BY_NAME["block FP8, BF16 scales"], shards=2)
    expected = tv.extract(trio.donor, trio.reference, tmp_path / "one")
    far = [s3.put("models", role, getattr(trio, role)) for role in ROLES]
    for models, out in (((trio.donor, trio.reference), "s3://results/out"), (far, "s3://results/far")):
        plan = tv.plan_extract(*models)
        last = [plan.part(number, 2).run(out) for number in (1, 0)][-1]
        assert last.report is not None
        assert last.report.vector == expected.vector
        assert [output.noise for output in last.report.outputs] == [each.noise for each in expected.outputs]
    same_files(tmp_path / "one", fetched(s3, tmp_path / "out"))


def test_at_once_and_twice(s3: S3, far: list[str], tmp_path: Path) -> None:
    one_run(far, tmp_path)
    plan = tv.plan_extract(*far, max_shard_size=SIZE)
    parts = [plan.part(number, 4, out="s3://results/out") for number in (0, 1, 1, 2, 3, 3)]
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda part: part.run(), parts))
    assert any(part.report is not None for part in done)
    same_files(tmp_path / "one", fetched(s3, tmp_path / "out"))
    assert not [name for name in names(s3) if "pieces" in name]


def test_a_run_as_a_whole_streams_its_models(s3: S3, far: list[str], tmp_path: Path) -> None:
    expected = one_run(far, tmp_path)
    assert figures(tv.extract(*far, "s3://results/out", max_shard_size=SIZE)) == figures(expected)
    same_files(tmp_path / "one", fetched(s3, tmp_path / "out"))
    assert figures(tv.extract(*far, tmp_path / "here", max_shard_size=SIZE, stream=True)) == figures(expected)
    same_files(tmp_path / "one", tmp_path / "here")
    parts = [
        tv.plan_extract(*far, max_shard_size=SIZE).part(number, 2).run(
            tmp_path / "parts", settings=tv.Settings(stream=True)
        )
        for number in range(2)
    ]  # fmt: skip
    assert figures(parts[-1].report) == figures(expected)
    same_files(tmp_path / "one", tmp_path / "parts")
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))


@pytest.mark.parametrize("step", ["bring", "send", "finish", "_put_manifest"])
def test_stopped_at_its_end_and_gone_on_with(s3: S3, far: list[str], tmp_path: Path, step: str) -> None:
    one_run(far, tmp_path)
    plan = tv.plan_extract(*far, max_shard_size=SIZE)
    plan.part(0, 2).run("s3://results/out")
    whole, sent = getattr(StoreSink, step), []

    def stopped(self: StoreSink, *given: Any, **more: Any) -> Any:
        is_vector = step == "send" and given[1].name.startswith("vector")
        if step == "send" and (not is_vector or not sent):
            sent.extend([0] * is_vector)
            return whole(self, *given, **more)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreSink, step, stopped)
        with pytest.raises(KeyboardInterrupt):
            plan.part(1, 2).run("s3://results/out")
    assert "taskvec.json" not in names(s3)
    assert run(["finish", "s3://results/out"]) == 0
    same_files(tmp_path / "one", fetched(s3, tmp_path / "out"))
    assert not [name for name in names(s3) if "pieces" in name or "done" in name]


@pytest.mark.parametrize(
    "part", ["pieces/piece-00003", "done/.taskvec/pieces/piece-00003", "out/vector-00002"]
)
def test_killed(s3: S3, proxy: Proxy, far: list[str], tmp_path: Path, part: str) -> None:
    one_run(far, tmp_path)
    proxy.add("hang", "PUT", part)
    words = ["extract", *far, "-o", "s3://results/out", "--max-shard-size", str(SIZE), "--part", "0/1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "taskvec", *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        env=dict(os.environ),
    )  # fmt: skip
    assert proxy.hung.wait(120)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert "taskvec.json" not in names(s3)
    proxy.seen.clear()
    again = run(words)
    assert again == 0
    sent = [path for method, path in proxy.seen if method == "PUT"]
    assert not [path for path in sent if "/pieces/piece-00001" in path], "what was sent is not sent again"
    same_files(tmp_path / "one", fetched(s3, tmp_path / "out"))


def test_what_is_missing_is_named(
    s3: S3, far: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tv.plan_extract(*far, max_shard_size=SIZE)
    for number in (0, 1, 3):
        plan.part(number, 4).run("s3://results/out")
    assert run(["finish", "s3://results/out"]) == 2
    told = capsys.readouterr().err
    assert "pieces of" in told
    assert "`2/4`" in told
    with pytest.raises(OutputError, match="different plan"):
        tv.plan_extract(*far).part(2, 4).run("s3://results/out")
    with pytest.raises(OutputError, match=r"joining the pieces of the vector needs .* of scratch"):
        plan.part(2, 4).run("s3://results/out", settings=tv.Settings(scratch_size=25_000))
    assert "taskvec.json" not in names(s3)
    assert plan.part(2, 4).run("s3://results/out").report is not None
    one_run(far, tmp_path)
    same_files(tmp_path / "one", fetched(s3, tmp_path / "out"))


def test_a_piece_that_was_changed_is_written_again(s3: S3, far: list[str], tmp_path: Path) -> None:
    one_run(far, tmp_path)
    plan = tv.plan_extract(*far, max_shard_size=SIZE)
    first = plan.part(0, 2).run("s3://results/out")
    key = f"out/.taskvec/pieces/{first.shards[0].name}"
    data = bytearray(s3.client.get_object(Bucket="results", Key=key)["Body"].read())
    data[-1] ^= 1
    s3.client.put_object(Bucket="results", Key=key, Body=bytes(data))
    assert plan.part(1, 2).run("s3://results/out").report is None
    last = plan.part(0, 2).run("s3://results/out")
    assert [shard.name for shard in last.shards] == [first.shards[0].name]
    same_files(tmp_path / "one", fetched(s3, tmp_path / "out"))


def test_a_dry_run_says_what_is_moved(far: list[str]) -> None:
    plan = tv.plan_extract(*far, max_shard_size=SIZE)
    from taskvec.run.moves import moves

    told = moves(plan, tv.Settings(), goes_away=True)
    assert told.fetch == plan.bytes_in
    assert told.send == plan.bytes_out


def test_a_donor_in_memory(s3: S3, local: Trio, far: list[str], tmp_path: Path) -> None:
    """It cannot be read by parts, and need not be."""
    opened = tv.open(local.donor)
    donor = tv.from_state_dict({name: opened[name] for name in opened}, config=opened.config)
    (donor - tv.open(far[1])).save("s3://results/out")
    (donor - tv.open(local.reference)).save(tmp_path / "one")
    for path in (tmp_path / "one").glob("*.safetensors"):
        assert path.read_bytes() == (fetched(s3, tmp_path / "out") / path.name).read_bytes()


@pytest.fixture
def saved(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], dict[str, np.ndarray]]:
    """Addresses of reference and vector, stored in every way, and the donor's tensors."""
    # else the first request of a header brings all of so small a file
    monkeypatch.setattr("taskvec.resolve.headers.FIRST_REQUEST", 64)
    s3.client.create_bucket(Bucket="results")
    rng = np.random.default_rng(8)
    tensors = random_tensors(qwen2_shapes(qwen2_config()), seed=8)
    donor = {}
    for number, (name, values) in enumerate(tensors.items()):
        share = (0.01, 0.15, 1.0, 0.0)[number % 4]
        moved = np.where(rng.random(values.shape) < share, 2 * values, values)
        # what a difference does not give back
        donor[name] = np.where(rng.random(values.shape) < 0.01, -0.0, moved).astype(values.dtype)
    near = [write_checkpoint(tmp_path / role, each, qwen2_config())
            for role, each in (("reference", tensors), ("donor", donor))]  # fmt: skip
    tv.extract(near[1], near[0], tmp_path / "vector", max_shard_size=SIZE)
    rows = json.loads((tmp_path / "vector" / "taskvec.json").read_text())["vector"]["tensors"].values()
    assert {row["encoding"] for row in rows} >= {"index", "mask", "dense"}
    assert sum(row.get("exact", 0) > 1 for row in rows) > 8
    return [s3.put("models", "reference", near[0]), s3.put("models", "vector", tmp_path / "vector")], donor


def test_a_vector_at_an_address_is_streamed(
    s3: S3, saved: tuple[list[str], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """Masks and indices too, and what the differences do not give back: the reference becomes the donor."""
    models, donor = saved
    plan = tv.plan_apply(*models, max_shard_size=SIZE)
    plan.run(tmp_path / "here", settings=tv.Settings(stream=True))
    plan.run("s3://results/out")
    written = read_tensors(tmp_path / "here")
    assert {name: values.tobytes() for name, values in written.items()} == {
        name: values.tobytes() for name, values in donor.items()
    }
    same_files(tmp_path / "here", fetched(s3, tmp_path / "out"))
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))


def test_a_streamed_vector_in_parts(
    s3: S3, saved: tuple[list[str], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    models, _ = saved
    plan = tv.plan_apply(*models, alpha=0.5, max_shard_size=SIZE)
    with tv.storage(scratch=tmp_path / "elsewhere"):
        plan.run(tmp_path / "one")
    for number in (2, 0, 1):
        plan.part(number, 3).run("s3://results/out")
    same_files(tmp_path / "one", fetched(s3, tmp_path / "out"))


def test_a_streamed_vector_that_is_damaged_is_refused(
    s3: S3, saved: tuple[list[str], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """The places of its elements are looked at once they are fetched, before they are used."""
    models, _ = saved
    for path in (tmp_path / "vector").glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        length = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name.endswith("indices"):
                start, stop = (8 + length + at for at in entry["data_offsets"])
                data[start:stop] = bytes(stop - start)
        path.write_bytes(data)
        s3.client.put_object(Bucket="models", Key=f"vector/{path.name}", Body=bytes(data))
    with pytest.raises(FormatError, match="does not come after"):
        tv.apply(*models, out="s3://results/out", max_shard_size=SIZE)
    assert "taskvec.json" not in names(s3)
