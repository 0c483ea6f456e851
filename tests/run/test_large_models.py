"""Checkpoints with the tensor names of very large models are planned and run, vectors of them too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.large import Name, deepseek_v3, qwen36_35b_a3b, write_large
from support.models import DTYPES

MODELS = {"qwen": (qwen36_35b_a3b, 42), "deepseek": (deepseek_v3, 163)}


@pytest.fixture(params=MODELS)
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    names: Callable[[], Iterator[Name]]
    names, shards = MODELS[request.param]
    rows = list(names())
    return [
        write_large(tmp_path / role, rows, shards, {"model_type": "qwen2"}, seed)
        for seed, role in enumerate("tdr")
    ]


def expected(folders: list[Path], name: str) -> np.ndarray:
    values = [tv.open(folder)[name].astype(np.float64) for folder in folders]
    return values[0] + values[1] - values[2]


def test_the_targets_own_format(tmp_path: Path, folders: list[Path]) -> None:
    report = tv.transfer(*folders, tmp_path / "out", out_dtype="target")
    assert len(report.outputs[0].shards) == len(list(folders[0].glob("*.safetensors")))
    target, out = tv.open(folders[0]), tv.open(tmp_path / "out")
    assert {name: info[:3] for name, info in out.stored.items()} == {
        name: info[:3] for name, info in target.stored.items()
    }
    name = list(target.packed)[-1]
    step = (
        np.abs(expected(folders, name)).max() / 448 * 32
    )  # the widest step of the format at its largest value
    assert np.allclose(out[name], expected(folders, name), atol=step)
    assert tv.verify(tmp_path / "out").ok


def test_a_saved_vector(tmp_path: Path, folders: list[Path]) -> None:
    tv.extract(*folders[1:], tmp_path / "v")
    tv.apply(folders[0], tmp_path / "v", out=tmp_path / "out", out_dtype="bfloat16")
    target, out = tv.open(folders[0]), tv.open(tmp_path / "out")
    assert list(out) == list(target)
    name = list(target.packed)[-1]
    want = expected(folders, name).astype(np.float32).astype(DTYPES["BF16"]).astype(np.float32)
    assert np.allclose(out[name].astype(np.float32), want, rtol=2**-7)
