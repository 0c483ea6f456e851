"""Every verb on packed checkpoints, against NumPy on their values."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taskvec as tv
from support.command_line import invoke
from support.models import DTYPES, Trio, edit_json, read_tensors, safetensors_bytes, write_checkpoint
from support.packed_models import BY_NAME, WAYS, Values, Way, expected, is_packed, packed_trio
from taskvec.errors import CompatibilityError, FormatError, RecipeError

FP8 = BY_NAME["block FP8, BF16 scales"]
UP = "model.layers.0.mlp.up_proj.weight"
FORCED = ("quantised-basis",)


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Trio, tuple[Values, Values, Values]]:
    return packed_trio(tmp_path, FP8, shards=2)


def near(got: np.ndarray, values: tuple[Values, Values, Values], name: str, alpha: float = 1.0) -> None:
    """The nearest BF16, where the sum in float32 leaves no doubt; one of the two around it elsewhere."""
    t, d, r = (each[name].astype(np.float64) for each in values)
    exact = t + alpha * (d - r)
    doubt = 2.0**-22 * (np.abs(t) + np.abs(d) + np.abs(r))
    best = expected(values, name, alpha).astype(np.float64)
    assert (np.abs(got.astype(np.float64) - exact) <= np.abs(best - exact) + doubt).all(), name


def ids(findings: Any) -> list[str]:
    return [finding.id for finding in findings]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_values_are_the_oracles(tmp_path: Path, way: Way) -> None:
    trio, values = packed_trio(tmp_path, way)
    model = tv.open(trio.target)
    assert list(model) == list(values[0])
    for name, value in values[0].items():
        assert np.array_equal(model[name].astype(np.float32), value.astype(np.float32)), name
        assert model[name].dtype == (np.float32 if is_packed(name) else DTYPES["BF16"])


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_transfer_to_plain_weights(tmp_path: Path, way: Way) -> None:
    trio, values = packed_trio(tmp_path, way, shards=2)
    report = tv.transfer(*trio, tmp_path / "out", out_dtype="bfloat16", force=FORCED)
    out = read_tensors(tmp_path / "out")
    assert list(out) == list(values[0])
    for name in values[0]:
        assert out[name].dtype == DTYPES["BF16"]
        near(out[name], values, name)
    assert report.survival is not None
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"quantization_config", "quantization", "compression_config"} & config.keys()
    assert config["dtype"] == "bfloat16"
    assert tv.verify(tmp_path / "out").ok
    assert not tv.open(tmp_path / "out").packed


def test_check(packed: tuple[Trio, Any]) -> None:
    assert ids(tv.check(*packed[0])) == ["lineage", "quantised-output"]


def test_the_same_bytes_for_any_threads_and_shards(tmp_path: Path) -> None:
    folders = []
    for shards, threads in ((1, 1), (3, 2)):
        trio, _ = packed_trio(tmp_path / str(shards), FP8, shards=shards)
        folders.append(tmp_path / f"out{shards}")
        tv.transfer(*trio, folders[-1], out_dtype="bfloat16", threads=threads, max_shard_size="1GB")
    assert (folders[0] / "model.safetensors").read_bytes() == (folders[1] / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_plain_types(packed: Any, tmp_path: Path, dtype: str) -> None:
    trio, values = packed
    tv.transfer(*trio, tmp_path / "out", out_dtype=dtype)
    out = read_tensors(tmp_path / "out")
    t, d, r = (each[UP].astype(np.float64) for each in values)
    assert out[UP].dtype == np.dtype(dtype)
    scale = np.finfo(np.dtype(dtype)).eps
    assert np.allclose(out[UP], t + (d - r), rtol=scale, atol=scale * 0.1)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_extract_and_apply(packed: Any, tmp_path: Path) -> None:
    trio, values = packed
    tv.extract(trio.donor, trio.reference, tmp_path / "vector")
    vector = tv.load_vector(tmp_path / "vector")
    difference = values[1][UP].astype(np.float64) - values[2][UP]
    assert np.allclose(vector[UP], difference, rtol=1e-6, atol=1e-9)
    report = tv.apply(trio.target, tmp_path / "vector", out=tmp_path / "out")
    assert ids(report.findings) == ["quantised-output"]
    for name, array in read_tensors(tmp_path / "out").items():
        near(array, values, name)


def test_diff(packed: Any) -> None:
    trio, values = packed
    pair = tv.diff(trio.donor, trio.reference).tensors[UP]
    d, r = (each[UP].astype(np.float64) for each in values[1:])
    assert pair.changed == (d != r).sum()
    assert pair.difference_norm == pytest.approx(np.linalg.norm(d - r), rel=1e-5)


def test_diff_of_packed_and_plain(tmp_path: Path) -> None:
    trio, values = packed_trio(tmp_path, FP8, plain=("reference",))
    pair = tv.diff(trio.donor, trio.reference).tensors[UP]
    d, r = (each[UP].astype(np.float64) for each in values[1:])
    assert pair.difference_norm == pytest.approx(np.linalg.norm(d - r), rel=1e-5)


def test_streaming(packed: Any) -> None:
    trio, values = packed
    vector = tv.open(trio.donor) - tv.open(trio.reference)
    merged = tv.open(trio.target) + 0.5 * vector
    assert np.allclose(vector[UP], values[1][UP] - values[2][UP], rtol=1e-6, atol=1e-9)
    near(merged[UP], values, UP, 0.5)
    for name, array in merged.items():
        near(array, values, name, 0.5)


def test_in_memory(packed: Any) -> None:
    trio, values = packed
    config = json.loads((trio.target / "config.json").read_text())
    model = tv.from_state_dict(read_tensors(trio.target), config=config)
    assert np.array_equal(model[UP], values[0][UP])
    near((model + (tv.open(trio.donor) - tv.open(trio.reference)))[UP], values, UP)


def test_a_vector_of_packed_models_changes_a_plain_model_in_place(packed: Any) -> None:
    trio, values = packed
    state = {name: np.array(array.astype(DTYPES["BF16"])) for name, array in values[0].items()}
    before = (state, *values[1:])
    want = {name: expected(before, name) for name in state}  # type: ignore[arg-type]
    (tv.open(trio.donor) - tv.open(trio.reference)).apply_(state)
    assert np.array_equal(state[UP], want[UP])


def test_packed_weights_in_memory_are_not_changed_in_place(packed: Any) -> None:
    trio, _ = packed
    state = {name: np.array(array) for name, array in read_tensors(trio.target).items()}
    with pytest.raises(FormatError, match="FP8 block 128x128"):
        (tv.open(trio.donor) - tv.open(trio.reference)).apply_(state)


def test_inspect(packed: Any) -> None:
    trio, values = packed
    result = tv.inspect(trio.target)
    assert result.parameters == sum(value.size for value in values[0].values())
    assert list(result.dtypes) == ["FP8 block 128x128, BF16 scales", "BF16"]
    assert {info.name: info.shape for info in result.tensors}[UP] == values[0][UP].shape
    assert sum(file.tensors for file in result.files) == len(read_tensors(trio.target))


@pytest.mark.parametrize("control", ["random", "permute"])
def test_controls(packed: Any, tmp_path: Path, control: Any) -> None:
    trio, values = packed
    report = tv.transfer(*trio, tmp_path / "out", control=control, out_dtype="bfloat16")
    out = read_tensors(tmp_path / "out")
    moved = np.linalg.norm(out[UP].astype(np.float64) - values[0][UP])
    step = np.linalg.norm(values[1][UP].astype(np.float64) - values[2][UP])
    assert moved == pytest.approx(step, rel=0.05)
    assert report.survival is not None


def test_a_recipe(packed: Any, tmp_path: Path) -> None:
    trio, values = packed
    models = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in (trio.target, trio.donor)]
    tv.merge({"merge_method": "linear", "models": models, "dtype": "bfloat16"}, tmp_path / "out")
    out = read_tensors(tmp_path / "out")
    mean = 0.5 * (values[0][UP].astype(np.float64) + values[1][UP])
    assert np.array_equal(out[UP], mean.astype(np.float32).astype(DTYPES["BF16"]))
    assert not tv.open(tmp_path / "out").packed


def test_slices_are_copied_in_their_format(packed: Any, tmp_path: Path) -> None:
    trio, _ = packed
    slices = [
        {"sources": [{"model": str(each), "layer_range": [0, 1]}]} for each in (trio.target, trio.donor)
    ]
    tv.merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    out, donor = read_tensors(tmp_path / "out"), read_tensors(trio.donor)
    for name, array in donor.items():
        if ".layers.0." in name:
            assert out[name.replace(".layers.0.", ".layers.1.")].tobytes() == array.tobytes()


def test_an_adapter_on_a_packed_model(packed: Any, tmp_path: Path) -> None:
    trio, values = packed
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) * 0.02 for shape in ((4, 160), (192, 4)))
    stem = "base_model.model.model.layers.0.mlp.up_proj"
    folder = tmp_path / "adapter"
    folder.mkdir()
    weights = safetensors_bytes({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b})
    (folder / "adapter_model.safetensors").write_bytes(weights)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    model = {"model": f"{trio.target}+{folder}", "parameters": {"weight": 1.0}}
    tv.merge({"merge_method": "linear", "models": [model]}, tmp_path / "out")
    out = read_tensors(tmp_path / "out")
    want = values[0][UP].astype(np.float64) + 2.0 * (b.astype(np.float64) @ a.astype(np.float64))
    assert out[UP].dtype == DTYPES["BF16"]
    assert np.allclose(out[UP].astype(np.float64), want, rtol=2.0**-8, atol=1e-7)


def test_weights_outside_of_the_selection_keep_their_bytes(packed: Any, tmp_path: Path) -> None:
    trio, _ = packed
    tv.transfer(*trio, tmp_path / "out", include=["norm"])
    out, target = read_tensors(tmp_path / "out"), read_tensors(trio.target)
    assert list(out) == list(target)
    assert {name for name in out if out[name].tobytes() != target[name].tobytes()} == {
        name for name in target if "norm" in name
    }
    assert (tmp_path / "out" / "config.json").read_bytes() == (trio.target / "config.json").read_bytes()


def test_scales_of_activations_stay_with_their_format(packed: Any, tmp_path: Path) -> None:
    trio, _ = packed
    for number, folder in enumerate(trio):
        part = next(path for path in sorted(folder.glob("*.safetensors")))
        tensors = read_tensors(folder) | {
            "model.layers.0.mlp.up_proj.input_scale": np.array(number, np.float32)
        }
        for path in folder.glob("*.safetensors*"):
            os.remove(path)
        part.with_name("model.safetensors").write_bytes(safetensors_bytes(tensors))
    tv.transfer(*trio, tmp_path / "plain", out_dtype="bfloat16")
    assert not [name for name in read_tensors(tmp_path / "plain") if "input_scale" in name]
    tv.transfer(*trio, tmp_path / "copy", include=["norm"])
    assert read_tensors(tmp_path / "copy")["model.layers.0.mlp.up_proj.input_scale"] == 0


def test_files_that_declare_the_format_go_with_it(packed: Any, tmp_path: Path) -> None:
    trio, _ = packed
    for folder in trio:
        (folder / "quantize_config.json").write_text("{}")
    tv.transfer(*trio, tmp_path / "plain", out_dtype="bfloat16")
    tv.transfer(*trio, tmp_path / "copy", include=["norm"])
    assert not (tmp_path / "plain" / "quantize_config.json").exists()
    assert (tmp_path / "copy" / "quantize_config.json").exists()
    assert tv.verify(tmp_path / "plain").ok


# --- what the formats of the models mean for each other


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
def test_how_a_target_of_mlx_is_written_has_to_be_said(
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


# --- the target's own format

WRITTEN = [
    way
    for way in WAYS
    if way.name.startswith(
        ("block", "FP8", "FBGEMM", "DeepSeek", "Mistral", "CT", "ModelOpt", "single", "MLX")
    )
]


def asked(way: Way) -> Any:
    """What has to be said to have the target's format: of MLX, that it is wanted."""
    return {"out_dtype": "target"} if way.name.startswith("MLX") else {}


def stored_bytes(folder: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in read_tensors(folder).items()}


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


# --- signal and noise


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


# --- convert


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


# --- hostile files


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
        (lambda t: t.pop(SCALE), "has no scales beside it"),
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
