"""Numbers of a few bits with scales, packed and unpacked by a few lines of NumPy each: FP8, MX and NVFP4.

Each way packs a float32 matrix into stored arrays (by the end of their names) and unpacks them again, in the
order of products of the tool that defines the format, in float32.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from support.models import DTYPE_NAMES, DTYPES

E4M3, E5M2, E8M0 = (
    np.dtype(getattr(ml_dtypes, name)) for name in ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
)
F4 = np.dtype(ml_dtypes.float4_e2m1fn)
DTYPES |= {"F8_E8M0": E8M0, "F4": F4}
DTYPE_NAMES |= {E8M0: "F8_E8M0", F4: "F4"}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
Parts = dict[str, np.ndarray]


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
