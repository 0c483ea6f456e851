"""Packed weights are recognised from headers and config; what does not fit is named and never read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from support.models import DTYPE_NAMES, qwen2_shapes, random_tensors
from support.packed_models import BY_NAME, FP8, WAYS, Way, compressed, packed_config, packed_tensors
from taskvec.models.model import TensorInfo
from taskvec.models.quantised.recognise import recognise
from taskvec.models.quantised.record import Recognised

Stored = dict[str, tuple[str, tuple[int, ...]]]


def table(stored: Stored) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, dtype, shape, 1, "file") for name, (dtype, shape) in stored.items()}


def found(stored: Stored, quantisation: Any = None, **more: Any) -> Recognised:
    config = {"quantization_config": quantisation} if quantisation is not None else {}
    return recognise(table(stored), {**config, **more}, {}, lambda _: {})


def words(result: Recognised) -> set[str]:
    assert result.problem is None
    return {packed.format.words for packed in result.packed.values()}


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_format_is_recognised(way: Way) -> None:
    config = packed_config(way)
    plain = random_tensors(qwen2_shapes(config))
    stored = packed_tensors(plain, way)
    infos = {
        name: TensorInfo(name, DTYPE_NAMES[array.dtype], array.shape, array.nbytes, "file")
        for name, array in stored.items()
    }
    result = recognise(infos, config, {}, lambda names: {name: stored[name].tobytes() for name in names})
    assert result.problem is None
    assert {name: info.shape for name, info in result.tensors.items()} == {
        name: array.shape for name, array in plain.items()
    }
    assert {info.dtype for info in result.tensors.values()} == {"BF16"}
    assert set(result.packed) == {name for name in plain if name.endswith("_proj.weight")}
    parts = [part for packed in result.packed.values() for part in (*packed.parts, *packed.beside)]
    assert sorted(parts) == sorted(stored.keys() - (plain.keys() - result.packed.keys()))
    assert sum(info.nbytes for info in result.tensors.values()) == sum(a.nbytes for a in stored.values())
    assert len({id(packed.format) for packed in result.packed.values()}) == 1


W = ("F8_E4M3", (256, 384))


@pytest.mark.parametrize(
    ("scale", "quantisation", "text"),
    [
        (("F32", (2, 3)), FP8, "FP8 block 128x128, F32 scales"),
        (("BF16", (2, 3)), None, "FP8 block 128x128, BF16 scales"),
        (("U8", (2, 3)), {**FP8, "scale_fmt": "ue8m0"}, "FP8 block 128x128, U8 scales"),
        (("F32", (4, 6)), {**FP8, "weight_block_size": [64, 64]}, "FP8 block 64x64, F32 scales"),
        (("F32", ()), {**FP8, "weight_block_size": None}, "FP8 per tensor, F32 scales"),
        (("F32", (1,)), None, "FP8 per tensor, F32 scales"),
        (("F32", (256, 1)), None, "FP8 per channel, F32 scales"),
        (("F32", (256,)), None, "FP8 per channel, F32 scales"),
        (("U8", (256, 12)), None, "MXFP8, U8 scales"),
    ],
)
def test_the_block_of_fp8(scale: tuple[str, tuple[int, ...]], quantisation: Any, text: str) -> None:
    assert words(found({"a.weight": W, "a.weight_scale_inv": scale}, quantisation)) == {text}


def test_blocks_are_counted_upwards() -> None:
    stored: Stored = {"a.weight": ("F8_E4M3", (576, 7168)), "a.weight_scale_inv": ("F32", (5, 56))}
    assert words(found(stored, FP8)) == {"FP8 block 128x128, F32 scales"}


def test_fused_experts() -> None:
    stored: Stored = {
        "mlp.experts.gate_up_proj": ("F8_E4M3", (4, 256, 384)),
        "mlp.experts.gate_up_proj_scale_inv": ("F32", (4, 2, 3)),
        "mlp.experts.down_proj": ("F8_E4M3", (4, 384, 128)),
        "mlp.experts.down_proj_scale_inv": ("F32", (4, 3, 1)),
        "mlp.gate.weight": ("BF16", (4, 384)),
    }
    result = found(stored, FP8)
    assert words(result) == {"FP8 block 128x128, F32 scales"}
    assert result.packed["mlp.experts.down_proj"].parts == (
        "mlp.experts.down_proj",
        "mlp.experts.down_proj_scale_inv",
    )


def test_one_scale_per_expert() -> None:
    stored: Stored = {
        "experts.gate_up_proj": ("F8_E4M3", (4, 256, 384)),
        "experts.gate_up_proj_scale_inv": ("F32", (4, 1, 1)),
        "experts.gate_up_proj_activation_scale": ("F32", (4,)),
    }
    result = found(stored, {**FP8, "weight_block_size": None})
    assert words(result) == {"FP8 per tensor, F32 scales"}
    assert list(result.tensors) == ["experts.gate_up_proj"]


def test_experts_as_openai_and_transformers_store_them() -> None:
    for codes, scales, name in (
        ("e.gate_up_proj_blocks", "e.gate_up_proj_scales", "e.gate_up_proj"),
        ("block.0.mlp.mlp1_weight.blocks", "block.0.mlp.mlp1_weight.scales", "block.0.mlp.mlp1_weight"),
    ):
        stored: Stored = {codes: ("U8", (2, 64, 3, 16)), scales: ("U8", (2, 64, 3))}
        result = found(stored, {"quant_method": "mxfp4"})
        assert words(result) == {"MXFP4, U8 scales"}
        assert result.tensors[name].shape == (2, 64, 96)


def test_scales_of_activations_and_caches_are_no_weights() -> None:
    stored: Stored = {
        "a.k_proj.weight": W,
        "a.k_proj.weight_scale": ("F32", ()),
        "a.k_proj.input_scale": ("F32", ()),
        "a.k_proj.output_scale": ("F32", ()),
        "a.k_scale": ("F32", (1,)),
        "norm.weight": ("BF16", (8,)),
        "router.scale": ("BF16", (8,)),
    }
    result = found(stored, {"quant_method": "modelopt", "quant_algo": "FP8"})
    assert list(result.tensors) == ["a.k_proj.weight", "norm.weight", "router.scale"]


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
CT4 = compressed("pack-quantized", **INT4)
P4: Stored = {"a.weight_packed": ("I32", (8, 12)), "a.weight_scale": ("BF16", (8, 3))}


def test_the_columns_of_packed_integers_follow_from_groups() -> None:
    result = found({**P4, "a.weight_shape": ("I64", (2,))}, CT4)
    assert result.tensors["a.weight"].shape == (8, 96)


def test_columns_that_headers_leave_open_are_read() -> None:
    stored = {
        "a.weight_packed": ("I32", (24, 13)),
        "a.weight_scale": ("BF16", (24, 1)),
        "a.weight_shape": ("I64", (2,)),
    }
    config = {"quantization_config": compressed("pack-quantized", num_bits=4, type="int", strategy="channel")}
    infos = {name: TensorInfo(name, *facts, 16, "file") for name, facts in stored.items()}
    content = {"a.weight_shape": np.array([24, 100], np.int64).tobytes()}
    result = recognise(infos, config, {}, lambda _: content)
    assert result.tensors["a.weight"].shape == (24, 100)
    assert "`weight_shape`" in str(recognise(infos, config, {}, lambda _: {}).problem)


def test_modules_may_have_ways_of_their_own() -> None:
    config = compressed("mixed-precision")
    config["config_groups"] = {
        "group_0": {"targets": ["re:.*q$"], "format": "pack-quantized", "weights": INT4},
        "group_1": {"targets": ["re:.*k$"], "format": "pack-quantized", "weights": {**INT4, "num_bits": 8}},
        "group_2": {
            "targets": ["Linear"],
            "format": "float-quantized",
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
        },
    }
    stored: Stored = {
        "q.weight_packed": ("I32", (8, 12)),
        "q.weight_scale": ("BF16", (8, 3)),
        "k.weight_packed": ("I32", (8, 24)),
        "k.weight_scale": ("BF16", (8, 3)),
        "v.weight": ("F8_E4M3", (8, 96)),
        "v.weight_scale": ("BF16", (8, 1)),
    }
    result = found(stored, config)
    assert {name: each.format.words for name, each in result.packed.items()} == {
        "q.weight": "INT4 group 32, BF16 scales",
        "k.weight": "INT8 group 32, BF16 scales",
        "v.weight": "FP8 per channel, BF16 scales",
    }


def test_declarations_beside_the_config() -> None:
    gptq = BY_NAME["GPTQ 4 bits act"].config
    stored: Stored = {
        "a.qweight": ("I32", (16, 64)),
        "a.qzeros": ("I32", (4, 8)),
        "a.scales": ("F16", (4, 64)),
        "a.g_idx": ("I32", (128,)),
    }
    result = recognise(table(stored), {}, {"quantize_config.json": dict(gptq)}, lambda _: {})
    assert words(result) == {"GPTQ 4 bits, group 32, F16 scales"}
    modelopt = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None}}
    stored = {"a.weight": W, "a.weight_scale": ("F32", ()), "a.input_scale": ("F32", ())}
    result = recognise(table(stored), {}, {"hf_quant_config.json": modelopt}, lambda _: {})
    assert words(result) == {"FP8 per tensor, F32 scales"}


def test_the_config_of_a_model_within_a_model() -> None:
    stored: Stored = {"a.weight": W, "a.weight_scale_inv": ("F32", (2, 3))}
    assert words(found(stored, text_config={"quantization_config": FP8, "dtype": "float16"})) == {
        "FP8 block 128x128, F32 scales"
    }
    assert found(stored, text_config={"dtype": "float16"}).tensors["a.weight"].dtype == "F16"


FAULTS: list[tuple[Stored, Any, str]] = [
    ({"a.weight": W, "a.weight_scale_inv": ("F32", (2, 2))}, FP8, "another grid than [2, 3]"),
    ({"a.weight": W, "a.weight_scale_inv": ("F32", (4, 6))}, FP8, "another grid than [2, 3]"),
    ({"a.weight": W, "a.weight_scale_inv": ("F32", (5, 7))}, None, "no grid that fits"),
    ({"a.weight": W, "a.weight_scale_inv": ("F64", (2, 3))}, FP8, "another type than"),
    ({"a.weight": W, "a.weight_scale_inv": ("I32", (2, 3))}, FP8, "another type than"),
    ({"a.weight": W}, FP8, "`a.weight` (F8_E4M3 [256, 384]) has no scales"),
    (
        {"a.weight": W, "a.weight_scale_inv": ("F32", (2, 3)), "b.weight": W},
        FP8,
        "`b.weight` (F8_E4M3 [256, 384]) has no scales",
    ),
    (
        {"a.weight": W, "a.weight_scale_inv": ("F32", (2, 3)), "b.weight_scale_inv": ("F32", (2, 3))},
        FP8,
        "`b.weight_scale_inv` (F32 [2, 3]) belongs to no packed weight",
    ),
    (
        {
            "a.weight": W,
            "a.weight_scale_inv": ("F32", (2, 3)),
            "b.weight": ("BF16", (8, 8)),
            "b.weight_scale_inv": ("F32", (1, 1)),
        },
        FP8,
        "`b.weight_scale_inv` (F32 [1, 1]) belongs to no packed weight",
    ),
    ({"a.weight": ("F8_E4M3", (256,)), "a.weight_scale_inv": ("F32", ())}, FP8, "is not a matrix"),
    ({"a.weight": W, "a.weight_scale": ("F32", (2, 3))}, {"quant_method": "fbgemm_fp8"}, "[256, 1]"),
    ({"a.weight": W, "a.weight_scale": ("F32", ())}, {"quant_method": "gptq", "bits": 4}, "does not cover"),
    ({"a.weight": W, "a.weight_scale": ("BF16", (256, 1))}, CT4, "does not have the scales that the config"),
    (P4, FP8, "does not cover"),
    (P4, None, "needs a config"),
    ({**P4, "a.weight_scale": ("BF16", (8, 6))}, CT4, "does not have the scales"),
    ({**P4, "a.weight_zero_point": ("I32", (2, 3))}, CT4, "zero points"),
    (P4, compressed("pack-quantized", **INT4, symmetric=False), "has no zero points"),
    ({**P4, "a.weight_zero_point": ("I32", (1, 3))}, CT4, "says that it has none (`symmetric`: true)"),
    (P4, compressed("pack-quantized", **INT4, actorder="dynamic"), "has no `weight_g_idx`"),
    (P4, compressed("pack-quantized", **INT4, actorder=True), "has no `weight_g_idx`"),
    (
        {"a.weight": ("I8", (8, 8)), "a.weight_scale": ("F32", (8, 1))},
        compressed("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=False),
        "`a.weight` (I8 [8, 8]) has no zero points",
    ),
    (P4, compressed("marlin-24", **INT4), "`marlin-24` of compressed-tensors is not read"),
    (P4, {**CT4, "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
    (P4, {**CT4, "transform_config": {"config_groups": {"u": {"type": "hadamard"}}}}, "rotated"),
    ({"a.weight_packed": ("I32", (8, 12))}, CT4, ""),
    (
        {"a.qweight": ("I32", (16, 64)), "a.qzeros": ("I32", (4, 8)), "a.scales": ("F16", (4, 64))},
        {"quant_method": "gptq", "bits": 4, "group_size": 64},
        "groups of 64",
    ),
    (
        {"a.qweight": ("I32", (16, 64)), "a.qzeros": ("I32", (4, 8)), "a.scales": ("F16", (4, 64))},
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "is_marlin_format": True},
        "the format `marlin` is not read",
    ),
    (
        {"a.qweight": ("I32", (20, 64)), "a.qzeros": ("I32", (4, 10)), "a.scales": ("F16", (4, 64))},
        {"quant_method": "gptq", "bits": 5, "group_size": 32},
        "GPTQ of 5 bits",
    ),
    (
        {"a.qweight": ("I32", (16, 64)), "a.scales": ("F16", (4, 64))},
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
        "no zero points",
    ),
    (
        {"a.qweight": ("I32", (16, 64)), "a.qzeros": ("I32", (4, 8)), "a.scales": ("F16", (4, 64))},
        {"quant_method": "awq", "bits": 4, "group_size": 32},
        "is not stored as",
    ),
    (
        {"a.weight": ("U8", (64, 128)), "a.weight_scale": ("F8_E4M3", (64, 16))},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        "no scale of the whole tensor",
    ),
    (
        {"a.weight": ("U8", (64, 128)), "a.weight_scale": ("F32", (64, 2))},
        {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"},
        "another basis",
    ),
    *(
        (
            {"a.weight": W, "a.weight_scale": ("F32", ())},
            {"quant_method": "modelopt", **facts},
            "another basis",
        )
        for facts in (
            {"quant_algo": "W4A8_AWQ"},
            {"quant_algo": "NVFP4_SVDQUANT"},
            {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"b": {"quant_algo": "W4A16_AWQ"}}},
        )
    ),
    (
        {"e.gate_up_proj_blocks": ("U8", (2, 64, 3, 16)), "e.gate_up_proj_scales": ("U8", (2, 64, 2))},
        {"quant_method": "mxfp4"},
        "not codes in blocks of 16 bytes",
    ),
    ({"a.weight": ("U8", (64, 1)), "a.weight.absmax": ("F32", (2,))}, None, "no readable state"),
    ({"a.weight": ("U32", (8, 8)), "a.scales": ("F16", (8, 1))}, None, "without biases"),
    (
        {"a.weight": ("U32", (8, 8)), "a.scales": ("F16", (8, 1)), "a.biases": ("F16", (8, 1))},
        None,
        "`quantization` in config.json has to say which",
    ),
    (
        {
            "a.weight": ("I8", (8, 8)),
            "a.weight_scale": ("F32", (8, 1)),
            "a.weight_zero_point": ("I8", (8, 1)),
        },
        None,
        "zero points is not read",
    ),
    *(
        ({"a.weight": ("I8", (8, 8)), "a.weight_scale": (dtype, shape)}, None, "no config says")
        for dtype, shape in (("F32", ()), ("BF16", (1,)), ("F16", (8,)), ("F32", (8, 1)), ("F32", (1, 1)))
    ),
    (
        {
            "a.weight": ("I8", (8, 8)),
            "a.weight_scale": ("F32", ()),
            "a.comfy_quant": ("U8", (40,)),
        },
        None,
        "no config says",
    ),
]


@pytest.mark.parametrize(("stored", "quantisation", "text"), FAULTS)
def test_what_does_not_fit_is_named(stored: Stored, quantisation: Any, text: str) -> None:
    result = found(stored, quantisation)
    assert not result.packed
    assert dict(result.tensors) == table(stored)
    assert text in (result.problem or "")


def test_scales_in_an_order_of_their_own() -> None:
    """ComfyUI's four-bit files have the names and shapes of ModelOpt's, and another order of scales."""
    nvfp4: Stored = {
        "a.weight": ("U8", (128, 128)),
        "a.weight_scale": ("F8_E4M3", (128, 16)),
        "a.weight_scale_2": ("F32", ()),
    }
    assert found(nvfp4).problem is None
    marked = found({**nvfp4, "a.comfy_quant": ("U8", (40,))})
    assert "ComfyUI" in str(marked.problem)
    result = recognise(table(nvfp4), {}, {}, lambda _: {}, ["_quantization_metadata"])
    assert "ComfyUI" in str(result.problem)
    fp8: Stored = {"a.weight": W, "a.weight_scale": ("F32", ()), "a.comfy_quant": ("U8", (40,))}
    assert words(found(fp8)) == {"FP8 per tensor, F32 scales"}
    assert list(found(fp8).tensors) == ["a.weight"]


MX: Stored = {"a.weight": ("U32", (64, 16)), "a.scales": ("U8", (64, 4))}
NV: Stored = {"a.weight": ("U32", (64, 16)), "a.scales": ("U8", (64, 8))}


@pytest.mark.parametrize(
    ("stored", "facts", "text"),
    [
        (MX, {"mode": "mxfp4", "bits": 4, "group_size": 32}, ""),
        (MX, {"mode": "mxfp4", "bits": 4, "group_size": 64}, "groups of 64"),
        (MX, {"mode": "mxfp4", "bits": 8, "group_size": 32}, "and not 8 in groups"),
        (MX, {"mode": "nvfp4", "bits": 4, "group_size": 16}, "one byte for 16 columns"),
        (MX, {"mode": "mxfp8", "bits": 8, "group_size": 32}, "one byte for 32 columns"),
        (MX, {"mode": "affine", "bits": 4, "group_size": 32}, "without biases"),
        (MX, {"mode": "of tomorrow", "bits": 4, "group_size": 32}, "`of tomorrow`"),
        (MX, {"bits": 4, "group_size": 32}, "`affine`"),
        ({**MX, "a.biases": ("U8", (64, 4))}, {"mode": "mxfp4", "bits": 4, "group_size": 32}, "with biases"),
        ({**MX, "a.scales": ("F16", (64, 4))}, {"mode": "mxfp4", "bits": 4, "group_size": 32}, "one byte"),
        (NV, {"mode": "nvfp4", "bits": 4, "group_size": 16}, ""),
        (
            {**NV, "a.global_scale": ("F32", ())},
            {"mode": "nvfp4", "bits": 4, "group_size": 16},
            "not a known part",
        ),
    ],
)
def test_modes_of_mlx(stored: Stored, facts: dict[str, Any], text: str) -> None:
    result = found(stored, quantization=facts)
    assert bool(result.packed) is not bool(text)
    assert text in (result.problem or "")


@pytest.mark.parametrize("shape", [[96, 161], [96], "96", [-1, 5], [2**60, 2**60]])
def test_a_state_of_bitsandbytes_that_lies(shape: Any) -> None:
    stored: Stored = {
        "a.weight": ("U8", (7680, 1)),
        "a.weight.absmax": ("F32", (240,)),
        "a.weight.quant_map": ("F32", (16,)),
        "a.weight.quant_state.bitsandbytes__nf4": ("U8", (78,)),
    }
    state = json.dumps({"shape": shape, "blocksize": 64, "quant_type": "nf4"}).encode()
    result = recognise(table(stored), {}, {}, lambda names: dict.fromkeys(names, state))
    assert "a.weight" in str(result.problem)


@pytest.mark.parametrize("method", ["quanto", "hqq", "torchao", "aqlm", "exl3", "quark", "auto-round"])
def test_formats_that_are_not_read(method: str) -> None:
    stored: Stored = {"a.weight": W, "a.weight_scale": ("F32", (256, 1))}
    result = found(stored, {"quant_method": method})
    assert not result.packed
    assert dict(result.tensors) == table(stored)
