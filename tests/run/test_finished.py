"""A finished job given again, and companions and outputs that change under a run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from support.command_line import invoke
from support.models import Trio, write_trio
from support.oracle import same_files
from taskvec.lazy.recipe import scratch_of


def states(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of every file and folder."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        status = path.stat()
        found[str(path)] = status.st_ino, status.st_size, status.st_mtime_ns
    return found


def recipe(trio: Trio) -> str:
    """Two documents, the second of which builds on the first."""
    first = f"merge_method: linear\nmodels: [{{model: {trio.donor}, parameters: {{weight: 1}}}}, "
    first += f"{{model: {trio.reference}, parameters: {{weight: 1}}}}]\nname: mean\n"
    last = (
        f"merge_method: slerp\nbase_model: {trio.target}\nparameters: {{t: 0.3}}\nmodels: [{{model: mean}}]\n"
    )
    return f"{first}---\n{last}"


def same_weights(one: Path, other: Path) -> None:
    """The same bytes of weights; cards of several documents name where the earlier results were."""
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names == sorted(path.name for path in other.glob("*.safetensors"))
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def has_ended(folder: Path) -> bool:
    """Whether a run into this folder has come to its end."""
    return (folder / "taskvec.json").exists() and not (folder / ".taskvec").exists()


Job = Callable[..., tv.Report]


def jobs(trio: Trio, root: Path) -> dict[str, Job]:
    """One job of each verb; further settings are passed on."""
    vector = root / "vector"
    if not vector.exists():
        tv.extract(trio.donor, trio.reference, vector)
    ties = {"merge_method": "ties", "base_model": str(trio.target), "models": [{"model": str(trio.donor)}]}
    ties["parameters"] = {"weight": 1.0, "density": 0.5}
    return {
        "transfer": lambda out, **s: tv.transfer(*trio, out, alpha=0.5, **s),
        "alphas": lambda out, **s: tv.transfer(*trio, out, alpha=[0.25, 1], **s),
        "extract": lambda out, **s: tv.extract(trio.donor, trio.reference, out, **s),
        "apply": lambda out, **s: tv.apply(trio.target, vector, out=out, alpha=0.5, **s),
        "merge": lambda out, **s: tv.merge(ties, out, **s),
        "documents": lambda out, **s: tv.merge(recipe(trio), out, **s),
    }


VERBS = ("transfer", "alphas", "extract", "apply", "merge", "documents")


@pytest.mark.parametrize("verb", VERBS)
def test_a_finished_job_given_again_touches_nothing(sharded_trio: Trio, tmp_path: Path, verb: str) -> None:
    job, out = jobs(sharded_trio, tmp_path)[verb], tmp_path / "out"
    first = job(out)
    before = states(out)
    again = job(out)
    assert states(out) == before
    assert (first.already_done, again.already_done) == (False, True)
    assert again.to_dict()["already_done"] is True
    assert again.plan == first.plan
    assert again.outputs == first.outputs
    assert (again.vector is None) == (first.vector is None)
    assert not scratch_of(out).exists()
    job(out, rehash=True)
    assert states(out) == before


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("change", ["weights", "companion"])
def test_a_changed_input_is_refused(sharded_trio: Trio, tmp_path: Path, verb: str, change: str) -> None:
    trio, out = sharded_trio, tmp_path / "out"
    job = jobs(trio, tmp_path)[verb]
    job(out)
    folder = tmp_path / "vector" if verb == "apply" and change == "weights" else trio.reference
    if change == "weights":
        path = next(iter(sorted((trio.target if verb == "merge" else folder).glob("*.safetensors"))))
    else:
        path = (trio.reference if verb == "extract" else trio.target) / "tokenizer_config.json"
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-2] ^= 1 if change == "weights" else 0
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # neither size nor mtime show it
    before = states(out)
    with pytest.raises(tv.OutputError, match="holds a finished output") as caught:
        job(out)
    assert path.name in str(caught.value)
    assert "sizes are the same, bytes were not compared" in str(caught.value)
    overwrite = "--overwrite to make it again, or choose another output folder"
    rehash = "" if verb == "documents" else "--rehash to compare the bytes, "
    assert caught.value.hint == f"use {rehash}{overwrite}"
    assert states(out) == before
    if change == "companion" and verb != "documents":  # its bytes are what they were
        assert job(out, rehash=True).already_done
    else:
        with pytest.raises(tv.OutputError, match="holds a finished output"):
            job(out, rehash=True)
    assert states(out) == before
    job(out, overwrite=True)
    job(tmp_path / "fresh")
    (same_weights if verb == "documents" else same_files)(out, tmp_path / "fresh")


@pytest.mark.parametrize("verb", VERBS)
def test_a_manifest_without_times_knows_its_inputs_by_their_content(
    sharded_trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """With SOURCE_DATE_EPOCH: copies of the models are the same inputs, one flipped bit makes others."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    job, out = jobs(sharded_trio, tmp_path)[verb], tmp_path / "out"
    job(out)
    assert "inputs" not in json.loads(next(out.rglob("taskvec.json")).read_text())["run"]
    before = states(out)
    for folder in sharded_trio:
        shutil.copytree(folder, f"{folder}-copy")
        shutil.rmtree(folder)
        shutil.copytree(f"{folder}-copy", folder)
    assert job(out).already_done
    assert states(out) == before
    path = next(iter(sorted(Path(sharded_trio.reference).glob("*.safetensors"))))
    if verb == "apply":
        path = tmp_path / "vector" / "vector.safetensors"
    if verb == "merge":
        path = next(iter(sorted(Path(sharded_trio.donor).glob("*.safetensors"))))
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(tv.OutputError, match="holds a finished output") as caught:
        job(out)
    assert "--overwrite" in str(caught.value.hint)
    assert states(out) == before


@pytest.mark.parametrize("why", ["companion", "no digests"])
def test_without_times_and_digests_nothing_is_taken_for_done(
    trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    options: Any = {"input_digests": False} if why == "no digests" else {}
    tv.transfer(*trio, tmp_path / "out", **options)
    if why == "companion":
        with open(Path(trio.target) / "tokenizer_config.json", "a") as file:
            file.write(" ")
    with pytest.raises(tv.OutputError, match=r"`tokenizer_config.json`|has no digests") as caught:
        tv.transfer(*trio, tmp_path / "out", **options)
    assert "--overwrite" in str(caught.value.hint)


@pytest.mark.parametrize("change", ["shorter", "gone", "same size"])
def test_an_output_that_is_not_what_was_written_is_refused(trio: Trio, tmp_path: Path, change: str) -> None:
    out = tmp_path / "out"
    tv.transfer(*trio, out)
    path = out / "tokenizer.json"
    data = path.read_bytes()
    path.unlink()
    if change != "gone":
        path.write_bytes(data[:-1] if change == "shorter" else b"x" + data[1:])
    with pytest.raises(tv.OutputError, match=r"holds a finished output, but `tokenizer\.json`"):
        tv.transfer(*trio, out, rehash=change == "same size")


def test_begin_again_is_no_question_for_a_finished_job(trio: Trio, tmp_path: Path) -> None:
    tv.transfer(*trio, tmp_path / "out")
    with pytest.raises(tv.OutputError, match="finished output"):
        tv.transfer(*trio, tmp_path / "out", resume=False)
    assert not tv.transfer(*trio, tmp_path / "out", overwrite=True).already_done


def test_the_command_says_so(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe(trio))
    for number, words in enumerate(
        (["transfer", "--target", trio.target, "--donor", trio.donor, "--reference", trio.reference, "-o"],
         ["merge", tmp_path / "recipe.yaml"])
    ):  # fmt: skip
        out = tmp_path / f"out{number}"
        assert invoke(capsys, *words, out).code == 0
        again = invoke(capsys, *words, out)
        assert (again.code, again.out) == (0, f"{out}\n")
        assert "already done" in again.err
        assert json.loads(invoke(capsys, *words, out, "--json").out)["already_done"] is True


@pytest.mark.parametrize("stop", ["first", "second", "publish"])
def test_documents_go_on_after_an_interrupt(trio: Trio, tmp_path: Path, stop: str) -> None:
    def progress(event: tv.Progress) -> None:
        is_second = has_ended(scratch_of(tmp_path / "out") / "mean")
        if is_second == (stop != "first") and event.phase == ("merge" if stop == "second" else "publish"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tv.merge(recipe(trio), tmp_path / "out", progress=progress)
    tv.merge(recipe(trio), tmp_path / "out")
    assert not scratch_of(tmp_path / "out").exists()
    tv.merge(recipe(trio), tmp_path / "fresh")
    same_weights(tmp_path / "out", tmp_path / "fresh")
    assert tv.verify(tmp_path / "out").ok


@pytest.mark.parametrize("is_changed", [False, True])
def test_results_of_documents_that_a_power_cut_has_brought_back_go(
    trio: Trio, tmp_path: Path, is_changed: bool
) -> None:
    tv.merge(recipe(trio), tmp_path / "out")
    back = scratch_of(tmp_path / "out") / "mean"
    back.mkdir(parents=True)
    (back / "config.json").write_text("{}")
    if is_changed:
        os.utime(trio.donor / "model.safetensors", ns=(1, 1))
        with pytest.raises(tv.OutputError, match="holds a finished output"):
            tv.merge(recipe(trio), tmp_path / "out")
    else:
        assert tv.merge(recipe(trio), tmp_path / "out").already_done
    assert not scratch_of(tmp_path / "out").exists()


def test_a_document_is_made_again_when_its_input_has_changed(trio: Trio, tmp_path: Path) -> None:
    def progress(event: tv.Progress) -> None:
        if event.phase == "merge" and has_ended(scratch_of(tmp_path / "out") / "mean"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tv.merge(recipe(trio), tmp_path / "out", progress=progress)
    path = trio.donor / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    tv.merge(recipe(trio), tmp_path / "out", overwrite=True)
    tv.merge(recipe(trio), tmp_path / "fresh")
    same_weights(tmp_path / "out", tmp_path / "fresh")


def disturb_on_publish(change: Callable[[], object]) -> Callable[[tv.Progress], None]:
    done: list[bool] = []

    def progress(event: tv.Progress) -> None:
        if event.phase == "publish" and not done:
            done.append(True)
            change()

    return progress


COMPANIONS = ("tokenizer_config.json", "config.json", "sub/notes.txt")


@pytest.mark.parametrize("name", COMPANIONS)
@pytest.mark.parametrize("how", ["cut", "grown", "replaced", "removed"])
def test_a_companion_that_changes_is_an_error_that_names_it(
    sharded_trio: Trio, tmp_path: Path, name: str, how: str
) -> None:
    path, out = sharded_trio.target / name, tmp_path / "out"
    (sharded_trio.target / "sub").mkdir()
    (sharded_trio.target / "sub" / "notes.txt").write_text("notes")
    original = path.read_bytes()

    def change() -> None:
        if how == "cut":
            os.truncate(path, len(original) // 2)
        elif how == "grown":
            path.write_bytes(original + b"\n")
        else:
            path.unlink()
            if how == "replaced":
                path.write_bytes(original)

    with pytest.raises((tv.FormatError, tv.OutputError, tv.NotFoundError), match=path.name):
        tv.transfer(*sharded_trio, out, progress=disturb_on_publish(change))
    assert not (out / "taskvec.json").exists()
    path.write_bytes(original)
    tv.transfer(*sharded_trio, out)
    tv.transfer(*sharded_trio, tmp_path / "fresh")
    same_files(out, tmp_path / "fresh")


@pytest.mark.parametrize("how", ["shard removed", "shard cut", "moved", "removed", "emptied"])
def test_an_output_that_changes_under_the_run_is_not_called_complete(
    sharded_trio: Trio, tmp_path: Path, how: str
) -> None:
    out = tmp_path / "out"

    def change() -> None:
        shard = min(out.glob("*.safetensors"))
        if how == "shard removed":
            shard.unlink()
        elif how == "shard cut":
            os.truncate(shard, 100)
        elif how == "moved":
            out.rename(tmp_path / "elsewhere")
        else:
            shutil.rmtree(out)
            if how == "emptied":
                out.mkdir()

    with pytest.raises(tv.OutputError):
        tv.transfer(*sharded_trio, out, progress=disturb_on_publish(change))
    assert not (tmp_path / "elsewhere" / "taskvec.json").exists()
    assert not (out / "taskvec.json").exists()
    assert not list(out.glob("*.index.json"))


def test_several_alphas_with_companions_in_folders_go_on(trio: Trio, tmp_path: Path) -> None:
    (trio.target / "a" / "b").mkdir(parents=True)
    (trio.target / "a" / "b" / "notes.txt").write_text("notes")
    out, seen = tmp_path / "out", []

    def progress(event: tv.Progress) -> None:
        if event.phase == "publish":
            seen.append(event)
            if len(seen) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tv.transfer(*trio, out, alpha=[0, 1], progress=progress)
    (out / "alpha=0" / ".taskvec" / "copy.1.part").write_text("what a killed run has left")
    tv.transfer(*trio, out, alpha=[0, 1])
    tv.transfer(*trio, tmp_path / "fresh", alpha=[0, 1])
    same_files(out, tmp_path / "fresh")


def test_all_folders_are_flushed_before_the_manifest(
    trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trio.target / "a" / "b").mkdir(parents=True)
    (trio.target / "a" / "b" / "notes.txt").write_text("notes")
    flushed: set[tuple[Path, int]] = set()
    genuine = os.fsync

    def fsync(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        out = next(folder for folder in (place, *place.parents) if folder.name.startswith("alpha="))
        assert not (out / "taskvec.json").exists()
        flushed.add((out, os.fstat(descriptor).st_ino))
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    tv.transfer(*trio, tmp_path / "out", alpha=[0, 1])
    for folder in (tmp_path / "out").glob("alpha=*"):
        for path in (folder, folder / "a", folder / "a" / "b", folder / "a" / "b" / "notes.txt"):
            assert (folder, path.stat().st_ino) in flushed, path


def test_a_folder_that_cannot_be_flushed_is_no_failure(
    trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    tv.transfer(*trio, tmp_path / "out")
    assert tv.verify(tmp_path / "out").ok


def test_what_can_be_refused_is_refused_before_the_old_output_goes(trio: Trio, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tv.transfer(*trio, out)
    before = states(out)
    (trio.target / "notes.txt").write_text("x")
    opened = tv.open(trio.target)
    (trio.target / "notes.txt").unlink()
    with pytest.raises(tv.Error, match=r"notes\.txt"):
        tv.transfer(opened, trio.donor, trio.reference, out, alpha=0.5, overwrite=True)
    assert states(out) == before


def test_files_of_others_stay(tmp_path: Path) -> None:
    trio = write_trio(tmp_path)
    (trio.target / "sub").mkdir()
    (trio.target / "sub" / "notes.txt").write_text("notes")
    out = tmp_path / "out"
    tv.transfer(*trio, out)
    (out / "sub" / ".mine.part").write_text("mine")
    tv.transfer(*trio, out, alpha=0.5, overwrite=True)
    assert (out / "sub" / ".mine.part").read_text() == "mine"


@pytest.mark.parametrize(
    "path", ["run.inputs", "run.threads", "run.plan", "survival", "survival.total", "non_finite"]
)
@pytest.mark.parametrize("value", [None, 1, "x", [1], [[]], [[[], {}, 1]], {}, {"total": [1]}])
def test_a_manifest_that_others_have_written_to_is_refused_or_equal(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, value: object
) -> None:
    command = ["transfer", "--target", trio.target, "--donor", trio.donor, "--reference", trio.reference]
    assert invoke(capsys, *command, "-o", tmp_path / "out").code == 0
    manifest = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    *above, last = path.split(".")
    part = manifest[above[0]] if above else manifest
    part[last] = value
    (tmp_path / "out" / "taskvec.json").write_text(json.dumps(manifest))
    done = invoke(capsys, *command, "-o", tmp_path / "out")
    assert done.code in (0, 2)
    assert "defect" not in done.err
    assert done.code == 0 or "hint:" in done.err
