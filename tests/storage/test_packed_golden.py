"""Every format of packed tensors, against what the package that defines it decodes: bit for bit.

The files hold stored tensors and the values that the format's own package gives (`expect.decoded`, or
`expect.decoded_rounded` to the type that the metadata name); the metadata name the package and its version.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from support.packed import evaluated
from taskvec import _core

GOLDEN = Path(__file__).parent.parent / "data" / "golden"


def scaled(block: list[int], scales: str = ".weight_scale", **more: Any) -> dict[str, Any]:
    return {"kind": "scaled", "parts": {"codes": ".weight", "scales": scales}, "block": block, **more}


def e2m1(
    group: int, codes: str, scales: str, *, of_scales: str = "", rule: str = "", **more: Any
) -> dict[str, Any]:
    both = {"global": rule} if rule else {}
    parts = {"codes": codes, "scales": scales} | ({"global": of_scales} if rule else {})
    return {"kind": "e2m1", "parts": parts, "group": group, **both, **more}


def packed_int(bits: int, group: int, **more: str) -> dict[str, Any]:
    parts = {"codes": ".weight_packed", "scales": ".weight_scale", **more}
    return {"kind": "packed_int", "parts": parts, "bits": bits, "group": group}


def gptq(bits: int) -> dict[str, Any]:
    parts = {"codes": ".qweight", "zeros": ".qzeros", "scales": ".scales", "order": ".g_idx"}
    return {"kind": "gptq", "parts": parts, "bits": bits, "group": 32, "zero_offset": 1}


BNB = {"codes": ".weight", "absmax": ".weight.absmax", "table": ".weight.quant_map"}
NESTED = {"nested_absmax": ".weight.nested_absmax", "nested_table": ".weight.nested_quant_map"}
AWQ = {"codes": ".qweight", "zeros": ".qzeros", "scales": ".scales"}

FORMATS: dict[str, dict[str, Any]] = {
    "awq_g128": {"kind": "awq", "parts": AWQ, "group": 128},
    "block_fp8_float": scaled([128, 128], ".weight_scale_inv"),
    "block_fp8_ragged_192x136_bfloat16": scaled([128, 128], ".weight_scale_inv"),
    "block_fp8_ragged_300x200_float32": scaled([128, 128], ".weight_scale_inv"),
    "block_fp8_ue8m0": scaled([128, 128], ".weight_scale_inv"),
    "bnb_fp4": {"kind": "bnb4", "parts": BNB, "block": 64},
    "bnb_int8": scaled([1, 0], ".SCB", factor=0.007874015718698502),
    "bnb_nf4_nested": {"kind": "bnb4", "parts": BNB | NESTED, "block": 64, "nested_block": 256},
    "ct_fp8_block_float32": scaled([128, 128]),
    "ct_fp8_channel_bfloat16": scaled([1, 0]),
    "ct_int8_channel_float32": scaled([1, 0]),
    "ct_mxfp4_bfloat16": e2m1(32, ".weight_packed", ".weight_scale"),
    "ct_mxfp8_float32": scaled([1, 32]),
    "ct_nvfp4_bfloat16": e2m1(
        16, ".weight_packed", ".weight_scale", of_scales=".weight_global_scale", rule="divide"
    ),
    "ct_pack_int3_g32_sym_bfloat16": packed_int(3, 32),
    "ct_pack_int4_g128_asym_float32": packed_int(4, 128, zeros=".weight_zero_point"),
    "ct_pack_int4_g32_sym_bfloat16": packed_int(4, 32),
    "ct_pack_int4_g32_sym_float32": packed_int(4, 32),
    "ct_pack_int4_gch_sym_bfloat16": packed_int(4, 0),
    "ct_pack_int8_g128_sym_bfloat16": packed_int(8, 128),
    "ct_pack_int8_g128_sym_float32": packed_int(8, 128),
    "gpt_oss_mxfp4": e2m1(32, "_blocks", "_scales", strip=""),
    "gptq_2bit_act_gptq": gptq(2),
    "gptq_4bit_act_gptq": gptq(4),
    "gptq_4bit_seq_gptq": gptq(4),
    "gptq_8bit_seq_gptq": gptq(8),
    "modelopt_nvfp4": e2m1(16, ".weight", ".weight_scale", of_scales=".weight_scale_2", rule="multiply"),
}
# Their tables have +0 for the negative zero.
UNSIGNED_ZERO = {"bnb_fp4", "modelopt_nvfp4"}


def test_every_file_is_decoded() -> None:
    assert {path.stem for path in GOLDEN.glob("*.safetensors")} == set(FORMATS)


def expected(path: Path) -> tuple[np.ndarray, str | None]:
    with safe_open(path, "np") as file:
        key = next(name for name in file.keys() if name.startswith("expect.decoded"))  # noqa: SIM118
        values = file.get_tensor(key).astype(np.float32)
        rounded = (file.metadata() or {}).get("decoded_rounded_to")
    # transformers gives the layout of the model in bf16.
    return (np.ascontiguousarray(values.transpose(0, 2, 1)) if values.ndim == 3 else values), rounded


def format_of(path: Path) -> dict[str, Any]:
    made = {"dtype": "BF16", "strip": ".weight", **FORMATS[path.stem]}
    if "nested_block" in made:
        with safe_open(path, "np") as file:
            state = json.loads(bytes(file.get_tensor("x.weight.quant_state.bitsandbytes__nf4")))
        made["nested_offset"] = state["nested_offset"]
    return made


def same(got: np.ndarray, path: Path) -> bool:
    want, rounded = expected(path)
    got = got.reshape(want.shape)
    if rounded == "bfloat16":
        got = got.astype(ml_dtypes.bfloat16).astype(np.float32)
    differ = got.view(np.uint32) != want.view(np.uint32)
    if path.stem in UNSIGNED_ZERO:
        differ &= ~((got == 0) & (want == 0))
    return not differ.any()


def logical(checkpoint: _core.Checkpoint) -> str:
    names = {name for name, *_ in checkpoint.tensors()}
    if "mlp.experts.gate_up_proj_blocks" in names:
        return "mlp.experts.gate_up_proj"
    return "m.weight" if any(name.startswith("m.") for name in names) else "x.weight"


@pytest.mark.parametrize("name", FORMATS)
def test_decoded_as_the_package_decodes_it(name: str) -> None:
    path = GOLDEN / f"{name}.safetensors"
    checkpoint = _core.Checkpoint(path)
    shape = expected(path)[0].shape
    text = json.dumps(format_of(path)).encode()
    count = int(np.prod(shape))
    got = np.frombuffer(checkpoint.decode(text, logical(checkpoint), shape, 0, count), np.float32)
    assert same(got, path)
    # A range that begins and ends anywhere.
    for start, length in [(1, 1), (37, 700), (count - 5, 9), (count, 3), (131, 0)]:
        part = checkpoint.decode(text, logical(checkpoint), shape, start, length)
        assert part == got[start : start + length].tobytes()


@pytest.mark.parametrize("name", FORMATS)
def test_computed_with_in_a_plan(name: str) -> None:
    path = GOLDEN / f"{name}.safetensors"
    checkpoint = _core.Checkpoint(path)
    shape = list(expected(path)[0].shape)
    tensor = logical(checkpoint)
    plan = {
        "format": 1,
        "arithmetic": 3,
        "sources": [
            {
                "kind": "checkpoint",
                "path": str(path),
                "files": checkpoint.files(),
                "fingerprint": checkpoint.fingerprint,
                "packed": {"formats": [format_of(path)], "tensors": {tensor: [0, shape]}},
            }
        ],
        "outputs": [{"folder": "", "alpha": 1.0}],
        "shards": ["model.safetensors"],
        "operations": [{"kind": "copy"}],
        "tensors": [[tensor, "F32", shape, 0, 0, [[0, tensor]]]],
        "rounding": "nearest",
        "seed": 0,
    }
    got = np.frombuffer(_core.evaluate(json.dumps(plan).encode(), threads=2), np.float32)
    assert same(got, path)


@pytest.mark.parametrize("kind", ["e4m3", "e5m2", "e8m0"])
def test_scalars(kind: str) -> None:
    with safe_open(GOLDEN.parent / "scalars.safetensors", "np") as file:
        want = file.get_tensor(f"f8_{kind}")
    codes, ones = np.arange(256, dtype=np.uint8).reshape(-1, 1), np.ones((256, 1), np.float32)
    held = {"x.weight": (f"F8_{kind.upper()}", codes), "x.weight_scale": ("F32", ones)}
    if kind == "e8m0":
        held = {"x.weight": ("I8", ones.astype(np.int8)), "x.weight_scale": ("F8_E8M0", codes)}
    got = evaluated(held, (256, 1), scaled([1, 0]))
    assert np.array_equal(got.ravel(), want, equal_nan=True)
    assert np.array_equal(np.signbit(got.ravel()), np.signbit(want)) or kind == "e8m0"
