"""Faults at an object store and on the way to it: mended, or named; nothing looks complete, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from support.faulty_proxy import Proxy, running_proxy
from support.models import Trio, write_trio
from support.s3_server import KEY, S3, SECRET, TOKEN
from taskvec.errors import HubError, OutputError
from taskvec.resolve.store import write

SIZE = 6000
ROLES = ("target", "donor", "reference")
LOST = "taskvec.json"


@pytest.fixture
def local(tmp_path: Path) -> Trio:
    return write_trio(tmp_path / "source", shards=(2, 3, 1))


@pytest.fixture
def addresses(s3: S3, local: Trio) -> list[str]:
    s3.client.create_bucket(Bucket="results")
    return [s3.put("models", f"some/{role}", folder) for role, folder in zip(ROLES, local, strict=True)]


@pytest.fixture
def proxy(s3: S3, addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:  # noqa: ARG001
    with running_proxy(s3.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


def weights_at(s3: S3, prefix: str = "out/") -> dict[str, bytes]:
    found = s3.client.list_objects_v2(Bucket="results", Prefix=prefix).get("Contents", ())
    keys = [each["Key"] for each in found if each["Key"].endswith(".safetensors")]
    return {
        key.removeprefix(prefix): s3.client.get_object(Bucket="results", Key=key)["Body"].read()
        for key in keys
    }


def keys(s3: S3, prefix: str = "out/") -> set[str]:
    listed = s3.client.list_objects_v2(Bucket="results", Prefix=prefix).get("Contents", ())
    return {each["Key"].removeprefix(prefix) for each in listed}


def expected(local: Trio, tmp_path: Path) -> dict[str, bytes]:
    out = tmp_path / "expected"
    if not out.exists():
        tv.transfer(*local, out, max_shard_size=SIZE)
    return {path.name: path.read_bytes() for path in out.glob("*.safetensors")}


def transfer(addresses: list[str], **more: Any) -> tv.Report:
    return tv.transfer(*addresses, "s3://results/out", max_shard_size=SIZE, **more)


@pytest.mark.parametrize(
    ("what", "method", "part"),
    [
        ("500", "GET", "donor/model-00001"),
        ("503", "GET", "reference/model"),
        ("429", "GET", "reference/model"),
        ("429", "PUT", "out/model-00002"),
        ("429", "PUT", f"out/{LOST}"),
        ("dropped", "GET", "donor/model-00002"),
        ("dropped", "PUT", "out/model-00007"),
        ("dropped", "PUT", "done/model-00008"),
        ("dropped", "PUT", f"out/{LOST}"),
        ("cut", "GET", "target/model-00001"),
        ("lost", "GET", "target/model-00002"),
        ("slow", "GET", "donor/model-00002"),
        ("500", "PUT", "out/model-00003"),
        ("503", "PUT", "out/model-00004"),
        ("lost", "PUT", "out/model-00005"),
        ("lost", "PUT", "done/model-00006"),
        ("500", "PUT", "out/config.json"),
        ("lost", "PUT", f"out/{LOST}"),
        ("503", "PUT", f"out/{LOST}"),
        ("lost", "PUT", "out/.taskvec/run.json"),
    ],
)
def test_what_passes_is_mended(
    s3: S3, proxy: Proxy, addresses: list[str], local: Trio, tmp_path: Path, what: str, method: str, part: str
) -> None:
    fault = proxy.add(what, method, part)
    transfer(addresses)
    assert fault.happened == 1
    assert weights_at(s3) == expected(local, tmp_path)
    assert LOST in keys(s3)
    assert tv.verify("s3://results/out", rehash=True).ok


@pytest.mark.parametrize(
    ("what", "method", "part", "kind", "words"),
    [
        ("403", "PUT", "out/model-00004", HubError, "is forbidden"),
        ("500", "PUT", "out/model-00004", HubError, "answered 500"),
        ("403", "GET", "donor/model-00002", HubError, "is forbidden"),
        ("429", "PUT", "out/model-00004", HubError, "takes no more requests"),
        ("429", "GET", "donor/model-00002", HubError, "takes no more requests"),
        ("expired", "GET", "donor/model-00002", HubError, "token for .* has expired"),
        ("expired", "PUT", "out/model-00004", HubError, "token for .* has expired"),
        ("expired", "PUT", "done/model-00004", HubError, "token for .* has expired"),
        ("expired", "PUT", f"out/{LOST}", HubError, "token for .* has expired"),
        ("500", "PUT", f"out/{LOST}", HubError, "answered 500"),
        ("dropped", "PUT", "done/model-00004", HubError, "could not be written"),
        ("stale", "GET", "donor/model-00002", HubError, "has changed since"),
        ("flip", "PUT", "out/model-00004", OutputError, "arrived damaged"),
    ],
)
def test_what_stays_is_named_and_gone_on_with(
    s3: S3, proxy: Proxy, addresses: list[str], local: Trio, tmp_path: Path,
    what: str, method: str, part: str, kind: type[Exception], words: str,
) -> None:  # fmt: skip
    plan = tv.plan_transfer(*addresses, max_shard_size=SIZE)  # headers are read before
    proxy.add(what, method, part, times=1000)
    with pytest.raises(kind, match=words) as caught:
        plan.run("s3://results/out")
    assert caught.value.hint  # type: ignore[attr-defined]
    assert LOST not in keys(s3)
    if LOST not in part:
        assert not keys(s3) & {"config.json", "model.safetensors.index.json"}
    proxy.faults.clear()
    proxy.seen.clear()
    report = plan.run("s3://results/out")
    assert weights_at(s3) == expected(local, tmp_path)
    assert tv.verify("s3://results/out", rehash=True).ok
    assert report.resumed_shards == len(weights_at(s3)) - sum(
        method == "PUT" and path.endswith(".safetensors") for method, path in proxy.seen
    )


def test_no_secret_is_written_or_told(
    s3: S3, proxy: Proxy, addresses: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from taskvec.cli import run

    models = [word for role, at in zip(ROLES, addresses, strict=True) for word in (f"--{role}", at)]
    words = [
        "transfer",
        *models,
        "-o",
        "s3://results/out",
        "--verbose",
        "--json",
        "--scratch",
        str(tmp_path / "s"),
    ]
    words += ["--storage-option", f"secret_access_key={SECRET}", "--storage-option", f"token={TOKEN}"]
    proxy.add("403", "PUT", "out/model", times=1000)
    assert run(words) == 2
    proxy.faults.clear()
    assert run(words) == 0
    told = "".join(capfd.readouterr())
    every = [told.encode()]
    every += [
        s3.client.get_object(Bucket="results", Key=each["Key"])["Body"].read()
        for each in s3.client.list_objects_v2(Bucket="results")["Contents"]
    ]
    every += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for secret in (KEY, SECRET, TOKEN):
        assert not [data for data in every if secret.encode() in data]


def uploads(s3: S3) -> list[str]:
    return [each["Key"] for each in s3.client.list_multipart_uploads(Bucket="results").get("Uploads", ())]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads in parts of the least size that a store takes."""
    monkeypatch.setattr(write, "PART", 5 << 20)


LARGE = {"hidden": 512, "intermediate": 2048, "vocabulary": 8000}
_SMALL_PARTS = "from taskvec.resolve.store import write; write.PART = 5 << 20; "


def start(addresses: list[str]) -> subprocess.Popen[bytes]:
    models = [word for role, at in zip(ROLES, addresses, strict=True) for word in (f"--{role}", at)]
    words = ["transfer", *models, "-o", "s3://results/out"]
    code = f"{_SMALL_PARTS}from taskvec.cli import main; import sys; sys.argv[1:] = {words!r}; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=dict(os.environ)
    )


@pytest.fixture
def large(s3: S3, tmp_path: Path) -> list[str]:
    """Three models of one file of some 20 MB each."""
    folders = write_trio(tmp_path / "large", **LARGE)
    return [s3.put("models", f"large/{role}", folder) for role, folder in zip(ROLES, folders, strict=True)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.usefixtures("small_parts")
def test_killed_in_an_upload(
    s3: S3, proxy: Proxy, large: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    """Interrupted, the upload is given up; killed, the next run that ends does it."""
    proxy.add("hang", "PUT", "partNumber=2")
    process = start(large)
    assert proxy.hung.wait(120)
    assert uploads(s3)
    process.send_signal(number)
    assert process.wait(60) == (-signal.SIGKILL if number == signal.SIGKILL else 128 + number)
    assert not keys(s3) & {LOST, "config.json", "model.safetensors"}
    if number == signal.SIGKILL:
        assert uploads(s3)
        assert list((tmp_path / "scratch" / "runs").iterdir())
    else:
        assert not uploads(s3)
        assert not list((tmp_path / "scratch" / "runs").iterdir())
    tv.transfer(*large, "s3://results/out")
    assert not uploads(s3)
    assert not list((tmp_path / "scratch" / "runs").iterdir())
    trio = Trio(*(tmp_path / "large" / role for role in ROLES))
    tv.transfer(*trio, tmp_path / "one")
    assert weights_at(s3) == {"model.safetensors": (tmp_path / "one" / "model.safetensors").read_bytes()}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("429", "takes no more requests"),
        ("500", "answered 500"),
        ("403", "is forbidden"),
        ("expired", "token for .* has expired"),
        ("dropped", "could not be written: the connection failed"),
    ],
)
@pytest.mark.parametrize(
    ("method", "part"), [("POST", "?uploads"), ("PUT", "partNumber=2"), ("POST", "uploadId")]
)
@pytest.mark.usefixtures("small_parts")
def test_what_ends_an_upload_in_parts_is_named(
    s3: S3, proxy: Proxy, large: list[str], method: str, part: str, what: str, words: str
) -> None:
    plan = tv.plan_transfer(*large)
    proxy.add(what, method, part, times=1000)
    with pytest.raises(HubError, match=words):
        plan.run("s3://results/out")
    assert not keys(s3) & {LOST, "config.json", "model.safetensors"}
    assert not uploads(s3)


@pytest.mark.parametrize("part", ["out/model-00009", "out/config.json", f"out/{LOST}", "done/model-00005"])
def test_killed_between(
    s3: S3, proxy: Proxy, addresses: list[str], local: Trio, tmp_path: Path, part: str
) -> None:
    proxy.add("hang", "PUT", part)
    models = [word for role, at in zip(ROLES, addresses, strict=True) for word in (f"--{role}", at)]
    words = ["transfer", *models, "-o", "s3://results/out", "--max-shard-size", str(SIZE)]
    process = subprocess.Popen(
        [sys.executable, "-m", "taskvec", *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    assert proxy.hung.wait(120)
    process.kill()
    process.wait(60)
    assert LOST not in keys(s3)
    report = transfer(addresses)
    assert report.resumed_shards > 0
    assert weights_at(s3) == expected(local, tmp_path)
    assert tv.verify("s3://results/out", rehash=True).ok


def test_of_two_runs_at_once_one_wins(
    s3: S3, proxy: Proxy, addresses: list[str], local: Trio, tmp_path: Path
) -> None:
    """The first one's manifest comes while the second one is at its end."""
    proxy.add("hang", "PUT", f"out/{LOST}")
    outcomes: list[Any] = []

    def first() -> None:
        try:
            outcomes.append(transfer(addresses))
        except tv.Error as error:
            outcomes.append(error)

    slow = threading.Thread(target=first, daemon=True)
    slow.start()
    assert proxy.hung.wait(120)
    assert not transfer(addresses).already_done
    assert weights_at(s3) == expected(local, tmp_path)
    before = s3.client.get_object(Bucket="results", Key=f"out/{LOST}")["Body"].read()
    with pytest.raises(OutputError, match="another run has ended"):
        late(addresses, before, s3)
    assert s3.client.get_object(Bucket="results", Key=f"out/{LOST}")["Body"].read() == before


def late(addresses: list[str], before: bytes, s3: S3) -> None:
    """A run that has looked for a manifest when there was none yet."""
    from taskvec.run.store_sink import StoreSink

    s3.client.delete_object(Bucket="results", Key=f"out/{LOST}")
    put = StoreSink._put_manifest

    def after_another(self: StoreSink, name: str, data: bytes, *, is_first: bool) -> None:
        s3.client.put_object(Bucket="results", Key=f"out/{LOST}", Body=before)
        put(self, name, data, is_first=is_first)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreSink, "_put_manifest", after_another)
        tv.transfer(*addresses, "s3://results/out", max_shard_size=SIZE, overwrite=True)


def test_three_checkpoints_with_less_scratch_than_half_of_one(
    s3: S3, addresses: list[str], local: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskvec.run import pipeline

    rooms: list[pipeline.Room] = []
    make = pipeline.Room.__init__

    def noted(self: pipeline.Room, limit: int) -> None:
        make(self, limit)
        rooms.append(self)

    monkeypatch.setattr(pipeline.Room, "__init__", noted)
    plan = tv.plan_transfer(*addresses, max_shard_size=SIZE)
    assert len(plan.shards) >= 12 - 5
    whole = sum(source.bytes_in for source in plan.sources)
    with pytest.raises(OutputError, match=r"one weight file needs .* of scratch") as caught:
        plan.run("s3://results/out", settings=tv.Settings(scratch_size=1000))
    assert "--scratch-size" in str(caught.value.hint)
    plan.run("s3://results/out", settings=tv.Settings(scratch_size=whole // 2))
    assert 0 < rooms[-1].peak <= whole // 2
    assert weights_at(s3) == expected(local, tmp_path)
