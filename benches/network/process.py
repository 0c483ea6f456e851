"""taskvec as a process, and what it holds meanwhile: scratch on the disk, anonymous memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from network.hosts import Host

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


@dataclass
class Ran:
    """What became of a process.

    Attributes
    ----------
    seconds : float
    report : dict
        What it printed.
    scratch, memory : int
        The most bytes that its scratch folder had on the disk, and that it had in anonymous memory.
    """

    seconds: float
    report: dict[str, Any]
    scratch: int
    memory: int


class Process:
    """taskvec at work."""

    def __init__(self, words: Sequence[str], scratch: Path, host: Host | None = None) -> None:
        own = {"AWS_ENDPOINT_URL": host.store} if host is not None else {}
        self.scratch_folder, self.scratch, self.memory = scratch, 0, 0
        scratch.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "taskvec", *words, "--json", "--quiet"]
        self._out, self._error = scratch.with_suffix(".json"), scratch.with_suffix(".err")
        self.begin = time.monotonic()
        environment = _environment({**CREDENTIALS, **own, "TASKVEC_SCRATCH": str(scratch)})
        with open(self._out, "wb") as out, open(self._error, "wb") as error:
            words = host.command(command) if host is not None else command
            self._process = subprocess.Popen(words, stdout=out, stderr=error, env=environment)

    def look(self) -> bool:
        """Note what it holds now; whether it runs."""
        is_running = self._process.poll() is None
        if is_running:
            self.scratch = max(self.scratch, _on_disk(self.scratch_folder))
            self.memory = max(self.memory, _anonymous(self._process.pid))
        else:
            self.seconds = time.monotonic() - self.begin
        return is_running

    def result(self) -> Ran:
        """What became of it."""
        assert self._process.returncode == 0, self._error.read_text(encoding="utf-8")
        report = json.loads(self._out.read_text(encoding="utf-8"))
        return Ran(self.seconds, report, self.scratch, self.memory)


def run_all(processes: Sequence[Process]) -> list[Ran]:
    """Wait for processes, looking at each ten times a second."""
    running = list(processes)
    while running:
        running = [each for each in running if each.look()]
        time.sleep(0.1)
    return [each.result() for each in processes]


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**kept, **more}


def _on_disk(folder: Path) -> int:
    total = 0
    for level, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(level, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def _anonymous(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
