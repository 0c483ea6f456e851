"""The demo, the synthetic checkpoints it is made of, and the benchmark on small ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.command_line import invoke
from support.models import Trio, read_tensors
from taskvec import host
from taskvec.errors import OutputError, RecipeError
from taskvec.selftest import bench, scratch
from taskvec.selftest.demo import demo
from taskvec.selftest.synthetic import SHAPES, Shape, write_checkpoint

TINY = Shape(layers=2, hidden=32, intermediate=64, vocabulary=320, heads=4, kv_heads=2)


def test_the_demo_passes(capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, "demo", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["ok"] is True
    assert record["verification"]["ok"] is True
    assert record["numpy"]["equal_bit_for_bit"] == record["numpy"]["tensors"] > 40
    assert record["checkpoints"]["shards"] == 3
    assert not [finding for finding in record["findings"] if finding["level"] != "note"]
    assert not Path(record["folder"]).exists()


def test_the_demo_prints_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, "demo")
    assert done.code == 0
    for word in ("made", "checked", "merged", "survival", "verified", "numpy", "demo passed in"):
        assert word in done.out
    assert "making three checkpoints" in done.err


def test_the_demo_keeps_its_files_where_it_is_told(tmp_path: Path) -> None:
    result = demo(tmp_path / "tryout")
    assert result.ok
    assert result.kept
    assert {"instruct", "sft", "grpo", "merged"} <= {path.name for path in (tmp_path / "tryout").iterdir()}
    assert (tmp_path / "tryout" / "merged" / "taskvec.json").is_file()
    with pytest.raises(OutputError) as caught:
        demo(tmp_path / "tryout")
    assert "--overwrite" in (caught.value.hint or "")
    assert demo(tmp_path / "tryout", overwrite=True).ok


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("error", [OutputError("full"), OSError(28, "No space left"), KeyboardInterrupt()])
def test_an_earlier_demo_stays_until_the_new_one_is_whole(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo(tmp_path / "tryout").ok
    before = files_below(tmp_path / "tryout")

    def fail(*_: object, **__: object) -> None:
        assert (tmp_path / "tryout" / "instruct").is_dir()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("taskvec.api.transfer", fail)
        for is_killed in (False, True):
            if is_killed:
                patch.setattr("taskvec.selftest.demo._put_back", lambda *_: None)
            with pytest.raises((OutputError, KeyboardInterrupt)):
                demo(tmp_path / "tryout", overwrite=True)
            if not is_killed:
                assert files_below(tmp_path / "tryout") == before
    with pytest.raises(OutputError, match="earlier demo"):
        demo(tmp_path / "tryout")
    assert demo(tmp_path / "tryout", overwrite=True).ok
    assert files_below(tmp_path / "tryout").keys() == before.keys()


def test_a_killed_demo_gives_the_earlier_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert demo(tmp_path / "tryout").ok
    before = files_below(tmp_path / "tryout")
    aside = tmp_path / "tryout" / ".taskvec-demo-old"
    aside.mkdir()
    for name in ("grpo", "merged"):
        (tmp_path / "tryout" / name).rename(aside / name)
    (tmp_path / "tryout" / "grpo").mkdir()
    (tmp_path / "tryout" / "grpo" / "config.json").write_text("half")

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("taskvec.selftest.synthetic.write_checkpoint", fail)
    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path / "tryout", overwrite=True)
    assert files_below(tmp_path / "tryout") == before


def test_the_demo_replaces_nothing_but_a_demo(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(OutputError):
        demo(tmp_path, overwrite=True)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_what_the_demo_writes_loads_in_transformers(tmp_path: Path) -> None:
    import transformers

    demo(tmp_path / "tryout")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tryout" / "merged")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "tryout" / "merged")
    batch = tokenizer("1 + 1 = ", return_tensors="pt")
    assert tokenizer.decode(batch["input_ids"][0]) == "1 + 1 = "
    assert bool(model(**batch).logits.isfinite().all())


def test_synthetic_checkpoints_are_a_family(tmp_path: Path) -> None:
    for member in ("instruct", "sft", "grpo"):
        write_checkpoint(tmp_path / member, TINY, member, max_shard_size=20_000)
    opened = {member: tv.open(tmp_path / member) for member in ("instruct", "sft", "grpo")}
    assert len(opened["sft"].file_sizes) > 1
    assert opened["sft"].total_parameters == TINY.parameters
    assert opened["sft"].total_bytes == TINY.total_bytes
    tensors = {member: read_tensors(tmp_path / member) for member in opened}
    differing = sum(int(np.sum(tensors["grpo"][name] != tensors["sft"][name])) for name in tensors["sft"])
    assert 0.13 < differing / TINY.parameters < 0.17
    findings = tv.check(tmp_path / "instruct", tmp_path / "grpo", tmp_path / "sft")
    assert {finding.level for finding in findings} <= {"note"}


def test_synthetic_checkpoints_are_repeatable(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_checkpoint(tmp_path / folder, TINY, "grpo")
    write_checkpoint(tmp_path / "c", TINY, "grpo", seed=1)
    first, second, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == second != other


def test_a_larger_tensor_than_the_ring_is_filled(tmp_path: Path) -> None:
    wide = Shape(layers=1, hidden=64, intermediate=64, vocabulary=40_000, heads=2, kv_heads=1)
    write_checkpoint(tmp_path / "wide", wide, "base")
    embedding = read_tensors(tmp_path / "wide")["model.embed_tokens.weight"]
    assert embedding.shape == (40_000, 64)
    assert bool(np.all(embedding[-1].astype(np.float32) != 0))


def test_half_a_billion_parameters_are_half_a_billion() -> None:
    assert SHAPES["0.5b"].parameters == 494_032_768


@pytest.fixture(autouse=True)
def small_memcpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MEMCPY_BYTES", 1_000_000)


def test_bench_measures_given_checkpoints(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(
        capsys, "bench", "--target", trio.target, "--donor", trio.donor, "--reference", trio.reference,
        "--dir", tmp_path / "scratch", "--runs", "2", "--threads", "2", "--record", tmp_path / "record",
        "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert len(record["transfer"]["runs"]) == len(record["floor"]["runs"]) == 2
    assert record["transfer_over_floor"] > 0
    assert record["memcpy_gigabytes_per_second"] > 0.1
    assert record["machine"]["cpu"]
    assert record["machine"]["threads"] == 2
    assert list((tmp_path / "scratch").iterdir()) == []
    written = Path(record["record"])
    assert written.parent.parent == tmp_path / "record"
    assert json.loads(written.read_text())["machine"] == record["machine"]


def test_bench_prints_a_table(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(
        capsys, "bench", "--target", trio.target, "--donor", trio.donor, "--reference", trio.reference,
        "--dir", tmp_path, "--runs", "1",
    )  # fmt: skip
    assert done.code == 0, done.err
    for word in ("machine", "median s", "transfer, whole call", "floor", "memcpy", "GB/s", "x the floor"):
        assert word in done.out


def test_bench_wants_all_three_models_or_none(trio: Trio) -> None:
    with pytest.raises(RecipeError, match="1 of the three"):
        bench.bench(trio.target)


def test_bench_needs_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scratch, "_free", lambda _: 1_000_000)
    with pytest.raises(OutputError) as caught:
        bench.bench(size="0.5b", directory=tmp_path)
    assert "--size" in (caught.value.hint or "")


def test_a_record_never_replaces_another(tmp_path: Path) -> None:
    measure = bench.Measure((1.0, 2.0, 3.0), 10**9)
    result = bench.BenchResult(
        {"cpu": "Some CPU (R) @ 3 GHz"}, {}, measure, measure, measure, 1e9, "2025-03-01T10:00:00"
    )
    first, second = result.record(tmp_path), result.record(tmp_path)
    assert first == tmp_path / "some-cpu-r-3-ghz" / "2025-03-01.json"
    assert second.name == "2025-03-01-2.json"
    assert json.loads(first.read_text())["transfer"]["seconds"] == 2.0


def test_the_machine_is_named(tmp_path: Path) -> None:
    assert host.cpu_name()
    assert host.cores() >= 1
    assert host.file_system(tmp_path)
