"""Where the examples of the pages run: a folder with the models that they name, and a shell."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from support.pages import Block

ROLES = {"instruct": ("T", "org/code-model"), "grpo": ("D", "org/math-model"), "sft": ("R", "org/base-model")}


def make_models(folder: Path) -> Path:
    """The demo's three checkpoints; they are only read."""
    from taskvec.selftest.demo import demo

    demo(folder)
    return folder


def make_world(folder: Path, models: Path) -> Path:
    """A folder in which the demo's checkpoints have the names that pages use."""
    for name, others in ROLES.items():
        for link in (name, *others):
            (folder / link).parent.mkdir(parents=True, exist_ok=True)
            (folder / link).symlink_to(models / name)
    return folder


class Reader:
    """Someone who reads a page from the top and runs what it shows, in one terminal.

    Parameters
    ----------
    home : Path
        The folder in which the terminal opens.
    tools : Path
        A folder for the program ``taskvec``.
    variables : dict
        More of the environment.
    """

    def __init__(self, home: Path, tools: Path, variables: dict[str, str] | None = None) -> None:
        self.place = home
        tools.mkdir(parents=True, exist_ok=True)
        for name, words in (("taskvec", "-m taskvec "), ("python", "")):
            program = tools / name
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words}"$@"\n')
            program.chmod(0o755)
        self.tools = tools
        self.variables = {
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}",
            "NO_COLOR": "1",
            "HF_HUB_OFFLINE": "1",
            "TASKVEC_SCRATCH": str(tools / "scratch"),
            **(variables or {}),
        }

    def follow(self, block: Block) -> None:
        """Do what a block says.

        Raises
        ------
        AssertionError
            It does not end as the page says.
        """
        if block.mark == "not run":
            return
        if block.mark == "file":
            (self.place / block.value).write_text(block.text, encoding="utf-8")
            return
        if block.language in ("sh", "bash"):
            where = self.tools / "where"
            script = f"trap 'pwd > {shlex.quote(str(where))}' EXIT\nset -euo pipefail\n{block.text}"
            done = self._run(["bash", "-c", script])
            self.place = Path(where.read_text(encoding="utf-8").strip())
        elif block.language == "python":
            done = self._run([sys.executable, "-c", block.text])
        else:
            return
        wanted = int(block.value) if block.mark == "fails" else 0
        assert done.returncode == wanted, f"{block} ended with {done.returncode}\n{block.text}\n{done.stderr}"

    def _run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            cwd=self.place,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            stdin=subprocess.DEVNULL,
        )
