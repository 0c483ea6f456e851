"""Four-bit codes of bitsandbytes: indices into a table, over the flat tensor in blocks of one size."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from taskvec.models.quantised.declared import whole_number
from taskvec.models.quantised.format import Format, Shape
from taskvec.models.quantised.record import STATE, UnreadableError, shown, up
from taskvec.models.quantised.scaled import uncovered

if TYPE_CHECKING:
    from taskvec.models.model import TensorInfo
    from taskvec.models.quantised.declared import Declaration

# The type in which the bytes of the codes may be stored, and the bytes of one element.
_STORED_IN = {"U8": 1, "I8": 1, "BF16": 2, "F16": 2, "F32": 4}


def four_bit(
    parts: Mapping[str, TensorInfo], declared: Declaration, state: bytes | None
) -> tuple[Format, Shape]:
    """The format of nf4 or fp4; `state` is the JSON that is stored next to the codes.

    Raises
    ------
    UnreadableError
        The state is missing or damaged, or the parts do not have the sizes that it says.
    """
    codes = parts["codes"]
    if declared.method not in ("", "bitsandbytes"):
        raise uncovered(codes, declared)
    facts = _parsed(codes, state)
    shape, block = _shape(codes, facts), whole_number(facts, "blocksize")
    if block is None or block <= 0:
        raise UnreadableError(f"the state of {shown(codes)} has no block size")
    count = math.prod(shape)
    held = math.prod(codes.shape) * _STORED_IN.get(codes.dtype, 0)
    if held != up(count, 2):
        raise UnreadableError(
            f"{shown(codes)} holds {held:,} bytes, expected {up(count, 2):,} for {list(shape)}"
        )
    absmax, table = _part(codes, parts, "absmax"), _part(codes, parts, "table")
    if absmax.shape != (up(count, block),) or table.shape != (16,) or table.dtype != "F32":
        raise UnreadableError(
            f"{shown(absmax)} and {shown(table)} do not fit {shown(codes)} of blocks of {block}"
        )
    parameters: tuple[tuple[str, Any], ...] = (("block", block),)
    is_nested = absmax.dtype != "F32"
    if is_nested:
        parameters += _nested(codes, absmax, parts, facts)
    kind = str(facts.get("quant_type") or "4-bit").upper()
    words = f"bitsandbytes {kind} block {block}{', nested' if is_nested else ''}"
    return Format("bnb4", "BF16", "", (), parameters, "", words), shape


def _parsed(codes: TensorInfo, state: bytes | None) -> Mapping[str, Any]:
    try:
        facts = json.loads(state or b"")
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise UnreadableError(f"{shown(codes)} has no readable state (`{STATE[1:]}nf4` or `fp4`) next to it")
    return facts


def _shape(codes: TensorInfo, facts: Mapping[str, Any]) -> Shape:
    shape = facts.get("shape")
    if (
        not isinstance(shape, list)
        or not all(isinstance(n, int) and 0 <= n < 2**48 for n in shape)
        or not shape
    ):
        raise UnreadableError(f"the state of {shown(codes)} has no shape")
    return tuple(shape)


def _part(codes: TensorInfo, parts: Mapping[str, TensorInfo], part: str) -> TensorInfo:
    if part not in parts:
        suffix = {"absmax": "absmax", "table": "quant_map", "nested_table": "nested_quant_map"}.get(
            part, part
        )
        raise UnreadableError(f"{shown(codes)} has no `{codes.name}.{suffix}` next to it")
    return parts[part]


def _nested(
    codes: TensorInfo, absmax: TensorInfo, parts: Mapping[str, TensorInfo], facts: Mapping[str, Any]
) -> tuple[tuple[str, Any], ...]:
    inner, table = _part(codes, parts, "nested_absmax"), _part(codes, parts, "nested_table")
    block, offset = whole_number(facts, "nested_blocksize"), facts.get("nested_offset")
    if absmax.dtype != "U8" or block is None or block <= 0 or not isinstance(offset, (int, float)):
        raise UnreadableError(f"the state of {shown(codes)} does not say how {shown(absmax)} is stored")
    if inner.shape != (up(absmax.shape[0], block),) or table.shape != (256,):
        raise UnreadableError(f"{shown(inner)} and {shown(table)} do not fit {shown(absmax)}")
    return ("nested_block", block), ("nested_offset", float(offset))
