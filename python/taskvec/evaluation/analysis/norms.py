"""The norm of a vector by layer and module."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from taskvec.models.tensor_names import layer_of, module_of


@dataclass(frozen=True, slots=True)
class NormMap:
    """L2 norms of a vector.

    Attributes
    ----------
    layers : tuple of int
    modules : tuple of str
        In the order of the checkpoint.
    values : tuple of tuple of float or None
        One row per module, one column per layer; None where a layer lacks the module.
    others : dict of str to float
        Tensors that belong to no layer.
    """

    layers: tuple[int, ...]
    modules: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    others: dict[str, float]


def norm_map(norms: Mapping[str, float]) -> NormMap | None:
    """Norms by layer and module; a module's weight and bias, and its experts, count as one."""
    squares: dict[tuple[str, int], float] = defaultdict(float)
    others: dict[str, float] = {}
    for name, norm in norms.items():
        layer = layer_of(name)
        if layer is None:
            others[name] = norm
            continue
        squares[(module_of(name).removesuffix(".bias"), layer)] += norm**2
    if not squares and not others:
        return None
    modules = tuple(dict.fromkeys(module for module, _ in squares))
    layers = tuple(sorted({layer for _, layer in squares}))
    values = tuple(
        tuple(math.sqrt(squares[(module, layer)]) if (module, layer) in squares else None for layer in layers)
        for module in modules
    )
    return NormMap(layers, modules, values, others)
