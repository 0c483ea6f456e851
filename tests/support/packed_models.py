"""Small checkpoints in packed formats, and their values by a few lines of NumPy each: no engine takes part.

Each way packs a float32 matrix into stored arrays (by the end of their names) and unpacks them again, in the
order of products of the tool that defines the format, in float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from support.models import (
    DTYPE_NAMES,
    DTYPES,
    Tensors,
    Trio,
    qwen2_config,
    qwen2_shapes,
    random_tensors,
    tuned,
    write_checkpoint,
)
from support.oracle import narrow

E4M3, E5M2, E8M0 = (
    np.dtype(getattr(ml_dtypes, name)) for name in ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
)
F4 = np.dtype(ml_dtypes.float4_e2m1fn)
DTYPES |= {"F8_E8M0": E8M0, "F4": F4}
DTYPE_NAMES |= {E8M0: "F8_E8M0", F4: "F4"}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
NF4 = np.array(
    [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302,
     0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0], np.float32,
)  # fmt: skip
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
Parts = dict[str, np.ndarray]


@dataclass(frozen=True)
class Way:
    """A packed format: what config.json says, and how a matrix becomes stored arrays and is read again."""

    name: str
    config: Mapping[str, Any]
    pack: Callable[[np.ndarray], Parts]
    unpack: Callable[[Parts, tuple[int, int]], np.ndarray]
    more: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def spread(scales: np.ndarray, shape: tuple[int, ...], block: tuple[int, int]) -> np.ndarray:
    """Scales of blocks, one for each element."""
    wide = np.repeat(np.repeat(scales.astype(np.float32), block[0], -2), block[1], -1)
    return wide[..., : shape[-2], : shape[-1]]


def blocks(weight: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """The largest magnitude of each block."""
    rows, columns = (-(-size // side) for size, side in zip(weight.shape, block, strict=True))
    padded = np.zeros((rows * block[0], columns * block[1]), np.float32)
    padded[: weight.shape[0], : weight.shape[1]] = np.abs(weight)
    return padded.reshape(rows, block[0], columns, block[1]).max((1, 3))


def e8m0(values: np.ndarray) -> np.ndarray:
    """Powers of two at least as large, as their bytes."""
    return (np.ceil(np.log2(np.maximum(values, 2.0**-120))) + 127).astype(np.uint8)


def power(scales: np.ndarray) -> np.ndarray:
    """The values of such bytes."""
    return np.exp2(scales.view(np.uint8).astype(np.float32) - 127)


def scaled(
    end: str, block: tuple[int, int], scale: str = "F32", codes: str = "F8_E4M3", shape: str = "grid"
) -> tuple[Any, Any]:
    """FP8 or INT8 codes with one scale per block; ``shape`` may be ``[]`` or ``[out]``."""
    top = 127.0 if codes == "I8" else 448.0

    def size(matrix: tuple[int, int]) -> tuple[int, int]:
        return tuple(side or whole for side, whole in zip(block, matrix, strict=True))  # type: ignore[return-value]

    def pack(weight: np.ndarray) -> Parts:
        wanted = np.maximum(blocks(weight, size(weight.shape)), 1e-8) / top
        if scale in ("U8", "F8_E8M0"):
            stored = e8m0(wanted) if scale == "U8" else e8m0(wanted).view(E8M0)
            used = power(stored)
        else:
            stored = wanted.astype(DTYPES[scale])
            used = stored.astype(np.float32)
        ratio = np.clip(weight / spread(used, weight.shape, size(weight.shape)), -top, top)
        packed = np.rint(ratio).astype(np.int8) if codes == "I8" else ratio.astype(DTYPES[codes])
        final = {"grid": stored.shape, "[]": (), "[1]": (1,), "[out]": stored.shape[:1]}[shape]
        return {".weight": packed, end: stored.reshape(final)}

    def unpack(parts: Parts, matrix: tuple[int, int]) -> np.ndarray:
        grid = blocks(np.zeros(matrix, np.float32), size(matrix)).shape
        stored = parts[end].reshape(grid)
        used = power(stored) if scale in ("U8", "F8_E8M0") else stored.astype(np.float32)
        return parts[".weight"].astype(np.float32) * spread(used, matrix, size(matrix))

    return pack, unpack


def nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The index of the nearest entry of a table."""
    return np.abs(values[..., None] - table).argmin(-1).astype(np.uint8)


def halves(codes: np.ndarray, *, high_first: bool = False) -> np.ndarray:
    """Two codes a byte."""
    first, second = codes[..., 0::2], codes[..., 1::2]
    return (first << 4 | second) if high_first else (second << 4 | first)


def whole(packed: np.ndarray) -> np.ndarray:
    """The codes of bytes, low nibble first."""
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def four_bits(ways: tuple[Any, Any], codes: str) -> tuple[Any, Any]:
    """The same with codes that have a type of their own, of half a byte."""
    pack, unpack = ways

    def named(weight: np.ndarray) -> Parts:
        parts = pack(weight)
        stored = parts[codes].view(np.uint8)
        return {**parts, codes: np.stack([stored & 15, stored >> 4], -1).reshape(weight.shape).view(F4)}

    def unnamed(parts: Parts, matrix: tuple[int, int]) -> np.ndarray:
        return unpack({**parts, codes: halves(parts[codes].view(np.uint8))}, matrix)

    return named, unnamed


def words_of_mlx(ways: tuple[Any, Any]) -> tuple[Any, Any]:
    """The same with codes in words of 32 bits and scales of plain bytes, under the names of MLX."""
    pack, unpack = ways

    def named(weight: np.ndarray) -> Parts:
        codes, scales = pack(weight).values()
        return {".weight": codes.view(np.uint32), ".scales": scales.view(np.uint8)}

    def unnamed(parts: Parts, matrix: tuple[int, int]) -> np.ndarray:
        return unpack({".weight": parts[".weight"].view(np.uint8), ".weight_scale": parts[".scales"]}, matrix)

    return named, unnamed


def nvfp4_of_mlx() -> tuple[Any, Any]:
    """Four-bit floats in groups of 16 whose scales are eight-bit floats, without one for the whole."""

    def pack(weight: np.ndarray) -> Parts:
        small = (np.maximum(blocks(weight, (1, 16)), 0.02) / 6).astype(E4M3)
        wide = spread(small, weight.shape, (1, 16))
        return {".weight": halves(nearest(weight / wide, E2M1)), ".weight_scale": small}

    def unpack(parts: Parts, matrix: tuple[int, int]) -> np.ndarray:
        return E2M1[whole(parts[".weight"])] * spread(parts[".weight_scale"].view(E4M3), matrix, (1, 16))

    return words_of_mlx((pack, unpack))


def mxfp8_of_mlx() -> tuple[Any, Any]:
    """Eight-bit floats, four to a word."""
    pack, unpack = scaled(".weight_scale", (1, 32), "U8")

    def read(parts: Parts, matrix: tuple[int, int]) -> np.ndarray:
        return unpack({**parts, ".weight": parts[".weight"].view(E4M3)}, matrix)

    return words_of_mlx((pack, read))


def mxfp4(codes: str, scales: str, dtype: str = "U8") -> tuple[Any, Any]:
    """MXFP4."""

    def pack(weight: np.ndarray) -> Parts:
        bytes_ = e8m0(np.maximum(blocks(weight, (1, 32)), 1e-8) / 6)
        found = nearest(weight / spread(power(bytes_), weight.shape, (1, 32)), E2M1)
        packed = halves(found)
        return {
            codes: packed.view(np.int8) if dtype == "F8_E8M0" else packed,
            scales: bytes_.view(DTYPES[dtype]),
        }

    def unpack(parts: Parts, matrix: tuple[int, int]) -> np.ndarray:
        return E2M1[whole(parts[codes].view(np.uint8))] * spread(power(parts[scales]), matrix, (1, 32))

    return pack, unpack


def nvfp4(codes: str, whole_scale: str, *, divide: bool) -> tuple[Any, Any]:
    """NVFP4 of compressed-tensors (divides by the global scale) or ModelOpt (multiplies)."""

    def pack(weight: np.ndarray) -> Parts:
        second = np.float32(np.abs(weight).max() / 2688)
        small = (np.maximum(blocks(weight, (1, 16)), 1e-8) / (6 * second)).astype(E4M3)
        stored = np.float32(1 / second) if divide else second
        used = small.astype(np.float32) / stored if divide else small.astype(np.float32) * stored
        found = nearest(weight / spread(used, weight.shape, (1, 16)), E2M1)
        shape = (1,) if divide else ()
        return {codes: halves(found), ".weight_scale": small, whole_scale: np.full(shape, stored, np.float32)}

    def unpack(parts: Parts, matrix: tuple[int, int]) -> np.ndarray:
        small, second = parts[".weight_scale"].astype(np.float32), parts[whole_scale].reshape(())
        used = small / second if divide else small * second
        return E2M1[whole(parts[codes])] * spread(used, matrix, (1, 16))

    return pack, unpack


def fields(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes packed into words of 32 bits along the last axis, lowest bits first, crossing words."""
    flat = np.unpackbits(codes.astype(np.uint8)[..., None], axis=-1, bitorder="little")[..., :bits]
    flat = flat.reshape(*codes.shape[:-1], -1)
    short = -flat.shape[-1] % 32
    flat = np.concatenate([flat, np.zeros((*flat.shape[:-1], short), np.uint8)], -1)
    return np.packbits(flat, axis=-1, bitorder="little").view("<i4")


def unfields(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The codes again."""
    flat = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    flat = flat[..., : count * bits].reshape(*words.shape[:-1], count, bits)
    return (flat.astype(np.int64) << np.arange(bits)).sum(-1)


def pack_quantized(bits: int, group: int, *, symmetric: bool = True, scale: str = "BF16") -> tuple[Any, Any]:
    """Packed integers of compressed-tensors."""
    half = 1 << (bits - 1)

    def side(weight: tuple[int, int]) -> tuple[int, int]:
        return (1, group or weight[1])

    def pack(weight: np.ndarray) -> Parts:
        stored = (np.maximum(blocks(weight, side(weight.shape)), 1e-8) / (half - 1)).astype(DTYPES[scale])
        zeros = (
            np.zeros(stored.shape, np.int64)
            if symmetric
            else np.arange(stored.size).reshape(stored.shape) % 3 - 1
        )
        wide = spread(stored, weight.shape, side(weight.shape))
        codes = np.clip(
            np.rint(weight / wide) + spread(zeros, weight.shape, side(weight.shape)), -half, half - 1
        )
        parts = {
            ".weight_packed": fields(codes.astype(np.int64) + half, bits),
            ".weight_scale": stored,
            ".weight_shape": np.array(weight.shape, np.int64),
        }
        if not symmetric:
            parts[".weight_zero_point"] = np.ascontiguousarray(fields((zeros + half).T, bits).T)
        return parts

    def unpack(parts: Parts, matrix: tuple[int, int]) -> np.ndarray:
        codes = unfields(parts[".weight_packed"], bits, matrix[1]) - half
        wide = spread(parts[".weight_scale"], matrix, side(matrix))
        zeros: Any = 0
        if not symmetric:
            zeros = unfields(parts[".weight_zero_point"].T, bits, matrix[0]).T - half
            zeros = spread(zeros, matrix, side(matrix)).astype(np.int64)
        return (codes - zeros).astype(np.float32) * wide

    return pack, unpack


def gptq(bits: int, group: int, *, order: bool, version: int = 1) -> tuple[Any, Any]:
    """GPTQ with zero points, stored transposed."""
    top = (1 << bits) - 1

    def pack(weight: np.ndarray) -> Parts:
        rows, columns = weight.shape
        at = np.arange(columns) // group
        index = at[::-1].copy() if order else at
        groups = at[-1] + 1
        largest = np.stack([np.abs(weight[:, index == g]).max(1) for g in range(groups)])
        scales = (np.maximum(largest, 1e-6) * 2 / top).astype(np.float16)
        zeros = np.full((groups, rows), 1 << (bits - 1), np.int64)
        codes = np.clip(np.rint(weight.T / scales.astype(np.float32)[index]) + zeros[index], 0, top)
        parts = {
            ".qweight": np.ascontiguousarray(fields(codes.T.astype(np.int64), bits).T),
            ".qzeros": fields(zeros - (version == 1), bits),
            ".scales": scales,
        }
        return {**parts, ".g_idx": index.astype(np.int32)} if order else parts

    def unpack(parts: Parts, matrix: tuple[int, int]) -> np.ndarray:
        rows, columns = matrix
        index = parts.get(".g_idx", np.arange(columns) // group)
        codes = unfields(parts[".qweight"].T, bits, columns).T
        zeros = (unfields(parts[".qzeros"], bits, rows) + (version == 1)) & top
        return (
            (codes - zeros[index]).astype(np.float32) * parts[".scales"].astype(np.float32)[index]
        ).T.copy()

    return pack, unpack


def awq(group: int) -> tuple[Any, Any]:
    """AWQ, four bits."""

    def words(codes: np.ndarray) -> np.ndarray:
        ordered = codes.reshape(codes.shape[0], -1, 8)[..., AWQ_ORDER]
        return fields(ordered.reshape(codes.shape), 4)

    def pack(weight: np.ndarray) -> Parts:
        columns = weight.shape[1]
        at = np.arange(columns) // group
        largest = np.stack([np.abs(weight[:, at == g]).max(1) for g in range(at[-1] + 1)])
        scales = (np.maximum(largest, 1e-6) / 7).astype(np.float16)
        zeros = np.full(scales.shape, 8, np.int64)
        codes = np.clip(np.rint(weight.T / scales.astype(np.float32)[at]) + 8, 0, 15).astype(np.int64)
        return {".qweight": words(codes), ".qzeros": words(zeros), ".scales": scales}

    def unpack(parts: Parts, matrix: tuple[int, int]) -> np.ndarray:
        at = np.arange(matrix[1]) // group

        def codes(stored: np.ndarray) -> np.ndarray:
            found = unfields(stored, 4, matrix[0]).reshape(len(stored), -1, 8)
            return found[..., np.argsort(AWQ_ORDER)].reshape(len(stored), -1)

        difference = codes(parts[".qweight"]) - codes(parts[".qzeros"])[at]
        return (difference.astype(np.float32) * parts[".scales"].astype(np.float32)[at]).T.copy()

    return pack, unpack


def bnb4(block: int = 64, *, nested: bool) -> tuple[Any, Any]:
    """NF4, with or without scales that are quantised themselves."""
    offset, inner = 0.01, 256
    table = np.linspace(-1, 1, 256).astype(np.float32)

    def absmax_of(parts: Parts) -> np.ndarray:
        stored = parts[".weight.absmax"]
        if not nested:
            return stored
        wide = np.repeat(parts[".weight.nested_absmax"], inner)[: stored.size]
        return parts[".weight.nested_quant_map"][stored] * wide + np.float32(offset)

    def pack(weight: np.ndarray) -> Parts:
        flat = weight.reshape(-1)
        parts: Parts = {".weight.quant_map": NF4}
        largest = np.maximum(np.abs(flat).reshape(-1, block).max(1), 1e-6).astype(np.float32)
        facts: dict[str, Any] = {
            "quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": list(weight.shape)
        }  # fmt: skip
        parts[".weight.absmax"] = largest
        if nested:
            scale = np.abs(largest - offset).max().astype(np.float32)
            parts[".weight.absmax"] = nearest((largest - offset) / scale, table)
            parts[".weight.nested_absmax"] = np.full(-(-largest.size // inner), scale, np.float32)
            parts[".weight.nested_quant_map"] = table
            facts |= {"nested_blocksize": inner, "nested_offset": offset, "nested_dtype": "float32"}
        codes = nearest(flat / np.repeat(absmax_of(parts), block), NF4)
        text = json.dumps(facts).encode()
        parts[".weight.quant_state.bitsandbytes__nf4"] = np.frombuffer(text, np.uint8)
        return {".weight": halves(codes, high_first=True).reshape(-1, 1), **parts}

    def unpack(parts: Parts, matrix: tuple[int, int]) -> np.ndarray:
        packed = parts[".weight"].reshape(-1)
        codes = np.stack([packed >> 4, packed & 15], -1).reshape(-1)
        table = parts[".weight.quant_map"]
        return (table[codes] * np.repeat(absmax_of(parts), block)).reshape(matrix)

    return pack, unpack


def bnb8() -> tuple[Any, Any]:
    """INT8 of bitsandbytes."""
    factor = np.float32(0.007874015718698502)

    def pack(weight: np.ndarray) -> Parts:
        largest = np.abs(weight).max(1).astype(np.float32)
        codes = np.clip(np.rint(weight / largest[:, None] * 127), -127, 127).astype(np.int8)
        return {".weight": codes, ".SCB": largest}

    def unpack(parts: Parts, _: tuple[int, int]) -> np.ndarray:
        return parts[".weight"].astype(np.float32) * parts[".SCB"][:, None] * factor

    return pack, unpack


def mlx(bits: int, group: int) -> tuple[Any, Any]:
    """MLX: codes, scales and biases."""
    top = (1 << bits) - 1

    def pack(weight: np.ndarray) -> Parts:
        parted = weight.reshape(weight.shape[0], -1, group)
        low, high = parted.min(-1), parted.max(-1)
        is_low = np.abs(low) > np.abs(high)
        step = (np.maximum((high - low) / top, 1e-7) * np.where(is_low, 1, -1)).astype(np.float32)
        edge = np.where(is_low, low, high)
        # zero is one of the numbers, unless the edge is less than half a step away
        count = np.rint(edge / step)
        scales = np.where(count, edge / np.where(count, count, 1), step).astype(np.float16)
        biases = np.where(count, edge, 0).astype(np.float16)
        wide = np.repeat(scales.astype(np.float32), group, 1), np.repeat(biases.astype(np.float32), group, 1)
        codes = np.clip(np.rint((weight - wide[1]) / wide[0]), 0, top)
        return {".weight": fields(codes, bits).view(np.uint32), ".scales": scales, ".biases": biases}

    def unpack(parts: Parts, matrix: tuple[int, int]) -> np.ndarray:
        codes = unfields(parts[".weight"], bits, matrix[1]).astype(np.float32)
        wide = [np.repeat(parts[end].astype(np.float32), group, 1) for end in (".scales", ".biases")]
        return wide[0] * codes + wide[1]

    return pack, unpack


def in_order(ways: tuple[Any, Any], group: int) -> tuple[Any, Any]:
    """Packed integers in groups of columns that are no neighbours: ``weight_g_idx`` has the group of each."""
    pack, _ = ways

    def order(columns: int) -> np.ndarray:
        return np.random.default_rng(columns).permutation(columns) // group

    def bits_of(parts: Parts, columns: int) -> int:
        return parts[".weight_packed"].shape[1] * 32 // columns

    def strewn(weight: np.ndarray) -> Parts:
        groups = order(weight.shape[1])
        places = np.argsort(groups, kind="stable")
        parts = pack(weight[:, places])
        bits = bits_of(parts, weight.shape[1])
        codes = np.empty(weight.shape, np.int64)
        codes[:, places] = unfields(parts[".weight_packed"], bits, weight.shape[1])
        return {**parts, ".weight_packed": fields(codes, bits), ".weight_g_idx": groups.astype(np.int32)}

    def gathered(parts: Parts, matrix: tuple[int, int]) -> np.ndarray:
        groups, bits = parts[".weight_g_idx"], bits_of(parts, matrix[1])
        if -1 in groups:  # not set: the columns are in order
            groups = np.arange(matrix[1]) // group
        if (groups < 0).any():
            raise IndexError("there are no such groups")
        codes = unfields(parts[".weight_packed"], bits, matrix[1])
        zeros: Any = 1 << (bits - 1)
        if ".weight_zero_point" in parts:
            zeros = unfields(parts[".weight_zero_point"].T, bits, matrix[0]).T[:, groups]
        return (codes - zeros).astype(np.float32) * parts[".weight_scale"].astype(np.float32)[:, groups]

    return strewn, gathered


def compressed(form: str, **weights: Any) -> dict[str, Any]:
    """A config of compressed-tensors."""
    group = {"targets": ["Linear"], "weights": {"symmetric": True, "dynamic": False, **weights}}
    groups = {"group_0": group}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": groups,
        "ignore": ["lm_head"],
    }


def _ct(name: str, form: str, ways: tuple[Any, Any], **weights: Any) -> Way:
    return Way(f"CT {name}", compressed(form, **weights), *ways)


def _mlx(name: str, ways: tuple[Any, Any], **facts: Any) -> Way:
    return Way(name, {}, *ways, more={"quantization": facts})


def _gptq(bits: int, *, act: bool = False, version: int = 1) -> Way:
    form = "gptq" if version == 1 else "gptq_v2"
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": 32,
        "desc_act": act,
        "checkpoint_format": form,
    }
    name = f"GPTQ {bits} bits{' act' if act else ''}{' v2' if version == 2 else ''}"
    return Way(name, config, *gptq(bits, 32, order=act, version=version))


FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
_TENSOR = {**FP8, "weight_block_size": None}
_FLOAT = {"num_bits": 8, "type": "float"}
_INT = {"type": "int", "strategy": "group", "group_size": 32}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
_NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
_GROUP = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
_SMALL_GROUP = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
_CHANNEL, _BLOCK = (1, 0), (128, 128)
WAYS = [
    *(
        Way(f"block FP8, {kind} scales", FP8, *scaled(".weight_scale_inv", _BLOCK, kind))
        for kind in ("F32", "BF16", "F16", "U8", "F8_E8M0")
    ),
    Way("FP8 per tensor", _TENSOR, *scaled(".weight_scale_inv", (0, 0), shape="[]")),
    Way("FBGEMM FP8", {"quant_method": "fbgemm_fp8"}, *scaled(".weight_scale", _CHANNEL)),
    Way("DeepSeek FP8", FP8, *scaled(".scale", _BLOCK, "F8_E8M0")),
    Way("DeepSeek FP4", {**FP8, "expert_dtype": "fp4"}, *mxfp4(".weight", ".scale", "F8_E8M0")),
    Way(
        "DeepSeek FP4, F4 codes",
        {**FP8, "expert_dtype": "fp4"},
        *four_bits(mxfp4(".weight", ".scale", "F8_E8M0"), ".weight"),
    ),
    Way("Mistral FP8", _TENSOR, *scaled(".qscale_weight", (0, 0), "BF16", shape="[]")),
    _ct(
        "FP8 channel",
        "float-quantized",
        scaled(".weight_scale", _CHANNEL, "BF16"),
        **_FLOAT,
        strategy="channel",
    ),
    _ct(
        "FP8 tensor",
        "naive-quantized",
        scaled(".weight_scale", (0, 0), shape="[1]"),
        **_FLOAT,
        strategy="tensor",
    ),
    _ct(
        "FP8 block",
        "float-quantized",
        scaled(".weight_scale", _BLOCK, "BF16"),
        **_FLOAT,
        strategy="block",
        block_structure=[128, 128],
    ),
    _ct(
        "INT8",
        "int-quantized",
        scaled(".weight_scale", _CHANNEL, "BF16", "I8"),
        num_bits=8,
        type="int",
        strategy="channel",
    ),
    *(
        _ct(f"INT{bits} group 32", "pack-quantized", pack_quantized(bits, 32), num_bits=bits, **_INT)
        for bits in (2, 3, 4, 5, 8)
    ),
    _ct(
        "INT4 act",
        "pack-quantized",
        in_order(pack_quantized(4, 32), 32),
        num_bits=4,
        **_INT,
        actorder="group",
    ),
    _ct(
        "INT3 act zero points",
        "pack-quantized",
        in_order(pack_quantized(3, 32, symmetric=False, scale="F32"), 32),
        num_bits=3,
        **_INT,
        symmetric=False,
        actorder="group",
    ),
    _ct("INT4 channel", "pack-quantized", pack_quantized(4, 0), num_bits=4, type="int", strategy="channel"),
    _ct(
        "INT4 zero points",
        "pack-quantized",
        pack_quantized(4, 32, symmetric=False, scale="F32"),
        num_bits=4,
        **_INT,
        symmetric=False,
    ),
    _ct("MXFP4", "mxfp4-pack-quantized", mxfp4(".weight_packed", ".weight_scale"), **_GROUP),
    _ct(
        "MXFP4, F4 codes",
        "mxfp4-pack-quantized",
        four_bits(mxfp4(".weight_packed", ".weight_scale", "F8_E8M0"), ".weight_packed"),
        **_GROUP,
    ),
    _ct(
        "NVFP4, F4 codes",
        "nvfp4-pack-quantized",
        four_bits(nvfp4(".weight_packed", ".weight_global_scale", divide=True), ".weight_packed"),
        **_SMALL_GROUP,
    ),
    _ct("MXFP8", "mxfp8-quantized", scaled(".weight_scale", (1, 32), "U8"), **{**_GROUP, "num_bits": 8}),
    _ct(
        "NVFP4",
        "nvfp4-pack-quantized",
        nvfp4(".weight_packed", ".weight_global_scale", divide=True),
        **_SMALL_GROUP,
    ),
    Way(
        "ModelOpt FP8",
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        *scaled(".weight_scale", (0, 0), shape="[]"),
    ),
    Way(
        "ModelOpt NVFP4",
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        *nvfp4(".weight", ".weight_scale_2", divide=False),
    ),
    Way(
        "ModelOpt NVFP4, F4 codes",
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        *four_bits(nvfp4(".weight", ".weight_scale_2", divide=False), ".weight"),
    ),
    _gptq(2),
    _gptq(3),
    _gptq(4, act=True),
    _gptq(8),
    _gptq(4, version=2),
    Way("AWQ", _AWQ, *awq(32)),
    Way("NF4", _NF4, *bnb4(nested=False)),
    Way("NF4 nested", {**_NF4, "bnb_4bit_use_double_quant": True}, *bnb4(nested=True)),
    Way("bitsandbytes INT8", {"quant_method": "bitsandbytes", "load_in_8bit": True}, *bnb8()),
    Way("single-file FP8", {}, *scaled(".scale_weight", (0, 0), shape="[]")),
    *(
        _mlx(f"MLX{f' {bits} bits' if bits != 4 else ''}", mlx(bits, 32), bits=bits, group_size=32)
        for bits in (2, 3, 4, 5, 6, 8)
    ),
    _mlx(
        "MLX MXFP4",
        words_of_mlx(mxfp4(".weight", ".weight_scale")),
        mode="mxfp4",
        bits=4,
        group_size=32,
    ),
    _mlx("MLX NVFP4", nvfp4_of_mlx(), mode="nvfp4", bits=4, group_size=16),
    _mlx("MLX MXFP8", mxfp8_of_mlx(), mode="mxfp8", bits=8, group_size=32),
]
BY_NAME = {way.name: way for way in WAYS}


def is_packed(name: str) -> bool:
    """Whether a tensor of the small models is one that tools quantise."""
    return name.endswith("_proj.weight")


def packed_tensors(tensors: Tensors, way: Way) -> Tensors:
    """The same model with its linear layers packed."""
    stored: Tensors = {}
    for name, array in tensors.items():
        if is_packed(name):
            stem = name.removesuffix(".weight")
            stored |= {stem + end: part for end, part in way.pack(array.astype(np.float32)).items()}
        else:
            stored[name] = array
    return stored


def plain_values(stored: Tensors, shapes: Mapping[str, tuple[int, ...]], way: Way) -> dict[str, np.ndarray]:
    """The values of such a model: float32 of what is packed, the stored arrays of the rest."""
    values: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        if is_packed(name):
            stem = name.removesuffix(".weight")
            parts = {
                key.removeprefix(stem): array for key, array in stored.items() if key.startswith(f"{stem}.")
            }
            parts.pop(".bias", None)
            values[name] = way.unpack(parts, shape)  # type: ignore[arg-type]
        else:
            values[name] = stored[name]
    return values


def packed_config(way: Way, **changes: Any) -> dict[str, Any]:
    """The config of such a model: large enough for blocks of 128 and one that is cut off."""
    sizes = {"layers": 1, "hidden": 160, "intermediate": 192, "heads": 5, "kv_heads": 1, "vocabulary": 96}
    config = qwen2_config(**{**sizes, **changes})
    quantisation = {"quantization_config": dict(way.config)} if way.config else {}
    return {**config, **quantisation, **way.more}


def write_packed(
    folder: Path, tensors: Tensors, way: Way, config: Mapping[str, Any], *, shards: int = 1
) -> dict[str, np.ndarray]:
    """Write one packed checkpoint and give its values."""
    stored = packed_tensors(tensors, way)
    write_checkpoint(folder, stored, config, shards=shards)
    return plain_values(stored, {name: array.shape for name, array in tensors.items()}, way)


Values = dict[str, np.ndarray]


def packed_trio(
    root: Path,
    way: Way,
    *,
    plain: tuple[str, ...] = (),
    shards: int = 1,
    seed: int = 0,
    step: float = 0.004,
    **sizes: Any,
) -> tuple[Trio, tuple[Values, Values, Values]]:
    """Target, donor and reference in one format (those named in `plain` in BF16), and the values of each."""
    config = packed_config(way, **sizes)
    base = random_tensors(qwen2_shapes(config), seed=seed, dtype="F32")
    reference = tuned(base, seed=seed + 2, step=0.003)
    models = {
        "target": tuned(base, seed=seed + 1, step=0.003),
        "donor": tuned(reference, seed=seed + 3, step=step),
        "reference": reference,
    }
    values: list[Values] = []
    for role, tensors in models.items():
        kept = {name: array.astype(DTYPES["BF16"]) for name, array in tensors.items()}
        if role in plain:
            without = {
                key: value
                for key, value in config.items()
                if key not in ("quantization_config", "quantization")
            }
            write_checkpoint(root / role, kept, without, shards=shards)
            values.append(kept)
        else:
            values.append(write_packed(root / role, kept, way, config, shards=shards))
    return Trio(*(root / role for role in models)), (values[0], values[1], values[2])


def expected(values: tuple[Values, Values, Values], name: str, alpha: float = 1.0) -> np.ndarray:
    """target + α·(donor − reference) in float64, rounded once to BF16."""
    t, d, r = (each[name].astype(np.float64) for each in values)
    return narrow(t + alpha * (d - r), DTYPES["BF16"])
