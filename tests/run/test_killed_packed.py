"""Quantised runs through the command line that are killed or stopped at reports of their progress.

The same command afterwards ends in the bytes of an undisturbed run; what is there in between is the old
output, whole, or nothing that looks like one; a second command meanwhile is refused.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import taskvec as tv
from support.command_line import invoke
from support.models import Trio, write_trio
from support.oracle import same_files
from support.packed_models import BY_NAME, packed_trio

FP8, INT4 = "block FP8, F32 scales", "CT INT4 group 32"

# The command line, in a process that gets a signal at one of the reports of its progress.
PROGRAM = """
import contextlib, os, sys
from taskvec import cli
from taskvec.cli.console import Console

number, at, seen = int(sys.argv[1]), int(sys.argv[2]), 0

def hear(event):
    global seen
    seen += 1
    if seen == at:
        os.kill(os.getpid(), number)

@contextlib.contextmanager
def progress(console):
    yield hear

Console.progress = progress
raise SystemExit(cli.run(sys.argv[3:]))
"""


def begun(words: list[str], number: int, at: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, str(int(number)), str(at), *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def transfer_words(trio: Trio, *more: str) -> list[str]:
    roles = ("--target", trio.target, "--donor", trio.donor, "--reference", trio.reference)
    return ["transfer", *map(str, roles), "--max-shard-size", "60KB", *more]


def packed_words(root: Path, way: str, *more: str) -> list[str]:
    return transfer_words(packed_trio(root, BY_NAME[way], shards=3)[0], *more)


def plain_words(root: Path, *more: str) -> list[str]:
    config = {"hidden": 128, "intermediate": 256, "heads": 4, "kv_heads": 2, "vocabulary": 64, "layers": 2}
    target = write_trio(root, shards=3, **config).target
    return ["convert", str(target), "--max-shard-size", "60KB", *more]


def dequantised(root: Path, way: str) -> list[str]:
    trio, _ = packed_trio(root, BY_NAME[way], shards=3)
    return ["convert", str(trio.target), "--max-shard-size", "60KB"]


JOBS: dict[str, Callable[[Path], list[str]]] = {
    "FP8 to plain": lambda root: dequantised(root, FP8),
    "plain to FP8": lambda root: plain_words(root, "--out-dtype", "fp8-block"),
    "transfer in FP8": lambda root: packed_words(root, FP8),
    "transfer in INT4, two alphas": lambda root: packed_words(root, INT4, "--alpha", "0.5,1"),
}
# Signals, and at which report of its progress a run gets them.
MOMENTS = tuple((signal.SIGTERM if at == 6 else signal.SIGKILL, at) for at in (1, 3, 6, 10))
REPLACING = ("FP8 to plain", "plain to FP8", "transfer in FP8")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a finished output, without the state of a run."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".taskvec" not in path.relative_to(folder).parts
    }


def looks_whole(out: Path) -> bool:
    found = [path.parent for path in out.rglob("taskvec.json") if ".taskvec" not in path.parts]
    for folder in found:
        assert tv.verify(folder).ok
    return bool(found)


def put_old(out: Path, root: Path) -> None:
    """A finished output of another job, of other files."""
    tv.transfer(*write_trio(root / "old", shards=2), out, alpha=0.25)


@pytest.mark.parametrize("job", JOBS)
def test_killed_at_reports_of_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str], job: str) -> None:
    words, out, good = JOBS[job](tmp_path / "in"), tmp_path / "out", tmp_path / "good"
    assert invoke(capsys, *words, "-o", good).code == 0
    kills = 0
    for number, at in MOMENTS:
        code = begun([*words, "-o", str(out)], number, at).wait(timeout=60)
        assert code in (0, -number)
        if code == 0:  # it had no more to report
            break
        kills += 1
        looks_whole(out)
        assert invoke(capsys, *words, "-o", out).code == 0
        same_files(out, good)
        shutil.rmtree(out)
    assert kills > 2


@pytest.mark.parametrize("job", REPLACING)
def test_killed_while_an_output_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], job: str
) -> None:
    """The old output is whole until the new one is."""
    words, out, good, kept = (
        JOBS[job](tmp_path / "in"),
        *(tmp_path / name for name in ("out", "good", "kept")),
    )
    assert invoke(capsys, *words, "-o", good).code == 0
    put_old(kept, tmp_path)
    kills = 0
    for number, at in MOMENTS:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(kept, out)
        code = begun([*words, "-o", str(out), "--overwrite"], number, at).wait(timeout=60)
        assert code in (0, -number)
        if code == 0:
            break
        kills += 1
        assert looks_whole(out)
        assert contents(out) == contents(kept)
        assert invoke(capsys, *words, "-o", out, "--overwrite").code == 0
        same_files(out, good)
    assert kills > 2


@pytest.mark.parametrize("job", REPLACING)
def test_killed_again_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], job: str) -> None:
    """Each run goes on from what the one before it has left."""
    words, out, good = JOBS[job](tmp_path / "in"), tmp_path / "out", tmp_path / "good"
    assert invoke(capsys, *words, "-o", good).code == 0
    codes = [begun([*words, "-o", str(out)], signal.SIGKILL, at).wait(timeout=60) for at in (2, 2, 3, 3, 5)]
    assert -signal.SIGKILL in codes
    assert invoke(capsys, *words, "-o", out).code == 0
    same_files(out, good)


@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=["", "overwrite"])
@pytest.mark.parametrize("job", REPLACING)
def test_a_second_command_meanwhile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], job: str, more: list[str]
) -> None:
    words, out, good = JOBS[job](tmp_path / "in"), tmp_path / "out", tmp_path / "good"
    assert invoke(capsys, *words, "-o", good).code == 0
    if more:
        put_old(out, tmp_path)
    first = begun([*words, "-o", str(out), *more], signal.SIGSTOP, 2)
    _, status = os.waitpid(first.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    try:
        second = invoke(capsys, *words, "-o", out, *more)
        assert second.code == 2, second.err
        assert f"another run is writing to `{out}` (process {first.pid})" in second.err
        assert "wait until it ends, or choose another output folder" in second.err
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait(timeout=60) == 0
    same_files(out, good)
