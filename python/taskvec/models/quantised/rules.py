"""Names of the stored tensors that make up a packed weight, in every spelling that is read.

A rule is told by an anchor, a name that only it has; the other parts are found by their ends. What has
another spelling is not a packed weight here, and is looked at by :mod:`taskvec.compat.packed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from taskvec.models.model import TensorInfo
from taskvec.models.quantised.record import NARROW_FLOATS, STATE

Stored = Mapping[str, TensorInfo]


class Rule(NamedTuple):
    """How the parts of a packed weight are named.

    Attributes
    ----------
    way : str
        The function that decides the format.
    strip : str
        The end of the logical name that its parts do not have.
    codes : str
        What the stored name of the codes ends in.
    parts : tuple of (part, end)
        The other parts; those that are not stored are left out.
    """

    way: str
    strip: str
    codes: str
    parts: tuple[tuple[str, str], ...]


_MORE = (("zeros", "_zero_point"), ("order", "_g_idx"))
_FP8_INVERSE = Rule("fp8", "", "", (("scales", "_scale_inv"),))
_FP8 = Rule("fp8", "", "", (("scales", "_scale"),))
_INT8 = Rule("int8", "", "", (("scales", "_scale"), ("zeros", "_zero_point")))
# ModelOpt multiplies with its second scale, compressed-tensors divides by its global one
_NVFP4 = Rule("e2m1", "", "", (("scales", "_scale"), ("global", "_scale_2")))
_PACKED_FLOATS = Rule("e2m1", "", "_packed", (("scales", "_scale"), ("global", "_global_scale")))
_PACKED_INTEGERS = Rule("pack", "", "_packed", (("scales", "_scale"), *_MORE, ("shape", "_shape")))
_BLOCKS = Rule("mxfp4", "", "_blocks", (("scales", "_scales"),))
_OPENAI = Rule("mxfp4", "", ".blocks", (("scales", ".scales"),))
_DEEPSEEK = Rule("fp8", ".weight", ".weight", (("scales", ".scale"),))
_DEEPSEEK_FP4 = Rule("e2m1", ".weight", ".weight", (("scales", ".scale"),))
_MISTRAL = Rule("fp8", ".weight", ".weight", (("scales", ".qscale_weight"),))
_COMFY = Rule("fp8", ".weight", ".weight", (("scales", ".scale_weight"),))
_SCB = Rule("scb", ".weight", ".weight", (("scales", ".SCB"),))
_QWEIGHT = Rule(
    "qweight", ".weight", ".qweight", (("zeros", ".qzeros"), ("scales", ".scales"), ("order", ".g_idx"))
)
_MLX = Rule("mlx", ".weight", ".weight", (("scales", ".scales"), ("biases", ".biases")))
_BNB4 = Rule(
    "bnb4",
    "",
    "",
    (
        ("absmax", ".absmax"),
        ("table", ".quant_map"),
        ("nested_absmax", ".nested_absmax"),
        ("nested_table", ".nested_quant_map"),
        ("state", f"{STATE}nf4"),
        ("state", f"{STATE}fp4"),
    ),
)
# Ends of names that may be anchors.
ANCHORS = (
    "_scale_inv", "_scale", "_blocks", ".blocks", "_packed", ".qweight", ".scales", ".SCB", ".scale",
    ".scale_weight", ".qscale_weight", ".absmax",
)  # fmt: skip
# Parts that the engine does not read: what they say is in the format.
NOT_READ = frozenset({"shape", "state"})
# Experts in one tensor of three axes, whose name does not end in `weight`.
_STACKED = (
    "gate_up_proj", "down_proj", "gate_proj", "up_proj", "w13_weight", "w2_weight", "w1_weight", "w3_weight",
)  # fmt: skip


def rule_of(name: str, stored: Stored) -> tuple[Rule, str] | None:
    """The rule whose anchor a name is, and the stem that the parts' names begin with."""
    if name.endswith("_scale_inv"):
        return _scaled(name.removesuffix("_scale_inv"), stored, _FP8_INVERSE)
    if name.endswith("_packed"):
        return _words(name.removesuffix("_packed"), stored)
    if name.endswith("_scale"):
        return _scaled(name.removesuffix("_scale"), stored, _FP8)
    if name.endswith("_blocks"):
        stem = name.removesuffix("_blocks")
        return (_BLOCKS, stem) if f"{stem}_scales" in stored else None
    stem, _, leaf = name.rpartition(".")
    if leaf == "absmax":
        return (_BNB4, stem) if stem in stored else None
    if leaf == "blocks":
        return (_OPENAI, stem) if f"{stem}.scales" in stored else None
    if leaf == "qweight":
        return (_QWEIGHT, stem) if f"{stem}.scales" in stored else None
    weight = stored.get(f"{stem}.weight")
    return None if weight is None else _beside_weight(leaf, stem, weight, stored[name])


def _beside_weight(leaf: str, stem: str, weight: TensorInfo, scales: TensorInfo) -> tuple[Rule, str] | None:
    is_float8 = weight.dtype in NARROW_FLOATS
    if leaf == "SCB":
        return (_SCB, stem) if weight.dtype == "I8" else None
    if leaf == "scales":
        return (_MLX, stem) if weight.dtype == "U32" else None
    if leaf == "scale":  # DeepSeek's own name; of a scale alone it would not tell what is done with it
        if len(scales.shape) < 2:
            return None
        is_packed = weight.dtype in ("I8", "U8", "F4") and scales.dtype in ("U8", "F8_E8M0")
        return (_DEEPSEEK, stem) if is_float8 else (_DEEPSEEK_FP4, stem) if is_packed else None
    if not is_float8:
        return None
    return {"qscale_weight": (_MISTRAL, stem), "scale_weight": (_COMFY, stem)}.get(leaf)


def _scaled(stem: str, stored: Stored, rule: Rule) -> tuple[Rule, str] | None:
    codes = stored.get(stem)
    if codes is None or not (stem.endswith((".weight", *_STACKED)) or stem == "weight"):
        return None
    if codes.dtype in NARROW_FLOATS:
        return rule, stem
    is_weight = rule is _FP8 and stem.endswith("weight")
    if is_weight and codes.dtype == "I8":
        return _INT8, stem
    return (_NVFP4, stem) if is_weight and codes.dtype in ("U8", "F4") else None


def _words(stem: str, stored: Stored) -> tuple[Rule, str] | None:
    if not stem.endswith((".weight", *_STACKED)) or f"{stem}_scale" not in stored:
        return None
    rules = {"I32": _PACKED_INTEGERS, "U8": _PACKED_FLOATS, "F4": _PACKED_FLOATS}
    rule = rules.get(stored[f"{stem}_packed"].dtype)
    return None if rule is None else (rule, stem)


# Scales of activations and caches, and marks of a tool: they go with the format, and no arithmetic is theirs.
_ASIDE = frozenset({
    "input_scale", "activation_scale", "qscale_act", "scale_input", "input_global_scale",
    "input_zero_point", "input_scale_ub", "k_scale", "v_scale", "q_scale", "kv_scale", "weight_format",
    "scaled_fp8", "comfy_quant",
})  # fmt: skip
_ASIDE_ENDS = tuple(f"{stem}_{end}" for stem in _STACKED for end in ("input_scale", "activation_scale"))
_ASIDE_PLACES = tuple(f"{part}_proj.output_scale" for part in "kvq")


def is_aside(info: TensorInfo) -> bool:
    """Whether a stored tensor goes with a packed format and is not a weight."""
    leaf = info.name.rpartition(".")[2]
    return leaf in _ASIDE or info.name.endswith((*_ASIDE_ENDS, *_ASIDE_PLACES))


# Ends of names that mean nothing but a part of a packed weight.
PARTS_ALONE = (
    "_scale_inv", ".weight_scale", ".weight_scale_2", ".weight_global_scale", ".weight_packed",
    ".weight_zero_point", ".weight_shape", ".weight_g_idx", ".qweight", ".qzeros", ".g_idx", ".SCB",
    ".weight.absmax", ".weight.quant_map", ".scale_weight", ".qscale_weight", "_proj_blocks", "_proj_scales",
)  # fmt: skip
