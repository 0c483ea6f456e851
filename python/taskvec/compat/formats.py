"""Models that are no plain numbers: quantised checkpoints and LoRA adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from taskvec.compat.findings import Finding, finding
from taskvec.text import listed

if TYPE_CHECKING:
    from taskvec.models.model import Model

# Companion tensors of a quantised weight: suffix -> (format, what the weight itself is called after the
# stem).
_SUFFIXES: dict[str, tuple[str, tuple[str, ...]]] = {
    ".weight_scale_inv": ("block FP8", (".weight",)),
    "_blocks": ("MXFP4", ("_blocks",)),
    ".weight_packed": ("compressed-tensors", (".weight_packed",)),
    ".weight_scale": ("scaled FP8 or INT8 (compressed-tensors or ModelOpt)", (".weight",)),
    ".weight_scale_2": ("NVFP4 (ModelOpt)", (".weight",)),
    ".qweight": ("GPTQ or AWQ", (".qweight",)),
    ".SCB": ("bitsandbytes 8-bit", (".weight",)),
    ".weight.absmax": ("bitsandbytes 4-bit", (".weight",)),
    ".weight.quant_state.bitsandbytes__nf4": ("bitsandbytes NF4", (".weight",)),
    ".weight.quant_state.bitsandbytes__fp4": ("bitsandbytes FP4", (".weight",)),
}
_ENDINGS = tuple(_SUFFIXES)
# What else belongs to such a weight; no format is told by these alone.
_SIBLINGS = (
    *("_scales", ".scales", ".qzeros", ".g_idx", ".input_scale", ".weight_shape", ".weight_zero_point"),
    *(".weight_scale", ".weight_scale_2", ".weight.quant_map", ".weight.nested_absmax"),
)

# `quant_method` of config.json in the words of its users.
_METHODS = {
    "fp8": "block FP8",
    "fbgemm_fp8": "FBGEMM FP8",
    "mxfp4": "MXFP4",
    "compressed-tensors": "compressed-tensors",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "modelopt": "ModelOpt",
    "auto-round": "AutoRound",
    "quanto": "Quanto",
    "hqq": "HQQ",
    "aqlm": "AQLM",
    "eetq": "EETQ",
    "torchao": "torchao",
    "bitnet": "BitNet",
}


def quantisation(checkpoint: Model) -> str | None:
    """The name of the quantised format that the config declares, ``None`` where it declares none."""
    config = checkpoint.config
    inner = config.get("text_config")
    for source in (config, inner if isinstance(inner, dict) else {}):
        declared: Any = source.get("quantization_config") or source.get("compression_config")
        if isinstance(declared, dict) and declared:
            method = str(declared.get("quant_method") or "of an unnamed method").lower()
            return _METHODS.get(method, f"`{method}`")
    return None


def quantised_tensors(checkpoint: Model) -> dict[str, str]:
    """Tensors that belong to a quantised weight, and the format that their names show."""
    found: dict[str, str] = {}
    tensors = checkpoint.tensors
    for name in tensors:
        if not name.endswith(_ENDINGS):
            continue
        suffix = max((ending for ending in _ENDINGS if name.endswith(ending)), key=len)
        format, weights = _SUFFIXES[suffix]  # noqa: A001
        stem = name.removesuffix(suffix)
        if suffix == "_blocks" and f"{stem}_scales" not in tensors:
            continue
        found[name] = format
        found.update((stem + end, format) for end in (*weights, *_SIBLINGS) if stem + end in tensors)
    return found


def check_formats(models: Sequence[tuple[str, Model]], selected: Sequence[str]) -> Iterator[Finding]:
    """Quantised weights among the selected tensors, and adapters in place of models.

    `selected` are names of the first model's tensors. Where the config declares a format that the names do
    not show, any tensor may be meant.
    """
    wanted = set(selected)
    base, in_base = models[0][1], quantised_tensors(models[0][1])
    for role, checkpoint in models:
        # Equal names, the usual case, are looked through once.
        is_alike = checkpoint.tensors.keys() == base.tensors.keys()
        declared, tensors = quantisation(checkpoint), in_base if is_alike else quantised_tensors(checkpoint)
        touched = [name for name in tensors if name in wanted]
        if touched or (declared and not tensors):
            name = declared or tensors[touched[0]]
            where = f"{listed(touched)} are" if touched else "its weights are"
            yield finding(
                "quantised",
                role,
                "plain BF16, F16, F32 or F64 weights",
                f"{where} stored as {name}",
                "take the unquantised checkpoint, or dequantise it once with the tool that wrote it",
            )
        elif tensors:
            name = declared or next(iter(tensors.values()))
            found = f"{len(tensors):,} tensors of {name} are not selected, so they are copied or left out"
            yield finding("quantised-copied", role, "", found)
        if is_adapter(checkpoint):
            yield finding(
                "lora-adapter",
                role,
                "a whole model",
                "a LoRA adapter",
                "merge it into its base (`merge_and_unload` of peft), or write `base+adapter` in a recipe",
            )


def is_adapter(checkpoint: Model) -> bool:
    """Whether a checkpoint is a LoRA adapter: an adapter_config.json, or nothing but its factors."""
    if "adapter_config.json" in checkpoint.other_files and not checkpoint.config:
        return True
    names = list(checkpoint.tensors)
    return bool(names) and all(".lora_" in name or ".modules_to_save." in name for name in names[:50])
