"""A run on a real Ray cluster of two nodes on this machine: same bytes, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from support.command_line import spawn
from support.models import Trio, write_trio
from support.moe import recipe, write_models
from support.oracle import same_files
from support.ray_cluster import started, two_nodes
from support.s3_server import KEY, S3, SECRET

pytestmark = pytest.mark.timeout(600)
SIZE = 400_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes() as made:
        yield made


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Trio:
    return write_trio(tmp_path_factory.mktemp("models"), hidden=256, intermediate=1024, vocab=2048)


@pytest.fixture(scope="module")
def plan(models: Trio) -> tv.Plan:
    return tv.plan_transfer(*models, max_shard_size=SIZE, alpha=(0.5, 1))


@pytest.fixture(scope="module")
def one(plan: tv.Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "out"
    plan.run(out)
    return out


def while_running(out: Path, act: Callable[[], object]) -> threading.Thread:
    """Does something once the first weight file is in place."""

    def wait() -> None:
        ends = time.monotonic() + 120
        while time.monotonic() < ends and not any(out.glob("*/*.safetensors")):
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_two_nodes_are_one_run(plan: tv.Plan, one: Path, cluster: Any, tmp_path: Path) -> None:
    seen: list[tv.Progress] = []
    report = plan.run_on_ray(tmp_path / "out", address=cluster.address, progress=seen.append)
    same_files(one, tmp_path / "out")
    expected = plan.run(one)
    assert [output.survival for output in report.outputs] == [output.survival for output in expected.outputs]
    merged = [event for event in seen if event.phase == "merge"]
    assert len(merged) > 2
    assert merged[-2].done_bytes > 0
    again = plan.run_on_ray(tmp_path / "out", address=cluster.address)
    assert again.already_done


def test_a_vector_is_extracted_by_two_nodes(models: Trio, cluster: Any, tmp_path: Path) -> None:
    plan = tv.plan_extract(models.donor, models.reference, max_shard_size=SIZE)
    expected = plan.run(tmp_path / "one")
    report = plan.run_on_ray(tmp_path / "out", address=cluster.address)
    assert report.vector == expected.vector
    same_files(tmp_path / "one", tmp_path / "out")


def test_an_output_in_a_bucket_needs_no_file_system_in_common(
    plan: tv.Plan, one: Path, cluster: Any, tmp_path: Path, s3: S3
) -> None:
    """How the store is reached goes to the workers with each task."""
    s3.client.create_bucket(Bucket="results")
    given = {"endpoint": s3.endpoint, "access_key_id": KEY, "secret_access_key": SECRET, "allow_http": "true"}
    with tv.storage({**given, "region": "us-east-1"}, scratch=tmp_path / "scratch"):
        report = plan.run_on_ray("s3://results/out", address=cluster.address)
        assert plan.run_on_ray("s3://results/out", address=cluster.address).already_done
        assert tv.verify("s3://results/out").ok
    expected = plan.run(one)
    assert [output.survival for output in report.outputs] == [output.survival for output in expected.outputs]
    assert [output.shards for output in report.outputs] == [output.shards for output in expected.outputs]
    with (
        tv.storage({**given, "secret_access_key": "", "endpoint": "http://127.0.0.1:1"}),
        pytest.raises(tv.Error),
    ):
        plan.run_on_ray("s3://results/other", address=cluster.address)


def test_a_vector_is_extracted_to_a_bucket_by_two_nodes(
    models: Trio, cluster: Any, tmp_path: Path, s3: S3
) -> None:
    """From models in a bucket, which are nowhere as a whole."""
    s3.client.create_bucket(Bucket="results")
    given = {"endpoint": s3.endpoint, "access_key_id": KEY, "secret_access_key": SECRET, "allow_http": "true"}
    far = [s3.put("models", role, getattr(models, role)) for role in ("donor", "reference")]
    expected = tv.plan_extract(models.donor, models.reference, max_shard_size=SIZE).run(tmp_path / "one")
    with tv.storage({**given, "region": "us-east-1"}, scratch=tmp_path / "scratch"):
        plan = tv.plan_extract(*far, max_shard_size=SIZE)
        report = plan.run_on_ray("s3://results/out", address=cluster.address)
        assert tv.verify("s3://results/out", rehash=True).ok
    assert report.vector == expected.vector
    assert report.outputs[0].shards == expected.outputs[0].shards
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))


def test_streamed_models_are_nowhere_as_a_whole(
    models: Trio, one: Path, cluster: Any, tmp_path: Path, s3: S3
) -> None:
    """The driver fetches headers, each task the ranges of its files."""
    given = {"endpoint": s3.endpoint, "access_key_id": KEY, "secret_access_key": SECRET, "allow_http": "true"}
    roles = ("target", "donor", "reference")
    far = [s3.put("models", role, folder) for role, folder in zip(roles, models, strict=True)]
    with tv.storage({**given, "region": "us-east-1"}, scratch=tmp_path / "scratch"):
        plan = tv.plan_transfer(*far, max_shard_size=SIZE, alpha=(0.5, 1))
        plan.run_on_ray(tmp_path / "out", address=cluster.address, settings=tv.Settings(stream=True))
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))
    for path in one.rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(one)).read_bytes()


def test_a_node_that_does_not_reach_an_input_is_named(
    models: Trio, cluster: Any, tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers have neither the endpoint nor the credentials, which the driver has in its environment."""
    import taskvec.run.nodes as nodes
    from taskvec.resolve.storage import Storage

    given = {"endpoint": s3.endpoint, "access_key_id": KEY, "secret_access_key": SECRET, "allow_http": "true"}
    far = s3.put("models", "target", models.target)
    with tv.storage({**given, "region": "us-east-1"}, scratch=tmp_path / "scratch"):
        plan = tv.plan_transfer(far, models.donor, models.reference, max_shard_size=SIZE)
        unset = Storage({"endpoint": "http://127.0.0.1:1", "allow_http": "true"}, tmp_path / "scratch")
        monkeypatch.setattr(nodes, "current", lambda: unset)
        with pytest.raises(tv.OutputError, match=r"the node `.*` .* sees not the input `s3://models/target`"):
            plan.run_on_ray(tmp_path / "out", address=cluster.address, settings=tv.Settings(stream=True))
    assert not list(tmp_path.glob("out/*/*.safetensors"))


def test_a_worker_that_is_killed_is_replaced(plan: tv.Plan, one: Path, cluster: Any, tmp_path: Path) -> None:
    out, killed = tmp_path / "out", []

    def kill() -> None:
        ends = time.monotonic() + 60
        while time.monotonic() < ends and not killed:
            for place in (out / ".taskvec" / "work").glob("*"):
                process = int(place.name.rsplit(".", 3)[1])
                if process != os.getpid():
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
                    break

    thread = while_running(out, kill)
    plan.run_on_ray(out, address=cluster.address)
    thread.join()
    assert killed
    same_files(one, out)


def test_a_node_that_is_lost_is_done_without(plan: tv.Plan, one: Path, cluster: Any, tmp_path: Path) -> None:
    node = started(lambda: cluster.add_node(num_cpus=1))
    thread = while_running(tmp_path / "out", lambda: cluster.remove_node(node, allow_graceful=False))
    plan.run_on_ray(tmp_path / "out", address=cluster.address)
    thread.join()
    same_files(one, tmp_path / "out")


def test_an_interrupt_stops_all_and_the_same_call_goes_on(
    plan: tv.Plan, one: Path, cluster: Any, tmp_path: Path
) -> None:
    def stop(event: tv.Progress) -> None:
        if event.phase == "merge":
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        plan.run_on_ray(out, address=cluster.address, progress=stop)
    assert not list(out.glob("*/taskvec.json"))
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/*.safetensors")}
    assert kept
    plan.run_on_ray(out, address=cluster.address)
    same_files(one, out)
    assert {path: path.stat().st_mtime_ns for path in kept}.items() >= kept.items()


def test_a_node_that_does_not_see_an_input_is_named(
    plan: tv.Plan, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import taskvec.run.cluster as running

    monkeypatch.setattr(running, "paths_of", lambda _: [str(tmp_path / "elsewhere")])
    with pytest.raises(tv.OutputError, match=r"the node `.*` .* sees not the input `.*elsewhere`") as caught:
        plan.run_on_ray(tmp_path / "out", address=cluster.address)
    assert "mount" in str(caught.value.hint)


def test_an_error_of_a_task_is_that_of_a_run_here(cluster: Any, tmp_path: Path) -> None:
    trio = write_trio(tmp_path)
    path = next(trio.donor.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-2:] = b"\xc0\x7f"  # NaN in bfloat16
    path.write_bytes(data)
    plan = tv.plan_transfer(*trio)
    with pytest.raises(tv.NonFiniteError) as here:
        plan.run(tmp_path / "here")
    with pytest.raises(tv.NonFiniteError) as there:
        plan.run_on_ray(tmp_path / "there", address=cluster.address)
    assert (str(there.value), there.value.hint) == (str(here.value), here.value.hint)


def test_the_command_line(models: Trio, one: Path, cluster: Any, tmp_path: Path) -> None:
    """In a process of its own, which connects by itself."""
    words = ["transfer", "--target", models.target, "--donor", models.donor, "--reference", models.reference]
    words += ["--max-shard-size", SIZE, "--alpha", "0.5,1", "-o", tmp_path / "out"]
    outcome = spawn([*words, "--ray", cluster.address, "--json"], timeout=300)
    assert outcome.code == 0, outcome.err
    assert len(json.loads(outcome.out)["outputs"]) == 2
    same_files(one, tmp_path / "out")
    both = spawn([*words, "--ray", cluster.address, "--part", "0/2"])
    assert (both.code, "exclude each other" in both.err) == (2, True)
    away = spawn([*words[:-1], tmp_path / "other", "--ray", "127.0.0.1:1"])
    assert (away.code, "cannot be reached" in away.err) == (2, True)


@pytest.mark.parametrize("mode", ["random", "cheap_embed"])
def test_a_mixture_of_experts_is_made_by_two_nodes(
    mode: str,
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gates, which are made before the run, go to the workers with the plan; the paths are relative."""
    monkeypatch.chdir(tmp_path)
    write_models(tmp_path, "llama")
    tv.moe(recipe(mode), tmp_path / "one" / "out", max_shard_size=3000)
    Path("r.yaml").write_text(json.dumps(recipe(mode)))
    words = ["moe", "r.yaml", "out", "--max-shard-size", 3000, "--ray", cluster.address, "--json"]
    outcome = spawn(words, timeout=300)
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert len(report["outputs"][0]["shards"]) > 3
    same_files(tmp_path / "one" / "out", tmp_path / "out")
    assert json.loads(spawn(words, timeout=300).out)["already_done"]
