"""The keys of config.json that an output changes because its tensors have another type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskvec.dtypes import FLOAT_DTYPES, TORCH_NAMES
from taskvec.files import json_edit
from taskvec.files.names import CONFIG
from taskvec.models.quantised.declared import SIDE_FILES

if TYPE_CHECKING:
    from taskvec.models.adapter import Adapter
    from taskvec.models.model import Model
    from taskvec.models.saved_vector import SavedVector


# What declares packed weights, in config.json or in a model within it.
_DECLARING = ("quantization_config", "compression_config", "quantization")


def undeclared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a config.json that declare packed weights, also in a model within it: they go."""
    inner = [
        (f"{key}.", value) for key, value in config.items() if isinstance(value, dict) and "." not in key
    ]
    return {
        f"{prefix}{key}": None
        for prefix, source in [("", config), *inner]
        if prefix.removesuffix(".") not in _DECLARING
        for key in _DECLARING
        if key in source
    }


def plain_changes(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Keys of a config.json that go where packed weights are written plain, and the weights' type."""
    changes = undeclared(config)
    sources = [config, *(value for value in config.values() if isinstance(value, dict))]
    if config and not any(source.get(key) for source in sources for key in ("dtype", "torch_dtype")):
        changes["torch_dtype"] = TORCH_NAMES[dtype]
    return changes


def output_changes(
    document: Mapping[str, Any], base: Model | SavedVector | Adapter
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The changes of config.json that follow from the rows of a plan, and the files that the output lacks."""
    changes = config_changes(document, base)
    plain = next((row[1] for row in _plain_rows(document) if row[0] in getattr(base, "packed", ())), None)
    if plain is None:
        return changes, ()
    return {**plain_changes(base.config, plain), **changes}, SIDE_FILES


def _plain_rows(document: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    """The rows of logical tensors: neither parts of packed ones, nor stored tensors that are copied."""
    stored = {at for at, operation in enumerate(document["operations"]) if operation.get("stored")}
    return (row for row in document["tensors"] if len(row) == 6 and row[4] not in stored)


def config_changes(document: Mapping[str, Any], base: Model | SavedVector | Adapter) -> dict[str, Any]:
    """Keys of the base's config.json that name a float type, where the output has another one."""
    return _changed_types(document, base, base.config, "")


def configs_of_folders(document: Mapping[str, Any], base: Model) -> dict[str, bytes]:
    """The files config.json of a base's sub-folders, where the output has another float type there."""
    found: dict[str, bytes] = {}
    for folder, config in base.configs.items():
        changes = _changed_types(document, base, config, folder)
        if changes:
            text = base.read_file(folder + CONFIG).decode("utf-8")
            found[folder + CONFIG] = json_edit.edited(text, changes).encode("utf-8")
    return found


def _changed_types(
    document: Mapping[str, Any], base: Model | SavedVector | Adapter, config: Mapping[str, Any], folder: str
) -> dict[str, Any]:
    """The keys of one config that name a float type, by the tensors whose names begin with its folder."""
    tensors = base.tensors
    converted = {
        row[1]
        for row in _plain_rows(document)
        if row[1] in FLOAT_DTYPES
        and row[0].startswith(folder)
        and row[0] in tensors
        and tensors[row[0]].dtype != row[1]
    }
    if len(converted) != 1:
        return {}
    name = TORCH_NAMES[converted.pop()]
    nested = [
        (f"{key}.", value) for key, value in config.items() if key.endswith("_config") and "." not in key
    ]
    return {
        f"{prefix}{key}": name
        for prefix, config in [("", config), *nested]
        if isinstance(config, dict)
        for key in ("dtype", "torch_dtype")
        if config.get(key) in TORCH_NAMES.values() and config[key] != name
    }
