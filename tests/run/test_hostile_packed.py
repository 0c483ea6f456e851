"""Packed checkpoints whose scales are damaged: the weight and the model are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taskvec as tv
from support.models import Trio, edit_json, read_tensors, safetensors_bytes
from support.packed_checks import FP8, UP, near
from taskvec.errors import CompatibilityError


def damaged(trio: Trio, role: str, change: Any) -> None:
    folder = getattr(trio, role)
    tensors = read_tensors(folder)
    change(tensors)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))


SCALE = f"{UP}_scale_inv"


@pytest.mark.parametrize("role", ["target", "donor", "reference"])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop(SCALE), "has no scales next to it"),
        (lambda t: t.update({f"{UP}x_scale_inv": t[SCALE]}), "belongs to no packed weight"),
        (lambda t: t.update({SCALE: t[SCALE][:1]}), "another grid than"),
        (lambda t: t.update({SCALE: t[SCALE].astype(np.float64)}), "another type than"),
        (lambda t: t.update({SCALE: np.ones(t[SCALE].shape, np.int32)}), "another type than"),
        (lambda t: t.update({UP: t[UP].view(np.int8)}), ""),
    ],
)
def test_damaged_weights_are_named(packed: Any, tmp_path: Path, role: str, change: Any, text: str) -> None:
    trio, _ = packed
    damaged(trio, role, change)
    with pytest.raises(CompatibilityError) as caught:
        tv.transfer(*trio, tmp_path / "out")
    found = [each for each in caught.value.findings if each.id == "quantised"]
    assert [each.subject for each in found] == [role]
    assert text in found[0].found
    assert not (tmp_path / "out").exists()


def test_a_config_that_says_another_block(packed: Any) -> None:
    trio, _ = packed
    edit_json(trio.donor / "config.json", quantization_config={**FP8.config, "weight_block_size": [64, 64]})
    (found,) = [each for each in tv.check(*trio) if each.id == "quantised"]
    assert found.subject == "donor"
    assert "blocks of 64x64" in found.found


@pytest.mark.parametrize("value", [np.nan, 0.0, np.inf])
def test_scales_that_are_no_numbers(packed: Any, tmp_path: Path, value: float) -> None:
    trio, values = packed

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[SCALE] = np.full_like(tensors[SCALE], value)

    damaged(trio, "target", change)
    if value == 0.0:
        tv.transfer(*trio, tmp_path / "out", out_dtype="bfloat16")
        near(read_tensors(tmp_path / "out")[UP], ({UP: values[0][UP] * 0}, *values[1:]), UP)
    else:
        with pytest.raises(tv.Error, match=r"NaN or infinity|not finite"):
            tv.transfer(*trio, tmp_path / "out", out_dtype="bfloat16")
