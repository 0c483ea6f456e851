"""The benchmark for GPU machines, on the CPU with a tiny shape."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from support.evaluation_models import small, tiny
from taskvec.evaluation.sweep.sweep import run_sweep

SCRIPT = Path(__file__).parents[2] / "benches" / "gpu" / "bench_gpu.py"


def carried(root: Path) -> Path:
    """A sweep on the CPU with its models and tasks, by paths in its folder."""
    models = tiny()
    for path in (models.target, models.reference, models.donor):
        shutil.copytree(path, root / path.name)
    shutil.copytree(models.tasks, root / "tasks")
    task = (root / "tasks" / "tiny_choice.yaml").read_text().replace(str(models.tasks), "tasks")
    (root / "tasks" / "tiny_choice.yaml").write_text(task)
    here = Path.cwd()
    os.chdir(root)
    try:
        whole = small(
            target="target", donor="donor", reference="reference", base=None, alphas=[1], perturb=[],
            controls={"random": 0, "permuted": 0},
            evaluation={"device": "cpu", "batch_size": 8, "include_path": "tasks"},
        )  # fmt: skip
        run_sweep(whole, root / "out")
    finally:
        os.chdir(here)
    for name in ("experiment.yaml", "report.json"):
        shutil.copy(root / "out" / name, root / name)
    return root


def test_every_part_is_measured_or_says_why_not(tmp_path: Path) -> None:
    folder = carried(tmp_path / "carried")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out"), "--shape", "tiny", "--limit", "8"]
    command += ["--batches", "4,8,auto", "--miniature", str(folder), "--seconds", "3000"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert set(record["not_measured"]) == {"vllm"}
    assert record["vllm"] is None
    for batch in ("4", "8", "auto"):
        found = record[f"eval {batch}"]
        assert found["batch_size"] == (16 if batch == "auto" else int(batch))
        assert found["tokens"] > 0
        assert found["tokens_per_second"] > 0
        assert found["peak_bytes"] > 0
    for way in ("in place", "merged"):
        made = record[f"sweep {way}"]
        assert set(made["seconds_besides_generation"]) == {"alpha=0", "alpha=1", "random-1", "permuted-1"}
        assert made["checks"] == [["alpha=0", 8, 0]]
    assert record["miniature"]["same"] is True
    assert record["miniature"]["cpu"].keys() == {"tiny_choice"}
    assert "not measured: vllm is not installed" in (tmp_path / "out" / "record.md").read_text()


def test_no_part_begins_once_the_time_is_over(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out"), "--shape", "tiny", "--seconds", "0"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, capture_output=True, env=environment, check=True)
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["transfer"] is None
    assert "no time was left" in record["not_measured"]["transfer"]
    assert record["sweep in place"] is None
