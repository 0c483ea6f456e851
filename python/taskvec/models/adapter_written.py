"""An adapter as PEFT reads it, to be written: the names of its tensors and its settings."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from taskvec.models.adapter_config import matched
from taskvec.models.adapter_names import core
from taskvec.models.adapter_whole import COPY, PREFIX
from taskvec.regex import regex

# What modules lie in, in memory, of models that are stored without it: the default and the exceptions.
_INNER = "model."
_INNERS = {
    "transformer.": ("gpt2", "openai-gpt", "imagegpt", "gptj", "gpt_neo", "bloom", "falcon", "mpt"),
    "gpt_neox.": ("gpt_neox",),
}
# Pairs of a pattern and a module that are tried, which takes a second.
_TRIED = 1_000_000
_STARTS = regex(r"(?:h|layers?|blocks?|embed_tokens|wte|wpe|word_embeddings|norm|ln_f|embed_in)(?:\.|$)")


def module_in_memory(module: str, config: Mapping[str, Any]) -> str:
    """The name that a module has in a loaded model, by the name of its stored weight."""
    classes = config.get("architectures") or ()
    if not _STARTS.match(module) or any(str(name).endswith("Model") for name in classes):
        return module
    kind = config.get("model_type")
    inner = next((inner for inner, kinds in _INNERS.items() if kind in kinds), _INNER)
    return inner + module


def factor_names(module: str, is_embedding: bool) -> tuple[str, str]:
    """The names of A and B of a module."""
    if is_embedding:
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def whole_tensor_name(module: str, kind: str, is_adapted: bool) -> str:
    """The name of a tensor that is held whole: the part ``kind`` of a module, which may have factors too."""
    return f"{PREFIX}{module}{COPY if is_adapted else '.'}{kind}"


def settings(
    ranks: Mapping[str, int],
    rank: int,
    *,
    modules: Collection[str],
    whole: Iterable[str] = (),
    is_conv1d: bool = False,
    base: str | None = None,
    revision: str | None = None,
    classes: Iterable[str] = (),
) -> dict[str, Any]:
    """The content of ``adapter_config.json``; every product of factors counts once.

    Parameters
    ----------
    ranks : mapping of str to int
        By the module in memory.
    rank : int
        The one of all modules that have no other.
    modules : collection of str
        All modules that the model has with a weight.
    whole : iterable of str
        The modules that are held whole.
    is_conv1d : bool
        Whether weights are stored as [inputs, outputs].
    base, revision : str, optional
        The model that the adapter is for.
    classes : iterable of str
        ``architectures`` of its config.
    """
    others = patterns({module: own for module, own in ranks.items() if own != rank}, ranks)
    is_decoder = any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in classes)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if is_decoder else None,
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": is_conv1d,
        "init_lora_weights": True,
        "target_modules": targets(ranks, modules),
        "modules_to_save": list(whole) or None,
    }


def targets(adapted: Collection[str], modules: Collection[str]) -> list[str]:
    """The modules with factors: by the last parts of their names, where these name no other module."""
    ends = sorted({module.rpartition(".")[2] for module in adapted})
    named = [module for module in modules if module.rpartition(".")[2] in ends]
    return ends if set(named) <= set(adapted) else sorted(adapted)


def patterns(wanted: Mapping[str, int], adapted: Collection[str]) -> dict[str, int]:
    """Patterns that give some modules a value of their own, and no other module: longer ones first."""
    order = sorted(wanted, key=lambda module: (-len(module), module))
    # without what they lie in they stay right where that has another name
    short = {re.escape(core(module)): wanted[module] for module in order}
    is_quick = len(wanted) * len(adapted) <= _TRIED and len(short) == len(wanted)
    if is_quick and all(matched(short, module, None, "") == wanted.get(module) for module in adapted):
        return short
    return {f"^{re.escape(module)}": wanted[module] for module in order}
