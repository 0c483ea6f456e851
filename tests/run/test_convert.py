"""Checkpoints converted: dequantised, cast, packed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.models import DTYPES, read_tensors
from support.packed_checks import FP8
from support.packed_models import BY_NAME, WAYS, Way, is_packed, packed_trio
from taskvec.errors import RecipeError


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_convert_to_plain_weights(tmp_path: Path, way: Way) -> None:
    trio, values = packed_trio(tmp_path, way)
    tv.convert(trio.target, tmp_path / "out")
    out = read_tensors(tmp_path / "out")
    assert list(out) == list(values[0])
    for name, value in values[0].items():
        assert np.array_equal(out[name], value.astype(DTYPES["BF16"])), name
    assert not tv.open(tmp_path / "out").packed
    assert tv.verify(tmp_path / "out").ok


def test_convert_casts(tmp_path: Path) -> None:
    trio, values = packed_trio(tmp_path, FP8, plain=("target",))
    tv.convert(trio.target, tmp_path / "out", out_dtype="float32")
    out = read_tensors(tmp_path / "out")
    assert all(np.array_equal(out[name], value.astype(np.float32)) for name, value in values[0].items())
    with pytest.raises(RecipeError, match="plain already"):
        tv.plan_convert(trio.target)


NEW = {
    "fp8-block": ("block FP8, F32 scales", 0.03),
    "fp8-channel": ("CT FP8 channel", 0.03),
    "int8-channel": ("CT INT8", 0.012),
    "mxfp4": ("CT MXFP4", 0.13),
    "int4-g32": ("CT INT4 group 32", 0.11),
}


@pytest.mark.parametrize("form", NEW)
def test_convert_to_a_packed_format(tmp_path: Path, form: str) -> None:
    name, bound = NEW[form]
    sizes = {"hidden": 256, "intermediate": 384, "heads": 8, "kv_heads": 4}
    trio, values = packed_trio(tmp_path, BY_NAME[name], plain=("target",), **sizes)
    report = tv.convert(trio.target, tmp_path / "out", out_dtype=form, keep="k_proj")
    model = tv.open(tmp_path / "out")
    assert model.unreadable is None
    wanted = {each for each in values[0] if is_packed(each) and "k_proj" not in each}
    assert model.packed.keys() == wanted
    for each, value in values[0].items():
        value = value.astype(np.float64)
        error = np.linalg.norm(model[each].astype(np.float64) - value) / (np.linalg.norm(value) or 1.0)
        assert error < bound if each in wanted else error == 0.0
        if each in wanted:
            row = next(row for name, row in report.outputs[0].tensors.items() if name.startswith(each))
            assert row.format_error == pytest.approx(error, rel=1e-3)
    assert "moved the weights by" in str(report)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    plain = config.get("modules_to_not_convert") or config["ignore"]
    assert "model.layers.0.self_attn.k_proj" in plain
    assert "model.layers.0.self_attn.q_proj" not in plain
    tv.convert(tmp_path / "out", tmp_path / "back")
    assert list(read_tensors(tmp_path / "back")) == list(values[0])


def test_convert_refuses_words_that_are_no_form(tmp_path: Path) -> None:
    trio, _ = packed_trio(tmp_path, FP8, plain=("target",))
    with pytest.raises(RecipeError, match="fp8-blok"):
        tv.plan_convert(trio.target, out_dtype="fp8-blok")
    with pytest.raises(RecipeError, match="converted to"):
        tv.plan_transfer(*trio, out_dtype="fp8-block")
    with pytest.raises(RecipeError, match="own format already"):
        tv.plan_convert(trio.donor, out_dtype="target")
