"""Integers that ordinary models store: numbers of tokens, positions and experts, counts, and masks; and what
follows from the config.

What is not known as one of these, and lies where a weight should lie, is taken for the codes of a weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from taskvec.dtypes import FLOAT_DTYPES
from taskvec.regex import regex

if TYPE_CHECKING:
    from taskvec.models.model import TensorInfo

# Types that can number the tokens of a vocabulary; nobody packs weights into the long ones.
_NUMBERING = frozenset({"I32", "U32", "I64", "U64"})
_LONG = frozenset({"I64", "U64", "BOOL"})
_MASKS = frozenset({"BOOL", "U8", "I8"})
# How many there are of something, and how often: never codes.
_COUNTS = regex(
    r"(?:^|_)(?:counts?|tracked|(?:time)?steps?|num|averaged|updates|initiali[sz]ed|init+ed|usage|lengths?"
    r"|sizes?|shapes?|per_expert)$",
    re.IGNORECASE,
)
# Which of something it is: a place in a table, which codes are too.
_PLACES = regex(
    r"(?:^|_)(?:ids?|index(?:es)?|indices|idxs?|positions?|offsets?|perm(?:utation)?|map|vocab|tokens?"
    r"|tid2eid|d2t|t2d)$",
    re.IGNORECASE,
)
# Such numbers that models are known to store, of tokens, positions and experts.
_KNOWN_PLACES = regex(
    r"(?:^|_)(?:(?:position|token_type|segment|token|language|lang|speaker|task|label|vocab)_ids?(?:_[kq])?"
    r"|rel(?:ative)?_pos(?:ition)?_(?:index(?:es)?|indices|idxs?)|attention_bias_idxs|bias_idxs|summary_idxs"
    r"|window_(?:index|idxs?)|group_idx|tid2eid|d2t|t2d|tokens_offsets|heads_offsets|special_tokens"
    r"|lit_positions|inv_freq_index)$",
    re.IGNORECASE,
)
_ENDS = frozenset("._:")
_TABLE = regex(
    r"(?:^|[._])(?:code_?books?|centroids?|luts?|look_?up_?tables?|levels)(?:\.weight)?$", re.IGNORECASE
)
_MASK = regex(r"(?:^|_)(?:mask|bias)$", re.IGNORECASE)
# Frequencies, their cosines and sines, tables of positions, and the value of what is masked: made of
# config.json.
_DERIVED = regex(
    r"(?:^|[._])(?:(?:original_)?inv_freq|(?:cos|sin)_cached|masked_bias|relative_coords_table)$"
    r"|(?:^|\.)embed_positions\.weights$"
)
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
    if info.dtype in _NUMBERING and _COUNTS.search(_leaf(info.name)):
        return [name for name in beside if _is_of_rows(info, tensors[name])] or None
    if info.dtype in _NUMBERING and _PLACES.search(_leaf(info.name)):
        return _tables_of(info, [tensors[name] for name in beside], near)
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
        alike = [
            each for each in floats if each.name.startswith(start) and each.name[len(start) :][:1] in _ENDS
        ]
        if alike:
            return alike
    return floats


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _tables_of(
    info: TensorInfo, beside: Sequence[TensorInfo], near: Sequence[TensorInfo]
) -> list[str] | None:
    """The floats that places in a table are taken for the codes of; none where the places are known.

    A list of places is long enough for codes if it has more of them than the table has rows.
    """
    own = [each.name for each in beside if _is_of_rows(info, each)]
    if own or _KNOWN_PLACES.search(_leaf(info.name)) or any(map(_is_own_weight, near)):
        return own or None
    if len(info.shape) > 1:
        beside = [
            each for each in beside if not each.name.endswith("bias") and not _DERIVED.search(each.name)
        ]
    else:
        beside = [each for each in beside if _TABLE.search(each.name) and each.shape[:1] < info.shape]
    return [each.name for each in beside] or None


def _is_mask(info: TensorInfo) -> bool:
    """Whether a tensor masks positions: bits of as many rows as columns, with axes of one before them."""
    if not _MASK.search(_leaf(info.name)) or info.dtype not in _MASKS | _LONG:
        return False
    *lead, rows, columns = (1, 1, *info.shape)
    return len(info.shape) > 2 and rows == columns and math.prod(lead) == 1


def _is_own_weight(other: TensorInfo) -> bool:
    return (
        sum(size > 1 for size in other.shape) > 1
        and _is_own(_leaf(other.name))
        and _ADAPTER.search(other.name) is None
    )


@lru_cache(maxsize=1 << 12)  # names of layers repeat
def _is_own(leaf: str) -> bool:
    return _OWN.search(leaf) is not None


def _is_of_rows(info: TensorInfo, other: TensorInfo) -> bool:
    """Whether a tensor has a scale for each row or column of this one."""
    if len(info.shape) < 2 or not _OF_ROWS.search(other.name) or not other.shape:
        return False
    return _lines(other.shape) in ((info.shape[0],), (info.shape[-1],)) and math.prod(other.shape) > 1


def _lines(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size > 1)
