"""A run in parts: the same bytes and the same report as one process, whatever runs when and is killed."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from support.command_line import invoke, killed_when_seen, spawn
from support.models import Trio, edit_json, read_tensors, write_trio
from support.oracle import same_files
from taskvec._core import finish_folder
from taskvec.plan.part import dealt, units
from taskvec.run import awaited, finish, shared_state

SIZE = 6000  # bytes of a weight file: some twenty files


@pytest.fixture
def plan(trio: Trio) -> tv.Plan:
    return tv.plan_transfer(*trio, max_shard_size=SIZE, alpha=0.7)


def whole(plan: tv.Plan, out: Path) -> dict[str, Any]:
    return figures(plan.run(out))


def figures(report: tv.Report | None) -> dict[str, Any]:
    """What a report says of the outputs, wherever they lie."""
    assert report is not None
    outputs = [output.to_dict() for output in report.outputs]
    return {
        "outputs": [{**each, "folder": Path(each["folder"]).name} for each in outputs],
        "plan": report.plan,
    }


@pytest.mark.parametrize("count", [1, 4, 16, 100])
def test_parts_in_any_order_are_one_run(plan: tv.Plan, tmp_path: Path, count: int) -> None:
    expected = whole(plan, tmp_path / "one" / "out")
    reports = [plan.part(number, count).run(tmp_path / "out") for number in reversed(range(count))]
    assert [report.report is None for report in reports[:-1]] == [True] * (count - 1)
    assert figures(reports[-1].report) == expected
    same_files(tmp_path / "one" / "out", tmp_path / "out")
    assert not (tmp_path / "out" / ".taskvec").exists()


def test_parts_of_several_alphas(trio: Trio, tmp_path: Path) -> None:
    plan = tv.plan_transfer(*trio, max_shard_size=SIZE, alpha=(0.5, 1, -1))
    expected = whole(plan, tmp_path / "one" / "out")
    done = [plan.part(number, 3).run(tmp_path / "out") for number in range(3)]
    assert figures(done[-1].report) == expected
    same_files(tmp_path / "one" / "out", tmp_path / "out")


def test_a_part_is_pickled_and_run_where_nothing_else_is(plan: tv.Plan, tmp_path: Path) -> None:
    plan.run(tmp_path / "one")
    for number in range(2):
        (tmp_path / "part").write_bytes(pickle.dumps(plan.part(number, 2, out=tmp_path / "out")))
        code = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb')).run()"
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "part")], check=True, cwd="/")
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
    assert not again.shards


def test_a_finished_part_given_again_writes_nothing(plan: tv.Plan, tmp_path: Path) -> None:
    first = plan.part(0, 3).run(tmp_path / "out")
    again = plan.part(0, 3).run(tmp_path / "out")
    assert first.shards
    assert not again.shards
    assert again.kept == len(first.shards) == again.done


def test_a_weight_file_that_was_cut_short_or_changed_is_written_again(plan: tv.Plan, tmp_path: Path) -> None:
    plan.run(tmp_path / "one")
    first = plan.part(0, 3).run(tmp_path / "out")
    cut, changed = (tmp_path / "out" / shard.name for shard in first.shards[:2])
    cut.write_bytes(cut.read_bytes()[:-1])
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    assert {s.name for s in plan.part(0, 3).run(tmp_path / "out").shards} == {cut.name}
    again = plan.part(0, 3).run(tmp_path / "out", settings=tv.Settings(rehash=True))
    assert {shard.name for shard in again.shards} == {changed.name}
    for number in (1, 2):
        plan.part(number, 3).run(tmp_path / "out")
    same_files(tmp_path / "one", tmp_path / "out")


def test_a_killed_part_leaves_nothing_that_looks_whole_and_goes_on(tmp_path: Path) -> None:
    trio = write_trio(tmp_path, hidden=256, intermediate=1024, vocab=2048)
    plan = tv.plan_transfer(*trio, max_shard_size=400_000)
    plan.run(tmp_path / "one")
    for attempt in range(8):  # a kill may come after the end of what it is for
        if _killed(plan, trio, tmp_path / f"out{attempt}", tmp_path / "one") > 1:
            return
    pytest.fail("the parts ended before they could be killed, each time")


def _killed(plan: tv.Plan, trio: Trio, out: Path, one: Path) -> int:
    """How many times a part was killed; the run is brought to its end afterwards."""
    command = [sys.executable, "-m", "taskvec", "transfer", "--target", trio.target, "--donor", trio.donor]
    command += ["--reference", trio.reference, "--max-shard-size", "400000", "-o", out, "--threads", "1"]
    kills = 0
    for sign in (
        "parts.json",
        "work/*",
        "work/*/.taskvec/journal.jsonl",
        "done/*.json",
        "work/*/*.safetensors",
    ):
        kills += killed_when_seen([*command, "--part", "0/2"], out / ".taskvec", sign)
        assert not (out / "taskvec.json").exists()
        for file in out.glob("*.safetensors"):
            assert file.read_bytes() == (one / file.name).read_bytes()
    for number in range(2):
        plan.part(number, 2).run(out)
    same_files(one, out)
    return kills


def test_a_run_that_was_killed_at_its_end_is_ended_by_any_part(
    plan: tv.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import taskvec.run.finish as ending

    plan.run(tmp_path / "one")
    steps = ["assemble_output", "execute"]
    for step in steps:
        out = tmp_path / step

        def dies(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        plan.part(0, 2).run(out)
        with monkeypatch.context() as patched:
            patched.setattr(ending, step, dies)
            with pytest.raises(KeyboardInterrupt):
                plan.part(1, 2).run(out)
        assert not (out / "taskvec.json").exists()
        plan.part(0, 2).run(out)
        same_files(tmp_path / "one", out)


@pytest.mark.parametrize(
    ("step", "alpha"),
    [
        *itertools.product(["finish.assemble_output", "finish.execute"], [0.7, (0.5, 1)]),
        ("execute.finish_folder", (0.5, 1)),
    ],
)
def test_finish_goes_on_with_an_end_that_was_stopped(
    trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, alpha: Any
) -> None:
    """As its hint says: by the same command, at whatever step it was; of several folders one has ended."""
    plan, out = tv.plan_transfer(*trio, max_shard_size=SIZE, alpha=alpha), tmp_path / "out"
    plan.run(tmp_path / "one")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def stop_second(folder: Path) -> None:
        if folder.name.endswith("1"):
            raise KeyboardInterrupt
        finish_folder(folder)

    plan.part(0, 2).run(out)
    with monkeypatch.context() as patch:
        patch.setattr(shared_state, "claim_end", stop)
        with pytest.raises(KeyboardInterrupt):
            plan.part(1, 2).run(out)
    with monkeypatch.context() as patch:
        patch.setattr(f"taskvec.run.{step}", stop_second if "finish_folder" in step else stop)
        with pytest.raises(KeyboardInterrupt):
            tv.finish(out)
    assert tv.finish(out).outputs
    same_files(tmp_path / "one", out)
    assert not list(out.rglob(".taskvec"))


def test_finish_says_what_is_missing_and_then_ends_the_run(
    plan: tv.Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.run(tmp_path / "one")
    out = tmp_path / "out"
    for number in (0, 1, 3):
        plan.part(number, 4).run(out)
    outcome = invoke(capsys, "finish", out)
    assert outcome.code == 2
    assert "are missing" in outcome.err
    assert "`2/4`" in outcome.err
    for name in (f"{number}/4" for number in range(4)):
        assert (name in outcome.err) == (name == "2/4")
    (out / ".taskvec" / "finisher.json").write_text("{}")  # another process that has died in the middle of it
    plan.part(2, 4).run(out)
    (tmp_path / "elsewhere").mkdir()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    outcome = invoke(capsys, "finish", out)  # a retry of what the last part has done
    assert (outcome.code, "already done" in outcome.err, outcome.out) == (0, True, f"{out}\n")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    same_files(tmp_path / "one", out)
    outcome = invoke(capsys, "finish", tmp_path / "elsewhere")
    assert outcome.code == 2
    assert "no run in parts" in outcome.err


def test_finish_of_a_finished_output_is_done_where_its_files_are_as_its_manifest_says(
    plan: tv.Plan, tmp_path: Path
) -> None:
    """The outputs are what counts, whoever wrote them; inputs are on other machines, and may have gone."""
    out = tmp_path / "out"
    plan.run(out)
    report = tv.finish(out)
    assert (report.already_done, report.bytes_written, report.plan) == (True, 0, plan.digest)
    weights = out / report.outputs[0].shards[0].name
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(tv.OutputError, match=f"`{weights.name}` has .* bytes, expected") as caught:
        tv.finish(out)
    assert "taskvec verify" in str(caught.value.hint)
    (out / "taskvec.json").write_text(json.dumps({"schema": 1, "files": []}))
    with pytest.raises(tv.FormatError, match="manifest"):
        tv.finish(out)
    (out / "taskvec.json").unlink()
    with pytest.raises(tv.NotFoundError, match="no run in parts"):
        tv.finish(out)


def test_finish_of_finished_alphas_reports_each_and_one_run_only(trio: Trio, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tv.transfer(*trio, out, alpha=[2, 0, 10])
    report = tv.finish(out)
    assert report.already_done
    assert [output.alpha for output in report.outputs] == [0, 2, 10]
    assert [Path(output.folder).name for output in report.outputs] == ["alpha=0", "alpha=2", "alpha=10"]
    tv.transfer(*trio, out / "alpha=3", alpha=3)
    with pytest.raises(tv.OutputError, match="outputs of several runs"):
        tv.finish(out)


def test_another_process_that_ends_the_run_is_waited_for(plan: tv.Plan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan.part(0, 2).run(out)
    who = {"host": "another machine", "process": 1, "started": "1"}
    (out / ".taskvec" / "finisher.json").write_text(json.dumps(who))
    assert plan.part(1, 2).run(out).report is None
    with pytest.raises(tv.OutputError, match="another process is about to end"):
        plan.run(out)
    assert tv.finish(out).outputs


@pytest.mark.parametrize("is_killed", [False, True])
def test_an_error_at_the_own_end_is_told_at_once(
    plan: tv.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    """No other process ends the run: none is waited for."""
    slept: list[float] = []
    monkeypatch.setattr(awaited.time, "sleep", slept.append)
    out = tmp_path / "out"
    plan.part(0, 2).run(out)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def fail(*_: Any, **__: Any) -> None:
        raise tv.OutputError("writing `config.json` failed: Input/output error", "try again")

    if is_killed:
        with monkeypatch.context() as patch:
            patch.setattr(finish, "execute", stop)
            with pytest.raises(KeyboardInterrupt):
                plan.part(1, 2).run(out)
    with monkeypatch.context() as patch:
        patch.setattr(finish, "execute", fail)
        with pytest.raises(tv.OutputError, match=r"`config.json` failed"):
            plan.part(1, 2).run(out)
    assert slept == []
    assert plan.part(1, 2).run(out).report is not None
    plan.run(tmp_path / "one")
    same_files(tmp_path / "one", out)


@pytest.mark.parametrize("left", ["nothing", "a folder", "the work of a part"])
def test_a_folder_that_has_gone_is_told_at_once(
    plan: tv.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """Nobody ends a run in a folder that is not there any more, or was begun again by the engine."""
    slept: list[float] = []
    monkeypatch.setattr(awaited.time, "sleep", slept.append)
    out = tmp_path / "out"
    plan.part(0, 2).run(out)
    see = shared_state.Records.see

    def goes(*arguments: Any) -> Any:
        shutil.rmtree(out)
        if left != "nothing":
            (out / ".taskvec" / ("work" if left.startswith("the") else "")).mkdir(parents=True)
        return see(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shared_state.Records, "see", goes)
        with pytest.raises(tv.OutputError, match="was removed while the part ran") as caught:
            plan.part(1, 2).run(out)
    assert "run all parts again" in str(caught.value.hint)
    assert slept == []
    for number in range(2):
        last = plan.part(number, 2).run(out)
    assert last.report is not None
    plan.run(tmp_path / "one")
    same_files(tmp_path / "one", out)


@pytest.mark.parametrize("is_ended", [False, True])
def test_what_is_waited_for_is_named(
    plan: tv.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_ended: bool
) -> None:
    """A process of another machine, of which nobody here knows whether it lives."""
    out, told, steps = tmp_path / "out", [], []
    plan.part(0, 2).run(out)
    see = shared_state.Records.see
    who = {"host": "another machine", "process": 7, "started": "1"}

    def taken(records: shared_state.Records, inputs: bytes) -> str:
        (out / ".taskvec" / "finisher.json").write_text(json.dumps(who))
        shutil.rmtree(out / ".taskvec" / "inputs")
        return see(records, inputs)

    def step(_: float) -> None:
        steps.append(1)
        if is_ended and len(steps) == 20:
            shutil.rmtree(out)
            plan.run(out)

    monkeypatch.setattr(awaited.time, "sleep", step)
    with monkeypatch.context() as patch:
        patch.setattr(shared_state.Records, "see", taken)
        if is_ended:
            report = plan.part(1, 2).run(out, progress=lambda progress: told.append(progress.notice)).report
            assert report is not None
            assert report.already_done
        else:
            with pytest.raises(tv.OutputError, match="process 7 of `another machine` was to end") as caught:
                plan.part(1, 2).run(out, progress=lambda progress: told.append(progress.notice))
            assert "taskvec finish" in str(caught.value.hint)
    assert len([words for words in told if words and "waiting for process 7" in words]) == 1


def test_a_run_without_part_completes_what_parts_have_begun(plan: tv.Plan, tmp_path: Path) -> None:
    expected = whole(plan, tmp_path / "one" / "out")
    plan.part(0, 3).run(tmp_path / "out")
    assert figures(plan.run(tmp_path / "out")) == expected
    same_files(tmp_path / "one" / "out", tmp_path / "out")


def test_other_plans_and_other_contents_are_refused(plan: tv.Plan, trio: Trio, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan.part(0, 3).run(out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = tv.plan_transfer(*trio, max_shard_size=SIZE, alpha=0.8)
    for run in (lambda: other.part(1, 3).run(out), lambda: other.run(out)):
        with pytest.raises(tv.OutputError, match="different plan"):
            run()
    with pytest.raises(tv.RecipeError, match="--overwrite"):
        plan.part(0, 3).run(out, settings=tv.Settings(overwrite=True))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(tv.OutputError, match="holds files such as"):
        plan.part(0, 3).run(tmp_path / "mine")
    with pytest.raises(tv.OutputError):
        plan.part(0, 3).run(trio.target)
    with pytest.raises(tv.OutputError):
        plan.part(0, 3).run(trio.target / "below")
    assert not (trio.target / ".taskvec").exists()
    assert not (trio.target / "below").exists()


def test_an_input_that_changes_between_parts_is_an_error(plan: tv.Plan, trio: Trio, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan.part(0, 2).run(out)
    path = next(trio.donor.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(tv.FormatError, match="changed between two parts"):
        tv.plan_transfer(*trio, max_shard_size=SIZE, alpha=0.7).part(1, 2).run(out)
    assert not (out / "taskvec.json").exists()


def test_a_damaged_state_is_named(plan: tv.Plan, tmp_path: Path) -> None:
    plan.part(0, 2).run(tmp_path / "out")
    for path in (tmp_path / "out" / ".taskvec" / "inputs").iterdir():
        path.write_bytes(b"[{}]")
    with pytest.raises(tv.OutputError, match="is damaged"):
        plan.part(1, 2).run(tmp_path / "out")
    assert not (tmp_path / "out" / "taskvec.json").exists()


@pytest.mark.parametrize("text", ["3/3", "-1/3", "1", "1/0", "a/b", "1/2/3", "0/99999999", ""])
def test_what_is_no_part_is_refused(trio: Trio, capsys: pytest.CaptureFixture[str], text: str) -> None:
    arguments = ["--target", trio.target, "--donor", trio.donor, "--reference", trio.reference]
    outcome = invoke(capsys, "transfer", *arguments, "-o", trio.target.parent / "out", f"--part={text}")
    assert outcome.code == 2
    assert "hint:" in outcome.err
    assert not (trio.target.parent / "out").exists()


def test_what_cannot_be_divided_is_refused(trio: Trio, plan: tv.Plan) -> None:
    donor = tv.from_state_dict(read_tensors(trio.donor))
    with pytest.raises(tv.RecipeError, match="tensors of the process"):
        tv.plan_extract(donor, trio.reference).part(0, 2)
    with pytest.raises(tv.RecipeError, match="no part 2 of 2"):
        plan.part(2, 2)
    with pytest.raises(tv.RecipeError, match="no output folder"):
        plan.part(0, 2).run()


def test_parts_are_dealt_by_bytes(plan: tv.Plan) -> None:
    assert list(units(plan)) == [(number,) for number in range(len(plan.shards))]
    for count in (1, 3, 7, 50):
        parts = dealt(plan, count)
        assert sorted(unit for part in parts for unit in part) == units(plan)
        loads = [sum(plan.shards[n].bytes for unit in part for n in unit) for part in parts]
        assert max(loads) - min(loads) <= max(shard.bytes for shard in plan.shards)


def test_parts_on_dask_as_documented(plan: tv.Plan, tmp_path: Path) -> None:
    from dask.distributed import Client, LocalCluster

    plan.run(tmp_path / "one")
    parts = [plan.part(number, 5, out=tmp_path / "out") for number in range(5)]
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        reports = client.gather(client.map(lambda part: part.run().to_dict(), parts, pure=False))
    assert sum(report["complete"] for report in reports) >= 1
    same_files(tmp_path / "one", tmp_path / "out")


# --- the command line
def test_plan_run_finish_on_the_command_line(trio: Trio, tmp_path: Path) -> None:
    models = ["--target", trio.target, "--donor", trio.donor, "--reference", trio.reference]
    options = ["--max-shard-size", SIZE, "--alpha", "0.5"]
    assert spawn(["transfer", *models, *options, "-o", tmp_path / "one"]).code == 0
    file, out = tmp_path / "plan.json", tmp_path / "out"
    made = spawn(["plan", "transfer", *models, *options, "--to", out, "-o", file])
    assert (made.code, made.out.strip()) == (0, str(file))
    assert not out.exists()
    assert spawn(["run", file, "--part", "0/2", "--quiet"]).code == 0
    last = spawn(["run", file, "--part", "1/2"])
    assert last.code == 0
    assert "it was the last one" in last.err
    same_files(tmp_path / "one", out)
    assert spawn(["run", file, "-o", tmp_path / "two"]).code == 0
    same_files(tmp_path / "one", tmp_path / "two")


def test_a_plan_that_was_edited_is_refused(
    plan: tv.Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = plan.to_bytes(tmp_path / "out")
    assert tv.Plan.from_bytes(data).digest == plan.digest
    file = tmp_path / "plan.json"
    for changed in (data.replace(b'"alpha":0.7', b'"alpha":0.9'), data[:-40], b"{}", b"", data + b" "):
        file.write_bytes(changed)
        outcome = invoke(capsys, "run", file)
        assert outcome.code == 2
        assert "plan.json` " in outcome.err
        assert "hint" in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_plan_goes_on_in_spite_of_what_it_was_made_for(trio: Trio, tmp_path: Path) -> None:
    path = next(trio.donor.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-2:] = b"\xc0\x7f"  # NaN in bfloat16
    path.write_bytes(data)
    plan = tv.plan_transfer(*trio, max_shard_size=SIZE, rounding="stochastic", force="non-finite")
    plan.run(tmp_path / "one", settings=tv.Settings(rounding="stochastic", force=("non-finite",)))
    (tmp_path / "plan.json").write_bytes(plan.to_bytes(tmp_path / "out"))
    for part in ("0/2", "1/2"):
        assert spawn(["run", tmp_path / "plan.json", "--part", part]).code == 0
    same_files(tmp_path / "one", tmp_path / "out")
    for number in (1, 0):
        plan.part(number, 2).run(tmp_path / "again")
    same_files(tmp_path / "one", tmp_path / "again")


@pytest.mark.parametrize("body", ["{}", "[]", "1", '{"plan": {}}', '{"plan": 1, "schema": 1}', "[" * 9000])
def test_a_plan_with_the_right_digest_and_nothing_in_it(body: str) -> None:
    from taskvec._core import blake3_hex

    digest = blake3_hex(body.encode())
    with pytest.raises(tv.RecipeError):
        tv.Plan.from_bytes(f'{{"digest": "{digest}", "body": {body}}}\n'.encode())


def test_a_plan_of_models_that_have_changed_is_refused(plan: tv.Plan, trio: Trio) -> None:
    data = plan.to_bytes()
    path = next(trio.reference.glob("*.safetensors"))
    path.write_bytes(path.read_bytes().replace(b"__metadata__", b"__metadatb__"))
    with pytest.raises(tv.Error):
        tv.Plan.from_bytes(data)


def test_a_part_in_json(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--target", trio.target, "--donor", trio.donor, "--reference", trio.reference]
    arguments += ["--max-shard-size", SIZE, "-o", tmp_path / "out", "--json"]
    first = json.loads(invoke(capsys, "transfer", *arguments, "--part", "0/2").out)
    assert (first["part"], first["parts"], first["complete"]) == (0, 2, False)
    assert first["done"] < first["total"]
    last = json.loads(invoke(capsys, "transfer", *arguments, "--part", "1/2").out)
    assert last["outputs"][0]["survival"]
    assert last["plan"]


def test_merge_apply_and_convert_in_parts(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vector = tmp_path / "vector"
    tv.extract(trio.donor, trio.reference, vector)
    recipe = tmp_path / "ties.yaml"
    recipe.write_text(
        f"merge_method: ties\nbase_model: {trio.reference}\ndtype: bfloat16\n"
        "parameters: {density: 0.5, weight: 0.5}\n"
        f"models:\n- model: {trio.donor}\n- model: {trio.target}\n"
    )
    size = ["--max-shard-size", SIZE]
    for name, command in {
        "merge": (["merge", recipe], []),
        "apply": (["apply", trio.target, vector], ["-o"]),
        "convert": (["convert", trio.target, "--out-dtype", "float32"], ["-o"]),
    }.items():
        words, flag = command
        one, out = tmp_path / f"{name}-one", tmp_path / f"{name}-out"
        assert invoke(capsys, *words, *flag, one, *size).code == 0
        for part in ("1/2", "0/2"):
            assert invoke(capsys, *words, *flag, out, *size, "--part", part).code == 0
        same_files(one, out)
        file = tmp_path / f"{name}.json"
        assert invoke(capsys, "plan", *words, *size, "--to", tmp_path / f"{name}-file", "-o", file).code == 0
        assert invoke(capsys, "run", file).code == 0
        same_files(one, tmp_path / f"{name}-file")


def test_the_config_of_the_first_part_is_that_of_all(plan: tv.Plan, trio: Trio, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan.part(0, 2).run(out)
    edit_json(trio.target / "generation_config.json", temperature=0.5)
    report = tv.plan_transfer(*trio, max_shard_size=SIZE, alpha=0.7).part(1, 2).run(out).report
    assert report is not None
    copied = (out / "generation_config.json").read_bytes()
    assert copied == (trio.target / "generation_config.json").read_bytes()
