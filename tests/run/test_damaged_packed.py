"""Packed checkpoints changed in many ways: each is read as NumPy reads what is stored, or is an error.

No change may let codes or scales pass for plain numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.models import DTYPES, Tensors, read_tensors, write_checkpoint
from support.packed_models import BY_NAME, WAYS, Values, Way

ROWS, COLUMNS = 136, 288
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
NORM = "model.norm.weight"
# Names that scales have in formats that are read, in others, and in none.
SPELLINGS = (
    ".scale", "_scale", ".weight_scale", ".weight_scale_inv", ".scales", ".absmax", ".qscale", ".SCB", ".lut",
    ".weight.scale", ".qscale_weight", ".scale_weight", ".weight_absmax", ".weight_s", ".step", ".biases",
    ".fancy", ".weight_exponent", "_quant.amax", ".weight_scale_2", ".weight_global_scale",
    ".weight_packed",
)  # fmt: skip


def model(way: Way, seed: int = 0) -> tuple[Tensors, Values]:
    """A checkpoint of two packed matrices and a norm, and its values."""
    rng = np.random.default_rng(seed)
    stored: Tensors = {NORM: np.ones(COLUMNS, DTYPES["BF16"])}
    values: Values = {NORM: np.ones(COLUMNS, np.float32)}
    for stem in (UP, DOWN):
        parts = way.pack((rng.standard_normal((ROWS, COLUMNS)) * 0.05).astype(np.float32))
        stored |= {stem + end: part for end, part in parts.items()}
        values[f"{stem}.weight"] = way.unpack(parts, (ROWS, COLUMNS))
    return stored, values


def write(folder: Path, stored: Tensors, way: Way, **changes: object) -> Path:
    quantisation = {"quantization_config": {**way.config, **changes}} if way.config else {}
    config = {"model_type": "llama", "hidden_size": COLUMNS, "dtype": "bfloat16", **quantisation, **way.more}
    write_checkpoint(folder, stored, config, tokenizer=False)
    return folder


def parts_of(stored: Tensors) -> Tensors:
    return {name: array for name, array in stored.items() if name.startswith(f"{UP}.")}


def renamed(stored: Tensors) -> Iterator[tuple[str, Tensors]]:
    """Each part under other names, alone or besides its own."""
    for part in parts_of(stored):
        for spelling in SPELLINGS:
            if UP + spelling not in stored:
                new = UP + spelling
                yield f"{part} as {new}", {(new if n == part else n): array for n, array in stored.items()}
                yield f"{new} besides {part}", {**stored, new: stored[part]}
        for new in (f"scales.{part}", f"{part}.value", f"{part}_2", f"{UP}_{part.rpartition('.')[2]}_q"):
            yield f"{part} as {new}", {(new if n == part else n): array for n, array in stored.items()}
        yield f"without {part}", {name: array for name, array in stored.items() if name != part}


def reshaped(stored: Tensors) -> Iterator[tuple[str, Tensors]]:
    """Each part with another shape or type."""
    for part, array in parts_of(stored).items():
        made = {"flat": array.reshape(-1), "one axis more": array[None], "empty": array.reshape(-1)[:0]}
        if array.ndim == 2:
            made["transposed"] = np.ascontiguousarray(array.T)
        for axis in range(array.ndim):
            made[f"half of axis {axis}"] = np.take(array, range(-(-array.shape[axis] // 2)), axis)
            made[f"one less of axis {axis}"] = np.take(array, range(array.shape[axis] - 1), axis)
            made[f"one more of axis {axis}"] = np.concatenate([array, np.take(array, [0], axis)], axis)
            made[f"twice axis {axis}"] = np.concatenate([array, array], axis)
        for dtype in ("F64", "I64", "I32", "I8", "F8_E4M3", "F8_E8M0"):
            if array.dtype != DTYPES[dtype]:
                with np.errstate(all="ignore"):
                    made[dtype] = array.astype(np.float32).astype(DTYPES[dtype])
        for how, value in made.items():
            if value.shape != array.shape or value.dtype != array.dtype:
                yield f"{part} {how}", {**stored, part: np.ascontiguousarray(value)}


def read(folder: Path, out: Path) -> Tensors | None:
    """The checkpoint in float32, ``None`` where it is refused."""
    try:
        tv.convert(folder, out, out_dtype="float32", overwrite=True)
    except tv.errors.Error:
        return None
    return read_tensors(out)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_part_of_another_name_is_never_a_number(tmp_path: Path, way: Way) -> None:
    stored, values = model(way)
    got = read(write(tmp_path / "whole", stored, way), tmp_path / "out")
    assert got is not None
    assert all(np.array_equal(got[name], value) for name, value in values.items())
    for change, mutant in renamed(stored):
        got = read(write(tmp_path / "changed", mutant, way), tmp_path / "out")
        if got is not None:  # the part says what headers show
            assert got.keys() == values.keys(), change
            same = {name: np.array_equal(got[name], value) for name, value in values.items()}
            assert all(same.values()), (change, same)


def numpys(way: Way, mutant: Tensors, shape: tuple[int, ...]) -> np.ndarray:
    """The value of the changed weight by NumPy."""
    parts = {name.removeprefix(UP): array for name, array in parts_of(mutant).items()}
    with np.errstate(all="ignore"):
        return way.unpack(parts, shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_part_of_another_shape_is_read_as_it_is_stored(tmp_path: Path, way: Way) -> None:
    stored, values = model(way)
    refused = 0
    for change, mutant in reshaped(stored):
        got = read(write(tmp_path / "changed", mutant, way), tmp_path / "out")
        if got is None:
            refused += 1
            continue
        assert got.keys() == values.keys(), change
        value = got[f"{UP}.weight"]
        if value.size and way.name != "NF4 nested":  # NumPy's lines above take a whole number of groups
            assert np.array_equal(value, numpys(way, mutant, value.shape), equal_nan=True), change
    assert refused


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_each_part_in_a_file_of_its_own(tmp_path: Path, way: Way) -> None:
    stored, values = model(way)
    folder = tmp_path / "parts"
    write(folder, stored, way)
    (folder / "model.safetensors").unlink()
    backwards = dict(reversed(stored.items()))
    write_checkpoint(folder, backwards, shards=len(stored), tokenizer=False)
    got = read(folder, tmp_path / "out")
    assert got is not None
    assert all(np.array_equal(got[name], value) for name, value in values.items())


INT4 = BY_NAME["CT INT4 group 32"].config["config_groups"]["group_0"]  # type: ignore[index]
CHANGES = [
    ("block FP8, F32 scales", {"weight_block_size": [64, 64]}),
    ("block FP8, F32 scales", {"weight_block_size": [128, 64]}),
    ("block FP8, F32 scales", {"weight_block_size": None}),
    ("block FP8, F32 scales", {"weight_block_size": "128x128"}),
    ("block FP8, F32 scales", {"weight_block_size": [0, -1]}),
    ("block FP8, F32 scales", {"quant_method": "compressed-tensors"}),
    ("block FP8, F32 scales", {"quant_method": "gptq", "bits": 4}),
    ("block FP8, F32 scales", {"quant_method": "of tomorrow"}),
    ("FP8 per tensor", {"weight_block_size": [128, 128]}),
    ("CT FP8 channel", {"config_groups": {"group_0": {**INT4, "targets": ["Linear"]}}}),
    ("CT INT4 group 32", {"config_groups": {"group_0": {"weights": {**INT4["weights"], "num_bits": 8}}}}),
    ("CT INT4 group 32", {"config_groups": {"group_0": {"weights": {**INT4["weights"], "group_size": 64}}}}),
    (
        "CT INT4 group 32",
        {"config_groups": {"group_0": {"weights": {**INT4["weights"], "symmetric": False}}}},
    ),
    (
        "CT INT4 group 32",
        {"config_groups": {"group_0": {"weights": {**INT4["weights"], "actorder": "group"}}}},
    ),
    ("CT INT4 group 32", {"config_groups": None}),
    ("CT INT4 group 32", {"format": "marlin-24"}),
    ("CT MXFP8", {"format": "float-quantized"}),
    ("CT NVFP4", {"format": "mxfp4-pack-quantized"}),
    ("ModelOpt NVFP4", {"quant_algo": "NVFP4_AWQ"}),
    ("ModelOpt FP8", {"quant_algo": "FP8_PB_WO"}),
    ("GPTQ 4 bits act", {"bits": 8}),
    ("GPTQ 4 bits act", {"group_size": 64}),
    ("GPTQ 4 bits act", {"checkpoint_format": "marlin"}),
    ("AWQ", {"version": "gemv"}),
    ("AWQ", {"group_size": 128}),
]


@pytest.mark.parametrize(("name", "changes"), CHANGES, ids=str)
def test_a_config_that_says_something_else(tmp_path: Path, name: str, changes: dict[str, object]) -> None:
    way = BY_NAME[name]
    stored, _ = model(way)
    assert read(write(tmp_path / "changed", stored, way, **changes), tmp_path / "out") is None


def hostile(stored: Tensors) -> Iterator[tuple[str, Tensors]]:
    """Each part with values that it should not have."""
    for part, array in parts_of(stored).items():
        is_float8 = array.dtype.name.startswith(("float8", "float4"))
        numbers = (0, 255, 127, 128) if array.itemsize == 1 else (-1, 0, 7, 2**31 - 1)
        numbers = (0, 15, 7, 8) if array.dtype.name.startswith("float4") else numbers
        floats = (np.nan, np.inf, 0.0, -1.0)
        is_integer = is_float8 or array.dtype.kind in "iu"
        for number in numbers if is_integer else floats:
            changed = array.copy()
            bits = changed.view(np.uint8) if array.itemsize == 1 else changed
            bits.reshape(-1)[bits.size // 2] = np.array(number).astype(bits.dtype)
            yield f"{part} {number}", {**stored, part: changed}


@pytest.mark.parametrize("way", [way for way in WAYS if "bits" not in way.name or "act" in way.name], ids=str)
def test_values_that_should_not_be(tmp_path: Path, way: Way) -> None:
    """NaN and infinity are an error, as in plain weights; all else is what NumPy makes of it."""
    stored, _ = model(way)
    for change, mutant in hostile(stored):
        got = read(write(tmp_path / "changed", mutant, way), tmp_path / "out")
        try:
            want = numpys(way, mutant, (ROWS, COLUMNS))
        except (IndexError, ValueError, UnicodeDecodeError):
            assert got is None, change
            continue
        if got is None:
            is_state = "quant_state" in change or "weight_shape" in change
            assert is_state or "g_idx" in change or not np.isfinite(want).all(), change
        else:
            assert np.array_equal(got[f"{UP}.weight"], want), change


VERBS = {
    "diff": lambda folders, _: tv.diff(*folders[1:]),
    "transfer": lambda folders, out: tv.transfer(*folders, out, out_dtype="bfloat16"),
    "target": lambda folders, out: tv.transfer(*folders, out, out_dtype="target"),
    "extract": lambda folders, out: tv.extract(*folders[1:], out),
    "convert": lambda folders, out: tv.convert(folders[1], out),
    "merge": lambda folders, out: tv.linear(folders[:2], weight=0.5).save(out),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_names_the_tensor(tmp_path: Path, verb: str) -> None:
    way = BY_NAME["block FP8, BF16 scales"]
    folders = [write(tmp_path / role, model(way, seed)[0], way) for seed, role in enumerate("tdr")]
    donor = dict(read_tensors(folders[1]))
    donor[f"{DOWN}.smooth"] = donor.pop(f"{DOWN}.weight_scale_inv")
    write(folders[1], donor, way)
    with pytest.raises(tv.CompatibilityError) as caught:
        VERBS[verb](folders, tmp_path / "out")
    assert any(each.id == "quantised" and DOWN in each.found for each in caught.value.findings)
    assert not (tmp_path / "out").exists()


def test_inspect_and_check_say_what_is_wrong(tmp_path: Path) -> None:
    way = BY_NAME["block FP8, BF16 scales"]
    stored, _ = model(way)
    stored[f"{DOWN}.smooth"] = stored.pop(f"{DOWN}.weight_scale_inv")
    folder = write(tmp_path / "changed", stored, way)
    assert DOWN in str(tv.open(folder).unreadable)
    assert "quantised" in [each.id for each in tv.check(folder, folder, folder)]
