"""Sums by torch against those of the engine: the same bytes, and the same figures."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import taskvec as tv
from taskvec.evaluation.backend.stepped import stepped
from taskvec.report.survival import Survival

TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "f64": torch.float64}
ALPHAS = (-1.0, 0.0, 0.3, 0.5, 1.0, 1.7, 1e-3, 3.0)


def values(seed: int, count: int, kind: str) -> torch.Tensor:
    """Weights in float64: like those of models, of all magnitudes, or next to zero and its subnormals."""
    draw = torch.Generator().manual_seed(seed)
    plain = torch.randn(count, generator=draw, dtype=torch.float64) * 0.02
    if kind == "plain":
        return plain
    power = torch.randint(-40, 12, (count,), generator=draw).double()
    if kind == "wide":
        return plain * torch.exp2(power)
    return torch.randint(-9, 10, (count,), generator=draw).double() * 2.0**-133


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> str:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return str(folder)


def models(tmp_path: Path, types: tuple[str, str, str], kind: str) -> tuple[dict[str, torch.Tensor], ...]:
    """Target, donor, reference; a fifth of the target is the reference's, and some steps are zero."""
    count = 70_000  # more than a tile that the engine measures in one loop
    reference = values(1, count, kind)
    target = torch.where(torch.arange(count) % 5 == 0, reference, values(2, count, kind))
    step = values(3, count, kind) * (0.01 if kind == "plain" else 1.0)
    donor = torch.where(torch.arange(count) % 3 == 0, reference, reference + step)
    donor[7::11] = 2 * reference[7::11] - target[7::11]  # sums that cancel at alpha 1
    made = tuple(
        {"w": each.clone().to(TYPES[dtype]).reshape(100, 700), "b": each[:97].clone().to(TYPES[dtype])}
        for each, dtype in zip((target, donor, reference), types, strict=True)
    )
    for name, tensors in zip(("t", "d", "r"), made, strict=True):
        write(tmp_path / name, tensors)
    return made


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


SAME = [(name,) * 3 for name in TYPES]
MIXED = [("bf16", "f32", "f32"), ("f16", "bf16", "f32"), ("f32", "bf16", "bf16"), ("bf16", "f64", "bf16")]


CASES = [*itertools.product(SAME, ("plain", "wide")), (SAME[0], "tiny"), *((m, "plain") for m in MIXED)]


@pytest.mark.parametrize(("types", "kind"), CASES)
def test_bytes_and_figures_are_the_engines(types: tuple[str, str, str], kind: str, tmp_path: Path) -> None:
    target, donor, reference = models(tmp_path, types, kind)
    folders = [str(tmp_path / name) for name in ("t", "d", "r")]
    report = tv.transfer(*folders, tmp_path / "out", alpha=ALPHAS, force=tv_force(types))
    for alpha, output in zip(ALPHAS, report.outputs, strict=True):
        sums = {}
        with safe_open(Path(output.folder) / "model.safetensors", "pt") as file:
            for name in target:
                made, sums[name] = stepped(target[name], donor[name], reference[name], alpha)
                assert torch.equal(bits(made), bits(file.get_tensor(name))), (alpha, name)
        for name, row in output.tensors.items():
            assert_close(Survival.of_sums([sums[name]]), row)
        assert output.survival is not None
        assert_close(Survival.of_sums(sums[name] for name in output.tensors), output.survival)


def assert_close(found: Survival, expected: Survival) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or one == pytest.approx(other, rel=2e-5)


def tv_force(types: tuple[str, str, str]) -> tuple[str, ...]:
    return () if len(set(types)) == 1 else ("dtype",)
