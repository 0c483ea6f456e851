"""The defaults of transformers for keys that a config leaves out, a row for each family.

The table is read when two configs differ.

The table is measured (``tests/compat/make_families.py``), not written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from taskvec.compat.layer_patterns import expand, lead, stretch


class NotKnown:
    """A value that follows from others by a rule that is not known: equal to itself alone."""

    def __repr__(self) -> str:
        return "not known"


NOT_KNOWN = NotKnown()
# Between a key and another name of it, under which the same section says something else.
CONTRADICTED = " contradicted by "


class Family(NamedTuple):
    """Defaults of a family, or of a section of its configs.

    Attributes
    ----------
    defaults : mapping
        Values of absent keys.
    rope : mapping or None
        Default parameters of the rotary embedding, per layer type where they differ.
    aliases : mapping
        Other names of keys.
    sections : mapping
        Rows of the config's sections.
    formulas : mapping
        Absent keys that follow from others: an operation and its operands, ``None`` for a rule not known.
    layers : mapping
        Absent lists with an entry per layer, as rules of :mod:`taskvec.compat.layer_patterns`.
    nulls : frozenset of str
        Keys for which ``null`` means the default.
    old : frozenset of str
        Keys that the class takes in and does not write.
    overrides : mapping
        By section: defaults that this family sets for it where the whole section is absent.
    kind : str
        The model type that the class writes, where it is another one.
    values : mapping
        By key: values that the class reads as another one.
    """

    defaults: Mapping[str, Any] = {}
    rope: Mapping[str, Any] | None = None
    aliases: Mapping[str, str] = {}
    sections: Mapping[str, str] = {}
    formulas: Mapping[str, list[Any] | None] = {}
    layers: Mapping[str, Mapping[str, Any]] = {}
    nulls: frozenset[str] = frozenset()
    old: frozenset[str] = frozenset()
    overrides: Mapping[str, Mapping[str, Any]] = {}
    kind: str = ""
    values: Mapping[str, Mapping[str, Any]] = {}


NO_FAMILY = Family()


@cache
def _table() -> dict[str, Any]:
    from importlib.resources import files  # milliseconds, which equal configs need not pay

    text = files("taskvec.compat").joinpath("families.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


@cache
def known_keys(sort: str) -> frozenset[str]:
    """Keys of any family: ``"harmless"``, of training and initialisation, or ``"tokens"``, ids and counts.

    Under ``"tied"`` are the model types whose class ties head and embedding unless the config says otherwise.
    """
    return frozenset(_table()[sort])


@cache
def family(kind: str) -> Family:
    """The row of a model type; ``NO_FAMILY`` where transformers has no such type."""
    row = _table()["families"].get(kind, {})
    if isinstance(row, str):
        return family(row)
    if not row:
        return NO_FAMILY
    return Family(
        defaults=row.get("d", {}),
        rope=row.get("r"),
        aliases=row.get("a", {}),
        sections=row.get("s", {}),
        formulas=row.get("f", {}),
        layers=row.get("l", {}),
        nulls=frozenset(row.get("n", ())),
        old=frozenset(row.get("p", ())),
        overrides=row.get("o", {}),
        kind=row.get("m", ""),
        values=row.get("v", {}),
    )


def filled(config: Mapping[str, Any], own: Family) -> dict[str, Any]:
    """A section with the family's stored names, and its defaults where keys are absent."""
    result = {key: value for key, value in config.items() if key not in own.aliases or key in own.defaults}
    for alias, key in own.aliases.items():
        value = config.get(alias)
        if alias in result or value is None:
            continue
        # Of two names that contradict each other transformers takes the other one last, so that it stays.
        # Another program may read the other: both are compared.
        if result.get(key) is not None and result[key] != value:
            result[f"{key}{CONTRADICTED}{alias}"] = result[key]
        result[key] = value
    for key, words in own.values.items():
        if isinstance(result.get(key), str):
            result[key] = words.get(result[key], result[key])
    # An old key whose effect is not known may stand behind any key that is absent.
    consumed = {rule.get(name) for rule in own.layers.values() for name in ("period", "first")}
    is_open = any(key in own.old and key not in consumed and key not in _ROPE for key in config)
    for key, value in own.defaults.items():
        if key == "max_window_layers":  # without a window it says nothing, and a window comes with it
            continue
        if own.rope is not None and key in (
            "rope_theta",
            "rope_local_base_freq",
        ):  # the row's own parameters say it
            continue
        if key not in result or (result[key] is None and key in own.nulls):
            result[key] = NOT_KNOWN if is_open and key not in result else value
    _fill_formulas(result, own)
    for key, rule in own.layers.items():
        if result.get(key) is None:
            result[key] = layer_list(result, key, rule, own.defaults)
    return result


# Old keys of which the comparison knows what they mean.
_ROPE = frozenset(
    {
        "partial_rotary_factor",
        "rotary_dim",
        "swa_rope_theta",
        "rope_theta",
        "rope_scaling",
        "rope_local_base_freq",
        "rotary_pct",
        "global_rope_theta",
        "local_rope_theta",
        "rotary_emb_base",
        "rope_ratio",
        "original_max_position_embeddings",
    }
)


def _fill_formulas(config: dict[str, Any], own: Family) -> None:
    waiting = {key: rule for key, rule in own.formulas.items() if config.get(key) is None}
    for _ in range(3):  # a rule may stand on another one's result
        for key, rule in list(waiting.items()):
            value = NOT_KNOWN if rule is None else _calculated(rule, config)
            if value is not NOT_KNOWN or rule is None:
                config[key] = value
                del waiting[key]
    config.update(dict.fromkeys(waiting, NOT_KNOWN))


def _calculated(rule: list[Any], config: Mapping[str, Any]) -> Any:
    operation, *names = rule
    if operation == "by":
        return names[1].get(json.dumps(config.get(names[0]), default=str), NOT_KNOWN)
    values: list[Any] = [config.get(name) if isinstance(name, str) else name for name in names]
    if operation == "=":
        return NOT_KNOWN if values[0] is None else values[0]
    if not all(isinstance(value, int | float) for value in values):
        return NOT_KNOWN
    a, b = values
    if operation in ("//", "/", "ceil/") and b == 0:
        return NOT_KNOWN
    if operation == "//":
        return a // b
    if operation == "/":
        return a / b
    if operation == "ceil/":
        return -(-a // b)
    return a * b if operation == "*" else a + b


def layer_list(
    config: Mapping[str, Any], key: str, rule: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Any:
    """The list that a family's class makes for the layers of a config that does not give it."""
    count = config.get(rule["n"])
    if "cycle" not in rule or not isinstance(count, int) or not 0 < count <= 100_000:
        return NOT_KNOWN
    for name, change in ((rule.get("period"), stretch), (rule.get("first"), lead)):
        value = config.get(name) if name else None
        if name is not None and name in defaults and defaults[name] == value:
            continue
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= count + 1000:
            rule = change(rule, value)
    window_from = config.get("max_window_layers")
    if key == "layer_types" and config.get("use_sliding_window") and isinstance(window_from, int):
        return [
            "sliding_attention" if config.get("sliding_window") and index >= window_from else kind
            for index, kind in enumerate(expand(rule, count))
        ]
    return expand(rule, count)
