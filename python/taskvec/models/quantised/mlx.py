"""Weights of MLX: integers with scales and biases, and floats of a few bits, in words of 32 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from taskvec.models.quantised.declared import whole_number
from taskvec.models.quantised.format import Format, Shape
from taskvec.models.quantised.record import SCALES, UnreadableError, shown
from taskvec.models.quantised.scaled import uncovered

if TYPE_CHECKING:
    from taskvec.models.model import TensorInfo
    from taskvec.models.quantised.declared import Declaration

_BITS = (2, 3, 4, 5, 6, 8)


def mlx(name: str, parts: Mapping[str, TensorInfo], declared: Declaration) -> tuple[Format, Shape]:
    """The format of a weight of MLX.

    Raises
    ------
    UnreadableError
        The parts do not match each other, or the config.
    """
    codes, scales, biases = parts["codes"], parts["scales"], parts.get("biases")
    if declared.method not in ("", "mlx"):
        raise uncovered(codes, declared)
    facts = _facts(name, declared)
    mode = str(facts.get("mode") or "affine")
    if mode != "affine" or biases is None:
        return _floats(mode, facts, parts)
    for info in (scales, biases):
        if info.dtype not in SCALES or info.shape != scales.shape or len(info.shape) != len(codes.shape):
            raise UnreadableError(
                f"{shown(scales)} and {shown(biases)} are not scales and biases of {shown(codes)}"
            )
    bits, group = _sizes(name, codes, scales, declared)
    width = scales.shape[-1] * group
    if scales.shape[:-1] != codes.shape[:-1] or width * bits != codes.shape[-1] * 32:
        raise UnreadableError(
            f"{shown(codes)} and {shown(scales)} do not have {bits} bits and groups of {group}"
            + (f", which {declared.where} declares" if declared.method else "")
        )
    words = f"MLX {bits} bits, group {group}, {scales.dtype} scales and biases"
    parameters = (("bits", bits), ("group", group))
    return Format("mlx", "BF16", "", (), parameters, scales.dtype, words), (*codes.shape[:-1], width)


# Bits, columns of one scale, what the scales are.
_FLOATS = {"mxfp4": (4, 32, "MXFP4"), "nvfp4": (4, 16, "NVFP4"), "mxfp8": (8, 32, "MXFP8")}


def _floats(mode: str, facts: Mapping[str, object], parts: Mapping[str, TensorInfo]) -> tuple[Format, Shape]:
    """The format of codes that are floats of a few bits, with scales of one byte and no biases."""
    codes, scales = parts["codes"], parts["scales"]
    if mode not in _FLOATS or "biases" in parts:
        with_biases = "with" if "biases" in parts else "without"
        raise UnreadableError(
            f"{shown(codes)} is of the mode `{mode}` of MLX {with_biases} biases, which is not read"
        )
    bits, group, words = _FLOATS[mode]
    declared = whole_number(facts, "bits") or bits, whole_number(facts, "group_size") or group
    if declared != (bits, group):
        raise UnreadableError(
            f"the mode `{mode}` of MLX has {bits} bits in groups of {group}, and not {declared[0]} in groups "
            f"of {declared[1]} ({shown(codes)})"
        )
    width = codes.shape[-1] * 32 // bits
    is_fit = scales.dtype == "U8" and scales.shape == (*codes.shape[:-1], width // group)
    if len(codes.shape) not in (2, 3) or width % group or not is_fit:
        raise UnreadableError(
            f"{shown(scales)} are not the scales of {shown(codes)} in the mode `{mode}` of MLX: one byte for "
            f"{group} columns"
        )
    kind, parameter = ("scaled", ("block", (1, group))) if bits == 8 else ("e2m1", ("group", group))
    form = Format(kind, "BF16", "", (), (parameter,), scales.dtype, f"MLX {words}, U8 scales")
    return form, (*codes.shape[:-1], width)


def _facts(name: str, declared: Declaration) -> Mapping[str, object]:
    """The facts of one module, which may have other bits than the rest."""
    own = declared.facts.get(name.removesuffix(".weight"))
    return {**declared.facts, **own} if isinstance(own, dict) else declared.facts


def _sizes(name: str, codes: TensorInfo, scales: TensorInfo, declared: Declaration) -> tuple[int, int]:
    facts = _facts(name, declared)
    bits, group = whole_number(facts, "bits"), whole_number(facts, "group_size")
    if bits is not None and group is not None:
        if bits not in _BITS or group <= 0:
            raise UnreadableError(f"MLX of {bits} bits in groups of {group} is not read ({shown(codes)})")
        return bits, group
    product = codes.shape[-1] * 32 // (scales.shape[-1] or 1)
    possible = [(b, product // b) for b in _BITS if product % b == 0 and product // b in (32, 64, 128)]
    if len(possible) != 1:
        said = " or ".join(f"{b} bits in groups of {g}" for b, g in possible) or "no bits that MLX has"
        raise UnreadableError(f"{shown(codes)} has {said}: `quantization` in config.json has to say which")
    return possible[0]
