"""Tensors in groups: neighbouring layers, and kinds of module."""

from __future__ import annotations

import re
from collections.abc import Sequence

from taskvec.errors import RecipeError
from taskvec.models.tensor_names import is_vocabulary, layer_of

OUTSIDE = "outside"
_NORM = re.compile(r"norm|(?:^|[./])ln_", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention|(?:^|[./])(?:q|k|v|o|qkv)_proj|mixer", re.IGNORECASE)
_FEED_FORWARD = re.compile(r"mlp|feed_forward|ffn|expert|moe|(?:^|[./])fc\d", re.IGNORECASE)


def layer_groups(names: Sequence[str], count: int) -> dict[str, list[str]]:
    """Tensors by groups of neighbouring layers, as even as they can be, and those outside of layers.

    Raises
    ------
    RecipeError
        There are fewer layers than groups.
    """
    layers = sorted({layer for name in names if (layer := layer_of(name)) is not None})
    if len(layers) < count:
        raise RecipeError(
            f"{count} groups are asked for, and the vector has {len(layers)} layers", "name fewer groups"
        )
    found: dict[str, list[str]] = {}
    for number in range(count):
        own = layers[number * len(layers) // count : (number + 1) * len(layers) // count]
        label = f"layers-{own[0]}-{own[-1]}" if len(own) > 1 else f"layer-{own[0]}"
        found[label] = [name for name in names if layer_of(name) in own]
    rest = [name for name in names if layer_of(name) is None]
    return {**found, OUTSIDE: rest} if rest else found


def module_groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Tensors by kind of module."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(module_kind(name), []).append(name)
    return found


def module_kind(name: str) -> str:
    """``attention``, ``feed-forward``, ``norms``, ``vocabulary`` or ``others``."""
    if is_vocabulary(name):
        return "vocabulary"
    for pattern, kind in ((_NORM, "norms"), (_FEED_FORWARD, "feed-forward"), (_ATTENTION, "attention")):
        if pattern.search(name):
            return kind
    return "others"
