"""Integers of a few bits, packed and unpacked by a few lines of NumPy each; as `packed_floats` does it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from support.models import DTYPES
from support.packed_floats import Parts, blocks, halves, nearest, spread

NF4 = np.array(
    [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302,
     0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0], np.float32,
)  # fmt: skip
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


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
