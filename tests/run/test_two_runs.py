"""Two runs at once into one folder, and an output that takes the place of another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import taskvec as tv
from support.command_line import invoke
from support.models import Trio
from support.oracle import same_files
from taskvec import _core
from taskvec.run import execute as execution
from taskvec.run import extract as extraction

VERBS = ("transfer", "alphas", "extract", "apply", "merge", "documents")
Job = Callable[..., tv.Report]


def jobs(trio: Trio, root: Path) -> dict[str, Job]:
    """One job of each verb that writes; further settings are passed on."""
    vector = root / "vector"
    tv.extract(trio.donor, trio.reference, vector)
    ties = {"merge_method": "ties", "base_model": str(trio.target), "models": [{"model": str(trio.donor)}]}
    ties["parameters"] = {"weight": 1.0, "density": 0.5}
    mean = {"name": "mean", "merge_method": "linear", "models": []}
    mean["models"] = [{"model": str(m), "parameters": {"weight": 1}} for m in (trio.donor, trio.reference)]
    slerp = {"merge_method": "slerp", "base_model": str(trio.target), "parameters": {"t": 0.3}}
    slerp["models"] = [{"model": "mean"}]
    return {
        "transfer": lambda out, **s: tv.transfer(*trio, out, alpha=0.5, **s),
        "alphas": lambda out, **s: tv.transfer(*trio, out, alpha=[0.25, 1], **s),
        "extract": lambda out, **s: tv.extract(trio.donor, trio.reference, out, **s),
        "apply": lambda out, **s: tv.apply(trio.target, vector, out=out, alpha=0.5, **s),
        "merge": lambda out, **s: tv.merge(ties, out, **s),
        "documents": lambda out, **s: tv.merge([mean, slerp], out, **s),
    }


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder without the states of runs, and the manifest without its run and seal."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and ".taskvec" not in path.relative_to(folder).parts:
            found[name] = path.read_bytes()
            if path.name == "taskvec.json":
                manifest = json.loads(found[name])
                del manifest["run"], manifest["seal"]
                found[name] = json.dumps(manifest).encode()
    return found


def put_old(trio: Trio, out: Path, verb: str) -> dict[str, bytes]:
    """A finished output of another job in the folders of this one, and a file of the user's own."""
    folders = [out / "alpha=0.25", out / "alpha=1"] if verb == "alphas" else [out]
    for folder in folders:
        tv.transfer(*trio, folder, alpha=-2, max_shard_size="3KB")
        (folder / "mine.txt").write_text("mine")
        (folder / "chat_template.jinja").write_text("of the old one")
    return contents(out)


def expected_in_place_of_old(fresh: Path, verb: str) -> dict[str, bytes]:
    found = contents(fresh)
    for name in ["alpha=0.25/mine.txt", "alpha=1/mine.txt"] if verb == "alphas" else ["mine.txt"]:
        found[name] = b"mine"
    return found


def other_command(trio: Trio, out: Path) -> list[str]:
    models = ["--target", trio.target, "--donor", trio.donor, "--reference", trio.reference]
    words = ["-m", "taskvec", "transfer", *models, "-o", out, "--alpha", "2"]
    return [sys.executable, *map(str, words)]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("moment", ["before the manifest", "before the end"])
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_second_run_is_refused_until_the_first_has_ended(
    sharded_trio: Trio,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    moment: str,
    more: list[str],
) -> None:
    job, out = jobs(sharded_trio, tmp_path)[verb], tmp_path / "out"
    folder = out / "alpha=1" if verb == "alphas" else out
    seen: list[subprocess.CompletedProcess[str]] = []

    def second() -> None:
        command = [*other_command(sharded_trio, folder), *more]
        seen.append(subprocess.run(command, capture_output=True, text=True, check=False, timeout=120))

    def write(path: Path, data: bytes) -> None:
        if moment == "before the manifest" and path.name == "taskvec.json" and out in path.parents:
            second()
        _core.write_atomic(path, data)

    def finish(path: Path) -> None:
        if moment == "before the end" and out in (path, *path.parents):
            second()
        _core.finish_folder(path)

    for module in (execution, extraction):
        monkeypatch.setattr(module, "finish_folder", finish)
    monkeypatch.setattr("taskvec.run.publish.write_atomic", write)
    monkeypatch.setattr("taskvec.run.extract.write_atomic", write)
    job(out)
    assert seen
    for other in seen[:1]:
        assert other.returncode == 2, other.stderr
        assert f"another run is writing to `{folder}` (process {os.getpid()})" in other.stderr
        assert "wait until it ends, or choose another output folder" in other.stderr
    monkeypatch.undo()
    job(tmp_path / "fresh")
    if verb != "documents":
        same_files(out, tmp_path / "fresh")
    assert tv.verify(out).ok


def test_a_second_run_of_the_same_process_is_refused(sharded_trio: Trio, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []

    def progress(event: tv.Progress) -> None:
        if event.phase == "publish" and not seen:
            with pytest.raises(tv.OutputError, match="another run is writing") as caught:
                tv.transfer(*sharded_trio, out, alpha=0.5, overwrite=True)
            seen.append(caught)

    tv.transfer(*sharded_trio, out, progress=progress)
    assert seen
    tv.transfer(*sharded_trio, tmp_path / "fresh")
    same_files(out, tmp_path / "fresh")


@pytest.mark.parametrize("verb", VERBS)
def test_overwriting_gives_what_a_new_folder_gets(sharded_trio: Trio, tmp_path: Path, verb: str) -> None:
    job, out = jobs(sharded_trio, tmp_path)[verb], tmp_path / "out"
    put_old(sharded_trio, out, verb)
    report = job(out, overwrite=True)
    job(tmp_path / "fresh")
    expected = expected_in_place_of_old(tmp_path / "fresh", verb)
    if verb == "documents":  # the card names the folder of the first result
        assert contents(out).keys() == expected.keys()
    else:
        assert contents(out) == expected
    assert {Path(output.folder) for output in report.outputs} <= {out, *out.iterdir()}
    assert not list(tmp_path.rglob(".taskvec"))


# A vector has few other files, of which no progress is told.
@pytest.mark.parametrize(
    ("verb", "phase"), [(verb, "merge") for verb in VERBS] + [(v, "publish") for v in VERBS if v != "extract"]
)
def test_an_interrupted_overwriting_run_leaves_the_old_output(
    sharded_trio: Trio, tmp_path: Path, verb: str, phase: str
) -> None:
    job, out = jobs(sharded_trio, tmp_path)[verb], tmp_path / "out"
    before = put_old(sharded_trio, out, verb)

    def progress(event: tv.Progress) -> None:
        if event.phase == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job(out, overwrite=True, progress=progress)
    assert contents(out) == before
    assert tv.verify(out).ok
    with pytest.raises(tv.OutputError, match="holds a finished output"):
        job(out)
    job(out, overwrite=True)
    job(tmp_path / "fresh")
    assert contents(out).keys() == expected_in_place_of_old(tmp_path / "fresh", verb).keys()
    assert tv.verify(out).ok
    assert not list(tmp_path.rglob(".taskvec"))


@pytest.mark.parametrize("verb", ["transfer", "alphas", "extract"])
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("step", ["replace_output", "finish_folder"])
def test_killed_while_names_are_changed(
    sharded_trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, nth: int, step: str
) -> None:
    job, out = jobs(sharded_trio, tmp_path)[verb], tmp_path / "out"
    put_old(sharded_trio, out, verb)
    seen: list[Path] = []

    def stop(path: Path) -> None:
        seen.append(path)
        if len(seen) == nth:
            raise KeyboardInterrupt
        getattr(_core, step)(path)

    for module in (execution, extraction):
        monkeypatch.setattr(module, step, stop)
    try:
        job(out, overwrite=True)
    except KeyboardInterrupt:
        for folder in {Path(path) for path in seen}:
            assert tv.verify(folder).ok
    monkeypatch.undo()
    job(out, overwrite=True)
    job(tmp_path / "fresh")
    assert contents(out) == expected_in_place_of_old(tmp_path / "fresh", verb)
    assert not list(tmp_path.rglob(".taskvec"))


def test_an_error_leaves_the_old_output(sharded_trio: Trio, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = put_old(sharded_trio, out, "transfer")
    path = max(sharded_trio.donor.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-2:] = b"\xff\xff"  # NaN in bfloat16, at the end of a float32 too
    path.write_bytes(data)
    with pytest.raises(tv.NonFiniteError):
        tv.transfer(*sharded_trio, out, alpha=0.5, overwrite=True)
    assert contents(out) == before
    assert tv.verify(out).ok


def test_another_overwriting_run_after_a_killed_one(sharded_trio: Trio, tmp_path: Path) -> None:
    out = tmp_path / "out"
    put_old(sharded_trio, out, "transfer")
    code = (
        "import os, signal, taskvec as tv\n"
        "def progress(event):\n"
        "    if event.phase == 'publish':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        f"tv.transfer(*{[str(m) for m in sharded_trio]!r}, {str(out)!r}, alpha=0.5, overwrite=True,\n"
        "            progress=progress)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert (out / ".taskvec" / "new").is_dir()
    old = tv.open(out)  # what is in the making belongs to no model
    assert not [name for name in (*old.other_files, *old.left_files) if ".taskvec" in name]
    tv.transfer(*sharded_trio, out, alpha=3, overwrite=True)
    tv.transfer(*sharded_trio, tmp_path / "fresh", alpha=3)
    assert contents(out) == expected_in_place_of_old(tmp_path / "fresh", "transfer")
    assert not (out / ".taskvec").exists()


def test_a_changed_input_begins_the_replacing_output_again(
    sharded_trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    put_old(sharded_trio, out, "transfer")

    def progress(event: tv.Progress) -> None:
        if event.phase == "publish":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tv.transfer(*sharded_trio, out, overwrite=True, progress=progress)
    path = min(sharded_trio.donor.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    (path.parent / "new").write_bytes(data)
    (path.parent / "new").replace(path)
    assert invoke(capsys, *other_command(sharded_trio, out)[3:-2], "--overwrite").code == 0
    tv.transfer(*sharded_trio, tmp_path / "fresh")
    assert contents(out) == expected_in_place_of_old(tmp_path / "fresh", "transfer")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_replaced_under_the_run_is_noticed(
    sharded_trio: Trio, tmp_path: Path, verb: str, overwrite: bool
) -> None:
    job, out = jobs(sharded_trio, tmp_path)[verb], tmp_path / "out"
    before = put_old(sharded_trio, out, verb) if overwrite else {}
    folder = tmp_path / "vector" if verb == "apply" else sharded_trio.donor
    path, done = min(folder.glob("*.safetensors")), []

    def progress(event: tv.Progress) -> None:
        if event.phase == "merge" and not done:
            done.append(path.read_bytes())
            status = path.stat()
            (folder / "new").write_bytes(done[0][:-1] + bytes([done[0][-1] ^ 1]))
            os.utime(folder / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
            (folder / "new").replace(path)

    with pytest.raises(tv.FormatError, match=r"changed|replaced"):
        job(out, progress=progress, overwrite=overwrite)
    assert contents(out) == before if overwrite else not list(out.rglob("taskvec.json"))
    path.write_bytes(done[0])
    job(out, overwrite=overwrite)
    job(tmp_path / "fresh")
    expected = (
        expected_in_place_of_old(tmp_path / "fresh", verb) if overwrite else contents(tmp_path / "fresh")
    )
    assert contents(out).keys() == expected.keys()
    if verb != "documents":
        assert contents(out) == expected


@pytest.mark.parametrize("verb", ["transfer", "alphas", "extract"])
@pytest.mark.parametrize("how", ["removed", "cut short"])
def test_a_new_output_that_is_not_whole_any_more_leaves_the_old_one(
    sharded_trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, how: str
) -> None:
    job, out = jobs(sharded_trio, tmp_path)[verb], tmp_path / "out"
    before = put_old(sharded_trio, out, verb)

    def replace(folder: Path) -> None:
        shard = min((folder / ".taskvec" / "new").glob("*.safetensors"))
        if how == "removed":
            shard.unlink()
        else:
            os.truncate(shard, 100)
        _core.replace_output(folder)

    for module in (execution, extraction):
        monkeypatch.setattr(module, "replace_output", replace)
    with pytest.raises(tv.OutputError, match="missing or cut short"):
        job(out, overwrite=True)
    assert contents(out) == before
    monkeypatch.undo()
    job(out, overwrite=True)
    job(tmp_path / "fresh")
    assert contents(out) == expected_in_place_of_old(tmp_path / "fresh", verb)
    assert not list(tmp_path.rglob(".taskvec"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_earlier_output_that_changes_while_a_later_one_is_written(
    sharded_trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    out = tmp_path / "out"

    def write(path: Path, data: bytes) -> None:
        if path.name == "taskvec.json" and "alpha=1" in path.parts:
            earlier = Path(str(path.parent).replace("alpha=1", "alpha=0.25"))
            os.truncate(min(earlier.glob("*.safetensors")), 100)
        _core.write_atomic(path, data)

    before = put_old(sharded_trio, out, "alphas") if overwrite else {}
    monkeypatch.setattr("taskvec.run.publish.write_atomic", write)
    with pytest.raises(tv.OutputError, match="something else changed the output"):
        tv.transfer(*sharded_trio, out, alpha=[0.25, 1], overwrite=overwrite)
    monkeypatch.undo()
    if overwrite:
        assert contents(out) == before
    assert overwrite or not (out / "alpha=0.25" / "taskvec.json").exists()
    tv.transfer(*sharded_trio, out, alpha=[0.25, 1], overwrite=overwrite)
    assert tv.verify(out).ok
