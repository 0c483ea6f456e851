"""Files of an output folder that a run finds again, damaged: zeros, cut short, empty, other JSON, or absent.

Whatever was damaged, the same call ends in the results of an undisturbed run, or in an error that names the
folder and the way out, which leads to them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from support.evaluation_jobs import JOBS, World, importance, small_demo, sweep, worlds
from support.evaluation_stub import results, without_lm_eval
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.sweep.single import evaluate_model
from taskvec.files.names import MANIFEST


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros_at_the_end(path: Path) -> None:
    """What was written after the last flush, as a file system may leave it."""
    data = path.read_bytes()
    kept = len(data) * 3 // 4
    path.write_bytes(data[:kept] + bytes(len(data) - kept))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "zeros": zeros,
    "half": half,
    "zeros at the end": zeros_at_the_end,
    "empty": lambda path: path.write_bytes(b""),
    "object": lambda path: path.write_bytes(b"{}"),
    "list": lambda path: path.write_bytes(b"[]"),
    "null": lambda path: path.write_bytes(b"null"),
    "absent": Path.unlink,
}

# What a user does where the call itself does not go on.
WAYS_OUT: dict[str, Callable[[World, Path], object]] = {
    "eval second": lambda world, out: evaluate_model(
        world.trio.target, Settings(tasks=("stub",), batch_size=1, device="cpu"), out
    ),
    "demo": lambda _, out: shutil.rmtree(out / "models"),
    "importance": lambda world, out: importance(world, out, overwrite=True),
    "importance resumed": lambda world, out: importance(world, out, overwrite=True, resume=False),
}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    yield from worlds()


STATES = [(name, "unfinished" if "resumed" in name or "second" in name else "finished") for name in JOBS]


def tried(job: str, begun: Path) -> Iterator[tuple[Path, str]]:
    """Every file with a damage, of every kind of file with all of them.

    The report of a demo is a sweep, of which all are tried.
    """
    seen: dict[tuple[str, str], int] = {}
    for file in sorted(path.relative_to(begun) for path in begun.rglob("*") if path.is_file()):
        if file.name == ".lock":
            continue
        kind = (file.parts[0] if job == "demo" else str(file.parent), file.suffix)
        number = seen[kind] = seen.get(kind, -1) + 1
        is_listed = job == "importance" and file.name != MANIFEST
        for place, damage in enumerate(DAMAGES):
            # of a finished map sizes are compared, as of all that the engine has finished
            if is_listed and damage.startswith("zeros"):
                continue
            # an arm that was taken out is left out; models without a list are taken as they are
            if damage == "absent" and (job == "eval second" or file.name.endswith(".files.json")):
                continue
            first = number == 0 and not (job == "demo" and kind[0] == "report")
            if first or place == (number + len(kind[1])) % len(DAMAGES):
                yield file, damage


@pytest.mark.parametrize(("name", "state"), [each for each in STATES if "overwrite" not in each[0]])
def test_a_damaged_file(world: World, name: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job, home = JOBS[name], world.root / f"{name}-{state}".replace(" ", "-")
    without_lm_eval(monkeypatch)
    small_demo(monkeypatch)
    out, begun = home / "out", home / "begun"
    home.mkdir()
    job.before(world, out)
    if state == "unfinished":
        shutil.copytree(out, begun)
    job.run(world, out)
    good = results(out)
    if state == "finished":
        shutil.copytree(out, begun)
    for file, damage in tried(name, begun):
        shutil.rmtree(out)
        shutil.copytree(begun, out)
        DAMAGES[damage](out / file)
        refusal = None
        try:
            job.run(world, out)
        except tv.Error as error:
            refusal = error
        if refusal is not None:
            assert str(out) in refusal.message, (file, damage)
            assert refusal.hint, (file, damage, refusal.message)
            WAYS_OUT[name](world, out)
            job.run(world, out)
        found: dict[str, Any] = results(out)
        # of a search this is what its merged weights were, while there were any
        left = f"merges/{file.name}" if "search" in name else ""
        differs = [each for each in {*found, *good} if found.get(each) != good.get(each) and each != left]
        assert not differs, (file, damage)


def test_only_what_is_lost_is_measured_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    without_lm_eval(monkeypatch)
    out, notes = world.root / "measured", list[str]()

    def note(event: Any) -> None:
        if event.kind in ("note", "start", "merge"):
            notes.append(event.arm)

    sweep(world, out)
    sweep(world, out, progress=note)
    assert notes == []
    (out / "merges" / "random-1@1.json").write_text("[]")
    sweep(world, out, progress=note)
    assert [note for note in notes if "measurements" in note] == [
        "the measurements of `random-1@1` are not found, or damaged: made again"
    ]
    assert not [note for note in notes if note in ("random-1", "alpha=1")]
