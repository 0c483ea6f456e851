"""config.json in one form, equal where two configs mean the same function of the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from taskvec.compat.config_keys import GENERATION, INNER, activation, is_ignored
from taskvec.compat.families import NO_FAMILY, NOT_KNOWN, Family, family, filled
from taskvec.compat.rope import NAMES as ROPE
from taskvec.compat.rope import consumed, rope

_OLD_LAYER_TYPES = {
    "mamba": "linear_attention",
    "attention": "full_attention",
    "deepseek_sparse_attention": "indexed_attention",
    "qwen_sparse_attention": "indexed_attention",
}


class Described(NamedTuple):
    """A config in one form, and the keys that its family's class declares."""

    values: dict[str, Any]
    known: frozenset[str]


def canonical(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as flat ``key.key: value``, equal where two configs mean the same.

    The inner language model's settings come to the top, the spellings of the rotary embedding become one
    (``rope``), defaults of the family and those that follow from other keys are filled in, names that the
    family has twice become one. ``null`` is the same as absent, unless the family's default is something.
    """
    return describe(config).values


def describe(config: Mapping[str, Any], *, with_defaults: bool = True) -> Described:
    """A config in one form; without the defaults of its family where it is compared with another family's."""
    own = family(str(config.get("model_type"))) if with_defaults else NO_FAMILY
    values, known = _section(config, own, with_defaults)
    return Described(dict(_flat(values, "")), frozenset(known))


def _section(config: Mapping[str, Any], own: Family, with_defaults: bool) -> tuple[dict[str, Any], set[str]]:
    """A section and all that lies in it."""
    merged, inner, sections = _brought_up(config, own, with_defaults)
    row = _joined(own, inner)
    merged = filled(merged, row)
    known = {*row.defaults, *row.formulas, *row.layers} - ROPE | {"rope"}
    for name in sections:
        value = merged.pop(name, None)
        value = value if isinstance(value, Mapping) else {}
        kind = str(value.get("model_type") or "")
        given = family(kind) if with_defaults else NO_FAMILY
        inside = given if given is not NO_FAMILY else family(own.sections.get(name, ""))
        value = _overridden(value, own.overrides.get(name, {}), inside)
        merged[name], names = _section(value, inside if with_defaults else NO_FAMILY, with_defaults)
        known |= {f"{name}.{each}" for each in names}
    is_known = row is not NO_FAMILY or not with_defaults
    return _without_generation(_settled(merged, row), row if is_known else None), known


def _without_generation(config: dict[str, Any], row: Family | None) -> dict[str, Any]:
    """A section without the settings of generation: where its family is not known, without their defaults.

    What the family's own class declares is one of these by its name alone.
    """
    return {
        key: value
        for key, value in config.items()
        if key not in GENERATION
        or (value not in (None, GENERATION[key]) if row is None else key in row.defaults)
    }


def _brought_up(
    config: Mapping[str, Any], own: Family, with_defaults: bool
) -> tuple[dict[str, Any], Family, list[str]]:
    """The config with the inner language model's keys on top, that model's family, and its other sections."""
    merged = dict(config)
    name = next((each for each in INNER if isinstance(merged.get(each), Mapping)), None)
    declared = name or next((each for each in INNER if each in own.sections), None)
    inner = NO_FAMILY
    if name is not None:
        section = _overridden(merged.pop(name), own.overrides.get(name, {}), NO_FAMILY)
        # What stands outside is old where the inner section says it too.
        merged |= {**section, **_outside(merged, section, name)}
        inner = family(str(section.get("model_type"))) if with_defaults else NO_FAMILY
    elif declared is not None and not any(key in merged for key in ("hidden_size", "num_hidden_layers")):
        merged = {**own.overrides.get(declared, {}), **merged}
    if inner is NO_FAMILY and declared is not None and with_defaults:
        inner = family(own.sections.get(declared, ""))
    sections = [each for each in own.sections if each != declared]
    sections += [
        key
        for key, value in merged.items()
        if key not in sections
        and key.endswith("_config")
        and isinstance(value, Mapping)
        and not is_ignored(key)
    ]
    return merged, inner, sections


def _outside(config: Mapping[str, Any], section: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a config says otherwise than the section of its language model, under names of its own."""
    return {
        f"{key} outside of {name}": value
        for key, value in config.items()
        if key in section and value is not None and value != section[key] and not is_ignored(key)
    }


def _overridden(section: Mapping[str, Any], usual: Mapping[str, Any], inside: Family) -> Mapping[str, Any]:
    """A section with the outer family's defaults; who completes one that is given in part is not known."""
    if not section:
        return usual
    names = [key for key in usual if key not in section and key not in inside.aliases.values()]
    return {**dict.fromkeys(names, NOT_KNOWN), **section}


def _joined(own: Family, inner: Family) -> Family:
    """The family of a config and that of its language model as one; the inner one decides."""
    if inner is NO_FAMILY:
        return own
    return Family(
        defaults={**own.defaults, **inner.defaults},
        rope=inner.rope if inner.rope is not None else own.rope,
        aliases={**own.aliases, **inner.aliases},
        formulas={**own.formulas, **inner.formulas},
        layers={**own.layers, **inner.layers},
        nulls=own.nulls | inner.nulls,
        old=own.old | inner.old,
        values={**own.values, **inner.values},
    )


def _settled(config: dict[str, Any], own: Family) -> dict[str, Any]:
    """A filled section with one spelling of what may be spelled in several ways."""
    for key in ("layer_types", "mtp_layer_types"):
        if isinstance(config.get(key), list):
            config[key] = [
                _OLD_LAYER_TYPES.get(kind, kind) if isinstance(kind, str) else kind for kind in config[key]
            ]
    one_form = rope(config, own)
    for key in consumed(config, own, one_form):
        config.pop(key, None)
    config["rope"] = one_form
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if isinstance(heads, int) and heads > 0:
        if config.get("num_key_value_heads") is None:
            config["num_key_value_heads"] = heads
        if isinstance(hidden, int) and not config.get("head_dim"):
            config["head_dim"] = hidden // heads
    if config.get("use_sliding_window") is False:
        config.pop("sliding_window", None)
    if config.get("sliding_window") is None:
        config.pop("max_window_layers", None)
    layer_types = config.get("layer_types")
    if isinstance(layer_types, list) and all(kind == "full_attention" for kind in layer_types):
        config.pop("layer_types")
    # The list says what the period and the number of first layers say.
    for key, rule in own.layers.items():
        if config.get(key) is not NOT_KNOWN:
            for name in ("period", "first"):
                config.pop(str(rule.get(name)), None)
            if key == "layer_types":
                config.pop("_sliding_window_pattern", None)
                config.pop("sliding_window_pattern", None)
    return config


def _flat(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if item is None or (is_ignored(key) and key != "rope"):
            continue
        if isinstance(item, Mapping) and key != "rope" and list(item) != ["__float__"]:
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", activation(_number(item))


def _number(value: Any) -> Any:
    """A value in which infinity is a number, however it is written."""
    if isinstance(value, list):
        return [_number(each) for each in value]
    if isinstance(value, Mapping) and list(value) == ["__float__"]:
        return float(value["__float__"])
    return value
