"""The keys of config.json that an output changes because its tensors have another type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from taskvec.dtypes import FLOAT_DTYPES, TORCH_NAMES

if TYPE_CHECKING:
    from taskvec.models.adapter import Adapter
    from taskvec.models.model import Model
    from taskvec.models.saved_vector import SavedVector


# What declares packed weights, in config.json or in a model within it.
_DECLARING = ("quantization_config", "compression_config", "quantization")


def plain_changes(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Keys of a config.json that go where packed weights are written plain, and the weights' type."""
    inner = [
        (f"{key}.", value) for key, value in config.items() if isinstance(value, dict) and "." not in key
    ]
    changes: dict[str, Any] = {
        f"{prefix}{key}": None
        for prefix, source in [("", config), *inner]
        if prefix.removesuffix(".") not in _DECLARING
        for key in _DECLARING
        if key in source
    }
    sources = [config, *(value for _, value in inner)]
    if config and not any(source.get(key) for source in sources for key in ("dtype", "torch_dtype")):
        changes["torch_dtype"] = TORCH_NAMES[dtype]
    return changes


def config_changes(document: Mapping[str, Any], base: Model | SavedVector | Adapter) -> dict[str, Any]:
    """Keys of the base's config.json that name a float type, where the output has another one."""
    tensors = base.tensors
    converted = {
        row[1]
        for row in document["tensors"]
        if row[1] in FLOAT_DTYPES and row[0] in tensors and tensors[row[0]].dtype != row[1]
    }
    if len(converted) != 1:
        return {}
    name = TORCH_NAMES[converted.pop()]
    nested = [
        (f"{key}.", value) for key, value in base.config.items() if key.endswith("_config") and "." not in key
    ]
    return {
        f"{prefix}{key}": name
        for prefix, config in [("", base.config), *nested]
        if isinstance(config, dict)
        for key in ("dtype", "torch_dtype")
        if config.get(key) in TORCH_NAMES.values() and config[key] != name
    }
