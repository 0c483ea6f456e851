"""Configurations compared as functions: families, and every key that changes what the weights compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from taskvec.compat.canonical import Described, describe
from taskvec.compat.config_keys import CONTEXT, GENERATION, INNER, is_token, names_function
from taskvec.compat.families import CONTRADICTED, NO_FAMILY, NOT_KNOWN, family
from taskvec.compat.findings import Finding, Level, finding
from taskvec.text import listed, roles

Models = Sequence[tuple[str, Mapping[str, Any]]]


# The values that transformers takes where a key is absent; only where every family agrees.
_DEFAULTS: dict[str, Any] = {
    "add_cross_attention": False,
    "attention_bias": False,
    "is_decoder": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "rope_interleave": True,
    "rope": {"rope_theta": 10000.0, "rope_type": "default"},
}


def compare_configs(base_role: str, base: Mapping[str, Any], others: Models) -> list[Finding]:
    """Compare the configs of `others` with the base's."""
    missing = [role for role, config in [(base_role, base), *others] if not config]
    findings = []
    if missing:
        findings.append(
            finding(
                "config-missing",
                f"config.json of {roles(missing)}",
                "",
                "there is none, so the function of the weights cannot be compared",
                "make sure that the models are of one family and size",
            )
        )
    present = [(role, config) for role, config in others if config]
    if not base or not present:
        return findings
    findings += _check_family(base_role, base, present)
    findings += _check_keys(base_role, base, present)
    return findings


def _families(config: Mapping[str, Any]) -> list[str]:
    inner = next((config[key] for key in INNER if isinstance(config.get(key), dict)), {})
    return [str(kind) for kind in (config.get("model_type"), inner.get("model_type")) if kind]


def _is_one_family(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two configs share a model type, or types that one class stands for."""
    return bool(set(one) & set(other)) or bool(
        {_written(kind) for kind in one} & {_written(kind) for kind in other}
    )


def _written(kind: str) -> str:
    return family(kind).kind or kind


def _classes(config: Mapping[str, Any]) -> str:
    classes = config.get("architectures")
    return ", ".join(map(str, classes)) if isinstance(classes, list) else ""


def _check_family(base_role: str, base: Mapping[str, Any], others: Models) -> Iterator[Finding]:
    own, own_classes = _families(base), _classes(base)
    for found, who in _grouped((role, tuple(_families(config))) for role, config in others):
        if own and found and not _is_one_family(own, found):
            yield finding(
                "architecture",
                f"model_type of {roles(who)}",
                f"`{own[0]}` as the {base_role} has it",
                f"`{found[0]}`",
                "give models of one family",
            )
    for found, who in _grouped((role, _classes(config)) for role, config in others):
        if own_classes and found and found != own_classes:
            yield finding(
                "architecture-class",
                f"architectures of {roles(who)}",
                f"`{own_classes}` as the {base_role} has it",
                f"`{found}`",
                "their heads are not comparable; leave them out with `--preset no-embed`",
            )


class _Difference(NamedTuple):
    """A key with another value: what the base has, what the others have."""

    key: str
    mine: str
    theirs: str
    sort: str


def _check_keys(base_role: str, base: Mapping[str, Any], others: Models) -> Iterator[Finding]:
    differing: dict[_Difference, list[str]] = {}
    for role, config in others:
        if config == base:
            continue
        for each in _differences(base, config):
            differing.setdefault(each, []).append(role)
    for (key, mine, theirs, sort), who in differing.items():
        if sort == "context":
            id, fix = "config-context", "the target's context length is kept; test long inputs"  # noqa: A001
        elif sort == "function":
            id, fix = "config-function", "equal shapes, but another function: give models of one lineage"  # noqa: A001
        else:
            continue
        yield finding(id, f"`{key}` of {roles(who)}", f"{mine} as the {base_role} has it", theirs, fix)
    yield from _check_rest(others, {d: who for d, who in differing.items() if d.sort == "other"}, "warning")
    yield from _check_rest(others, {d: who for d, who in differing.items() if d.sort == "token"}, "note")


def _check_rest(others: Models, rest: Mapping[_Difference, list[str]], level: Level) -> Iterator[Finding]:
    if not rest:
        return
    names = list(dict.fromkeys(each.key for each in rest))
    who = [role for role, _ in others if any(role in group for group in rest.values())]
    message = f"differs in {listed(names, 6)}"
    yield finding("config-other", f"config.json of {roles(who)}", "", message, level=level)


def _differences(base: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[_Difference]:
    """Keys that differ. The defaults of two families are not compared: what is absent stays absent."""
    own_kinds, kinds = _families(base), _families(other)
    is_one_family = not (own_kinds and kinds) or _is_one_family(own_kinds, kinds)
    mine, theirs = (describe(config, with_defaults=is_one_family) for config in (base, other))
    classes = [family(kind) for kind in {*own_kinds, *kinds}] if is_one_family else []
    is_known = any(row is not NO_FAMILY for row in classes)
    for key in [*mine.values, *(key for key in theirs.values if key not in mine.values)]:
        # an activation under a name that the family's class does not know has no default
        default = None if is_known and key == "hidden_act" else _default(key)
        one, two = mine.values.get(key, default), theirs.values.get(key, default)
        if one != two:
            yield _Difference(key, _show(one), _show(two), _sort(key, one, two, mine, theirs))


def _default(key: str) -> Any:
    if key in GENERATION:
        return GENERATION[key]
    return _DEFAULTS.get("rope" if key.endswith(".rope") else key)


def _sort(key: str, one: Any, two: Any, mine: Described, theirs: Described) -> str:
    """How much a difference counts: ``context``, ``token``, ``function`` or ``other``."""
    last = key.rpartition(".")[2]
    if last in CONTEXT:
        return "context"
    if is_token(last):
        return "token"
    if one is NOT_KNOWN or two is NOT_KNOWN:
        return "other"
    if key in GENERATION or " outside of " in last or CONTRADICTED in last:
        return "other"
    is_known = key in mine.known and key in theirs.known
    if last == "layer_types" and _is_window_without_size(one, two, mine, theirs):
        return "other"
    if one is None or two is None:  # where one is absent and no default is known, nothing is
        return "function" if is_known else "other"
    return "function" if is_known or names_function(last) else "other"


def _is_window_without_size(one: Any, two: Any, mine: Described, theirs: Described) -> bool:
    """Whether two lists of layers differ by windows alone, and neither config gives the window a size."""
    if any(each.values.get("sliding_window") is not None for each in (mine, theirs)):
        return False
    kinds = {kind for each in (one, two) if isinstance(each, list) for kind in map(str, each)}
    return kinds <= {"full_attention", "sliding_attention"}


def _show(value: Any) -> str:
    if value is None:
        return "absent"
    if value is NOT_KNOWN:
        return "not known"
    text = repr(value) if isinstance(value, str) else str(value)
    return f"`{text if len(text) <= 80 else text[:77] + '...'}`"


def _grouped(pairs: Any) -> list[tuple[Any, list[str]]]:
    """Roles by equal value, in order of appearance."""
    groups: dict[Any, list[str]] = {}
    for role, value in pairs:
        groups.setdefault(value, []).append(role)
    return list(groups.items())
