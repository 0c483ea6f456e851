"""Modules that an adapter's settings name and its file has no factors of, and the other way round."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taskvec.compat.findings import Finding, finding
from taskvec.compat.predictor import is_predictor
from taskvec.models.adapter import Adapter
from taskvec.models.adapter_names import core
from taskvec.models.adapter_whole import PREFIX
from taskvec.models.model import Model
from taskvec.models.tensor_names import layer_of, module_of
from taskvec.text import listed

# Settings by which PEFT gives factors to some layers of a module alone.
_CHOOSING = ("layers_to_transform", "exclude_modules")


def gap_findings(pairs: Sequence[tuple[Adapter, Model]]) -> Iterator[Finding]:
    """Warnings for adapters, fitted to their models, that lack factors which PEFT would have saved, or have
    some that it would not load.

    PEFT gives factors to every module that ends with one of ``target_modules``. A weight lacks them where the
    same module has some in another layer, or another target of the same part of the layer has.
    """
    for adapter, model in pairs:
        lacking = _lacking(adapter, model)
        if lacking:
            yield finding(
                "adapter-partial",
                f"adapter `{adapter.spec}`",
                "factors of every module that its `target_modules` name",
                f"none of {listed(lacking)}, of {len(adapter.changed):,} weights that it changes",
                "they stay as they are; if the file was cut short, save or download the adapter again",
            )
        beyond = _beyond(adapter)
        if beyond:
            yield finding(
                "adapter-beyond",
                f"adapter `{adapter.spec}`",
                "factors of modules that its settings choose, which `peft` loads alone",
                f"others of {listed(beyond)}",
                "they are merged; if its settings are right, remove these factors from its file",
            )


def _lacking(adapter: Adapter, model: Model) -> list[str]:
    targets = adapter.config.get("target_modules")
    if not isinstance(targets, list) or any(adapter.config.get(key) for key in _CHOOSING):
        return []
    ends = tuple(f".{name}.weight" for name in targets if isinstance(name, str))
    changed = set(adapter.changed)
    kinds = {module_of(name) for name in adapter.factors}
    parts = {_part(name) for name in adapter.factors}
    return [
        name
        for name, info in model.tensors.items()
        if name.endswith(ends)
        and name not in changed
        and len(info.shape) == 2
        and layer_of(name) is not None
        and (module_of(name) in kinds or _part(name) in parts)
        and not is_predictor(name, model.config)
    ]


def _beyond(adapter: Adapter) -> list[str]:
    """The modules that have factors and that PEFT, by the settings, gives none."""
    config = adapter.config
    targets = config.get("target_modules")
    is_told = isinstance(targets, str | list) and bool(targets) and targets != "all-linear"
    factors = [*adapter.factors.values(), *(part for parts in adapter.parts.values() for part in parts)]
    modules = dict.fromkeys(each.a.rpartition(".lora_")[0].removeprefix(PREFIX) for each in factors)
    return [
        name
        for name in modules
        if (is_told and not _is_named(name, targets) and not adapter.config.get("target_parameters"))
        or _is_named(name, config.get("exclude_modules"))
        or not _is_in_layers(name, config)
    ]


def _is_named(module: str, names: Any) -> bool:
    """Whether a setting of PEFT means a module: by the end of its name, or by a pattern for all of it."""
    if isinstance(names, str) and names:
        try:
            return re.fullmatch(names, module) is not None
        except re.error:  # PEFT cannot read it either, so that it says nothing of these modules
            return names == module
    ends = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return module in ends or any(module.endswith(f".{end}") for end in ends)


def _is_in_layers(module: str, config: Mapping[str, Any]) -> bool:
    layers = config.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    layer = layer_of(module)
    if not isinstance(layers, list) or not layers or config.get("layers_pattern") or layer is None:
        return True
    return layer in layers


def _part(name: str) -> str:
    """What a weight's module is a part of: ``layers.3.self_attn`` of its projections."""
    return core(name.removesuffix(".weight")).rpartition(".")[0]
