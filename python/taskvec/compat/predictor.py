"""Layers for multi-token prediction, which transformers drops when it saves, and their stored copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from taskvec.compat.config_keys import INNER
from taskvec.models.tensor_names import kind_of_stack, place_of

if TYPE_CHECKING:
    from taskvec.models.model import Model

# What the copies in such a layer are called, and whether each is one of the embedding or of the head.
_EMBEDDING, _HEAD = ".embed_tokens.weight", ".shared_head.head.weight"
# Bytes that are compared whole; of a larger tensor, as many places as this many elements each.
_WHOLE, _PLACES, _ELEMENTS = 1 << 26, 64, 4096


def is_predictor(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor belongs to multi-token prediction: `mtp`, or a layer behind the model's last."""
    if name.startswith(("mtp.", "model.mtp.")):
        return True
    place = place_of(name)
    if place is None:
        return False
    kind = kind_of_stack(place.stack)
    if kind == "predictor":
        return True
    inner = next((config[key] for key in INNER if isinstance(config.get(key), dict)), {})
    layers = inner.get("num_hidden_layers", config.get("num_hidden_layers"))
    return kind == "text" and isinstance(layers, int) and place.layer >= layers


def copies(base: Model, embedding: str | None, head: str | None) -> dict[str, str]:
    """Copies of embedding and head in layers for multi-token prediction that are equal to the original.

    Where the weights are not here, nothing is known to be a copy.
    """
    found = {}
    if base.weights is None:
        return found
    for name in base.tensors:
        original = embedding if name.endswith(_EMBEDDING) else head if name.endswith(_HEAD) else None
        if original is None or original == name or not is_predictor(name, base.config):
            continue
        if _is_equal(base, name, original):
            found[name] = original
    return found


def _is_equal(model: Model, one: str, other: str) -> bool:
    first, second = model.tensors[one], model.tensors[other]
    if first[1:4] != second[1:4]:
        return False
    if first.nbytes <= _WHOLE:
        return bytes(model.reader.read(one)) == bytes(model.reader.read(other))
    count = 1
    for side in first.shape:
        count *= side
    starts = [(count - _ELEMENTS) * place // (_PLACES - 1) for place in range(_PLACES)]
    sample = model.reader.sample
    return all(sample(one, start, _ELEMENTS) == sample(other, start, _ELEMENTS) for start in starts)
