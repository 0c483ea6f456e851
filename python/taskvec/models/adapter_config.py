"""The settings of a LoRA adapter: which are known, which make it more than B·A, and the scale.

A setting that is not known may change what the factors mean, so only those listed here pass. The defaults are
PEFT's, which a missing key stands for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from taskvec.errors import FormatError
from taskvec.text import kind_of, shown

CONFIG = "adapter_config.json"
MERGE_FIRST = "merge it into its model with `peft` (merge_and_unload) first, and use the result"
_AT_RUN_TIME = "it has no merged weights: load it with `peft` on top of the model that this run writes"
_KIND = "if `peft` can merge an adapter of this kind (merge_and_unload), do that first and use the result"
_CONVERT = (
    "save it with `peft` as a plain LoRA (`path_initial_model_for_weight_conversion` of save_pretrained), or "
    "merge it there (merge_and_unload)"
)
CORRECT = f"correct `{CONFIG}`, or save the adapter again with `peft`"
_DEFAULTS = {"r": 8, "lora_alpha": 8}
_READ = frozenset({
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "bias",
    "init_lora_weights", "modules_to_save", "target_parameters",
})  # fmt: skip
# They say who made it, how it was trained, or which modules have factors, which the weights show themselves.
# Configurations of an initialisation or a variant have no effect where that itself is not chosen.
_WITHOUT_EFFECT = frozenset({
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "runtime_config", "merge_weights", "megatron_core", "qalora_group_size", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "loraplus_lr_ratio", "loraplus_lr_embedding",
})  # fmt: skip
# What else PEFT knows, in words, and the way out.
_REFUSED = {
    "use_dora": ("DoRA (weight-decomposed adapters)", MERGE_FIRST),
    "use_qalora": ("QALoRA", _AT_RUN_TIME),
    "alora_invocation_tokens": ("aLoRA, activated behind an invocation sequence only", _AT_RUN_TIME),
    "alora_invocation_string": ("aLoRA, activated behind an invocation sequence only", _AT_RUN_TIME),
    "arrow_config": ("Arrow, a router over several adapters", _AT_RUN_TIME),
    "lora_bias": ("biases of B", MERGE_FIRST),
    "trainable_token_indices": ("rows of single tokens", MERGE_FIRST),
    "layer_replication": ("repeated layers", MERGE_FIRST),
    "megatron_config": ("Megatron layers", MERGE_FIRST),
    "ensure_weight_tying": ("factors shared by tied layers", MERGE_FIRST),
    "enable_lora": ("factors of a part of a weight", MERGE_FIRST),
    "use_bdlora": ("BD-LoRA (block-diagonal factors)", MERGE_FIRST),
    "kasa_config": ("KaSA", MERGE_FIRST),
    "monteclora_config": ("MonteCLoRA", MERGE_FIRST),
    "velora_config": ("VeLoRA", MERGE_FIRST),
}
# Initialisations that leave the model as it is, and those after which it is another one, at every load.
_PLAIN_INITIALISATIONS = ("gaussian", "orthogonal", "eva", "mica")
_CHANGES_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")


def check_config(config: Mapping[str, Any], spec: str) -> None:
    """Refuse every setting that makes an adapter more than B·A, and every one that is not known.

    Raises
    ------
    FormatError
        The message names the settings.
    """
    found = list(_beyond_factors(config))
    if found:
        words = ", ".join(dict.fromkeys(word for word, _ in found))
        raise FormatError(f"the adapter `{spec}` uses {words}, which cannot be merged as B·A", found[0][1])
    unknown = [
        key
        for key, value in config.items()
        if key not in _READ and key not in _WITHOUT_EFFECT and key not in _REFUSED and not _is_empty(value)
    ]
    if unknown:
        names = ", ".join(f"`{shown(key)}: {shown(config[key])}`" for key in unknown)
        raise FormatError(
            f"the adapter `{spec}` has settings that are not known and may change what it means: {names}",
            f"remove them from `{CONFIG}` if they have no effect, or {MERGE_FIRST}",
        )


def _beyond_factors(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What makes an adapter more than B·A, in words, and the way out."""
    kind = str(config.get("peft_type", "LORA")).upper()
    if kind != "LORA":
        yield f"the adapter type {shown(kind)}", _KIND
    for key, (words, way_out) in _REFUSED.items():
        if not _is_empty(config.get(key)):
            yield f"{words} (`{key}: {shown(config[key])}`)", way_out
    if config.get("bias") not in ("none", None):
        yield f"trained biases (`bias: {shown(config['bias'])}`)", MERGE_FIRST
    first = config.get("init_lora_weights")
    if isinstance(first, str) and first.lower().startswith(_CHANGES_THE_MODEL):
        yield f"a model that its initialisation changes (`init_lora_weights: {shown(first)}`)", _CONVERT
    elif not (first is None or isinstance(first, bool) or str(first).lower() in _PLAIN_INITIALISATIONS):
        yield f"an unknown initialisation (`init_lora_weights: {shown(first)}`)", MERGE_FIRST


def _is_empty(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def scale_of(config: Mapping[str, Any], module: str, stored_rank: int, spec: str) -> float:
    """The factor of B·A in one module.

    Raises
    ------
    FormatError
        The settings give no number, or another rank than that of the stored factors.
    """
    rank = rank_of(config, module, spec)
    alpha = _of_module(config, "alpha_pattern", "lora_alpha", module, spec)
    if rank != stored_rank or rank <= 0:
        raise FormatError(
            f"the adapter `{spec}` has rank {stored_rank} at `{module}`, its settings say {rank}",
            "its settings and its weights come from different saves",
        )
    return alpha / (math.sqrt(rank) if is_set(config, "use_rslora", spec) else rank)


def rank_of(config: Mapping[str, Any], module: str, spec: str) -> int:
    """The rank of the factors of a module as the settings have it.

    Raises
    ------
    FormatError
        They give no number.
    """
    rank = _of_module(config, "rank_pattern", "r", module, spec)
    return int(rank) if rank == int(rank) else 0


def is_set(config: Mapping[str, Any], key: str, spec: str) -> bool:
    """A setting that is true or false, false if it is missing.

    Raises
    ------
    FormatError
        It is anything else.
    """
    value = config.get(key)
    if not isinstance(value, bool | None):
        raise FormatError(
            f"`{key}` of the adapter `{spec}` is {kind_of(value)}, expected true or false", CORRECT
        )
    return bool(value)


def _of_module(config: Mapping[str, Any], patterns: str, key: str, module: str, spec: str) -> float:
    table = config.get(patterns)
    if not isinstance(table, dict | None):
        raise FormatError(
            f"`{patterns}` of the adapter `{spec}` is {kind_of(table)}, expected a mapping", CORRECT
        )
    own = config.get(key)
    value = matched(table or {}, module, _DEFAULTS[key] if own is None else own, spec)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FormatError(f"`{key}` of the adapter `{spec}` is {kind_of(value)}, expected a number", CORRECT)
    return value


def matched(table: Mapping[str, Any], module: str, default: Any, spec: str) -> Any:
    """The value of the first pattern that a module's name ends with, as PEFT looks it up."""
    for pattern, value in table.items():
        try:
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return value
        except re.error as error:
            raise FormatError(
                f"the adapter `{spec}` has the pattern `{shown(pattern)}`, which cannot be read: {error}",
                CORRECT,
            ) from None
    return default
