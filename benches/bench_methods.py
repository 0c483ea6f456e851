"""Every merge method as a whole process, beside the machine's floor and, where it is installed, mergekit.

    python benches/bench_methods.py MODELS [--runs 5] [--mergekit PYTHON] [--record DIR] [METHOD ...]

MODELS is a folder with checkpoints ``instruct``, ``sft`` and ``grpo``, best in memory, where figures are
steady. Runs of taskvec and of the floor alternate, the first of each is discarded, and medians are printed;
mergekit runs once, on methods that it has. Methods with importance maps read one for each model, as large as
the model. Under pytest everything is run once, on small checkpoints.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from taskvec import _core, host
from taskvec.selftest import synthetic

TARGET, DONOR, REFERENCE = range(3)
HALF = {"weight": 0.5}
DENSE = {"weight": 0.5, "density": 0.5}
STEPS = {DONOR: {}, REFERENCE: {}}
# Method -> its models with their parameters, the base, and the parameters of the merge.
RECIPES: dict[str, tuple[dict[int, dict[str, float]], int | None, dict[str, Any]]] = {
    "linear": (
        {TARGET: {"weight": 1.0}, DONOR: {"weight": 0.8}, REFERENCE: {"weight": -0.8}},
        None,
        {"normalize": False},
    ),
    "task_arithmetic": ({DONOR: HALF, REFERENCE: HALF}, TARGET, {}),
    "slerp": ({TARGET: {}, DONOR: {}}, TARGET, {"t": 0.3}),
    "nuslerp": ({TARGET: {"weight": 0.7}, DONOR: {"weight": 0.3}}, None, {}),
    "dare_linear": ({DONOR: DENSE, REFERENCE: DENSE}, TARGET, {}),
    "dare_ties": ({DONOR: DENSE, REFERENCE: DENSE}, TARGET, {}),
    "ties": ({DONOR: DENSE, REFERENCE: DENSE}, TARGET, {}),
    "breadcrumbs": ({DONOR: DENSE, REFERENCE: DENSE}, TARGET, {}),
    "breadcrumbs_ties": ({DONOR: DENSE, REFERENCE: DENSE}, TARGET, {}),
    "della": ({DONOR: DENSE, REFERENCE: DENSE}, TARGET, {}),
    "della_linear": ({DONOR: DENSE, REFERENCE: DENSE}, TARGET, {}),
    "sce": (STEPS, TARGET, {"select_topk": 0.5}),
    "model_stock": (STEPS, TARGET, {}),
    "ram": (STEPS, TARGET, {}),
    "multislerp": ({TARGET: {"weight": 0.4}, DONOR: {"weight": 0.3}, REFERENCE: {"weight": 0.3}}, None, {}),
    "karcher": ({TARGET: {}, DONOR: {}, REFERENCE: {}}, None, {}),
    "fisher": ({DONOR: HALF, REFERENCE: HALF}, None, {}),
    "sar": ({DONOR: DENSE, REFERENCE: DENSE}, TARGET, {}),
}
WITH_MAPS = {"fisher", "sar"}  # which mergekit does not have
METHODS = ("transfer", *RECIPES)


def recipe(method: str, models: list[str]) -> dict[str, Any]:
    """A recipe in mergekit's format for target, donor and reference."""
    inputs, base, merged = RECIPES[method]
    rows = [{"model": models[role], **({"parameters": p} if p else {})} for role, p in inputs.items()]
    document: dict[str, Any] = {"merge_method": method, "models": rows, "dtype": "bfloat16"}
    if method in WITH_MAPS:
        for row in rows:
            row["importance"] = map_of(row["model"])
    if base is not None:
        document["base_model"] = models[base]
    if merged:
        document["parameters"] = merged
    return document


def read_by(method: str) -> set[int]:
    """Which models a job reads."""
    if method == "transfer":
        return {TARGET, DONOR, REFERENCE}
    inputs, base, _ = RECIPES[method]
    return {*inputs, *(() if base is None else (base,))}


def map_of(model: str) -> str:
    """Where the importance map of a checkpoint is."""
    return f"{model}-importance"


def write_map(model: Path) -> None:
    """A map of the magnitudes of a checkpoint's weights, which are bfloat16: the same bytes without signs."""
    folder = Path(map_of(str(model)))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)
    for file in map(Path, weights(str(folder))):
        data = np.fromfile(file, np.uint8)
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        data[start:].view(np.uint16)[:] &= 0x7FFF
        data.tofile(file)


def weights(model: str) -> list[str]:
    """The weight files of a checkpoint."""
    return [str(path) for path in sorted(Path(model).glob("*.safetensors"))]


class Bench:
    """The jobs on three checkpoints."""

    def __init__(self, models: Path, room: Path, mergekit: str | None) -> None:
        self.models = [str(models / role) for role in ("instruct", "grpo", "sft")]
        self.room = room
        self.mergekit = mergekit
        # as a user starts it: with what Python has compiled
        self.environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def floor(self, method: str) -> float:
        """Seconds to read what the method reads and write one output."""
        files = [file for role in sorted(read_by(method)) for file in weights(self.models[role])]
        if method in WITH_MAPS:
            files += [file for role in RECIPES[method][0] for file in weights(map_of(self.models[role]))]
        seconds = _core.floor(files, self.room / "floor")
        (self.room / "floor").unlink(missing_ok=True)
        return seconds

    def ours(self, method: str) -> float:
        """Seconds of the command."""
        target, donor, reference = self.models
        if method == "transfer":
            job = ["transfer", "--target", target, "--donor", donor, "--reference", reference, "--alpha=0.8"]
            job += ["-o", "{out}"]
        else:
            job = ["merge", self.recipe(method), "{out}"]
        return self.process([sys.executable, "-m", "taskvec", *job, "--no-input-digests", "--quiet"])

    def theirs(self, method: str) -> float:
        """Seconds of mergekit on the same recipe, with the setting at which it is fastest."""
        script = str(Path(self.mergekit or "").with_name("mergekit-yaml"))
        file = self.recipe("linear" if method == "transfer" else method)
        return self.process([script, file, "{out}", "--out-shard-size", "200M"])

    def recipe(self, method: str) -> str:
        """Its file. JSON is YAML."""
        file = self.room / f"{method}.yaml"
        file.write_text(json.dumps(recipe(method, self.models)))
        return str(file)

    def process(self, line: list[str]) -> float:
        """Seconds of a whole process that writes a folder, which is removed."""
        out = self.room / "out"
        line = [str(out) if word == "{out}" else word for word in line]
        begin = time.perf_counter()
        done = subprocess.run(line, capture_output=True, text=True, env=self.environment)
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise SystemExit(f"{' '.join(line)} failed:\n{done.stderr[-2000:]}")
        shutil.rmtree(out)
        return seconds

    def measure(self, method: str, runs: int) -> dict[str, float]:
        """Medians of interleaved runs."""
        pairs = [(self.floor(method), self.ours(method)) for _ in range(runs + 1)][1:]
        floor, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        row = {"floor": floor, "seconds": ours, "times_floor": ours / floor}
        if self.mergekit and method not in WITH_MAPS:
            row["mergekit"] = self.theirs(method)
            row["faster"] = row["mergekit"] / ours
        return row


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, metavar="MODELS")
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="all, if none is named")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--mergekit", metavar="PYTHON", help="an interpreter that has mergekit")
    parser.add_argument("--record", type=Path, metavar="DIR")
    given = parser.parse_args(arguments)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=given.models) as room:
        bench = Bench(given.models.resolve(), Path(room), given.mergekit)
        if WITH_MAPS & set(given.methods or METHODS):
            for role in (DONOR, REFERENCE):
                write_map(Path(bench.models[role]))
        for method in given.methods or METHODS:
            rows[method] = bench.measure(method, given.runs)
            print(f"{method:17}", *(f"{key} {value:.2f}" for key, value in rows[method].items()), flush=True)
    if given.record:
        print(record(given.record, rows))
    return rows


def record(folder: Path, rows: dict[str, Any], name: str = "methods") -> Path:
    """Write the table beside those of ``taskvec bench``."""
    facts = {
        "cpu": host.cpu_name(),
        "cores": host.cores(),
        "memory_bytes": host.memory_total(),
        "python": platform.python_version(),
        "taskvec": _core.__version__,
    }
    home = folder / re.sub(r"[^a-z0-9]+", "-", str(facts["cpu"]).lower()).strip("-")
    home.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.now(datetime.UTC)
    file = home / f"{date:%Y-%m-%d}-{name}.json"
    content = {"schema": 1, "date": date.isoformat(timespec="seconds"), "machine": facts, name: rows}
    file.write_text(json.dumps(content, indent=2) + "\n")
    return file


def test_methods(tmp_path: Path, capsys: Any) -> None:
    members: tuple[synthetic.Member, ...] = ("instruct", "grpo", "sft")
    for member in members:
        synthetic.write_checkpoint(tmp_path / member, synthetic.SHAPES["demo"], member)
    rows = main([str(tmp_path), "transfer", "linear", "slerp", "ties", "fisher", "sar", "--runs", "1"])
    assert all(row["seconds"] > 0 and row["floor"] > 0 for row in rows.values())
    assert len(capsys.readouterr().out.splitlines()) == 6


if __name__ == "__main__":
    main()
