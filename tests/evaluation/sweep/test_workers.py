"""Processes that evaluate: what starts them is not run again in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import multiprocessing, sys
from taskvec.evaluation.sweep.workers import start_undisturbed

with open("runs", "a") as file:
    file.write("once ")
process = multiprocessing.get_context("spawn").Process(target=print, args=("from the child",))
start_undisturbed(process)
process.join()
print(__name__, sys.modules["__main__"].__dict__.get("__file__"))
sys.exit(process.exitcode)
"""


@pytest.mark.parametrize("way", ["a script without a guard", "standard input", "a module"])
def test_a_program_is_not_run_again_in_its_workers(tmp_path: Path, way: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    words = {
        "a script without a guard": ["program.py"],
        "standard input": ["-"],
        "a module": ["-m", "program"],
    }
    done = subprocess.run(
        [sys.executable, *words[way]],
        cwd=tmp_path,
        input=PROGRAM,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "from the child" in done.stdout
    assert (tmp_path / "runs").read_text() == "once "
    assert done.stdout.splitlines()[-1].startswith("__main__ ")
    assert done.stdout.rstrip().endswith({"standard input": "<stdin>"}.get(way, "program.py"))
