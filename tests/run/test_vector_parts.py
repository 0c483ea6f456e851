"""A vector that is extracted in parts: the same bytes and the same report as one process gives."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taskvec as tv
from support.command_line import invoke, killed_when_seen, spawn
from support.models import Tensors, Trio, read_tensors, write_trio, write_weights
from support.oracle import same_files
from taskvec.plan.part import dealt, files_of, units

SIZE = 6000  # bytes of a weight file


@pytest.fixture
def plan(trio: Trio) -> tv.Plan:
    return tv.plan_extract(trio.donor, trio.reference, max_shard_size=SIZE)


def figures(report: tv.Report | None) -> dict[str, Any]:
    """What a report says of the vector, wherever it lies."""
    assert report is not None
    (output,) = report.outputs
    return {"vector": report.vector, "shards": output.shards, "plan": report.plan}


@pytest.mark.parametrize("count", [1, 3, 16, 100])
def test_parts_in_any_order_are_one_vector(plan: tv.Plan, trio: Trio, tmp_path: Path, count: int) -> None:
    expected = figures(plan.run(tmp_path / "one"))
    assert len(expected["shards"]) > 2
    reports = [plan.part(number, count).run(tmp_path / "out") for number in reversed(range(count))]
    assert [report.report is None for report in reports[:-1]] == [True] * (count - 1)
    assert figures(reports[-1].report) == expected
    same_files(tmp_path / "one", tmp_path / "out")
    assert not (tmp_path / "out" / ".taskvec").exists()
    tv.apply(trio.reference, tmp_path / "out", out=tmp_path / "back")
    tv.transfer(trio.reference, trio.donor, trio.reference, out=tmp_path / "direct")
    for file in (tmp_path / "direct").glob("*.safetensors"):
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


def changed(tensors: Tensors) -> Tensors:
    """Tensors that are equal, that differ here and there, beyond a type, by a sign: every way to store."""
    found: Tensors = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        flat = tensor.astype(np.float32).reshape(-1)
        if number % 4 == 1:
            flat[:: max(len(flat) // 3, 1)] += 3.0
        elif number % 4 == 2:
            flat[::2] += 1.0
            flat[0] = -0.0
        elif number % 4 == 3:
            flat = flat * np.float32(1e30)
        found[name] = flat.reshape(tensor.shape)
    return found


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("size", [1, 700, SIZE, 1 << 40])
def test_every_way_to_store_a_tensor(tmp_path: Path, size: int, dtype: str | None) -> None:
    trio = write_trio(tmp_path, dtype="F32")
    write_weights(trio.donor, changed(read_tensors(trio.reference)))
    plan = tv.plan_extract(trio.donor, trio.reference, max_shard_size=size, dtype=dtype)
    settings = tv.Settings(force=("non-finite",))
    expected = figures(plan.run(tmp_path / "one", settings=settings))
    rows = expected["vector"]["tensors"].values()
    if dtype is None:
        assert {row["encoding"] for row in rows} == {"zero", "index", "mask", "dense"}
        assert any("exact" in row for row in rows)
    done = [plan.part(number, 3).run(tmp_path / "out", settings=settings) for number in (2, 0, 1)]
    assert figures(done[-1].report) == expected
    same_files(tmp_path / "one", tmp_path / "out")


def test_parts_at_once_and_twice(plan: tv.Plan, tmp_path: Path) -> None:
    plan.run(tmp_path / "one")
    parts = [plan.part(number, 4, out=tmp_path / "out") for number in (0, 1, 1, 2, 3, 3)]
    with ThreadPoolExecutor(6) as pool:
        reports = list(pool.map(lambda part: part.run(), parts))
    assert sum(report.report is not None and not report.report.already_done for report in reports) == 1
    same_files(tmp_path / "one", tmp_path / "out")
    again = plan.part(2, 4).run(tmp_path / "out")
    assert again.report is not None
    assert again.report.already_done
    assert not (tmp_path / "out" / ".taskvec").exists()


def test_a_killed_part_leaves_nothing_that_looks_whole_and_goes_on(tmp_path: Path) -> None:
    trio = write_trio(tmp_path, hidden=256, intermediate=1024, vocab=2048)
    plan = tv.plan_extract(trio.donor, trio.reference, max_shard_size=400_000)
    plan.run(tmp_path / "one")
    for attempt in range(8):  # a kill may come after the end of what it is for
        if _killed(plan, trio, tmp_path / f"out{attempt}", tmp_path / "one") > 2:
            return
    pytest.fail("the parts ended before they could be killed, each time")


def _killed(plan: tv.Plan, trio: Trio, out: Path, one: Path) -> int:
    """How many of the parts of one run were killed; the run is brought to its end afterwards."""
    command = [sys.executable, "-m", "taskvec", "extract", trio.donor, trio.reference]
    command += ["--max-shard-size", "400000", "-o", out, "--threads", "1"]
    kills = 0
    signs = ["parts.json", "work/*", "work/*/.taskvec/*", "pieces/*", "done/*.json"]
    for sign in (*signs, "plan.json", "journal.jsonl", "../vector*.safetensors", "../README.md"):
        part = "0/2" if sign in signs else "1/2"
        if part == "1/2":
            plan.part(0, 2).run(out)
        kills += killed_when_seen([*command, "--part", part], out / ".taskvec", sign)
        if (out / "taskvec.json").exists():
            break
        for file in out.glob("*.safetensors"):
            assert file.read_bytes() == (one / file.name).read_bytes()
    for number in range(2):
        plan.part(number, 2).run(out)
    same_files(one, out)
    assert not (out / ".taskvec").exists()
    return kills


@pytest.mark.parametrize("step", ["assemble_output", "execute"])
def test_a_run_that_was_killed_at_its_end_is_ended_by_any_part(
    plan: tv.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    import taskvec.run.finish as ending

    plan.run(tmp_path / "one")

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    plan.part(0, 2).run(tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(ending, step, dies)
        with pytest.raises(KeyboardInterrupt):
            plan.part(1, 2).run(tmp_path / "out")
    assert not (tmp_path / "out" / "taskvec.json").exists()
    plan.part(0, 2).run(tmp_path / "out")
    same_files(tmp_path / "one", tmp_path / "out")


@pytest.mark.parametrize("step", ["join_vector", "hold_complete", "finish_folder"])
def test_a_join_that_was_stopped_goes_on(
    plan: tv.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    import taskvec.run.extract as extracting

    plan.run(tmp_path / "one")
    plan.part(1, 2).run(tmp_path / "out")

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(extracting, step, dies)
        with pytest.raises(KeyboardInterrupt):
            plan.part(0, 2).run(tmp_path / "out")
    if step != "finish_folder":
        assert not (tmp_path / "out" / "taskvec.json").exists()
        assert tv.finish(tmp_path / "out").vector is not None
    else:
        assert plan.part(0, 2).run(tmp_path / "out").report is not None
    same_files(tmp_path / "one", tmp_path / "out")
    assert not (tmp_path / "out" / ".taskvec").exists()


def test_finish_names_the_pieces_that_are_missing(
    plan: tv.Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.run(tmp_path / "one")
    for number in (0, 1, 3):
        plan.part(number, 4).run(tmp_path / "out")
    outcome = invoke(capsys, "finish", tmp_path / "out")
    assert outcome.code == 2
    assert "pieces of" in outcome.err
    assert "`2/4`" in outcome.err
    plan.part(2, 4).run(tmp_path / "out")
    same_files(tmp_path / "one", tmp_path / "out")


def test_a_piece_that_was_cut_short_or_changed_is_written_again(plan: tv.Plan, tmp_path: Path) -> None:
    plan.run(tmp_path / "one")
    first = plan.part(0, 3).run(tmp_path / "out")
    place = tmp_path / "out" / ".taskvec" / "pieces"
    cut, changed = (place / shard.name for shard in first.shards[:2])
    cut.write_bytes(cut.read_bytes()[:-1])
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    assert {shard.name for shard in plan.part(0, 3).run(tmp_path / "out").shards} == {cut.name}
    again = plan.part(0, 3).run(tmp_path / "out", settings=tv.Settings(rehash=True))
    assert {shard.name for shard in again.shards} == {changed.name}
    for number in (1, 2):
        plan.part(number, 3).run(tmp_path / "out")
    same_files(tmp_path / "one", tmp_path / "out")


def test_a_run_without_part_completes_what_parts_have_begun(plan: tv.Plan, tmp_path: Path) -> None:
    expected = figures(plan.run(tmp_path / "one"))
    plan.part(0, 3).run(tmp_path / "out")
    assert figures(plan.run(tmp_path / "out")) == expected
    same_files(tmp_path / "one", tmp_path / "out")


def test_an_input_that_changes_between_parts_is_an_error(plan: tv.Plan, trio: Trio, tmp_path: Path) -> None:
    plan.part(0, 2).run(tmp_path / "out")
    path = next(trio.donor.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(tv.FormatError, match="changed between two parts"):
        tv.plan_extract(trio.donor, trio.reference, max_shard_size=SIZE).part(1, 2).run(tmp_path / "out")
    assert not (tmp_path / "out" / "taskvec.json").exists()


def test_pieces_are_dealt_by_bytes(plan: tv.Plan) -> None:
    files = files_of(plan)
    assert sum(file.tensors for file in files) == plan.tensors
    assert list(units(plan)) == [(number,) for number in range(len(files))]
    for count in (1, 3, 7, 50):
        parts = dealt(plan, count)
        assert sorted(unit for part in parts for unit in part) == units(plan)
        loads = [sum(files[n].bytes for unit in part for n in unit) for part in parts]
        assert max(loads) - min(loads) <= max(file.bytes for file in files)


def test_plan_run_and_parts_on_the_command_line(trio: Trio, tmp_path: Path) -> None:
    words = ["extract", trio.donor, trio.reference, "--max-shard-size", SIZE, "--exclude", "norm"]
    assert spawn([*words, "-o", tmp_path / "one"]).code == 0
    file, out = tmp_path / "plan.json", tmp_path / "out"
    made = spawn(["plan", *words, "--to", out, "-o", file])
    assert (made.code, made.out.strip()) == (0, str(file))
    assert spawn(["run", file, "--part", "0/2", "--quiet"]).code == 0
    last = spawn(["run", file, "--part", "1/2"])
    assert (last.code, "it was the last one" in last.err) == (0, True)
    same_files(tmp_path / "one", out)
    assert spawn(["run", file, "-o", tmp_path / "two"]).code == 0
    same_files(tmp_path / "one", tmp_path / "two")
    first = json.loads(spawn([*words, "-o", tmp_path / "three", "--part", "1/2", "--json"]).out)
    assert (first["part"], first["complete"]) == (1, False)
    data = tv.plan_extract(trio.donor, trio.reference, exclude="norm", max_shard_size=SIZE).to_bytes()
    assert tv.Plan.from_bytes(data).bytes_out > 0
    assert tv.Plan.from_bytes(data).to_bytes() == data
