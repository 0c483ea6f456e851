"""Weights that are stored as parts of a tensor: their names, and where they lie in it.

Names are those that the model would give them if each were stored by itself, under its own beginnings:
``model.layers.0.mlp.experts.3.gate_proj.weight`` in ``model.layers.0.mlp.experts.gate_up_proj``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from taskvec.regex import regex

# Blocks of experts, and the parts that only their names tell apart: compiled where a name is first looked at.
_BLOCK = r"\.(?:block_sparse_moe|feed_forward|ffn)\."
_ROUTER = r"\.mlp\.(?:router\.layer|router\.classifier|router|gate\.wg)\.(weight|bias)$"
_CORRECTION = r"\.mlp\.(?:gate\.|router\.)?(?:e_score_correction_bias|expert_bias)$"
_STATICS = r"\.mlp\.gate\.moe_statics\."
_EXPERT = r"\.experts\.(\d+)\.(w1|w2|w3)\."
_W = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_LAYER = regex(r"\.(\d+)\.")


@lru_cache(maxsize=1 << 18)
def block_name(name: str) -> str:
    """A name with blocks of experts, their routers and their weights under one spelling."""
    name = re.sub(_BLOCK, ".mlp.", name)
    name = re.sub(_ROUTER, r".mlp.gate.\1", name)
    name = re.sub(_STATICS, ".mlp.moe_statics.", name)
    name = re.sub(_CORRECTION, ".mlp.e_score_correction_bias", name)
    return re.sub(_EXPERT, lambda found: f".experts.{found[1]}.{_W[found[2]]}.", name)


class StoredPart(NamedTuple):
    """A weight in a stored tensor.

    Attributes
    ----------
    name : str
        Its own name.
    first : int
        Its first element in the tensor.
    axes : tuple of (int, int)
        For each dimension its length, and the elements between neighbours in the tensor.
    """

    name: str
    first: int
    axes: tuple[tuple[int, int], ...]


class PartNames:
    """The tensors of a model that hold other weights than their names say.

    Parameters
    ----------
    parts : mapping of str to tuple of StoredPart
        By the stored name.
    """

    def __init__(self, parts: Mapping[str, tuple[StoredPart, ...]]) -> None:
        self.parts = parts
        self._alike: dict[str, str] = {}
        for name in parts:
            self._alike.setdefault(_LAYER.sub(".*.", name, count=1), name)

    def of(self, name: str) -> tuple[StoredPart, ...]:
        """The weights in a tensor; none where it is one weight, under its own name.

        A layer that the model does not have is like its others: in a merge, layers get new numbers.
        """
        found = self.parts.get(name)
        layer = _LAYER.search(name) if found is None and self.parts else None
        if layer is None:
            return found or ()
        other = self._alike.get(_LAYER.sub(".*.", name, count=1))
        if other is None:
            return ()
        renamed = [part._replace(name=_LAYER.sub(layer[0], part.name, count=1)) for part in self.parts[other]]
        return tuple(renamed)


NO_PARTS = PartNames({})
