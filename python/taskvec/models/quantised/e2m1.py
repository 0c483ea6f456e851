"""Four-bit floats, two codes a byte: MXFP4 (groups of 32, scales are powers of two) and NVFP4 (of 16)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from taskvec.models.quantised.compressed_tensors import scheme_of, schemes
from taskvec.models.quantised.format import Format, Shape
from taskvec.models.quantised.record import POWERS_OF_TWO, UnreadableError, shown, up
from taskvec.models.quantised.scaled import hold_basis, uncovered

if TYPE_CHECKING:
    from taskvec.models.model import TensorInfo
    from taskvec.models.quantised.declared import Declaration

MX, NV = 32, 16
# What an element of the stored codes holds.
CODES = {"U8": 2, "I8": 2, "F4": 1, "U32": 8}


def mxfp4(_: str, parts: Mapping[str, TensorInfo], declared: Declaration) -> tuple[Format, Shape]:
    """The format of codes in blocks of 16 bytes, as gpt-oss stores its experts.

    Raises
    ------
    UnreadableError
        Codes and scales do not match each other, or the config.
    """
    codes, scales = parts["codes"], parts["scales"]
    if declared.method not in ("", "mxfp4"):
        raise uncovered(codes, declared)
    _hold_scales(codes, scales, POWERS_OF_TWO)
    each = CODES.get(codes.dtype, 2)
    if len(codes.shape) < 3 or codes.shape[-1] * each != MX or scales.shape != codes.shape[:-1]:
        raise UnreadableError(
            f"{shown(codes)} and {shown(scales)} are not codes in blocks of 16 bytes and their scales"
        )
    return _format(MX, scales), (*codes.shape[:-2], codes.shape[-2] * MX)


def packed(name: str, parts: Mapping[str, TensorInfo], declared: Declaration) -> tuple[Format, Shape]:
    """The format of codes of the shape of the weight, half as wide; raises as :func:`mxfp4`."""
    codes, scales = parts["codes"], parts["scales"]
    if len(codes.shape) not in (2, 3):
        raise UnreadableError(f"{shown(codes)} has scales next to it, and is not a matrix")
    group = MX if scales.dtype in POWERS_OF_TWO else NV
    _hold_method(name, codes, scales, group, declared)
    shape = (*codes.shape[:-1], CODES.get(codes.dtype, 2) * codes.shape[-1])
    if group == NV:
        _hold_scales(codes, scales, frozenset({"F8_E4M3"}))
        _hold_global(codes, parts)
    if scales.shape != (*shape[:-1], up(shape[-1], group)):
        raise UnreadableError(
            f"the scales {shown(scales)} of {shown(codes)} have another grid than one per {group} columns"
        )
    return _format(group, scales, parts.get("global")), shape


def _hold_method(name: str, codes: TensorInfo, scales: TensorInfo, group: int, declared: Declaration) -> None:
    method = declared.method
    if method == "compressed-tensors":
        what = f"{shown(codes)} with {shown(scales)}"
        wanted = f"{'mxfp4' if group == MX else 'nvfp4'}-pack-quantized"
        scheme_of(
            name,
            schemes(declared.facts),
            lambda each: each.bits == 4 and each.format in (wanted, "mixed-precision", ""),
            what,
        )
    elif method == "modelopt":
        hold_basis(declared)
    elif method == "fp8" and str(declared.facts.get("expert_dtype", "fp4")) == "fp4":
        return
    elif method:
        raise uncovered(codes, declared)


def _hold_scales(codes: TensorInfo, scales: TensorInfo, types: frozenset[str]) -> None:
    if scales.dtype not in types:
        known = ", ".join(sorted(types))
        raise UnreadableError(f"the scales {shown(scales)} of {shown(codes)} have another type than {known}")


def _hold_global(codes: TensorInfo, parts: Mapping[str, TensorInfo]) -> None:
    whole = parts.get("global")
    if whole is None:
        raise UnreadableError(f"{shown(codes)} has no scale of the whole tensor, which NVFP4 needs")
    if whole.dtype != "F32" or whole.shape not in ((), (1,)):
        raise UnreadableError(f"{shown(whole)} is not the scale of a whole tensor, expected one F32")


def _format(group: int, scales: TensorInfo, whole: TensorInfo | None = None) -> Format:
    parameters: tuple[tuple[str, object], ...] = (("group", group),)
    if whole is not None:
        # ModelOpt multiplies with its second scale, compressed-tensors divides by its global one
        is_divisor = whole.name.endswith("_global_scale")
        parameters += (("global", "divide" if is_divisor else "multiply"),)
    words = f"{'MXFP4' if group == MX else 'NVFP4'}, {scales.dtype} scales"
    return Format("e2m1", "BF16", "", (), parameters, scales.dtype, words)
