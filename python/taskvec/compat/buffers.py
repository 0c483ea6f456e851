"""Integers that ordinary models store: numbers of tokens, positions and experts, counts, and masks; and what
follows from the config.

What is not known as one of these, and lies where a weight should lie, is taken for the codes of a weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from taskvec.dtypes import FLOAT_DTYPES
from taskvec.regex import regex

if TYPE_CHECKING:
    from taskvec.models.model import TensorInfo

# Types that can number the tokens of a vocabulary; nobody packs weights into the long ones.
_NUMBERING = frozenset({"I32", "U32", "I64", "U64"})
_LONG = frozenset({"I64", "U64", "BOOL"})
_MASKS = frozenset({"BOOL", "U8", "I8"})
_NUMBERS = regex(
    r"(?:^|_)(?:ids?|index(?:es)?|indices|idxs?|counts?|tracked|(?:time)?steps?|num|averaged|updates"
    r"|initiali[sz]ed|init+ed|usage|lengths?|sizes?|shapes?|positions?|offsets?|per_expert|perm(?:utation)?|map"
    r"|tid2eid|d2t|t2d|vocab|tokens?)$",
    re.IGNORECASE,
)
_MASK = regex(r"(?:^|_)(?:mask|bias)$", re.IGNORECASE)
# Frequencies, their cosines and sines, and the value of what is masked: made of config.json.
_DERIVED = regex(r"(?:^|[._])(?:inv_freq|(?:cos|sin)_cached|masked_bias)$")
_CAUSAL = regex(r"(?:^|\.)(?:attn|attention)\.bias$")
# The ends of names of a module's own weights; those of an adapter next to it are none.
_OWN = regex(r"(?:weight|weight_(?:orig|[gv])|embed\w*|kernel|\w*table|\w*proj)$", re.IGNORECASE)
_ADAPTER = regex(r"(?:^|[._])(?:lora|ia3|dora|adapter)", re.IGNORECASE)
_OF_ROWS = regex(r"(?:scales?|zeros?|zero_?points?|abs_?max|coeff\w*)$", re.IGNORECASE)


def is_derived(info: TensorInfo) -> bool:
    """Whether a tensor follows from the config, so that older versions alone have saved it."""
    if _DERIVED.search(info.name):
        return True
    *lead, rows, columns = (1, 1, *info.shape)
    is_square = len(info.shape) == 4 and rows == columns and math.prod(lead) == 1
    return is_square and _CAUSAL.search(info.name) is not None


def stands_for_weight(
    info: TensorInfo, tensors: Mapping[str, TensorInfo], below: Iterable[str]
) -> list[str] | None:
    """The floats next to integers that lie where a weight should; none where they are an ordinary buffer.

    A linear layer has a weight. One that has integers instead, and numbers next to them, is stored as codes,
    whatever these are called: signs and a coefficient, as BitDelta has them.

    Parameters
    ----------
    info : TensorInfo
        A tensor of integers or bits.
    tensors : mapping of str to TensorInfo
        Every stored tensor.
    below : iterable of str
        Names of the module's tensors, and of those of its modules.
    """
    if math.prod(info.shape) <= 1 or _is_mask(info):
        return None
    floats = [tensors[name] for name in below if tensors[name].dtype in FLOAT_DTYPES]
    near = _alike(info, floats)
    beside = [each.name for each in near if _stem(each.name) == _stem(info.name)]
    if _is_number(info):
        return [name for name in beside if _is_of_rows(info, tensors[name])] or None
    beside = [name for name in beside if not name.endswith("bias")] or beside
    is_long = info.dtype in _LONG
    if (len(info.shape) < 2 and is_long) or any(map(_is_own_weight, near)):
        return None
    return beside if beside or (len(info.shape) > 1 and not is_long) else None


def _alike(info: TensorInfo, floats: list[TensorInfo]) -> list[TensorInfo]:
    """Those of some tensors whose names begin as this one's does, if any: `q_coeff` of `q_mask`."""
    stem, leaf = _stem(info.name), _leaf(info.name)
    for found in reversed(list(re.finditer("[_:]", leaf))):
        start = f"{stem}.{leaf[: found.start()]}" if stem else leaf[: found.start()]
        alike = [each for each in floats if re.match(rf"{re.escape(start)}[._:]", each.name)]
        if alike:
            return alike
    return floats


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _is_number(info: TensorInfo) -> bool:
    return info.dtype in _NUMBERING and _NUMBERS.search(_leaf(info.name)) is not None


def _is_mask(info: TensorInfo) -> bool:
    """Whether a tensor masks positions: bits of as many rows as columns, with axes of one before them."""
    if not _MASK.search(_leaf(info.name)) or info.dtype not in _MASKS | _LONG:
        return False
    *lead, rows, columns = (1, 1, *info.shape)
    return len(info.shape) > 2 and rows == columns and math.prod(lead) == 1


def _is_own_weight(other: TensorInfo) -> bool:
    return (
        sum(size > 1 for size in other.shape) > 1
        and _OWN.search(other.name) is not None
        and _ADAPTER.search(other.name) is None
    )


def _is_of_rows(info: TensorInfo, other: TensorInfo) -> bool:
    """Whether a tensor has a scale for each row or column of this one."""
    if len(info.shape) < 2 or not _OF_ROWS.search(other.name) or not other.shape:
        return False
    return _lines(other.shape) in ((info.shape[0],), (info.shape[-1],)) and math.prod(other.shape) > 1


def _lines(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size > 1)
