"""The progress bar: on a terminal only, throttled, with rate and time left."""

from __future__ import annotations

import re
import sys

import pytest

from support.command_line import on_terminal
from taskvec import bar as progress
from taskvec.cli.console import Console
from taskvec.progress import Progress

LONG = """
import sys, time
import taskvec.api
from taskvec.progress import Progress

class Result:
    ok, files, problems, seconds, seal = True, (), (), 0.0, "sealed"
    def to_dict(self): return {}

def verify(path, *, threads=None, rehash=False, progress=None):
    for step in range(20):
        progress(Progress("merge", step * 10**8, 2 * 10**9, step / 10))
        time.sleep(0.1)
    progress(Progress("publish", 3, 7, 0.1))
    return Result()

taskvec.api.verify = verify
from taskvec import cli
sys.exit(cli.run(["verify", "out", *sys.argv[1:]]))
"""


def run_long(*options: str, term: str = "xterm") -> str:
    environment = {"TERM": term, "COLUMNS": "90", "NO_COLOR": "1"}
    return on_terminal([*options], environment=environment, program=["-c", LONG]).out


def test_a_terminal_sees_amount_rate_and_time_left() -> None:
    seen = run_long()
    assert "merging" in seen
    assert re.search(r"\d GB of 2\.00 GB  \d\.\d\d GB/s  \d\.\d+ s left", seen), seen[-400:]
    assert "ok: 0 files" in seen


def test_no_bar_where_nobody_wants_one() -> None:
    seen = run_long("--quiet")
    assert "ok: 0 files" in seen
    assert not re.search("merging|finishing", seen)


def test_no_bar_where_a_terminal_cannot_draw_one() -> None:
    seen = run_long(term="dumb")
    assert "ok: 0 files" in seen
    assert not re.search("\x1b|━", seen)  # lines at most, where the run takes long


def test_the_bar_needs_no_thread() -> None:
    refused = """
import threading
def start(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
"""
    environment = {"TERM": "xterm", "COLUMNS": "90", "NO_COLOR": "1"}
    seen = on_terminal([], environment=environment, program=["-c", refused + LONG]).out
    assert "merging" in seen
    assert "ok: 0 files" in seen


@pytest.mark.parametrize("is_quiet", [False, True])
def test_no_bar_without_a_terminal_but_what_one_should_know(
    is_quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    with Console("transfer", quiet=is_quiet).progress() as callback:
        for step in range(20):
            callback(Progress("merge", step, 20, 1.0))
        callback(Progress("prepare", 0, 0, 0.0, "the old output is removed\x1b first"))
    assert capsys.readouterr().err == ("" if is_quiet else "warning: the old output is removed\\x1b first\n")


def test_a_short_job_never_imports_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    with progress.Bar() as bar:
        for step in range(1000):
            bar(Progress("merge", step, 1000, 0.0))
    assert "rich" not in sys.modules


def test_updates_are_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    drawn: list[int] = []

    class Screen:
        def add_task(self, *_: object, **__: object) -> int:
            return 0

        def update(self, _task: int, *, completed: int, **__: object) -> None:
            drawn.append(completed)

        def stop(self) -> None:
            pass

    bar = progress.Bar()
    monkeypatch.setattr(bar, "_start", Screen)
    for step in range(1000):  # ten seconds, a hundred reports a second
        clock[0] = step / 100
        bar(Progress("merge", step, 1000, clock[0]))
    assert 80 <= len(drawn) <= 100


def test_nothing_done_says_nothing() -> None:
    assert progress.words_of("merge", 0, 100, 1.0) == []
    assert progress.words_of("publish", 3, 7, 1.0) == ["3 of 7 files"]
