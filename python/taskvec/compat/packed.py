"""Packed weights: integers or float8 numbers that mean something only together with scales next to them.

Names of formats come and go, so this looks at what is stored: whatever is not known to be an ordinary buffer,
and has float companions, is taken for packed.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from taskvec.compat.buffers import stands_for_weight
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
# What holds scales and the like, as the whole of a name's last part or the end of it.
_SCALE = regex(
    r"(?:^|[._:])(?:q?w?scales?(?:_?inv|_?\d+|_?weights?)?|abs_?max|q?zeros?|zero_?points?|scb|quant\w*|dequant\w*"
    r"|biases|s|code_?books?|lut|quant_map|qmap|statistics)$",
    re.IGNORECASE,
)
# Tables that a matrix of integers has its numbers in, whatever it is called.
_TABLE = regex(r"(?:^|[._])(?:code_?books?|centroids|luts?|look_?up_?tables?)(?:\.weight)?$", re.IGNORECASE)
# Words that any part of a scale's name may have, and names with such words that ordinary models have.
_FAR = regex(r"scale|scaling|abs_?max|amax|quant|zero_?point|(?:^|[._])inv(?:[._]|$)", re.IGNORECASE)
_NO_SCALE = regex(
    r"(?:logits?|layer|embed\w*|residual|skip|res|block|output|router|expert|temperature)_?scale(?:\.(?:weight|gamma|lambda1))?$"
    r"|layer_?scale\w*\.(?:weight|gamma|lambda\d*|scale)$"
    r"|(?:norm\w*|ln_?\w*)\.scale$|(?:up|down)scal|up_?sampl|vector_quant|quantizer\.(?:codebook|embed|vq)",
    re.IGNORECASE,
)
# The ends of packed names that the names of their scales do not have.
_PACKED_END = regex(r"_?(?:blocks|packed|quant(?:ized|ised)?|u?int\d+|q|data|codes|fp8|f8)$", re.IGNORECASE)
# Matrices with a number for each row and group of columns of a weight, which then has codes of whatever type.
_GRIDS = (".scales", ".zeros", ".qzeros", ".weight_scales", ".absmax")
# Names that no plain weight has: codes, whatever type their bits are seen as.
_CODES = regex(r"(?:^|_)(?:w_?q|q_?weight|codes|qdata|_data|qidxs)$|packed", re.IGNORECASE)
# Parts of a sparse matrix, by torch's words.
_VALUES = regex(r"(?P<stem>(?:.*[._])?)values")
_PLACES = ("indices", "col_indices", "crow_indices", "row_indices", "ccol_indices")
# Next to a matrix of float8 these may be its scale.
_NUMBERS_OF_ANY = frozenset({"alpha", "beta", "gamma"})
# Next to a plain weight of float8 there may be these in a wider type.
_ORDINARY = regex(r"bias$|^(?:running_mean|running_var|weight_[gv]|gamma|beta|alpha)$", re.IGNORECASE)


def packed_weights(tensors: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    """Packed weights by name, and the names of what lies next to each: scales, zero points, code books.

    Plain float8 without scales, and buffers of integers (positions, counts, masks), are not among them.
    """
    never: dict[str, list[str]] = {info.name: [] for info in tensors.values() if info.dtype in _NEVER_PLAIN}
    never |= {**_on_a_grid(tensors), **_seen_as_floats(tensors), **_sparse(tensors)}
    narrow = [info for info in tensors.values() if info.dtype in _INTEGERS | _FLOAT8 or info.dtype == "BOOL"]
    if not narrow:
        return never
    below: defaultdict[str, list[str]] = defaultdict(list)
    for name in tensors:
        for parent in _parents(name):
            below[parent].append(name)
    found = {}
    for info in narrow:
        stem, leaf = _split(info.name)
        companions = [
            name
            for name in dict.fromkeys((*below[info.name], *below[stem], *_beside(stem, tensors)))
            if name != info.name and _belongs(info, stem, leaf, tensors[name])
        ]
        if companions or _is_packed_alone(info, leaf):
            found[info.name] = companions
        elif info.dtype not in _FLOAT8:
            instead = stands_for_weight(info, tensors, below[stem] if stem else tensors)
            if instead is not None:
                found[info.name] = instead
    plain = [info.name for info in narrow if info.dtype in _FLOAT8 and info.name not in found]
    for weight, scale in _far_scales(plain, tensors, {name for each in found.values() for name in each}):
        found.setdefault(weight, []).append(scale)
    return {**never, **found}


def _on_a_grid(tensors: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    """Weights of a wide float type whose codes have scales or zero points, and what lies next to each."""
    found: dict[str, list[str]] = {}
    for name in tensors:
        if name.endswith(_GRIDS):
            weight = tensors.get(f"{name.rpartition('.')[0]}.weight")
            if weight is not None and weight.dtype in _WIDE and _is_grid(weight.shape, tensors[name].shape):
                found.setdefault(weight.name, []).append(name)
    return found


def _seen_as_floats(tensors: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    """Codes whose bits are stored as numbers of a float type (HQQ, FSDP), and the scales next to each."""
    codes = [n for n, info in tensors.items() if info.dtype in _WIDE and _CODES.search(_split(n)[1])]
    scales: defaultdict[str, list[str]] = defaultdict(list)
    for name in tensors if codes else ():
        if _SCALE.search(name):
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
        len(weight) == len(scales) == 2
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


def _far_scales(
    plain: list[str], tensors: Mapping[str, TensorInfo], taken: Container[str]
) -> Iterator[tuple[str, str]]:
    """Weights of float8 and the scales that lie elsewhere: under another prefix, in a module of their own.

    A scale is of the weights whose layer it names. Of one that names none, nobody can say that it is of no
    weight: it is of all of them.
    """
    if not plain:
        return
    by_numbers: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in plain:
        by_numbers[_numbers(name)].append(name)
    for name in tensors:
        is_scale = _FAR.search(name) and not _NO_SCALE.search(name) and name not in taken
        if is_scale and tensors[name].dtype not in _FLOAT8:
            near = [each for each in by_numbers[_numbers(name)] if _layer(each) in _words(name)]
            is_of_module = name.endswith(".scale") and any(e.startswith(name[:-5]) for e in plain)
            yield from ((each, name) for each in near or ([] if is_of_module else plain))


def _numbers(name: str) -> tuple[str, ...]:
    return tuple(re.findall(r"(?<![a-z0-9])\d+(?![a-z0-9])", name))


def _words(name: str) -> str:
    return f"_{re.sub(r'[.:/-]', '_', name)}_"


def _layer(name: str) -> str:
    """The last part of a weight's name that is that of a layer: `q_proj` of `layers.0.q_proj.weight`."""
    parts = [part for part in name.split(".") if not part.isdigit()]
    return _words(parts[-2] if len(parts) > 1 and _WEIGHT.search(parts[-1]) else parts[-1])


def _split(name: str) -> tuple[str, str]:
    stem, _, leaf = name.rpartition(".")
    return stem, leaf


def _parents(name: str) -> Iterator[str]:
    """The two names above: of `q.weight.absmax` those of the layer and of its weight."""
    for _ in range(2):
        name = name.rpartition(".")[0]
        if name:
            yield name


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
    is_float8 = info.dtype in _FLOAT8
    if other.dtype not in (_WIDE if is_float8 else FLOAT_DTYPES):
        return False
    if not is_float8 and len(info.shape) > 1 and _TABLE.search(other.name):
        return True
    is_buffer = not is_float8 and _BUFFER.search(leaf) is not None
    rest = other.name.removeprefix(info.name)
    if rest != other.name and rest[0] in "._:":  # `weight.absmax`, `gate_up_proj_scale`, `weight:scale`
        if is_float8:
            return _ORDINARY.search(_split(other.name)[1]) is None
        return not is_buffer or _SCALE.search(rest) is not None
    their_stem, theirs = _split(other.name)
    if their_stem != stem:
        return _SCALE.search(other.name) is not None and not is_buffer and _WEIGHT.search(leaf) is not None
    if is_buffer or len(info.shape) < 2:
        return False
    if is_float8 and theirs in _NUMBERS_OF_ANY:
        return True
    root = _PACKED_END.sub("", leaf)
    if root != leaf and theirs.startswith(root) and _SCALE.search(theirs):
        return True
    if _WEIGHT.search(leaf) or info.dtype in _SHORT:
        return _ORDINARY.search(theirs) is None
    return info.dtype in _PACKING | _FLOAT8 and _SCALE.match(theirs) is not None
