"""Packed weights: integers or float8 numbers that mean something only together with scales next to them.

Names of formats come and go, so this looks at what is stored: whatever is not known to be an ordinary buffer,
and has float companions, is taken for packed.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from taskvec.compat.buffers import stands_for_weight
from taskvec.compat.far_scales import far_scales
from taskvec.compat.neighbours import Neighbours
from taskvec.dtypes import FLOAT_DTYPES
from taskvec.regex import regex

if TYPE_CHECKING:
    from taskvec.models.model import TensorInfo

_FLOAT8 = frozenset({"F8_E4M3", "F8_E5M2"})
_WIDE = FLOAT_DTYPES - _FLOAT8
_INTEGERS = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"})
# Powers of two, float8 of another kind, two numbers a byte: no plain weight is of these.
_NEVER_PLAIN = frozenset({"F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4"})
# Token ids and counts are I64; nobody packs weights into it.
_PACKING = _INTEGERS - {"I64", "U64"}
# Too short to number tokens or positions with: a matrix of these that is not a known buffer is packed.
_SHORT = frozenset({"I8", "U8", "I16", "U16"})

_LONG = frozenset({"I64", "U64", "BOOL"})

# Last parts of names of weights, and of ordinary buffers of integers.
_WEIGHT = regex(
    r"weight|packed|(?:^|_)(?:kernel|blocks|codes|qdata|qidxs)$|^(?:_data|data|w|w_?q|qw|q)$", re.IGNORECASE
)
_BUFFER = regex(
    r"(?:^|_)(?:ids?|index|indices|idx|counts?|tracked|mask|steps?|num|initiali[sz]ed|inited|usage|lengths?|sizes?"
    r"|shapes?|bias|positions?|offsets?)$",
    re.IGNORECASE,
)
# What holds scales and the like, by the last part of its name.
_SCALE = regex(
    r"(?:^|[_:])(?:q?w?scales?(?:_?inv|_?\d+|_?weights?)?|abs_?max|q?zeros?|zero_?points?|scb|quant\w*|dequant\w*"
    r"|biases|s|code_?books?|lut|quant_map|qmap|statistics)$",
    re.IGNORECASE,
)
# Tables that integers have their numbers in, whatever these are called.
_TABLE = regex(r"(?:^|[._])(?:code_?books?|centroids?|luts?|look_?up_?tables?)(?:\.weight)?$", re.IGNORECASE)
# The ends of packed names that the names of their scales do not have.
_PACKED_END = regex(r"_?(?:blocks|packed|quant(?:ized|ised)?|u?int\d+|q|data|codes|fp8|f8)$", re.IGNORECASE)
# Names that no plain weight has: codes, whatever type their bits are seen as.
_CODES = regex(r"(?:^|_)(?:w_?q|q_?weight|codes|qdata|_data|qidxs)$|packed", re.IGNORECASE)
# Parts of a sparse matrix, by torch's words.
_VALUES = regex(r"(?P<stem>(?:.*[._])?)values")
_PLACES = ("indices", "col_indices", "crow_indices", "row_indices", "ccol_indices")
# Next to a weight of float8 these are known not to be its scale: the layer's bias, statistics of a norm, the
# other factor of a normalised weight. `alpha`, `beta` and `gamma` are a norm's where the weight is a row.
_BIAS = regex(
    r"^(?:(?:in|out)_proj_|(?:e_)?score_correction_|[qkv]_|qkv_|(?:gate|up|down|gate_up)_(?:proj_)?|correction_)?bias$"
)
_NEXT_TO_FLOAT8 = frozenset({"running_mean", "running_var", "weight_g", "weight_v"})
_OF_A_NORM = frozenset({"alpha", "beta", "gamma", "eps"})
# Last parts of names of what a layer's own modules hold: adapters, norms.
_OF_MODULES = frozenset({"weight", "bias", "scale", "eps", "gamma", "beta"})


def packed_weights(tensors: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    """Packed weights by name, and the names of what lies next to each: scales, zero points, code books.

    Plain float8 without scales, and buffers of integers (positions, counts, masks), are not among them.
    """
    never: dict[str, list[str]] = {info.name: [] for info in tensors.values() if info.dtype in _NEVER_PLAIN}
    never |= {**_on_a_grid(tensors), **_seen_as_floats(tensors), **_sparse(tensors)}
    narrow = [info for info in tensors.values() if info.dtype in _INTEGERS | _FLOAT8 or info.dtype == "BOOL"]
    if not narrow:
        return never
    neighbours = Neighbours(tensors)
    found = {}
    for info in narrow:
        stem, leaf = _split(info.name)
        near = neighbours.of(info.name)
        companions = [
            name
            for name in dict.fromkeys((*near, *_beside(stem, tensors)))
            if name != info.name and _belongs(info, stem, leaf, tensors[name])
        ]
        if companions or _is_packed_alone(info, leaf):
            found[info.name] = companions
        elif info.dtype not in _FLOAT8:
            instead = stands_for_weight(info, tensors, near)
            if instead is not None:
                found[info.name] = instead
    plain = [info.name for info in narrow if info.dtype in _FLOAT8 and info.name not in found]
    taken = {name for each in found.values() for name in each} if plain else ()
    for weight, scale in far_scales(plain, tensors, taken, _FLOAT8):
        found.setdefault(weight, []).append(scale)
    return {**never, **found}


def _on_a_grid(tensors: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    """Weights of a wide float type with a number for each row and group: codes of whatever type."""
    found: dict[str, list[str]] = {}
    for name, info in tensors.items():
        if len(info.shape) < 2 or not is_scale(name):
            continue
        stem, leaf = _split(name)
        for weight in map(tensors.get, _weights_of(stem, leaf)):
            if weight is not None and weight.dtype in _WIDE and _is_grid(weight.shape, info.shape):
                found.setdefault(weight.name, []).append(name)
    return found


def _weights_of(stem: str, leaf: str) -> Iterator[str]:
    """Names that the weight of a scale may have: `q.weight` of `q.scale`, `up_proj` of `up_proj_scale`."""
    inside = f"{stem}." if stem else ""
    root = _SCALE.sub("", leaf)
    if root in ("", "weight"):
        yield f"{inside}weight"
    else:
        yield inside + root
        yield f"{inside}{root}.weight"


def _seen_as_floats(tensors: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    """Codes whose bits are stored as numbers of a float type (HQQ, FSDP), and the scales next to each."""
    codes = [n for n, info in tensors.items() if info.dtype in _WIDE and _is_codes(_split(n)[1])]
    scales: defaultdict[str, list[str]] = defaultdict(list)
    for name in tensors if codes else ():
        if is_scale(name):
            scales[_split(name)[0]].append(name)
    found = {name: [each for each in scales[_split(name)[0]] if each != name] for name in codes}
    return {name: beside for name, beside in found.items() if beside}


def _sparse(tensors: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    """Values of a sparse matrix, and the integers next to each that say where they lie."""
    found: dict[str, list[str]] = {}
    for name, info in tensors.items():
        match = _VALUES.fullmatch(name) if info.dtype in FLOAT_DTYPES else None
        places = [match["stem"] + end for end in _PLACES] if match else []
        beside = [each for each in places if each in tensors and tensors[each].dtype in _INTEGERS]
        if beside:
            found[name] = beside
    return found


def _is_grid(weight: Sequence[int], scales: Sequence[int]) -> bool:
    return (
        len(weight) == len(scales) > 1
        and weight != scales
        and all(scale and not side % scale for side, scale in zip(weight, scales, strict=True))
    )


def _is_packed_alone(info: TensorInfo, leaf: str) -> bool:
    """Whether a tensor is packed whatever lies next to it: integers or bits that are called a weight, and
    matrices of integers too short to number tokens with that are not a known buffer."""
    if info.dtype in _PACKING and info.shape and _WEIGHT.search(leaf):
        return True
    if not info.shape or _BUFFER.search(leaf):
        return False
    if info.dtype in _LONG:
        return math.prod(info.shape) > 1 and _WEIGHT.search(leaf) is not None
    return len(info.shape) > 1 and info.dtype in _SHORT


# Names of layers repeat, so that these are asked of few texts.
@lru_cache(maxsize=1 << 12)
def _is_scale(leaf: str) -> bool:
    return _SCALE.search(leaf) is not None


@lru_cache(maxsize=1 << 12)
def _root(leaf: str) -> str:
    return _PACKED_END.sub("", leaf)


@lru_cache(maxsize=1 << 12)
def _is_codes(leaf: str) -> bool:
    return _CODES.search(leaf) is not None


@lru_cache(maxsize=1 << 12)
def _is_weight(leaf: str) -> bool:
    return _WEIGHT.search(leaf) is not None


@lru_cache(maxsize=1 << 12)
def _is_buffer(leaf: str) -> bool:
    return _BUFFER.search(leaf) is not None


def is_scale(name: str) -> bool:
    """Whether a tensor's name ends in a word for scales, zero points, or tables of codes."""
    return _is_scale(name.rpartition(".")[2])


def _split(name: str) -> tuple[str, str]:
    stem, _, leaf = name.rpartition(".")
    return stem, leaf


_OUTSIDE = (
    "_scale",
    "_scales",
    "_scale_inv",
    "_weight_scale",
    "_weight_scale_inv",
    "_absmax",
    "_zero_point",
    "_zeros",
)


def _beside(stem: str, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Scales that are named like the layer and not like its weight: `q_proj_scale` of `q_proj.weight`."""
    return [stem + end for end in _OUTSIDE if stem and stem + end in tensors]


def _belongs(info: TensorInfo, stem: str, leaf: str, other: TensorInfo) -> bool:
    """Whether another tensor is a companion of this one, which is narrow."""
    if info.dtype in _FLOAT8:
        return other.dtype in _WIDE and _is_of_float8(info, stem, leaf, other)
    if other.dtype not in FLOAT_DTYPES:
        return False
    is_buffer = _is_buffer(leaf)
    if (len(info.shape) > 1 or (info.shape and not is_buffer)) and _TABLE.search(other.name):
        return True
    rest = other.name.removeprefix(info.name)
    if rest != other.name and rest[0] in "._:":  # `weight.absmax`, `gate_up_proj_scale`, `weight:scale`
        return not is_buffer or is_scale(other.name)
    their_stem, theirs = _split(other.name)
    if their_stem != stem:
        return not is_buffer and _is_weight(leaf) and is_scale(other.name)
    if is_buffer or len(info.shape) < 2:
        return False
    if _is_root(leaf, theirs):
        return True
    if _is_weight(leaf) or info.dtype in _SHORT:
        return not (_BIAS.search(theirs) or theirs in _NEXT_TO_FLOAT8 or theirs in _OF_A_NORM)
    return info.dtype in _PACKING and _SCALE.match(theirs) is not None


def _is_of_float8(info: TensorInfo, stem: str, leaf: str, other: TensorInfo) -> bool:
    """Whether a wide float near a weight of float8 may be its scale: whatever is not known to be another."""
    their_stem, theirs = _split(other.name)
    is_matrix = len(info.shape) > 1
    rest = other.name.removeprefix(info.name)
    if rest == other.name or rest[0] not in "._:":  # not `weight.absmax`, `weight_scale`
        if their_stem != stem:
            is_below = leaf == "weight" and is_matrix and their_stem.startswith(f"{stem}." if stem else "")
            return is_scale(other.name) or (is_below and theirs not in _OF_MODULES)
        if not is_matrix or _is_root(leaf, theirs):
            return is_matrix
        if not _is_weight(leaf):
            return _SCALE.match(theirs) is not None or theirs in _OF_A_NORM
    is_known = _is_bias_of(info, leaf, other, theirs) or theirs in _NEXT_TO_FLOAT8
    return not (is_known or (theirs in _OF_A_NORM and not is_matrix))


def _is_bias_of(info: TensorInfo, leaf: str, other: TensorInfo, theirs: str) -> bool:
    """Whether a tensor is the bias of a weight: known by its name, and with a number for each row."""
    is_named = _BIAS.search(theirs) is not None or theirs == f"{leaf}_bias"
    return is_named and bool(other.shape) and other.shape[-1] in info.shape


def _is_root(leaf: str, theirs: str) -> bool:
    """Whether a scale is named like a packed weight without the word for its codes."""
    root = _root(leaf)
    return root != leaf and theirs.startswith(root) and _is_scale(theirs)
