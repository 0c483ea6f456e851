"""Packed tensors made, read and written with NumPy alone: what the engine is held against.

A format is a dictionary, as a plan has it, and functions that make its parts from numbers and numbers from
its parts. A model is a dictionary of stored tensors: dtype, shape, bytes.
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

Stored = dict[str, tuple[str, tuple[int, ...], bytes]]
Parts = dict[str, np.ndarray]

E4M3, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16
DTYPES = {
    "F8_E4M3": np.dtype(E4M3),
    "BF16": np.dtype(BF16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "U8": np.dtype(np.uint8),
    "U32": np.dtype(np.uint32),
    "I8": np.dtype(np.int8),
    "I32": np.dtype(np.int32),
    "F8_E8M0": np.dtype(np.uint8),
    "I64": np.dtype(np.int64),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


def write(path: Path, tensors: Stored) -> None:
    """A safetensors file, its tensors in the order given."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def read(path: Path) -> Stored:
    """The same read."""
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    rows = {name: row for name, row in json.loads(data[8:end]).items() if name != "__metadata__"}
    return {
        name: (
            row["dtype"],
            tuple(row["shape"]),
            data[end + row["data_offsets"][0] : end + row["data_offsets"][1]],
        )
        for name, row in rows.items()
    }


def array(stored: tuple[str, tuple[int, ...], bytes]) -> np.ndarray:
    """A stored tensor as an array."""
    dtype, shape, data = stored
    return np.frombuffer(data, DTYPES[dtype]).reshape(shape)


def spread(scales: np.ndarray, shape: tuple[int, ...], block: tuple[int, int]) -> np.ndarray:
    """The scale of each element."""
    rows, columns = block[0] or shape[-2], block[1] or shape[-1]
    scales = scales.reshape(*shape[:-2], -(-shape[-2] // rows), -(-shape[-1] // columns))
    return scales.repeat(rows, -2)[..., : shape[-2], :].repeat(columns, -1)[..., : shape[-1]]


def per_group(values: np.ndarray, block: tuple[int, int], reduce: Callable[..., np.ndarray]) -> np.ndarray:
    """A figure of each group."""
    rows, columns = block[0] or values.shape[-2], block[1] or values.shape[-1]
    down = np.arange(0, values.shape[-2], rows)
    across = np.arange(0, values.shape[-1], columns)
    return reduce(reduce(values, down, axis=-2), across, axis=-1)


def exponent_value(bits: np.ndarray) -> np.ndarray:
    """E8M0 as float32."""
    value = np.ldexp(np.float32(1), bits.astype(np.int32) - 127).astype(np.float32)
    return np.where(bits == 255, np.float32(np.nan), value)


def fields(codes: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned fields of a few bits packed into int32 words along the last axis, the lowest bits first."""
    spare = -codes.shape[-1] * bits % 32
    flat = (codes.astype(np.uint32)[..., None] >> np.arange(bits, dtype=np.uint32)) & 1
    flat = flat.reshape(*codes.shape[:-1], -1).astype(np.uint8)
    flat = np.concatenate([flat, np.zeros((*flat.shape[:-1], spare), np.uint8)], -1)
    return np.packbits(flat, axis=-1, bitorder="little").view("<i4")


def unfields(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The same read."""
    flat = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    flat = flat[..., : count * bits].reshape(*words.shape[:-1], count, bits)
    return (flat.astype(np.int64) << np.arange(bits)).sum(-1)


@dataclass
class Format:
    """One format: its dictionary in a plan, the types of its parts, and its arithmetic."""

    plan: dict[str, object]
    codes: str
    scales: str
    block: tuple[int, int]
    top: float
    rule: str
    bits: int = 8

    @property
    def kind(self) -> str:
        """The kind that the plan names."""
        return str(self.plan["kind"])

    def value(self, scales: np.ndarray, glob: np.ndarray | None = None) -> np.ndarray:
        """Stored scales as float32."""
        exponent = self.scales in ("U8", "F8_E8M0")
        value = exponent_value(scales) if exponent else scales.astype(np.float32)
        if glob is None:
            return value
        return value * glob if self.plan["global"] == "multiply" else value / glob

    def round(self, y: np.ndarray) -> np.ndarray:
        """The numbers of the nearest codes."""
        if self.kind == "packed_int" or self.codes == "I8":
            half = 2 ** (self.bits - 1)
            return np.rint(np.clip(y, -half, half - 1)).astype(np.float32)
        grid = ml_dtypes.float4_e2m1fn if self.kind == "e2m1" else DTYPES[self.codes]
        return np.clip(y, -self.top, self.top).astype(grid).astype(np.float32)

    def pack(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers of codes as stored."""
        if self.kind == "packed_int":
            return fields(numbers.astype(np.int64) + 2 ** (self.bits - 1), self.bits)
        if self.kind == "e2m1":
            nibbles = numbers.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
            return nibbles[..., ::2] | nibbles[..., 1::2] << 4
        return numbers.astype(DTYPES[self.codes])

    def unpack(self, codes: np.ndarray, columns: int) -> np.ndarray:
        """Stored codes as numbers."""
        if self.kind == "packed_int":
            return (unfields(codes, self.bits, columns) - 2 ** (self.bits - 1)).astype(np.float32)
        if self.kind == "e2m1":
            nibbles = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1)
            return nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
        return codes.astype(np.float32)

    def fresh(self, x: np.ndarray, glob: np.ndarray | None = None) -> np.ndarray:
        """Stored scales that the rule gives."""
        high = np.maximum(per_group(x, self.block, np.maximum.reduceat), 0).astype(np.float32)
        low = np.maximum(-per_group(x, self.block, np.minimum.reduceat), 0).astype(np.float32)
        amax, top = np.maximum(high, low), np.float32(self.top)
        with np.errstate(divide="ignore"):
            match self.rule:
                case "amax_448" | "amax_127" | "amax_7":
                    scale = np.where(
                        amax > 0, amax / top, np.float32(1e-4) / top if top == 448 else np.float32(1)
                    )
                case "pair":
                    scale = np.maximum(high / top, low / np.float32(self.top + 1))
                    scale = np.where(scale > 0, scale, np.float32(1))
                case "ue8m0":
                    inverse = np.where(amax > 0, np.float32(1) / amax * top, np.float32(1)).astype(np.float32)
                    scale = np.exp2(np.ceil(np.log2((np.float32(1) / inverse).astype(np.float64))))
                case "mx_ct":
                    offset = 2 if self.kind == "e2m1" else 8
                    bits = (amax.view(np.uint32) + (1 << 21) >> 23).astype(np.int64) - offset
                    return np.where(amax > 0, np.maximum(bits, 0), 0).astype(np.uint8)
                case "mx_ceil":
                    exponent = np.ceil(np.log2(np.where(amax > 0, amax / top, 2.0**-127).astype(np.float64)))
                    return np.clip(exponent + 127, 0, 254).astype(np.uint8)
                case "nvfp4" if self.plan["global"] == "multiply":
                    bits = np.clip(amax / (top * glob), 0, 448).astype(E4M3)
                    return np.where(bits == 0, np.float32(1).astype(E4M3), bits)
                case "nvfp4":
                    bits = np.clip(glob * (amax / top), 0, 448).astype(E4M3)
                    return np.where(bits == 0, np.float32(0.125).astype(E4M3), bits)
        scale = scale.astype(np.float32)
        if self.scales in ("U8", "F8_E8M0"):
            return (scale.view(np.uint32) >> 23).astype(np.uint8)
        return scale.astype(DTYPES[self.scales])

    def quantise(self, x: np.ndarray, glob: np.ndarray | None = None) -> Parts:
        """All parts of a tensor, by the rule."""
        if glob is None and "global" in self.plan:
            most = np.float32(np.abs(x).max())
            multiply = self.plan["global"] == "multiply"
            glob = most / np.float32(2688) if multiply else np.float32(1) / most * np.float32(2688)
        scales = self.fresh(x, glob)
        each = spread(self.value(scales, glob), x.shape, self.block)
        parts = {"codes": self.pack(self.round(x / each)), "scales": scales}
        if glob is not None:
            parts["global"] = np.array([glob], np.float32)
        return parts

    def decode(self, parts: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        """The numbers of a tensor."""
        glob = parts["global"][0] if "global" in parts else None
        each = spread(self.value(parts["scales"], glob), shape, self.block)
        return (self.unpack(parts["codes"], shape[-1]) * each).astype(np.float32)

    def candidates(self, x: np.ndarray, own: Parts) -> list[Parts]:
        """A tensor under its own scales, and under fresh ones."""
        glob = own["global"][0] if "global" in own else None
        found = []
        for scales in (own["scales"], self.fresh(x, glob).reshape(own["scales"].shape)):
            each = spread(self.value(scales, glob), x.shape, self.block)
            found.append({**own, "codes": self.pack(self.round(x / each)), "scales": scales})
        return found

    def better(self, x: np.ndarray, own: Parts) -> Parts:
        """Per group the target's scale, or a fresh one whose squared error is a 1024th smaller."""
        glob = own["global"][0] if "global" in own else None
        fresh = self.fresh(x, glob).reshape(own["scales"].shape)
        errors, numbers = [], []
        for scales in (own["scales"], fresh):
            each = spread(self.value(scales, glob), x.shape, self.block)
            numbers.append(self.round(x / each))
            square = (x.astype(np.float64) - numbers[-1].astype(np.float64) * each) ** 2
            errors.append(per_group(square, self.block, np.add.reduceat))
        values = [
            self.value(s, glob).reshape(errors[0].shape).view(np.uint32).astype(np.int64)
            for s in (own["scales"], fresh)
        ]
        close = np.abs(values[0] - values[1]) <= 2
        new = (errors[1] < errors[0] * (1 - 2.0**-10)) & ~close
        scales = np.where(new.reshape(fresh.shape), fresh, own["scales"]).astype(fresh.dtype)
        codes = np.where(spread(new, x.shape, self.block), numbers[1], numbers[0])
        return {**own, "codes": self.pack(codes), "scales": scales}


class Affine(Format):
    """Integers from zero up, times a scale, on a bias: MLX."""

    def groups(self, x: np.ndarray) -> np.ndarray:
        """One more axis: the columns of a group."""
        return x.reshape(*x.shape[:-1], -1, self.block[1])

    def wide(self, scales: np.ndarray, biases: np.ndarray) -> list[np.ndarray]:
        """Both as float32, one for each element."""
        return [each.astype(np.float32).repeat(self.block[1], -1) for each in (scales, biases)]

    def affine(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stored scales and biases, as `mx.quantize` makes them."""
        low, high = self.groups(x).min(-1), self.groups(x).max(-1)
        is_low = np.abs(low) > np.abs(high)
        step = np.maximum((high - low) / np.float32(self.top), np.float32(1e-7)) * np.where(is_low, 1, -1)
        edge, step = np.where(is_low, low, high), step.astype(np.float32)
        count = np.rint(edge / step)
        scale = np.where(count != 0, edge / np.where(count != 0, count, 1), step)
        dtype = DTYPES[self.scales]
        return scale.astype(dtype), np.where(count != 0, edge, 0).astype(dtype)

    def under(self, x: np.ndarray, scales: np.ndarray, biases: np.ndarray) -> Parts:
        """All parts under given scales and biases."""
        scale, bias = self.wide(scales, biases)
        codes = np.clip(np.rint((x - bias) / scale), 0, self.top).astype(np.int64)
        packed = fields(codes, self.bits).view(np.uint32)
        return {"codes": packed, "scales": scales, "biases": biases}

    def quantise(self, x: np.ndarray, _: np.ndarray | None = None) -> Parts:
        return self.under(x, *self.affine(x))

    def decode(self, parts: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        scale, bias = self.wide(parts["scales"], parts["biases"])
        return unfields(parts["codes"], self.bits, shape[-1]).astype(np.float32) * scale + bias

    def candidates(self, x: np.ndarray, own: Parts) -> list[Parts]:
        return [self.under(x, *pair) for pair in ((own["scales"], own["biases"]), self.affine(x))]

    def better(self, x: np.ndarray, own: Parts) -> Parts:
        both = self.candidates(x, own)
        errors, bits = [], []
        for each in both:
            scale, bias = self.wide(each["scales"], each["biases"])
            away = (x - bias) / scale - unfields(each["codes"], self.bits, x.shape[-1]).astype(np.float32)
            errors.append(self.groups((away.astype(np.float64) * scale) ** 2).sum(-1))
            stored = (each["scales"].astype(np.float32), each["biases"].astype(np.float32))
            bits.append(np.stack(stored).view(np.uint32).astype(np.int64))
        close = (np.abs(bits[0] - bits[1]) <= 2).all(0)
        new = (errors[1] < errors[0] * (1 - 2.0**-10)) & ~close
        pairs = [np.where(new, both[1][role], both[0][role]) for role in ("scales", "biases")]
        return self.under(x, *(each.astype(DTYPES[self.scales]) for each in pairs))


def mlx(bits: int, group: int, scales: str) -> Affine:
    """Integers of MLX."""
    plan = {
        "kind": "mlx",
        "dtype": "BF16",
        "strip": ".weight",
        "bits": bits,
        "group": group,
        "parts": {"codes": ".weight", "scales": ".scales", "biases": ".biases"},
    }
    return Affine(plan, "U32", scales, (1, group), float(2**bits - 1), "mlx", bits)


def scaled(codes: str, scales: str, block: tuple[int, int], rule: str, top: float = 448.0) -> Format:
    """Codes that are numbers by themselves."""
    plan = {
        "kind": "scaled",
        "dtype": "BF16",
        "strip": ".weight",
        "block": list(block),
        "parts": {"codes": ".weight", "scales": ".weight_scale"},
    }
    return Format(plan, codes, scales, block, top, rule)


def e2m1(scales: str, group: int, rule: str, glob: str | None = None) -> Format:
    """Four-bit floats."""
    plan: dict[str, object] = {
        "kind": "e2m1",
        "dtype": "BF16",
        "strip": ".weight",
        "group": group,
        "parts": {"codes": ".weight_packed", "scales": ".weight_scale"}
        | ({"global": ".weight_global"} if glob else {}),
    }
    return Format(plan | ({"global": glob} if glob else {}), "U8", scales, (1, group), 6.0, rule, 4)


def packed_int(bits: int, group: int, scales: str, rule: str) -> Format:
    """Integers of a few bits."""
    plan = {
        "kind": "packed_int",
        "dtype": "BF16",
        "strip": ".weight",
        "bits": bits,
        "group": group,
        "parts": {"codes": ".weight_packed", "scales": ".weight_scale"},
    }
    return Format(plan, "I32", scales, (1, group), float(2 ** (bits - 1) - 1), rule, bits)


FORMATS = {
    "block fp8": scaled("F8_E4M3", "F32", (128, 128), "amax_448"),
    "block fp8 bf16": scaled("F8_E4M3", "BF16", (128, 128), "amax_448"),
    "block fp8 f16": scaled("F8_E4M3", "F16", (128, 128), "amax_448"),
    "block fp8 ue8m0": scaled("F8_E4M3", "F8_E8M0", (128, 128), "ue8m0"),
    "block fp8 ue8m0 f32": scaled("F8_E4M3", "F32", (128, 128), "ue8m0"),
    "channel fp8": scaled("F8_E4M3", "BF16", (1, 0), "amax_448"),
    "channel int8": scaled("I8", "F32", (1, 0), "amax_127", 127.0),
    "mxfp8": scaled("F8_E4M3", "U8", (1, 32), "mx_ct"),
    "mxfp4": e2m1("U8", 32, "mx_ct"),
    "mxfp4 ceil": e2m1("F8_E8M0", 32, "mx_ceil"),
    "nvfp4 modelopt": e2m1("F8_E4M3", 16, "nvfp4", "multiply"),
    "nvfp4": e2m1("F8_E4M3", 16, "nvfp4", "divide"),
    "int4": packed_int(4, 32, "BF16", "amax_7"),
    "int4 pair": packed_int(4, 32, "F32", "pair"),
    "int3": packed_int(3, 32, "BF16", "amax_7"),
    "int5 channel": packed_int(5, 0, "F32", "amax_7"),
    "int8": packed_int(8, 128, "BF16", "pair"),
    "int2": packed_int(2, 32, "F32", "pair"),
    "mlx 2": mlx(2, 32, "F32"),
    "mlx 3": mlx(3, 32, "BF16"),
    "mlx 4": mlx(4, 32, "F16"),
    "mlx 5": mlx(5, 32, "F16"),
    "mlx 6": mlx(6, 32, "BF16"),
    "mlx 8": mlx(8, 32, "F16"),
}
