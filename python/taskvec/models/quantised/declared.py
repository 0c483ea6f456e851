"""What config.json and the files next to it say of a checkpoint's packed weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

# Files next to config.json that declare a format, by tools that do not write it into config.json.
SIDE_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
_KEYS = ("quantization_config", "compression_config", "quantization")
_PLAIN = {
    "bfloat16": "BF16", "float16": "F16", "float32": "F32", "half": "F16", "float": "F32",
}  # fmt: skip


class Declaration(NamedTuple):
    """A declared format: its method in lower case (empty: there is none), its facts, and where it stands."""

    method: str
    facts: Mapping[str, Any]
    where: str


_UNNAMED = "of an unnamed method"
NOTHING = Declaration("", {}, "")


def declaration(config: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> Declaration:
    """The format that config.json declares, or else one of the files next to it."""
    unnamed: Declaration | None = None
    for key, value in declaring(config):
        found = _of_config(f"`{key}` of config.json", value)
        if found is not None and found.method != _UNNAMED:
            return found
        unnamed = unnamed or found
    if unnamed is not None:  # MLX writes its facts under two keys, of which one tells
        return unnamed
    for name in SIDE_FILES:
        found = _of_file(name, files[name]) if name in files else None
        if found is not None:
            return found
    return NOTHING


def declaring(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys that declare a format, of a config.json or of a model within it (`text_config.quantization`)."""
    inner = [(f"{key}.", value) for key, value in config.items() if isinstance(value, dict)]
    for prefix, source in [("", config), *inner]:
        for key in _KEYS:
            if source.get(key):
                yield f"{prefix}{key}", source[key]


def _of_config(where: str, value: Any) -> Declaration | None:
    if isinstance(value, str):
        return Declaration(value.lower(), {}, where)
    if not isinstance(value, dict):
        return None
    method = value.get("quant_method") or value.get("quant_type")
    algorithm = value.get("quant_algo")
    if method is None and algorithm is not None:
        method = "modelopt"
    if (
        method is None
        and where.endswith("quantization` of config.json")
        and {"bits", "group_size"} & value.keys()
    ):
        method = "mlx"
    word = str(method or _UNNAMED).lower()
    if word.startswith("modelopt"):
        return None if "quant_algo" in value and not algorithm else Declaration("modelopt", value, where)
    return Declaration(_of_autoround(value) if word in ("auto-round", "autoround") else word, value, where)


def _of_autoround(facts: Mapping[str, Any]) -> str:
    """The format in which AutoRound has packed its weights."""
    packing = str(facts.get("packing_format", "")).lower()
    for method in ("gptq", "awq"):
        if packing in (f"auto_round:auto_{method}", f"auto_round:{method}"):
            return method
    return "auto-round"


def _of_file(name: str, facts: Mapping[str, Any]) -> Declaration | None:
    where = f"`{name}`"
    inner = facts.get("quantization", facts)
    if not isinstance(inner, dict) or not inner:
        return None
    if name == "hf_quant_config.json":
        # ModelOpt writes the file for a quantised cache alone too
        return Declaration("modelopt", inner, where) if inner.get("quant_algo") else None
    method = str(inner.get("quant_method") or "").lower()
    if not method and ({"w_bit", "q_group_size"} & inner.keys()):
        inner = {**inner, "bits": inner.get("w_bit"), "group_size": inner.get("q_group_size")}
        method = "awq"
    if not method and "bits" in inner:
        method = "gptq"
    return Declaration(method or _UNNAMED, inner, where)


def plain_dtype(config: Mapping[str, Any]) -> str:
    """The type in which the decoded weights are written: the config's where it is a plain one, else BF16."""
    inner = config.get("text_config")
    for source in (config, inner if isinstance(inner, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            word = str(source.get(key, "")).removeprefix("torch.")
            if word in _PLAIN:
                return _PLAIN[word]
    return "BF16"


def whole_number(facts: Mapping[str, Any], *keys: str) -> int | None:
    """The first of some keys that has a whole number."""
    for key in keys:
        value = facts.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
