"""The rotary embedding of a config in one form, whatever keys it is spelled with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from taskvec.compat.families import NO_FAMILY, Family

Parameters = dict[str, Any]

_BASE = 10000.0
# One meaning, several names, by generation and by family.
_THETA = ("rope_theta", "rotary_emb_base", "global_rope_theta")
_LOCAL_THETA = ("rope_local_base_freq", "local_rope_theta", "swa_rope_theta")
_PARTIAL = ("partial_rotary_factor", "rotary_pct")
NAMES = frozenset({
    "rope_parameters", "rope_scaling", "rope_ratio", "original_max_position_embeddings",
    *_THETA, *_LOCAL_THETA, *_PARTIAL,
})  # fmt: skip
"""Keys that say something of the rotary embedding."""
_TYPES = {"su": "longrope", "mrope": "default"}
# Types that look at the length of the original training.
_WITH_LENGTH = frozenset({"llama3", "yarn", "longrope"})
# What a type does not look at.
_WITHOUT_EFFECT = {
    "default": frozenset({"factor", "original_max_position_embeddings", "attention_factor"}),
    "linear": frozenset({"original_max_position_embeddings"}),
}
_DEFAULTS: dict[str, dict[str, Any]] = {"yarn": {"beta_fast": 32, "beta_slow": 1, "truncate": True}}


def rope(config: Mapping[str, Any], own: Family = NO_FAMILY) -> dict[str, Any] | None:
    """The parameters of the rotary embedding, per layer type where they differ.

    Parameters
    ----------
    config : mapping
        A section with its family's names and defaults.
    own : Family
        Its family.

    Returns
    -------
    dict or None
        ``rope_type``, ``rope_theta`` (float) and what else the type looks at; ``None`` where neither the
        config nor the family says anything of a rotary embedding.
    """
    given = _given(config)
    theta, local, partial = _theta(config), _first(config, _LOCAL_THETA), _partial(config, own)
    if given is None and own.rope is None and theta is local is partial is None:
        return None
    if _is_nested(given) or _is_nested(own.rope) or local is not None:
        return _nested(config, own, given, theta, local, partial)
    return _single(config, own, given, own.rope, theta, partial)


def consumed(config: Mapping[str, Any], own: Family, one_form: Mapping[str, Any] | None) -> frozenset[str]:
    """Keys of a config that `one_form`, what :func:`rope` makes of it, speaks for.

    A key whose value is of another kind than is known, or says something else than the form does, stays a key
    of its own.
    """
    forms = [one_form] if one_form is None or not _is_nested(one_form) else list(one_form.values())
    bases = {form.get("rope_theta") for form in forms if form is not None}
    shares = {form.get("partial_rotary_factor", 1.0) for form in forms if form is not None}
    names = {key for key in ("rope_scaling", "rope_parameters") if _is_said(config, key, own, one_form)}
    has_ratio = _is_number(config.get("rope_ratio"))
    for key in (*_THETA, *_LOCAL_THETA):
        if _is_number(config.get(key)) and (has_ratio or float(config[key]) in bases):
            names.add(key)
    names.update(key for key in _PARTIAL if _is_number(config.get(key)) and float(config[key]) in shares)
    if has_ratio:
        names.add("rope_ratio")
    if own.rope is not None and _head_dim(config) is not None:
        names.add("rotary_dim")
    if own is not NO_FAMILY or any("original_max_position_embeddings" in (form or {}) for form in forms):
        names.add("original_max_position_embeddings")
    return frozenset(names)


def _is_said(config: Mapping[str, Any], key: str, own: Family, one_form: Mapping[str, Any] | None) -> bool:
    """Whether the form says all that a config has under this key."""
    value = config.get(key)
    if not value or value is _given(config):
        return True
    other = "rope_parameters" if key == "rope_scaling" else "rope_scaling"
    return isinstance(value, Mapping) and rope({**config, other: None}, own) == one_form


def _given(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    # where a config has both, transformers takes the older
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if isinstance(value, Mapping) and value:
            return value
    return None


def _is_nested(value: Mapping[str, Any] | None) -> bool:
    return bool(value) and all(each is None or isinstance(each, Mapping) for each in (value or {}).values())


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    for name in names:
        value = config.get(name)
        if _is_number(value):
            return float(value)
    return None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _theta(config: Mapping[str, Any]) -> float | None:
    theta, ratio = _first(config, _THETA), _first(config, ("rope_ratio",))
    return theta if ratio is None else (_BASE if theta is None else theta) * ratio


def _head_dim(config: Mapping[str, Any]) -> int | None:
    value, heads, hidden = (config.get(k) for k in ("head_dim", "num_attention_heads", "hidden_size"))
    if isinstance(value, int) and value > 0:
        return value
    return hidden // heads if isinstance(heads, int) and isinstance(hidden, int) and heads > 0 else None


def _partial(config: Mapping[str, Any], own: Family) -> float | None:
    partial = _first(config, _PARTIAL)
    rotated, whole = config.get("rotary_dim"), _head_dim(config)
    if partial is None and own.rope is not None and isinstance(rotated, int) and whole:
        return rotated / whole
    return partial


def _nested(
    config: Mapping[str, Any],
    own: Family,
    given: Mapping[str, Any] | None,
    theta: float | None,
    local: float | None,
    partial: float | None,
) -> dict[str, Any]:
    usual = own.rope if _is_nested(own.rope) else None
    if _is_nested(given):
        kinds = list(given or {})
    else:
        kinds = list(usual or {"full_attention": {}, "sliding_attention": {}})
    scaled = {"full_attention"} | (set(kinds) if "global_rope_theta" in config else set())
    result: dict[str, Any] = {}
    for kind in sorted(kinds):
        default = usual.get(kind) if usual is not None else own.rope
        if _is_nested(given):
            single = given[kind] if given is not None else None
            if single is None:
                result[kind] = None
                continue
        else:
            single = given if kind in scaled else None
            if given is None and usual is not None and default is None:
                result[kind] = None
                continue
        base = local if kind == "sliding_attention" else theta
        if kind == "sliding_attention" and local is None and usual is None:
            base = theta
        result[kind] = _single(config, own, single, default, base, partial)
    values = list(result.values())
    return values[0] if values and values[0] is not None and all(v == values[0] for v in values) else result


def _single(
    config: Mapping[str, Any],
    own: Family,
    given: Mapping[str, Any] | None,
    default: Mapping[str, Any] | None,
    theta: float | None,
    partial: float | None,
) -> Parameters:
    default = default or {}
    usual_base, usual_part = default.get("rope_theta", _BASE), default.get("partial_rotary_factor")
    result = {key: value for key, value in (default if given is None else given).items() if value is not None}
    if given is None and theta is not None:
        result["rope_theta"] = theta
    result.setdefault("rope_theta", usual_base if theta is None else theta)
    if given is None and partial is not None:
        result["partial_rotary_factor"] = partial
    share = result.get("partial_rotary_factor", usual_part if partial is None else partial)
    result["partial_rotary_factor"] = None if share == 1 else share
    kind = result.get("rope_type") or result.get("type") or "default"
    kind = _TYPES.get(kind, kind)
    if kind == "default" and default.get("rope_type") not in (None, *_WITH_LENGTH, "linear", "dynamic"):
        kind = default["rope_type"]
    result["rope_type"] = kind
    if kind in _WITH_LENGTH:
        outside = config.get("original_max_position_embeddings")
        inside = result.get("original_max_position_embeddings")
        longest = config.get("max_position_embeddings")
        result["original_max_position_embeddings"] = next((v for v in (outside, inside, longest) if v), None)
    left = frozenset({"type", "finetuned"})
    if own is not NO_FAMILY:  # what code that is not transformers' looks at is not known
        left |= _WITHOUT_EFFECT.get(kind, frozenset())
    usual = _DEFAULTS.get(kind, {})
    names = ["rope_theta", "rope_type", *sorted(result.keys() - {"rope_theta", "rope_type"} - left)]
    kept = {key: result[key] for key in names if result[key] is not None and result[key] != usual.get(key)}
    return {key: _number(value) for key, value in kept.items()}


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
