"""Integer codes packed into words of 32 bits: compressed-tensors, GPTQ and AWQ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from taskvec.models.quantised.compressed_tensors import scheme_of, schemes
from taskvec.models.quantised.declared import whole_number
from taskvec.models.quantised.format import Format, Shape
from taskvec.models.quantised.record import SCALES, UnreadableError, shown, up
from taskvec.models.quantised.scaled import hold_zeros, uncovered

if TYPE_CHECKING:
    from taskvec.models.model import TensorInfo
    from taskvec.models.quantised.compressed_tensors import Scheme
    from taskvec.models.quantised.declared import Declaration

_PACKED_BITS = (2, 3, 4, 5, 6, 7, 8)
_GPTQ_BITS = (2, 3, 4, 8)


def columns(codes: TensorInfo, scales: TensorInfo, bits: int, group: int) -> int | None:
    """The columns of a weight of compressed-tensors, where its headers alone show them."""
    words = codes.shape[1]
    if group and up(scales.shape[1] * group * bits, 32) == words:
        return scales.shape[1] * group
    most = words * 32 // bits
    return most if group == 0 and up((most - 1) * bits, 32) < words else None


def pack_quantized(
    name: str, parts: Mapping[str, TensorInfo], declared: Declaration, stored_shape: Shape | None
) -> tuple[Format, Shape]:
    """The format of compressed-tensors' packed integers; `stored_shape` is what ``weight_shape`` holds.

    Raises
    ------
    UnreadableError
        The parts do not match each other, or the config.
    """
    codes, scales = parts["codes"], parts["scales"]
    if declared.method != "compressed-tensors":
        raise (
            uncovered(codes, declared)
            if declared.method
            else UnreadableError(f"{shown(codes)} needs a config that declares its bits and groups")
        )
    if codes.dtype != "I32" or len(codes.shape) != 2 or len(scales.shape) != 2:
        raise UnreadableError(
            f"{shown(codes)} with {shown(scales)} are not packed integers of a matrix and their scales"
        )
    if scales.dtype not in SCALES:
        raise UnreadableError(
            f"the scales {shown(scales)} of {shown(codes)} have another type than BF16, F16, F32"
        )
    scheme = _packed_scheme(name, parts, declared, stored_shape)
    bits, group = scheme.bits, _group(scheme)
    width = stored_shape[1] if stored_shape else columns(codes, scales, bits, group)
    if width is None:
        raise UnreadableError(f"the columns of {shown(codes)} are not known without its `weight_shape`")
    rows = codes.shape[0]
    if stored_shape is not None and stored_shape[0] != rows:
        raise UnreadableError(f"`weight_shape` says {list(stored_shape)} of {shown(codes)}")
    zeros, order = parts.get("zeros"), parts.get("order")
    groups = scales.shape[1]
    if zeros is not None and (zeros.dtype != "I32" or zeros.shape != (up(rows * bits, 32), groups)):
        raise UnreadableError(f"the zero points {shown(zeros)} do not fit {shown(codes)} and {shown(scales)}")
    hold_zeros(codes, zeros, declared, is_symmetric=scheme.is_symmetric)
    if scheme.is_ordered and order is None and groups > 1:
        raise UnreadableError(
            f"{shown(codes)} has no `weight_g_idx`, the groups of its columns, which {declared.where} "
            "declares (`actorder`)"
        )
    if order is not None and (order.dtype not in ("I32", "I64") or order.shape != (width,)):
        raise UnreadableError(
            f"the groups of the columns {shown(order)} do not fit {width} columns of {shown(codes)}"
        )
    size = f"group {group}" if group else "per channel"
    words = f"INT{bits} {size}, {scales.dtype} scales{' and zero points' if zeros is not None else ''}"
    parameters = (("bits", bits), ("group", group))
    return Format("packed_int", "BF16", "", (), parameters, scales.dtype, words), (rows, width)


def _group(scheme: Scheme) -> int:
    return scheme.group if scheme.strategy == "group" else 0


def _packed_scheme(
    name: str, parts: Mapping[str, TensorInfo], declared: Declaration, stored_shape: Shape | None
) -> Scheme:
    codes, scales = parts["codes"], parts["scales"]

    def fits(each: Scheme) -> bool:
        if each.type != "int" or each.bits not in _PACKED_BITS or each.strategy not in ("group", "channel"):
            return False
        if each.format not in ("pack-quantized", "mixed-precision", ""):
            return False
        group = _group(each)
        width = stored_shape[1] if stored_shape else columns(codes, scales, each.bits, group)
        if width is None:
            return group == 0 and scales.shape == (codes.shape[0], 1)
        grid = (codes.shape[0], up(width, group) if group else 1)
        return up(width * each.bits, 32) == codes.shape[1] and scales.shape == grid

    return scheme_of(name, schemes(declared.facts), fits, f"{shown(codes)} with {shown(scales)}")


def qweight(_: str, parts: Mapping[str, TensorInfo], declared: Declaration) -> tuple[Format, Shape]:
    """The format of GPTQ or AWQ, which have tensors of the same names; raises as :func:`pack_quantized`."""
    codes, scales = parts["codes"], parts["scales"]
    if declared.method not in ("", "gptq", "awq"):
        raise uncovered(codes, declared)
    zeros = parts.get("zeros")
    if zeros is None:
        raise UnreadableError(f"{shown(codes)} has no zero points (`.qzeros`) next to it")
    for info, types in ((codes, ("I32",)), (zeros, ("I32",)), (scales, tuple(sorted(SCALES)))):
        if len(info.shape) != 2 or info.dtype not in types:
            raise UnreadableError(
                f"{shown(info)} is not a matrix of {', '.join(types)}, as GPTQ and AWQ have it"
            )
    is_gptq = codes.shape[1] == scales.shape[1]
    if declared.method and is_gptq != (declared.method == "gptq"):
        raise UnreadableError(
            f"{shown(codes)} is not stored as {declared.where} (`{declared.method}`) declares"
        )
    return _gptq(parts, declared) if is_gptq else _awq(parts, declared)


def _declared_group(declared: Declaration, width: int) -> int | None:
    group = whole_number(declared.facts, "group_size", "q_group_size")
    return width if group == -1 else group


def _gptq(parts: Mapping[str, TensorInfo], declared: Declaration) -> tuple[Format, Shape]:
    codes, scales, zeros = parts["codes"], parts["scales"], parts["zeros"]
    order = parts.get("order")
    bits = whole_number(declared.facts, "bits")
    groups, rows = scales.shape
    if bits is None:  # the zero points have as many bits as the codes
        bits = zeros.shape[1] * 32 // rows if rows else 0
    if bits not in _GPTQ_BITS:
        raise UnreadableError(f"GPTQ of {bits} bits is not read ({shown(codes)})")
    width = codes.shape[0] * 32 // bits
    group = _declared_group(declared, width) or up(width, groups)
    what = f"{shown(codes)} and {shown(scales)}"
    if width * bits != codes.shape[0] * 32 or group <= 0 or up(width, group) != groups:
        raise UnreadableError(
            f"{what} do not have {bits} bits and groups of {group}, which {declared.where} declares"
        )
    if zeros.shape != (groups, up(rows * bits, 32)):
        raise UnreadableError(f"the zero points {shown(zeros)} do not fit {what}")
    if order is not None and (order.dtype not in ("I32", "I64") or order.shape != (width,)):
        raise UnreadableError(
            f"the groups of the columns {shown(order)} do not fit {width} columns of {what}"
        )
    if order is None and declared.facts.get("desc_act") and groups > 1:
        raise UnreadableError(
            f"{shown(codes)} has no `.g_idx`, the groups of its columns, which {declared.where} declares "
            "(`desc_act`)"
        )
    if not declared.method:
        raise UnreadableError(
            f"{shown(codes)} needs a config that declares its version of GPTQ, which moves the zero points"
        )
    version = str(declared.facts.get("checkpoint_format") or declared.facts.get("format") or "gptq").lower()
    version = "marlin" if declared.facts.get("is_marlin_format") else version
    if version not in ("gptq", "gptq_v2"):
        raise UnreadableError(f"GPTQ of the format `{version}` is not read ({shown(codes)})")
    offset = 0 if version == "gptq_v2" else 1
    parameters = (("bits", bits), ("group", group), ("zero_offset", offset))
    words = f"GPTQ {bits} bits, group {group}, {scales.dtype} scales"
    return Format("gptq", "BF16", "", (), parameters, scales.dtype, words), (rows, width)


def _awq(parts: Mapping[str, TensorInfo], declared: Declaration) -> tuple[Format, Shape]:
    codes, scales, zeros = parts["codes"], parts["scales"], parts["zeros"]
    bits = whole_number(declared.facts, "bits", "w_bit") or 4
    version = str(declared.facts.get("version") or "gemm").lower()
    if bits != 4 or version != "gemm":
        raise UnreadableError(f"AWQ of {bits} bits, version `{version}`, is not read ({shown(codes)})")
    width, rows = codes.shape[0], codes.shape[1] * 8
    groups = scales.shape[0]
    group = _declared_group(declared, width) or up(width, groups or 1)
    is_fit = scales.shape[1] == rows and zeros.shape == (groups, codes.shape[1])
    if not is_fit or group <= 0 or up(width, group) != groups:
        raise UnreadableError(
            f"{shown(codes)}, {shown(zeros)} and {shown(scales)} do not have AWQ's groups of {group}"
        )
    words = f"AWQ 4 bits, group {group}, {scales.dtype} scales"
    return Format("awq", "BF16", "", (), (("group", group),), scales.dtype, words), (rows, width)
