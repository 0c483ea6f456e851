"""How much of the difference of two packed models is a vector, as reports of runs say it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taskvec as tv
from support.command_line import invoke
from support.packed_checks import FP8
from support.packed_models import BY_NAME, is_packed, packed_trio


@pytest.mark.parametrize(
    "name", ["block FP8, F32 scales", "block FP8, U8 scales", "CT INT4 group 32", "CT MXFP4"]
)
def test_the_cosine_with_the_true_vector(tmp_path: Path, name: str) -> None:
    """Estimated in the run, against the vector of the models before they were quantised."""
    sizes: dict[str, Any] = {"hidden": 256, "intermediate": 384, "heads": 8, "kv_heads": 4, "step": 0.0003}
    trio, values = packed_trio(tmp_path / "packed", BY_NAME[name], **sizes)
    everyone = ("target", "donor", "reference")
    _, plain = packed_trio(tmp_path / "plain", BY_NAME[name], plain=everyone, **sizes)
    report = tv.transfer(*trio, tmp_path / "out", out_dtype="bfloat16")
    noise = report.outputs[0].noise
    assert noise is not None
    dot = squares = length = 0.0
    for each in filter(is_packed, values[0]):
        true = plain[1][each].astype(np.float64) - plain[2][each]
        found = values[1][each].astype(np.float64) - values[2][each]
        dot += (true * found).sum()
        squares += (found**2).sum()
        length += (true**2).sum()
    cosine = dot / np.sqrt(squares * length)
    assert noise.cosine == pytest.approx(cosine, abs=0.05)
    assert noise.cosine_by_size == pytest.approx(cosine, abs=0.05)
    facts = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    assert facts["noise"] == report.to_dict()["outputs"][0]["noise"]
    assert "How much of the vector is signal" in (tmp_path / "out" / "README.md").read_text()
    again = tv.transfer(*trio, tmp_path / "out", out_dtype="bfloat16")
    assert again.already_done
    assert again.outputs[0].noise == noise


@pytest.mark.parametrize("name", ["block FP8, F32 scales", "CT INT4 group 32", "CT MXFP4"])
def test_packed_output_is_measured_in_the_same_way(tmp_path: Path, name: str) -> None:
    """The line of a run that writes the format, and of a merge of one or several donors."""
    trio, _ = packed_trio(tmp_path, BY_NAME[name], step=0.002)
    plain = tv.transfer(*trio, tmp_path / "plain", out_dtype="bfloat16").outputs[0].noise
    report = tv.transfer(*trio, tmp_path / "packed", out_dtype="target", force="quantised-lost")
    assert plain is not None
    assert report.outputs[0].noise == plain
    facts = json.loads((tmp_path / "packed" / "taskvec.json").read_text())
    assert facts["noise"] == report.to_dict()["outputs"][0]["noise"]
    assert "How much of the vector is signal" in (tmp_path / "packed" / "README.md").read_text()
    target, donor, reference = map(str, trio)
    donors = [donor, shutil.copytree(donor, tmp_path / "twin")]
    for weights in ((1.0,), (0.5, 0.5)):
        document = {
            "merge_method": "task_arithmetic",
            "base_model": target,
            "models": [
                {"model": str(each), "relative_to": reference, "parameters": {"weight": weight}}
                for each, weight in zip(donors, weights, strict=False)
            ],
        }
        for out_dtype in ("bfloat16", "target"):
            out = tmp_path / f"merge-{len(weights)}-{out_dtype}"
            merged = tv.merge(document, out, out_dtype=out_dtype, force="quantised-lost").outputs[0].noise
            assert merged is not None
            same = ("codes_differ", "scales_differ", "cosine", "cosine_by_size", "cosine_by_step")
            for field in same:
                assert getattr(merged, field) == pytest.approx(getattr(plain, field), rel=1e-4), field
            assert merged.step == pytest.approx(plain.step * sum(w * w for w in weights) ** 0.5, rel=1e-4)


def test_plain_models_have_no_noise(tmp_path: Path) -> None:
    trio, _ = packed_trio(tmp_path, FP8, plain=("target", "donor", "reference"))
    vector = tv.extract(trio.donor, trio.reference, tmp_path / "vector")
    for report in (tv.transfer(*trio, tmp_path / "out"), vector):
        assert report.outputs[0].noise is None
        assert "noise" not in report.to_dict()["outputs"][0]


@pytest.mark.parametrize(
    "name", ["block FP8, F32 scales", "CT INT4 group 32", "CT MXFP4", "ModelOpt NVFP4", "MLX"]
)
def test_a_saved_vector_has_the_line_of_a_transfer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    trio, _ = packed_trio(tmp_path, BY_NAME[name], step=0.002)
    wanted = tv.transfer(*trio, tmp_path / "out", out_dtype="bfloat16").outputs[0].noise
    shown = invoke(capsys, "extract", trio.donor, trio.reference, "-o", tmp_path / "vector")
    assert shown.code == 0, shown.err
    assert "estimated cosine with the true vector" in shown.err
    facts = json.loads((tmp_path / "vector" / "taskvec.json").read_text())["noise"]
    assert wanted is not None
    for field, value in wanted.to_dict().items():
        is_word = value is None or isinstance(value, str)
        assert facts[field] == (value if is_word else pytest.approx(value, rel=1e-3)), field
    assert "How much of the vector is signal" in (tmp_path / "vector" / "README.md").read_text()
    for dtype in (None, "bfloat16"):
        report = tv.extract(trio.donor, trio.reference, tmp_path / f"lossy-{dtype}", dtype=dtype)
        assert report.to_dict()["outputs"][0]["noise"] == facts
        assert "estimated cosine" in str(report)
    again = tv.extract(trio.donor, trio.reference, tmp_path / "vector")
    assert again.already_done
    assert again.outputs[0].noise == report.outputs[0].noise
    assert tv.verify(tmp_path / "vector").ok
    assert (
        tv.apply(trio.target, tmp_path / "vector", out=tmp_path / "o", out_dtype="bfloat16").outputs[0].noise
        is None
    )
