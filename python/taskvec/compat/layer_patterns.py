"""Lists with an entry per layer that follow from a rule: some first layers, a cycle, some last layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def expand(rule: Mapping[str, Any], count: int) -> list[Any]:
    """The list of a rule for `count` layers."""
    head, cycle, tail = rule["head"], rule["cycle"], rule["tail"]
    middle = [cycle[index % len(cycle)] for index in range(max(count - len(head), 0))]
    result = [*head, *middle][:count]
    if tail and count >= len(tail):
        result[count - len(tail) :] = tail
    return result


def stretch(rule: Mapping[str, Any], period: int) -> dict[str, Any]:
    """The rule with a cycle of `period` layers, of which one, the first or the last, is of another kind."""
    cycle = rule["cycle"]
    if period < 1:
        return dict(rule)
    if len(cycle) > 1 and all(kind == cycle[-1] for kind in cycle[1:]) and len(cycle) != 2:
        new = [cycle[0], *[cycle[-1]] * (period - 1)]
    else:
        new = [*[cycle[0]] * (period - 1), cycle[-1]]
    return {**rule, "cycle": new}


def lead(rule: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The rule with `count` first layers of the kind that its first layers have."""
    kind = rule["head"][0] if rule["head"] else "dense"
    return {**rule, "head": [kind] * count}
