"""Where the examples of the pages run: a folder with the models that they name, and a shell."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from support.pages import Block

ROLES = {
    "instruct": ("T", "org/code-model", "org/instruct"),
    "grpo": ("D", "org/math-model", "org/grpo"),
    "sft": ("R", "org/base-model", "org/sft"),
}
# SLURM for one machine: a task of an array after the other.
SBATCH = """#!/bin/bash
while [ $# -gt 0 ]; do
  case "$1" in
    --wrap) shift; bash -c "$1"; exit ;;
    --*) ;;
    *) script=$1 ;;
  esac
  shift
done
range=$(sed -n 's/^#SBATCH --array=\\([0-9]*-[0-9]*\\).*/\\1/p' "$script")
export SLURM_CPUS_PER_TASK=2 SLURM_TMPDIR="$PWD/node"
for SLURM_ARRAY_TASK_ID in $(seq "${range%-*}" "${range#*-}"); do
  export SLURM_ARRAY_TASK_ID
  bash -euo pipefail "$script" >&2 || exit
done
echo 17
"""


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
        for name, text in (("srun", '#!/bin/sh\nexec "$@"\n'), ("sbatch", SBATCH)):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
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
            timeout=900,
            check=False,
            stdin=subprocess.DEVNULL,
        )
