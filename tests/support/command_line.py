"""Running the command line in tests: in this process, as a process of its own, and on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from taskvec import cli

PLAIN = {"NO_COLOR": "1", "COLUMNS": "80", "LINES": "40"}


@dataclass(frozen=True)
class Outcome:
    """What one command printed, and its exit code."""

    code: int
    out: str
    err: str


def invoke(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run a command in this process."""
    capsys.readouterr()
    code = cli.run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return Outcome(code, out, err)


def spawn(
    arguments: Sequence[object], *, environment: Mapping[str, str] | None = None, timeout: float = 60
) -> Outcome:
    """Run a command as a process of its own, with pipes."""
    done = subprocess.run(
        [sys.executable, "-m", "taskvec", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def on_terminal(
    arguments: Sequence[object],
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float = 60,
    program: Sequence[str] = ("-m", "taskvec"),
) -> Outcome:
    """Run a command whose stdout and stderr are a terminal; both come back in `out`, line ends as ``\\n``."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, **(environment or {})},
    )
    os.close(child)
    seen = b""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if not select.select([parent], [], [], 0.1)[0]:
            continue
        try:
            piece = os.read(parent, 65536)
        except OSError:  # Linux: EIO once the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(parent)
    return Outcome(process.wait(timeout=10), seen.decode(errors="replace").replace("\r\n", "\n"), "")


def as_seen(written: str) -> str:
    """What a terminal was sent without the codes that move its cursor and colour its text."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)


def killed_when_seen(command: Sequence[object], folder: Path, sign: str) -> bool:
    """Start a command and kill it as soon as one more file is called so there; False: it ended before."""
    before = set(folder.glob(sign))
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not set(folder.glob(sign)) - before:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL
