"""Packed checkpoints as targets: which form the output has, and the target's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taskvec as tv
from support.command_line import invoke
from support.models import DTYPES, read_tensors, safetensors_bytes, write_checkpoint
from support.packed_checks import FP8, UP, ids, near, stored_bytes
from support.packed_models import BY_NAME, WAYS, Way, is_packed, packed_trio
from taskvec.errors import CompatibilityError, FormatError, RecipeError


def test_plain_donor_and_reference_give_a_plain_output(tmp_path: Path) -> None:
    trio, values = packed_trio(tmp_path, FP8, plain=("donor", "reference"))
    report = tv.transfer(*trio, tmp_path / "out")
    assert "quantised-output" in ids(report.findings)
    for name, array in read_tensors(tmp_path / "out").items():
        near(array, values, name)


def test_donor_and_reference_of_different_formats(tmp_path: Path) -> None:
    trio, values = packed_trio(tmp_path, FP8, plain=("donor",))
    with pytest.raises(CompatibilityError, match="plain in the donor") as caught:
        tv.transfer(*trio, tmp_path / "out")
    assert "quantised-mixed" in ids(caught.value.findings)
    with pytest.raises(CompatibilityError):
        tv.extract(trio.donor, trio.reference, tmp_path / "vector")
    with pytest.raises(CompatibilityError):
        _ = tv.open(trio.donor) - tv.open(trio.reference)
    tv.transfer(*trio, tmp_path / "out", force="quantised-mixed", out_dtype="bfloat16")
    near(read_tensors(tmp_path / "out")[UP], values, UP)


def test_a_plain_target_and_quantised_models(tmp_path: Path) -> None:
    trio, values = packed_trio(tmp_path, FP8, plain=("target",))
    report = tv.transfer(*trio, tmp_path / "out")
    assert "quantised-noise" in ids(report.findings)
    near(read_tensors(tmp_path / "out")[UP], values, UP)


def test_awq_in_a_mixture(tmp_path: Path) -> None:
    trio, _ = packed_trio(tmp_path, BY_NAME["AWQ"])
    with pytest.raises(CompatibilityError, match="AWQ") as caught:
        tv.transfer(*trio, tmp_path / "out")
    assert "quantised-basis" in ids(caught.value.findings)


@pytest.mark.parametrize(
    ("name", "is_warned"), [("CT MXFP4", True), ("NF4", True), ("FP8 per tensor", False)]
)
def test_ranking_differences_of_four_bits(tmp_path: Path, name: str, is_warned: bool) -> None:
    trio, _ = packed_trio(tmp_path, BY_NAME[name])
    document = {
        "merge_method": "ties",
        "base_model": str(trio.reference),
        "models": [{"model": str(trio.donor), "parameters": {"weight": 1.0, "density": 0.5}}],
        "dtype": "bfloat16",
    }
    assert ("quantised-ranking" in ids(tv.merge(document, tmp_path / "out").findings)) is is_warned


@pytest.mark.parametrize(("name", "words"), [("MLX", "MLX 4 bits"), ("MLX MXFP8", "MLX MXFP8")])
def test_the_output_type_of_a_target_of_mlx_has_to_be_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    trio, values = packed_trio(tmp_path, BY_NAME[name])
    models = ["--target", trio.target, "--donor", trio.donor, "--reference", trio.reference]
    outcome = invoke(capsys, "transfer", *models, "-o", tmp_path / "out")
    assert outcome.code == 1
    assert f"quantised as {words}" in outcome.err
    assert "--out-dtype bfloat16" in outcome.err
    assert "--out-dtype target" in outcome.err
    assert not (tmp_path / "out").exists()
    assert invoke(capsys, "transfer", *models, "-o", tmp_path / "own", "--out-dtype", "target").code == 0
    assert tv.open(tmp_path / "own").stored == tv.open(trio.target).stored
    assert invoke(capsys, "transfer", *models, "-o", tmp_path / "out", "--out-dtype", "bfloat16").code == 0
    near(read_tensors(tmp_path / "out")[UP], values, UP)


@pytest.mark.parametrize("name", ["GPTQ 4 bits act", "NF4", "bitsandbytes INT8"])
def test_formats_that_are_read_and_not_written(tmp_path: Path, name: str) -> None:
    trio, values = packed_trio(tmp_path, BY_NAME[name])
    with pytest.raises(RecipeError, match="not made again"):
        tv.plan_transfer(*trio, out_dtype="target")
    report = tv.transfer(*trio, tmp_path / "out")
    assert "quantised-output" in ids(report.findings)
    near(read_tensors(tmp_path / "out")[UP], values, UP)


WRITTEN = [
    way
    for way in WAYS
    if way.name.startswith(
        ("block", "FP8", "FBGEMM", "DeepSeek", "Mistral", "CT", "ModelOpt", "single", "MLX")
    )
]


def asked(way: Way) -> Any:
    """The options that give the target's format: of MLX it is chosen."""
    return {"out_dtype": "target"} if way.name.startswith("MLX") else {}


@pytest.mark.parametrize("way", WRITTEN, ids=str)
def test_identities_hold_to_the_byte(tmp_path: Path, way: Way) -> None:
    trio, _ = packed_trio(tmp_path, way, shards=2)
    target, donor, reference = map(stored_bytes, trio)
    tv.transfer(*trio, tmp_path / "zero", alpha=0.0, **asked(way))
    assert list(stored_bytes(tmp_path / "zero").items()) == list(target.items())
    tv.transfer(trio.reference, trio.donor, trio.reference, tmp_path / "one", **asked(way))
    assert stored_bytes(tmp_path / "one") == donor
    tv.transfer(
        trio.target, trio.reference, trio.reference, tmp_path / "none", force="zero-vector", **asked(way)
    )
    assert stored_bytes(tmp_path / "none") == target
    assert reference != donor


@pytest.mark.parametrize("way", WRITTEN, ids=str)
def test_the_output_is_a_checkpoint_like_the_target(tmp_path: Path, way: Way) -> None:
    """Same names, types, shapes, files and config; values no further off than packing them afresh."""
    trio, values = packed_trio(tmp_path, way, shards=2)
    report = tv.transfer(*trio, tmp_path / "out", **asked(way))
    assert "quantised-output" in ids(report.findings)
    out, target = tv.open(tmp_path / "out"), tv.open(trio.target)
    assert dict(out.stored) == dict(target.stored)
    assert {name: each.parts for name, each in out.packed.items()} == {
        name: each.parts for name, each in target.packed.items()
    }
    assert (tmp_path / "out" / "config.json").read_bytes() == (trio.target / "config.json").read_bytes()
    for name in (each for each in values[0] if is_packed(each)):
        t, d, r = (each[name].astype(np.float64) for each in values)
        exact = t + d - r
        fresh = way.unpack(way.pack(exact.astype(np.float32)), exact.shape)
        error, other = (np.linalg.norm(each.astype(np.float64) - exact) for each in (out[name], fresh))
        assert error <= other * 1.2, name
    assert report.survival is not None
    assert tv.verify(tmp_path / "out").ok


def test_target_asks_for_the_format_of_a_merge(packed: Any, tmp_path: Path) -> None:
    trio, values = packed
    models = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in (trio.target, trio.donor)]
    document = {"merge_method": "linear", "models": models, "out_dtype": "target"}
    tv.merge(document, tmp_path / "out")
    out = tv.open(tmp_path / "out")
    assert out.packed.keys() == tv.open(trio.target).packed.keys()
    mean = 0.5 * (values[0][UP].astype(np.float64) + values[1][UP])
    assert np.linalg.norm(out[UP] - mean) < 0.03 * np.linalg.norm(mean)


def test_several_alphas_in_the_target_format(packed: Any, tmp_path: Path) -> None:
    trio, _ = packed
    report = tv.transfer(*trio, tmp_path / "out", alpha=[0.0, 0.5, 1.0])
    assert "quantised-switch" in ids(report.findings)
    assert stored_bytes(tmp_path / "out" / "alpha=0") == stored_bytes(trio.target)
    tv.transfer(*trio, tmp_path / "one")
    assert stored_bytes(tmp_path / "out" / "alpha=1") == stored_bytes(tmp_path / "one")


@pytest.mark.parametrize("way", WRITTEN, ids=str)
def test_a_small_plain_vector_is_not_rounded_to_the_format(tmp_path: Path, way: Way) -> None:
    trio, _ = packed_trio(tmp_path, way, plain=("donor", "reference"), step=0.00003)
    with pytest.raises(CompatibilityError, match="would be left") as caught:
        tv.transfer(*trio, tmp_path / "out", out_dtype="target")
    assert "quantised-lost" in ids(caught.value.findings)
    report = tv.transfer(*trio, tmp_path / "out", out_dtype="target", force="quantised-lost")
    assert report.survival is not None
    tv.transfer(*trio, tmp_path / "random", out_dtype="target", rounding="stochastic")
    assert tv.transfer(*trio, tmp_path / "plain", out_dtype="bfloat16").survival is not None


def test_a_large_plain_vector_may_be_rounded_to_the_format(tmp_path: Path) -> None:
    trio, _ = packed_trio(tmp_path, FP8, plain=("donor", "reference"), step=0.02)
    report = tv.transfer(*trio, tmp_path / "out", out_dtype="target")
    assert "quantised-lost" not in ids(report.findings)


def test_stored_parts_come_when_the_target_format_is_asked_for(packed: Any, tmp_path: Path) -> None:
    trio, _ = packed
    merged = tv.open(trio.target) + (tv.open(trio.donor) - tv.open(trio.reference))
    merged.save(tmp_path / "out")
    parts = {name: array.tobytes() for name, array in merged.items(out_dtype="target")}
    assert parts == stored_bytes(tmp_path / "out")


def test_a_plan_runs_again_from_its_bytes(packed: Any, tmp_path: Path) -> None:
    trio, _ = packed
    for number, dtype in enumerate((None, "bfloat16")):
        plan = tv.plan_transfer(*trio, out_dtype=dtype)
        plan.run(tmp_path / f"a{number}")
        tv.Plan.from_json(plan.json).run(tmp_path / f"b{number}")
        one, other = (tmp_path / f"{letter}{number}" for letter in "ab")
        assert stored_bytes(one) == stored_bytes(other)
        assert (one / "config.json").read_bytes() == (other / "config.json").read_bytes()


ENCODED = [
    "block FP8, F32 scales", "FP8 per tensor", "CT FP8 channel", "CT INT8", "CT INT3 group 32",
    "CT INT4 channel", "CT INT4 zero points", "CT MXFP4", "CT MXFP8", "CT NVFP4", "ModelOpt NVFP4",
    "CT INT4 act", "CT MXFP4, F4 codes", "MLX", "MLX 3 bits", "MLX MXFP8",
]  # fmt: skip


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("alphas", [(0.5,), (0.5, 1.0)])
def test_the_plan_says_the_memory_that_the_engine_bounds(
    tmp_path: Path, name: str, alphas: tuple[float, ...]
) -> None:
    trio, _ = packed_trio(tmp_path, BY_NAME[name])
    plan = tv.plan_transfer(*trio, out_dtype="target", alpha=alphas)
    with pytest.raises(tv.errors.Error, match="one thread needs") as caught:
        tv.transfer(*trio, tmp_path / "out", out_dtype="target", alpha=alphas, max_memory=1)
    needed = int(re.search(r"one thread needs (\d+)", str(caught.value))[1])  # type: ignore[index]
    assert plan.memory(1) == needed


@pytest.mark.parametrize("name", ["block FP8, F32 scales", "CT INT4 group 32"])
def test_the_same_packed_bytes_for_any_threads_and_shards(tmp_path: Path, name: str) -> None:
    found = []
    for shards, threads in ((1, 1), (3, 2)):
        trio, _ = packed_trio(tmp_path / str(shards), BY_NAME[name], shards=shards)
        tv.transfer(*trio, tmp_path / f"out{shards}", threads=threads)
        found.append(stored_bytes(tmp_path / f"out{shards}"))
    assert found[0] == found[1]


def test_experts_of_gpt_oss(tmp_path: Path) -> None:
    """Written as they are stored, or plain as the plain twins of the model have them: inputs first."""
    way = BY_NAME["DeepSeek FP4"]
    rng = np.random.default_rng(0)
    stem = "model.layers.0.mlp.experts."
    name = f"{stem}gate_up_proj"
    folders, values = [], []
    for role in ("target", "donor", "reference"):
        stored: dict[str, np.ndarray] = {"model.norm.weight": np.ones(96, DTYPES["BF16"])}
        for each, shape in (("gate_up_proj", (2, 64, 96)), ("down_proj", (2, 96, 32))):
            weight = rng.standard_normal((shape[0] * shape[1], shape[2])).astype(np.float32) * 0.02
            parts = way.pack(weight)
            if each == "gate_up_proj":
                values.append(way.unpack(parts, weight.shape).reshape(shape))  # type: ignore[arg-type]
            groups = (*shape[:2], shape[2] // 32)
            stored[f"{stem}{each}_blocks"] = parts[".weight"].view(np.uint8).reshape(*groups, 16)
            stored[f"{stem}{each}_scales"] = parts[".scale"].view(np.uint8).reshape(groups)
        config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
        folders.append(write_checkpoint(tmp_path / role, stored, config))
    assert np.array_equal(tv.open(folders[0])[name], values[0])
    tv.transfer(*folders, tmp_path / "out")
    exact = values[0] + (values[1] - values[2])
    got = tv.open(tmp_path / "out")[name]
    assert np.linalg.norm(got - exact) < 0.15 * np.linalg.norm(exact)
    # plain checkpoints of the model have inputs first
    tv.convert(folders[0], tmp_path / "plain", out_dtype="float32")
    assert np.array_equal(tv.open(tmp_path / "plain")[name], values[0].transpose(0, 2, 1))
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "quantization_config" not in config
    terms = {"merge_method": "task_arithmetic", "base_model": str(folders[2]), "dtype": "float32"}
    models = [{"model": str(folder), "parameters": {"weight": 1.0}} for folder in folders[:2]]
    # donor and reference plain, in their own layout
    for role, folder in (("donor", folders[1]), ("reference", folders[2])):
        tv.convert(folder, tmp_path / f"plain-{role}", out_dtype="float32")
    mixed = (folders[0], tmp_path / "plain-donor", tmp_path / "plain-reference")
    for number, three in enumerate([tuple(folders), mixed]):
        out = tmp_path / f"plain-out{number}"
        tv.transfer(*three, out, out_dtype="float32")
        assert np.allclose(tv.open(out)[name], exact.transpose(0, 2, 1), rtol=1e-6, atol=1e-7)
    merged = values[0] + values[1] - values[2]
    for number, other in enumerate([folders[1], tmp_path / "plain-donor"]):
        models[1]["model"] = str(other)
        out = tmp_path / f"merged{number}"
        force = ("quantised-mixed",) if number else ()
        tv.merge({**terms, "models": models}, out, force=force)
        assert np.allclose(tv.open(out)[name], merged.transpose(0, 2, 1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["CT INT4 act", "CT INT3 act zero points"])
def test_columns_that_are_no_neighbours(tmp_path: Path, name: str) -> None:
    """Groups under other numbers are the same weights; groups of other sizes are read, and not written."""
    trio, values = packed_trio(tmp_path, BY_NAME[name], hidden=320, intermediate=416)
    path, order = trio.donor / "model.safetensors", f"{UP}_g_idx"
    plain = tv.transfer(*trio, tmp_path / "one", alpha=0.5).outputs[0]
    donor = read_tensors(trio.donor)
    groups = donor[f"{UP}_scale"].shape[1]
    # group g has the number (g + 1) modulo their count
    renamed = donor | {order: ((donor[order] + 1) % groups).astype(np.int32)}
    renamed[f"{UP}_scale"] = np.roll(donor[f"{UP}_scale"], 1, 1)
    if f"{UP}_zero_point" in donor:
        renamed[f"{UP}_zero_point"] = np.roll(donor[f"{UP}_zero_point"], 1, 1)
    path.write_bytes(safetensors_bytes(renamed))
    assert np.array_equal(tv.open(trio.donor)[UP], values[1][UP])
    other = tv.transfer(*trio, tmp_path / "other", alpha=0.5).outputs[0]
    assert stored_bytes(tmp_path / "one") == stored_bytes(tmp_path / "other")
    assert other.survival == plain.survival
    uneven = donor[order].copy()
    uneven[np.flatnonzero(uneven == 0)[0]] = 1
    for folder in trio:
        tensors = read_tensors(folder) | {order: uneven}
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    tv.transfer(*trio, tmp_path / "plain", out_dtype="bfloat16")
    with pytest.raises(FormatError, match="read, and not written"):
        tv.transfer(*trio, tmp_path / "packed", out_dtype="target")
