"""Small checkpoints in packed formats, and their values by NumPy: no engine takes part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from support.models import (
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
from support.packed_floats import (
    Parts,
    four_bits,
    mxfp4,
    mxfp8_of_mlx,
    nvfp4,
    nvfp4_of_mlx,
    scaled,
    words_of_mlx,
)
from support.packed_integers import awq, bnb4, bnb8, gptq, in_order, mlx, pack_quantized


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
