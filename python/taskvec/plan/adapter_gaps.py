"""Modules that an adapter's settings name and its file has no factors of: a save that is not whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from taskvec.compat.findings import Finding, finding
from taskvec.compat.predictor import is_predictor
from taskvec.models.adapter import Adapter
from taskvec.models.adapter_names import core
from taskvec.models.model import Model
from taskvec.models.tensor_names import layer_of, module_of
from taskvec.text import listed

# Settings by which PEFT gives factors to some layers of a module alone.
_CHOOSING = ("layers_to_transform", "exclude_modules")


def gap_findings(pairs: Sequence[tuple[Adapter, Model]]) -> Iterator[Finding]:
    """Warnings for adapters, fitted to their models, that lack factors which PEFT would have saved.

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


def _part(name: str) -> str:
    """What a weight's module is a part of: ``layers.3.self_attn`` of its projections."""
    return core(name.removesuffix(".weight")).rpartition(".")[0]
