"""What a run between addresses promises: the order of its objects, headers first, any verb in parts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import taskvec as tv
from support.command_line import invoke, spawn
from support.faulty_proxy import Proxy, running_proxy
from support.models import Trio, write_trio
from support.oracle import same_files
from support.s3_server import S3
from support.web_server import running_web
from taskvec import _core
from taskvec._core import blake3_hex
from taskvec.errors import CompatibilityError
from taskvec.resolve.store import write
from taskvec.run import supply
from taskvec.run.delivery import mark_of

SIZE = 6000
ROLES = ("target", "donor", "reference")


@pytest.fixture
def local(tmp_path: Path) -> Trio:
    return write_trio(tmp_path / "source", shards=(2, 3, 1))


@pytest.fixture
def addresses(s3: S3, local: Trio) -> list[str]:
    s3.client.create_bucket(Bucket="results")
    return [s3.put("models", role, folder) for role, folder in zip(ROLES, local, strict=True)]


@pytest.fixture
def proxy(s3: S3, addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:  # noqa: ARG001
    with running_proxy(s3.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


def fetched(s3: S3, prefix: str, folder: Path) -> Path:
    listed = s3.client.list_objects_v2(Bucket="results", Prefix=prefix).get("Contents", ())
    for key in (each["Key"] for each in listed):
        name = key.removeprefix(prefix)
        if not name.startswith(".taskvec/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(s3.client.get_object(Bucket="results", Key=key)["Body"].read())
    return folder


def test_the_order_of_the_objects(proxy: Proxy, addresses: list[str]) -> None:
    """The run, then each weight file before its record; index and card after all, the manifest last."""
    tv.transfer(*addresses, "s3://results/out", max_shard_size=SIZE)
    put = [
        path.partition("/results/out/")[2].partition("?")[0] for method, path in proxy.seen if method == "PUT"
    ]
    weights = [name for name in put if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    assert put[0] == ".taskvec/run.json"
    assert put[-1] == "taskvec.json"
    assert len(set(weights)) == len(weights) > 9
    for name in weights:
        assert put.index(name) < put.index(f".taskvec/done/{name}.json")
    last = max(put.index(f".taskvec/done/{name}.json") for name in weights)
    assert last < min(
        put.index(name) for name in ("config.json", "README.md", "model.safetensors.index.json")
    )
    assert put.index("model.safetensors.index.json") > put.index("config.json")


def test_what_stands_for_a_weight_file(s3: S3, addresses: list[str], tmp_path: Path) -> None:
    """Its size, BLAKE3 and the store's own checksum."""
    plan = tv.plan_transfer(*addresses, max_shard_size=SIZE)
    part = plan.part(0, 2).run("s3://results/out")
    with tv.storage(scratch=tmp_path / "elsewhere"):
        plan.run(tmp_path / "one")
    for shard in part.shards:
        key = f"out/.taskvec/done/{shard.name}.json"
        record = json.loads(s3.client.get_object(Bucket="results", Key=key)["Body"].read())
        data = (tmp_path / "one" / shard.name).read_bytes()
        assert (record["size"], record["digest"]) == (len(data), blake3_hex(data))
        assert record["tag"] == s3.client.head_object(Bucket="results", Key=f"out/{shard.name}")["ETag"]


@pytest.mark.parametrize("size", [1, 16 << 20, (16 << 20) + 1, 140 << 30, 1 << 40, 5 << 40])
def test_parts_of_an_upload_are_equal_and_no_more_than_a_store_takes(size: int) -> None:
    part = write.part_size(size)
    assert part >= 16 << 20
    assert -(-size // part) <= 9000
    assert part == 16 << 20 or -(-size // (part - 1)) > 9000


def test_the_answer_to_a_whole_upload_is_lost(
    s3: S3, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has the file: it is compared with what was sent, and not sent again."""
    monkeypatch.setattr(write, "PART", 5 << 20)
    trio = write_trio(tmp_path / "large", hidden=512, intermediate=2048, vocabulary=8000)
    tv.transfer(*trio, tmp_path / "one")
    fault = proxy.add("lost", "POST", "uploadId")
    tv.transfer(*trio, "s3://results/out")
    assert fault.happened == 1
    same_files(tmp_path / "one", fetched(s3, "out/", tmp_path / "there"))
    assert sum(method == "POST" and "?uploads" in path for method, path in proxy.seen) == 1


def test_every_verb_in_parts_to_a_bucket(
    s3: S3, addresses: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From models in buckets, by ``--part``, ``plan`` and ``run``, in any order; as one process here."""
    target, donor, reference = addresses
    vector, recipe = tmp_path / "vector", tmp_path / "linear.yaml"
    assert invoke(capsys, "extract", donor, reference, "-o", vector).code == 0
    recipe.write_text(
        f"merge_method: linear\ndtype: bfloat16\nparameters: {{weight: 0.5}}\n"
        f"models:\n- model: {donor}\n- model: {reference}\n"
    )
    size = ["--max-shard-size", SIZE]
    for name, (words, flag) in {
        "transfer": (["transfer", "--target", target, "--donor", donor, "--reference", reference], ["-o"]),
        "extract": (["extract", donor, reference], ["-o"]),
        "apply": (["apply", target, vector], ["-o"]),
        "merge": (["merge", recipe], []),
        "average": (["average", donor, reference], ["-o"]),
        "convert": (["convert", target, "--out-dtype", "float16"], ["-o"]),
    }.items():
        done = invoke(capsys, *words, *flag, tmp_path / name, *size, "--json")
        assert done.code == 0, done.err
        one = json.loads(done.out)
        for part in ("2/3", "0/3"):
            told = invoke(capsys, *words, *flag, f"s3://results/{name}", *size, "--part", part)
            assert told.code == 0, f"{name}: {told.err}"
        assert invoke(capsys, "finish", f"s3://results/{name}").code == 2
        assert invoke(capsys, "verify", f"s3://results/{name}").code == 1
        last = invoke(capsys, *words, *flag, f"s3://results/{name}", *size, "--part", "1/3", "--json")
        same_files(tmp_path / name, fetched(s3, f"{name}/", tmp_path / f"{name}-there"))
        for mine, theirs in zip(json.loads(last.out)["outputs"], one["outputs"], strict=True):
            assert {**mine, "folder": ""} == {**theirs, "folder": ""}
        file = tmp_path / f"{name}.json"
        made = invoke(capsys, "plan", *words, *size, "--to", f"s3://results/{name}-plan", "-o", file)
        assert made.code == 0, f"{name}: {made.err}"
        for part in ("1/2", "0/2"):
            assert invoke(capsys, "run", file, "--part", part).code == 0
        same_files(tmp_path / name, fetched(s3, f"{name}-plan/", tmp_path / f"{name}-planned"))
        assert invoke(capsys, "verify", f"s3://results/{name}-plan", "--rehash").code == 0


def test_parts_on_processors_of_every_level(local: Trio, tmp_path: Path) -> None:
    """Bytes and report are those of one process."""
    three = ["--target", local.target, "--donor", local.donor, "--reference", local.reference]
    levels = _core.cpu_levels()
    assert len(levels) > 1
    for words in (["transfer", *three, "--alpha", "0.7"], ["extract", local.donor, local.reference]):
        one, out = tmp_path / f"{words[0]}-one", tmp_path / f"{words[0]}-parts"
        size = ["--max-shard-size", SIZE]
        assert spawn([*words, "-o", one, *size]).code == 0
        for number, level in enumerate(levels):
            part = ["--part", f"{number}/{len(levels)}"]
            done = spawn([*words, "-o", out, *size, *part], environment={"TASKVEC_CPU": level})
            assert done.code == 0, done.err
        same_files(one, out)


def test_models_that_do_not_fit_are_found_by_headers(quick: None, local: Trio, tmp_path: Path) -> None:  # noqa: ARG001
    other = write_trio(tmp_path / "other", hidden=64).donor
    with running_web() as web:
        far = [
            web.put("target", local.target),
            web.put("donor", other),
            web.put("reference", local.reference),
        ]
        with pytest.raises(CompatibilityError):
            tv.transfer(*far, tmp_path / "out")
        for method, path, given in web.requests:
            if method == "GET" and path.endswith(".safetensors"):
                assert given is not None, "a weight file is fetched as a whole"
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))
    assert not (tmp_path / "out").exists()


def test_models_that_do_not_fit_the_disk_are_staged(
    addresses: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tv.plan_transfer(*addresses, max_shard_size=SIZE)
    with tv.storage(scratch=tmp_path / "elsewhere"):
        tv.transfer(*addresses, tmp_path / "one", max_shard_size=SIZE)
    monkeypatch.setattr(supply, "free_space", lambda _: plan.download - 1)
    plan.run(tmp_path / "out")
    same_files(tmp_path / "one", tmp_path / "out")
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))


def test_progress_counts_what_is_fetched_computed_and_sent(addresses: list[str]) -> None:
    seen: list[tv.Progress] = []
    plan = tv.plan_transfer(*addresses, max_shard_size=SIZE)
    plan.run("s3://results/out", progress=seen.append)
    total = plan.bytes_in + 2 * plan.bytes_out
    done = [event.done_bytes for event in seen if event.phase == "merge" and event.total_bytes == total]
    assert max(done) > 0.99 * total
    assert len(set(done)) > 3 * len(plan.shards)


def test_finishing_fetches_headers_alone(
    addresses: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of streamed models whose last part was killed at its end."""
    plan = tv.plan_transfer(*addresses, max_shard_size=SIZE)
    with tv.storage(scratch=tmp_path / "elsewhere"):
        tv.transfer(*addresses, tmp_path / "one", max_shard_size=SIZE)
    settings = tv.Settings(stream=True)
    plan.part(0, 2).run(tmp_path / "out", settings=settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taskvec.run.finish.execute", interrupted)
        with pytest.raises(KeyboardInterrupt):
            plan.part(1, 2).run(tmp_path / "out", settings=settings)
    if (tmp_path / "out" / ".taskvec" / "parts.json").exists():
        assert invoke(capsys, "finish", tmp_path / "out").code == 0
    else:
        plan.part(1, 2).run(tmp_path / "out", settings=settings)
    same_files(tmp_path / "one", tmp_path / "out")
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_what_is_fetched_below_a_local_input_is_not_of_it(tmp_path: Path) -> None:
    local, fetched = SimpleNamespace(repository=None), SimpleNamespace(repository="s3://b/d", revision="1")
    plan: Any = SimpleNamespace(checkpoints=[local, fetched])
    staged: Any = SimpleNamespace(paths=[str(tmp_path), str(tmp_path / "scratch" / "d")])
    own = {"path": str(tmp_path / "model.safetensors"), "size": 1}
    first = {"path": str(tmp_path / "scratch" / "d" / "0.safetensors"), "size": 2}
    assert mark_of(plan, staged, [own, first]) == mark_of(plan, staged, [own])
    assert mark_of(plan, staged, [own]) != mark_of(plan, staged, [{**own, "size": 3}])
