"""Scales of float8 weights that lie elsewhere: under another prefix, in a module of their own."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from taskvec.regex import regex

if TYPE_CHECKING:
    from taskvec.models.model import TensorInfo

# Words that any part of a scale's name may have, and names with such words that ordinary models have.
_FAR = regex(
    r"scale|scaling|abs_?max|amax|quant|zero_?point|exponent|multiplier|exp_?bias|(?:^|[._])inv(?:[._]|$)",
    re.IGNORECASE,
)
_NO_SCALE = regex(
    r"(?:logits?|layer|embed\w*|residual|skip|res|block|output|router|expert|temperature)_?scale(?:\.(?:weight|gamma|lambda1))?$"
    r"|layer_?scale\w*\.(?:weight|gamma|lambda\d*|scale)$"
    r"|(?:norm\w*|ln_?\w*)\.scale$|(?:up|down)scal|up_?sampl|vector_quant|quantizer\.(?:codebook|embed|vq)"
    r"|layer_multipliers$",
    re.IGNORECASE,
)
_NUMBER = regex(r"(?<![a-z0-9])\d+(?![a-z0-9])")
_BETWEEN = regex(r"[_.:/-]+")
_WEIGHT_NAME = regex(r"weight|packed|(?:^|_)kernel$|^(?:_data|data|w)$", re.IGNORECASE)
# A name of more words says no more of its layer than these of them.
_MOST_WORDS = 24


def far_scales(
    plain: Sequence[str], tensors: Mapping[str, TensorInfo], taken: Container[str], narrow: Container[str]
) -> Iterator[tuple[str, str]]:
    """Weights of float8 and the scales that lie elsewhere.

    A scale is of the weights whose layer it names. Of one that names none, nobody can say that it is of no
    weight: it is of all of them, and one such scale is enough.

    Parameters
    ----------
    plain : sequence of str
        Weights of float8 without scales near them.
    tensors : mapping of str to TensorInfo
        Every stored tensor.
    taken : container of str
        Scales of other weights.
    narrow : container of str
        Element types that scales do not have.
    """
    if not plain:
        return
    scales = [
        name
        for name, info in tensors.items()
        if info.dtype not in narrow and _FAR.search(name) and not _NO_SCALE.search(name) and name not in taken
    ]
    if not scales:
        return
    by_layer: defaultdict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = defaultdict(list)
    modules: set[str] = set()
    for weight in plain:
        by_layer[_numbers(weight), _layer(weight)].append(weight)
        name = weight
        while name:
            name = name.rpartition(".")[0]
            if name in modules:
                break
            modules.add(name)
    lengths = sorted({len(layer) for _, layer in by_layer})
    has_one_of_all = False
    for name in scales:
        numbers, words = _numbers(name), _words(name)
        near = [each for part in _parts(words, lengths) for each in by_layer.get((numbers, part), ())]
        yield from ((each, name) for each in near)
        is_of_module = name.endswith(".scale") and name[: -len(".scale")] in modules
        if not near and not is_of_module and not has_one_of_all:
            has_one_of_all = True
            yield from ((each, name) for each in plain)


def _numbers(name: str) -> tuple[str, ...]:
    return tuple(_NUMBER.findall(name))


def _words(name: str) -> tuple[str, ...]:
    return tuple(word for word in _BETWEEN.split(name) if word)


def _parts(words: Sequence[str], lengths: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Every run of words of these lengths, once each."""
    words = words[-_MOST_WORDS:]
    runs = (tuple(words[i : i + n]) for n in lengths for i in range(len(words) - n + 1))
    yield from dict.fromkeys(runs)


def _layer(name: str) -> tuple[str, ...]:
    """The words of a weight's name that are its layer's: `q`, `proj` of `layers.0.q_proj.weight`."""
    parts = [part for part in name.split(".") if not part.isdigit()] or [name]
    return _words(parts[-2] if len(parts) > 1 and _WEIGHT_NAME.search(parts[-1]) else parts[-1])
