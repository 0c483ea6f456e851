"""Whole jobs as processes: transfer beside the machine's floor and, where it is installed, mergekit.

    pytest benches --benchmark-json=FILE

``TASKVEC_BENCH`` names a folder with checkpoints ``instruct``, ``sft`` and ``grpo`` (0.5b or larger for
figures that mean something); without it small ones are made. ``TASKVEC_MERGEKIT_PYTHON`` names an
interpreter that has mergekit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskvec import _core
from taskvec.selftest import synthetic

ROLES = ("instruct", "grpo", "sft")
LINEAR = """merge_method: linear
models:
  - {{model: {0}, parameters: {{weight: 1.0}}}}
  - {{model: {1}, parameters: {{weight: 0.8}}}}
  - {{model: {2}, parameters: {{weight: -0.8}}}}
parameters: {{normalize: false}}
dtype: bfloat16
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    given = os.environ.get("TASKVEC_BENCH")
    if given:
        return [Path(given) / role for role in ROLES]
    root = tmp_path_factory.mktemp("models")
    members: tuple[synthetic.Member, ...] = ("instruct", "grpo", "sft")
    for member in members:
        synthetic.write_checkpoint(root / member, synthetic.SHAPES["demo"], member)
    return [root / member for member in members]


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """An output path that does not exist; what the last round wrote is removed outside of the timing."""

    def clear() -> Path:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return tmp_path / "out"

    return clear


def timed(benchmark: Any, command: Callable[[Path], list[str]], fresh: Callable[[], Path]) -> None:
    def setup() -> tuple[tuple[list[str]], dict[str, Any]]:
        return (command(fresh()),), {}

    def process(line: list[str]) -> None:
        subprocess.run(line, check=True, capture_output=True)

    benchmark.pedantic(process, setup=setup, rounds=5, warmup_rounds=1)


def test_transfer(benchmark: Any, models: list[Path], fresh: Callable[[], Path]) -> None:
    target, donor, reference = map(str, models)
    job = ["transfer", "--target", target, "--donor", donor, "--reference", reference, "--alpha", "0.8"]
    timed(benchmark, lambda out: [sys.executable, "-m", "taskvec", *job, "--quiet", "-o", str(out)], fresh)


def test_floor(benchmark: Any, models: list[Path], tmp_path: Path) -> None:
    files = [str(sorted(model.glob("*.safetensors"))[0]) for model in models]
    benchmark.pedantic(lambda: _core.floor(files, str(tmp_path / "floor")), rounds=5, warmup_rounds=1)


if MERGEKIT := os.environ.get("TASKVEC_MERGEKIT_PYTHON"):

    def test_mergekit_linear(
        benchmark: Any, models: list[Path], tmp_path: Path, fresh: Callable[[], Path]
    ) -> None:
        recipe = tmp_path / "linear.yaml"
        recipe.write_text(LINEAR.format(*models))
        script = str(Path(MERGEKIT).with_name("mergekit-yaml"))
        timed(benchmark, lambda out: [script, str(recipe), str(out), "--out-shard-size", "200M"], fresh)
