"""In which form quantised models are written, and what is said of it: every row, by every verb.

The rows are those of the table in README; `check` says before a run what the run then does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import taskvec as tv
from support.command_line import invoke
from support.models import Trio
from support.packed_models import BY_NAME, is_packed, packed_trio
from taskvec.errors import CompatibilityError, RecipeError

FP8, INT4 = "block FP8, BF16 scales", "CT INT4 group 32"
PLAIN_WORDS = "are written as BF16"
OWN_WORDS = "as the target has them"


class Row(NamedTuple):
    """Which models are plain, the format of the others, and what comes of it."""

    plain: tuple[str, ...]
    way: str
    is_packed: bool = False
    words: str = ""
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


ROWS = {
    "all plain": Row(("target", "donor", "reference"), FP8),
    "one format": Row((), FP8, True, OWN_WORDS),
    "one format of four bits": Row((), INT4, True, OWN_WORDS),
    "a plain vector": Row(("donor", "reference"), FP8, words=PLAIN_WORDS),
    "a plain target": Row(("target",), FP8, warnings=("quantised-noise",)),
    "a plain reference": Row(("reference",), FP8, errors=("quantised-mixed",)),
    "a plain donor": Row(("donor",), INT4, errors=("quantised-mixed",)),
    "AWQ": Row((), "AWQ", words="not made again", errors=("quantised-basis",)),
    "an AWQ target": Row(("donor", "reference"), "AWQ", words="not made again", errors=("quantised-basis",)),
    "GPTQ": Row((), "GPTQ 4 bits act", words="not made again"),
    "NF4": Row((), "NF4", words="not made again"),
}  # fmt: skip
ABOUT = ("quantised-output", "quantised-noise", "quantised-mixed", "quantised-basis")


def about(findings: Any) -> list[str]:
    """The findings on formats; each a dictionary or a finding."""
    found = [each if isinstance(each, dict) else each.to_dict() for each in findings]
    return sorted(each["id"] for each in found if each["id"] in ABOUT)


def said(findings: Any) -> str:
    """What is said of the form."""
    return " ".join(each.found for each in findings if each.id == "quantised-output")


@pytest.mark.parametrize("name", ROWS)
def test_a_row_by_every_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    row = ROWS[name]
    trio, _ = packed_trio(tmp_path, BY_NAME[row.way], plain=row.plain)
    roles = ("--target", trio.target, "--donor", trio.donor, "--reference", trio.reference)
    force = ("--force", ",".join(row.errors)) if row.errors else ()
    # what is found without force
    checked = tv.check(*trio)
    assert about(checked) == sorted(
        (*row.errors, *row.warnings, *(["quantised-output"] * bool(row.words and not row.errors)))
    )
    shown = invoke(capsys, "check", *trio)
    assert shown.code == bool(row.errors)
    if row.errors:
        with pytest.raises(CompatibilityError):
            tv.plan_transfer(*trio)
        for more in ((), ("--dry-run",)):
            refused = invoke(capsys, "transfer", *roles, "-o", tmp_path / "no", *more)
            assert refused.code == 1
            assert f"--force {row.errors[0]}" in refused.err
        assert not (tmp_path / "no").exists()
    # `check` says what the run does
    checked = tv.check(*trio, force=row.errors)
    assert row.words in said(checked)
    assert row.words in invoke(capsys, "check", *trio, *force).out
    dry = invoke(capsys, "transfer", *roles, "-o", tmp_path / "out", "--dry-run", *force)
    assert dry.code == 0
    assert row.words in dry.out
    ran = invoke(capsys, "transfer", *roles, "-o", tmp_path / "out", "--json", *force)
    assert ran.code == 0, ran.err
    assert row.words in ran.err
    report = json.loads(ran.out)
    assert about(report["findings"]) == about(checked)
    out = tv.open(tmp_path / "out")
    assert bool(out.packed) == row.is_packed
    assert ("quantization_config" in out.config) == row.is_packed
    # reports name weights, and not what they are stored as
    assert set(report["outputs"][0]["tensors"]) == set(out)


@pytest.mark.parametrize("name", [FP8, INT4, "CT NVFP4", "CT INT4 zero points"])
def test_reports_name_weights(tmp_path: Path, name: str) -> None:
    trio, _ = packed_trio(tmp_path, BY_NAME[name])
    report = tv.transfer(*trio, tmp_path / "out")
    out = tv.open(tmp_path / "out")
    assert set(report.outputs[0].tensors) == set(out)
    manifest = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    assert "weight_packed" not in json.dumps(manifest.get("survival", {}))
    again = tv.transfer(*trio, tmp_path / "out")
    assert again.already_done
    assert set(again.outputs[0].tensors) <= set(out)


def test_a_plan_counts_weights(tmp_path: Path) -> None:
    """Not the tensors that each is stored as."""
    trio, values = packed_trio(tmp_path, BY_NAME[INT4])
    count, parameters = len(values[0]), sum(value.size for value in values[0].values())
    for more in ({}, {"out_dtype": "bfloat16"}, {"include": ["self_attn"]}):
        plan = tv.plan_transfer(*trio, **more)  # type: ignore[arg-type]
        assert (plan.tensors, plan.parameters) == (count, parameters)
    assert plan.merged == sum("self_attn" in name for name in values[0])


def plain_vector(tmp_path: Path, name: str, step: float) -> Trio:
    trio, _ = packed_trio(tmp_path, BY_NAME[name], plain=("donor", "reference"), step=step)
    return trio


@pytest.mark.parametrize("saved", [False, True])
def test_most_of_a_vector_would_be_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], saved: bool
) -> None:
    """An error by every verb, with ways out that work; a vector that is long enough passes."""
    small = plain_vector(tmp_path / "small", INT4, 0.0005)
    large = plain_vector(tmp_path / "large", INT4, 0.02)

    def plan(trio: Trio, **more: Any) -> Any:
        if not saved:
            return tv.plan_transfer(*trio, out_dtype="target", **more)
        place = trio.target.parent / "vector"
        if not place.exists():
            tv.extract(trio.donor, trio.reference, place)
        return tv.plan_apply(trio.target, place, out_dtype="target", **more)

    with pytest.raises(CompatibilityError) as caught:
        plan(small)
    assert "quantised-lost" in [each.id for each in caught.value.findings]
    assert "--rounding stochastic" in str(caught.value.hint)
    plan(small, rounding="stochastic")
    plan(small, force="quantised-lost")
    report = plan(large).run(tmp_path / "out")
    assert report.survival.cosine > 0.8
    # what a sample says is about what is measured then
    measured = plan(small, force="quantised-lost").run(tmp_path / "lost").outputs[0].tensors
    rows = [row for name, row in measured.items() if is_packed(name)]
    kept = sum(row.cosine * row.moved_norm * row.step_norm for row in rows if row.cosine)
    assert kept / sum(row.step_norm**2 for row in rows) < 0.5
    if saved:
        command = ("apply", small.target, small.target.parent / "vector")
    else:
        command = (
            "transfer",
            "--target",
            small.target,
            "--donor",
            small.donor,
            "--reference",
            small.reference,
        )
    refused = invoke(capsys, *command, "-o", tmp_path / "no", "--out-dtype", "target")
    assert refused.code == 1
    assert "quantised-lost" in refused.err
    assert not (tmp_path / "no").exists()


def test_a_part_of_a_code(tmp_path: Path) -> None:
    trio, _ = packed_trio(tmp_path, BY_NAME[INT4])
    for alphas, is_warned in (((1.0,), False), ((0.0,), False), ((0.5,), True)):
        found = [each.id for each in tv.plan_transfer(*trio, alpha=alphas).findings]
        assert ("quantised-switch" in found) == is_warned
    found = [each.id for each in tv.plan_transfer(*trio, alpha=0.5, out_dtype="bfloat16").findings]
    assert "quantised-switch" not in found


@pytest.mark.parametrize("name", ["GPTQ 4 bits act", "AWQ", "NF4", "bitsandbytes INT8"])
def test_codes_that_cannot_be_made_again(tmp_path: Path, name: str) -> None:
    trio, _ = packed_trio(tmp_path, BY_NAME[name])
    with pytest.raises(RecipeError, match="not made again"):
        tv.plan_transfer(*trio, out_dtype="target", force="quantised-basis")


def recipe(trio: Trio, method: str, *, base: Path | None = None) -> dict[str, Any]:
    models = [{"model": str(each), "parameters": {"weight": 0.5}} for each in (trio.target, trio.donor)]
    return {"merge_method": method, "base_model": str(base or trio.reference), "models": models}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_in_merges(tmp_path: Path, name: str) -> None:
    row = ROWS[name]
    trio, _ = packed_trio(tmp_path, BY_NAME[row.way], plain=row.plain)
    kinds = {each in row.plain for each in ("target", "donor", "reference")}
    errors = {"quantised-basis"} if row.way == "AWQ" else set()
    errors |= {"quantised-mixed"} if len(kinds) > 1 else set()
    document = recipe(trio, "task_arithmetic")
    if errors:
        with pytest.raises(CompatibilityError) as caught:
            tv.merge(document, tmp_path / "no")
        assert {each.id for each in caught.value.findings if each.level == "error"} == errors
    report = tv.merge(document, tmp_path / "out", force=tuple(sorted(errors)))
    assert bool(tv.open(tmp_path / "out").packed) == row.is_packed
    assert set(report.outputs[0].tensors) == set(tv.open(tmp_path / "out"))


def test_awq_in_slices(tmp_path: Path) -> None:
    """Layers of AWQ that are combined are in a basis of their own, as without slices."""
    trio, _ = packed_trio(tmp_path, BY_NAME["AWQ"])
    merged = (trio.target, trio.donor)
    parts = [{"model": str(each), "layer_range": [0, 1], "parameters": {"weight": 0.5}} for each in merged]
    document = {"merge_method": "linear", "slices": [{"sources": parts}], "dtype": "bfloat16"}
    with pytest.raises(CompatibilityError) as caught:
        tv.merge(document, tmp_path / "out")
    assert "quantised-basis" in [each.id for each in caught.value.findings]


def test_convert_tells_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How far packing moved each weight, as NumPy measures it, and no word of a step."""
    everyone = ("target", "donor", "reference")
    trio, values = packed_trio(tmp_path, BY_NAME[FP8], plain=everyone)
    out = tmp_path / "out"
    shown = invoke(capsys, "convert", trio.target, "-o", out, "--out-dtype", "int4-g32", "--verbose")
    assert shown.code == 0, shown.err
    assert "7 packed, 7 plain" in shown.err
    assert "survival" not in shown.err
    again = invoke(capsys, "convert", trio.target, "-o", out, "--out-dtype", "int4-g32", "--json")
    assert json.loads(again.out)["already_done"]
    kept = ("--keep", "up_proj", "--out-dtype", "int4-g32")
    refused = invoke(capsys, "convert", trio.target, "-o", out, *kept)
    assert refused.code != 0
    assert "--overwrite" in refused.err
    ran = invoke(capsys, "convert", trio.target, "-o", out, *kept, "--overwrite", "--json")
    tensors = json.loads(ran.out)["outputs"][0]["tensors"]
    model = tv.open(out)
    assert (
        set(tensors)
        == set(model.packed)
        == {name for name in model if is_packed(name) and "up_proj" not in name}
    )
    for name, row in tensors.items():
        before = values[0][name].astype(np.float64)
        error = np.linalg.norm(model[name].astype(np.float64) - before) / np.linalg.norm(before)
        assert row["format_error"] == pytest.approx(error, rel=1e-4)
        assert f"{name} " in shown.err


def test_convert_says_what_stays_plain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sides that are not a multiple of the format's blocks; what the user keeps needs no word."""
    everyone = ("target", "donor", "reference")
    sizes = {"hidden": 256, "intermediate": 192, "heads": 4, "kv_heads": 2}
    trio, _ = packed_trio(tmp_path, BY_NAME[FP8], plain=everyone, **sizes)
    shown = invoke(capsys, "convert", trio.target, "-o", tmp_path / "out", "--out-dtype", "fp8-block")
    for name in ("down", "gate", "up"):
        assert f"`model.layers.*.mlp.{name}_proj.weight`" in shown.err
    assert "multiples of 128 and 128" in " ".join(shown.err.split())
    kept = invoke(
        capsys, "convert", trio.target, "-o", tmp_path / "kept", "--out-dtype", "fp8-block", "--keep", "mlp"
    )
    assert "convert-plain" not in kept.err
    config = tv.open(tmp_path / "out").config["quantization_config"]
    assert "model.layers.0.mlp.up_proj" in config["modules_to_not_convert"]
