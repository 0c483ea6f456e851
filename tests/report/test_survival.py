"""Survival has a word of its own for measured, zero, not measured and not finite, wherever it is read."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import taskvec as tv
from support.models import Tensors, Trio, read_tensors, write_weights
from taskvec.plan.rows import encode
from taskvec.report.card import _survival
from taskvec.report.report import parse_engine_report
from taskvec.report.survival import Survival, survival_words
from taskvec.run.execute import _merged_tensors

MERGES = {
    "slerp": lambda a, b: tv.slerp([b], base=a, t=0.5),
    "linear": lambda a, b: tv.linear([a, b], weight=0.5),
    "nuslerp": lambda a, b: tv.nuslerp([a, b], weight=0.5),
    "multislerp": lambda a, b: tv.multislerp([a, b], weight=0.5),
    "karcher": lambda a, b: tv.karcher([a, b]),
    "passthrough": lambda a, b: tv.passthrough([a], scale=0.5),  # noqa: ARG005
}


def everywhere(out: Path) -> tuple[str, str]:
    """The status that manifest and `inspect` give, which are equal, and the card's text."""
    manifest = json.loads((out / "taskvec.json").read_text())
    seen = tv.inspect(out)
    assert seen.survival_status == manifest["survival"]["status"] == seen.to_dict()["made"]["survival_status"]
    return manifest["survival"]["status"], (out / "README.md").read_text()


@pytest.mark.parametrize("method", MERGES)
def test_not_measured(trio: Trio, tmp_path: Path, method: str) -> None:
    report = MERGES[method](trio.target, trio.donor).save(tmp_path / "out")
    assert (report.survival, report.survival_status) == (None, "not-measured")
    assert report.to_dict()["outputs"][0]["survival"] is None
    assert report.to_dict()["outputs"][0]["survival_status"] == "not-measured"
    status, card = everywhere(tmp_path / "out")
    assert status == "not-measured"
    for text in (card, str(report)):
        assert "step is zero" not in text
        assert "ot measured" in text
    assert "rounded-away" not in [each.id for each in report.findings]


def test_zero(trio: Trio, tmp_path: Path) -> None:
    report = tv.transfer(*trio, tmp_path / "out", alpha=0.0)
    assert report.survival_status == "zero"
    assert "step is zero" in str(report)
    status, card = everywhere(tmp_path / "out")
    assert (status, "step is zero" in card) == ("zero", True)


def test_measured(trio: Trio, tmp_path: Path) -> None:
    report = tv.transfer(*trio, tmp_path / "out")
    assert report.survival_status == "measured"
    assert everywhere(tmp_path / "out")[0] == "measured"
    assert tv.inspect(trio.target).survival_status is None


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_not_finite(trio: Trio, tmp_path: Path, value: float) -> None:
    for folder in trio:
        buffer: Tensors = {"model.layers.0.masked_bias": np.array(value, ml_dtypes.bfloat16)}
        write_weights(folder, {**read_tensors(folder), **buffer})
    report = tv.transfer(*trio, tmp_path / "out", force="non-finite")
    before, after = read_tensors(trio.target), read_tensors(tmp_path / "out")
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    assert report.survival is not None
    assert (report.survival.step_norm, report.survival_status) == (None, "not-finite")
    assert report.survival.changed > 0
    status, card = everywhere(tmp_path / "out")
    assert status == "not-finite"
    for text in (card, str(report)):
        assert "step is zero" not in text
        assert "NaN or infinite" in text
        assert "exactly as asked" not in text


def test_an_output_that_overflows_is_not_complete(tmp_path: Path) -> None:
    models = []
    for name, value in (("target", 60000.0), ("donor", 60000.0), ("reference", 1.0)):
        write_weights(tmp_path / name, {"a.weight": np.full((4, 4), value, np.float16)})
        models.append(tmp_path / name)
    report = tv.transfer(*models, tmp_path / "out", force="non-finite")
    assert report.survival_status == "not-finite"
    assert "exactly as asked" not in str(report)


def test_steps_beside_means(trio: Trio, tmp_path: Path) -> None:
    """The figures are those of the tensors that take a step, and the others are counted and named as such."""
    step = {"kind": "task_arithmetic", "terms": [{"model": 1, "reference": 0, "weight": 1.0}]}
    mean = {"kind": "linear", "terms": [{"model": i, "reference": None, "weight": 0.5} for i in (0, 1)]}
    plan = json.loads(tv.plan_transfer(*trio).json)
    rows = [[*row[:4], index % 2, [(0, row[0]), (1, row[0])]] for index, row in enumerate(plan["tensors"])]
    document = {**plan, "operations": [step, mean], "tensors": rows}
    text = tv._core.run(encode(document), tmp_path / "out")
    _, (output,) = parse_engine_report(text, tmp_path / "out", _merged_tensors(document))
    assert output.unmeasured == len(rows) // 2
    assert output.unmeasured + len(output.tensors) == len(rows)
    words = survival_words(output.survival, output.unmeasured)
    assert words[-1].startswith(f"not measured for {output.unmeasured} tensors without a step")
    zero = Survival(0.0, 0.0, None, None, 1.0, 0, 0, 64)
    assert survival_words(zero, 2)[0] == "the step is zero: the tensors that take one are the target's"
    assert _merged_tensors({**document, "operations": [step, {"kind": "copy"}]}) == 0
    facts = {"total": list(zero), "tensors": {}, "unmeasured": 2}
    assert "output has the target's weights" not in _survival(facts)
    assert "Not measured for 2 tensors" in _survival(facts)
