"""Ways in which some tools store what others store otherwise: the same values come out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.models import edit_json, read_tensors, write_checkpoint
from support.packed_floats import Parts, scaled
from support.packed_integers import pack_quantized
from support.packed_models import BY_NAME, Way, compressed, packed_trio

BLOCK = (128, 128)


def ordered(number: int) -> Way:
    """Integers of compressed-tensors in groups of 32, every column in group `number`, or -1: not set."""
    pack, unpack = pack_quantized(4, 32)

    def with_order(weight: np.ndarray) -> Parts:
        return {**pack(weight), ".weight_g_idx": np.full(weight.shape[1], number, np.int32)}

    facts = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "actorder": "group"}
    return Way("an order", compressed("pack-quantized", **facts), with_order, unpack)


def spread_scales() -> Way:
    """Block FP8 of ModelOpt, whose scales keep the two axes within a block."""
    pack, unpack = scaled(".weight_scale", BLOCK)

    def apart(weight: np.ndarray) -> Parts:
        parts = pack(weight)
        return {**parts, ".weight_scale": parts[".weight_scale"][:, None, :, None]}

    def together(parts: Parts, matrix: tuple[int, int]) -> np.ndarray:
        return unpack({**parts, ".weight_scale": parts[".weight_scale"][:, 0, :, 0]}, matrix)

    facts = {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}
    return Way("four axes", facts, apart, together)


@pytest.mark.parametrize("way", [ordered(-1), spread_scales()], ids=str)
def test_values(tmp_path: Path, way: Way) -> None:
    trio, values = packed_trio(tmp_path, way)
    tv.convert(trio.target, tmp_path / "out", out_dtype="float32")
    found = read_tensors(tmp_path / "out")
    for name, value in values[0].items():
        assert np.array_equal(found[name], value.astype(np.float32)), name


def test_scales_of_four_axes_are_written_as_they_were(tmp_path: Path) -> None:
    trio, _ = packed_trio(tmp_path, spread_scales())
    tv.transfer(trio.reference, trio.donor, trio.reference, tmp_path / "out")
    found, donor = read_tensors(tmp_path / "out"), read_tensors(trio.donor)
    assert {name: (value.shape, value.tobytes()) for name, value in found.items()} == {
        name: (value.shape, value.tobytes()) for name, value in donor.items()
    }


def test_a_group_that_there_is_not_is_named(tmp_path: Path) -> None:
    trio, _ = packed_trio(tmp_path, ordered(99))
    with pytest.raises(
        tv.FormatError, match=r"`model\..*\.weight_g_idx` has column 0 in group 99, there are"
    ):
        tv.convert(trio.target, tmp_path / "out")


def test_patterns_that_keep_everything_are_told(tmp_path: Path) -> None:
    trio, _ = packed_trio(tmp_path, BY_NAME["CT INT8"])
    with pytest.raises(tv.RecipeError, match="no weight that can be INT4") as caught:
        tv.convert(trio.target, tmp_path / "out", out_dtype="int4-g32", keep=["proj"])
    assert caught.value.hint == "`keep` leaves 7 that can as they are: keep fewer"
    with pytest.raises(tv.RecipeError, match="is not a regular expression") as caught:
        tv.convert(trio.target, tmp_path / "out", out_dtype="int4-g32", keep=["("])
    assert caught.value.hint


def test_values_beyond_the_output_type(tmp_path: Path) -> None:
    """The way out is one that the verb has, and fits: the checkpoint has nothing to repair."""
    write_checkpoint(tmp_path / "in", {"model.norm.weight": np.full(4, 1e6, np.float32)}, {})
    with pytest.raises(tv.NonFiniteError) as caught:
        tv.convert(tmp_path / "in", tmp_path / "out", out_dtype="float16")
    assert caught.value.hint is not None
    assert "wider output type" in caught.value.hint
    write_checkpoint(tmp_path / "nan", {"model.norm.weight": np.full(4, np.nan, np.float32)}, {})
    with pytest.raises(tv.NonFiniteError) as caught:
        tv.convert(tmp_path / "nan", tmp_path / "other", out_dtype="float16")
    assert "repair that checkpoint" in (caught.value.hint or "")


@pytest.mark.parametrize("place", ["text_config", "compression_config", "hf_quant_config.json"])
@pytest.mark.parametrize("form", ["int4-g32", "bfloat16"])
def test_what_declares_the_old_form_goes(tmp_path: Path, place: str, form: str) -> None:
    """Also where the weights are packed anew: a reader would find two forms declared."""
    trio, values = packed_trio(tmp_path, BY_NAME["block FP8, F32 scales"])
    config = trio.target / "config.json"
    declared = json.loads(config.read_text()).pop("quantization_config")
    if place == "text_config":
        edit_json(config, quantization_config=None, text_config={"quantization_config": declared})
    elif place == "compression_config":
        edit_json(config, quantization_config=None, compression_config=declared)
    else:
        (trio.target / place).write_text(json.dumps({"quantization": {"quant_algo": "FP8_PB_WO"}}))
    tv.convert(trio.target, tmp_path / "out", out_dtype=form)
    out = tmp_path / "out"
    written = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in written.get("text_config", {})
    assert "compression_config" not in written
    assert not (out / "hf_quant_config.json").exists()
    assert ("quantization_config" in written) == (form == "int4-g32")
    assert list(tv.open(out)) == list(values[0])
