"""What an editor knows of an expression: pyright's types of the operators, the methods and the results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import taskvec

PROGRAM = """
from typing import reveal_type
import taskvec as tv

donor, reference, target = tv.open("d"), tv.open("r"), tv.open("t")
vector = donor - reference
reveal_type(vector)  # TaskVector
reveal_type(0.8 * vector)  # TaskVector
reveal_type(vector * 2)  # TaskVector
reveal_type(vector / 2)  # TaskVector
reveal_type(-vector + vector - vector)  # TaskVector
reveal_type(target + 0.8 * vector)  # Merge
reveal_type(target - vector)  # Merge
reveal_type(target + vector + vector)  # Merge
reveal_type(target + vector - vector)  # Merge
reveal_type((target + vector).plan())  # Plan
reveal_type((target + vector).save("out", overwrite=True, threads=2, progress=True))  # Report
reveal_type(next(target.values()))  # ndarray
reveal_type(target.get("x"))  # ndarray | None
reveal_type(list(vector.keys()))  # list[str]
reveal_type(tv.check("t", "d", "r"))  # Findings
reveal_type(tv.diff("a", "b", progress=True))  # Difference
merged = tv.ties(["a", target], base="c", weight=[0.5, 0.5], density=0.3, lambda_=1.0)
reveal_type(merged)  # RecipeMerge
reveal_type(merged.plan(threads=2))  # Plan
reveal_type(merged.save("out", overwrite=True, threads=2))  # Report
for name, tensor in merged.items(threads=1):
    reveal_type(name)  # str
    reveal_type(tensor)  # ndarray
report = tv.sweep(target="t", donor="d", reference="r", rivals=["s"], tasks="gsm8k", alphas=[0.5, 1],
                  controls={"random": 2}, evaluation={"limit": 20, "batch_size": "auto"}, out="o")
reveal_type(report)  # SweepReport
reveal_type(tv.evaluate("m", tasks=["sciq"], limit=0.5, model_args={"dtype": "bfloat16"}))  # SweepReport
reveal_type(tv.search("space.yaml", "o", budget=20))  # SearchResult
reveal_type(tv.importance("m", "o", tasks="sciq", labels="model", device="cpu"))  # ImportanceReport
reveal_type(tv.demo("d", overwrite=True))  # DemoResult
reveal_type(tv.demo(paper=True, seed=2))  # Miniature
"""
WRONG = """
import taskvec as tv

target, vector = tv.open("t"), tv.open("d") - tv.open("r")
target + target  # error
vector + 1.0  # error
vector * "2"  # error
target + "t"  # error
tv.ties(["a"], base="c", weight=1.0, densty=0.5)  # error
tv.ties(["a"], base="c", weight=1.0, density="half")  # error
tv.ties(["a"], base="c")  # error
tv.ties(["a"], base="c", weight=1.0, rescale_norm="l2")  # error
(target + vector).save("out", thread=2)  # error
tv.ties(["a"], base="c", weight=1.0).save("out", overwrit=True)  # error
tv.sweep(target="t", donor="d", reference="r", taskss="gsm8k", out="o")  # error
tv.sweep(target="t", donor="d", reference="r", tasks="gsm8k", evaluation={"limitt": 3}, out="o")  # error
tv.evaluate("m", tasks="sciq", limit="all")  # error
tv.evaluate("m", tasks="sciq", kind="vectr")  # error
tv.search("space.yaml", "o", budget="much")  # error
tv.importance("m", "o", tasks="sciq", samples=3)  # error
tv.demo(seed=2)  # error
tv.demo(paper=True, threads=2)  # error
"""


def checked(program: str, folder: Path) -> list[dict[str, object]]:
    """What pyright says of a program that imports the package."""
    (folder / "program.py").write_text(program)
    config = {"extraPaths": [str(Path(taskvec.__file__).parents[1])], "typeCheckingMode": "standard"}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)["generalDiagnostics"]


def expected(program: str) -> dict[int, str]:
    """The comments of a program, by their lines, counted from zero."""
    lines = program.splitlines()
    return {number: line.rpartition("# ")[2] for number, line in enumerate(lines) if "  # " in line}


@pytest.mark.parametrize("name", ["revealed", "wrong"])
def test_what_pyright_says(name: str, tmp_path: Path) -> None:
    program = {"revealed": PROGRAM, "wrong": WRONG}[name]
    found: dict[int, str] = {}
    for each in checked(program, tmp_path):
        line = each["range"]["start"]["line"]  # type: ignore[index]
        if name == "wrong" and each["severity"] == "error":
            found[line] = "error"
        elif name == "revealed" and each["severity"] != "warning":
            found[line] = short(str(each["message"]))
    assert found == expected(program)


def short(message: str) -> str:
    """The type in a message of `reveal_type`, without the parameters of an array."""
    kind = message.rpartition(' is "')[2].rstrip('"') if ' is "' in message else message
    return "ndarray" + kind[kind.rindex("]") + 1 :] if kind.startswith("ndarray[") else kind
