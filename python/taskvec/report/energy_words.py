"""How much of a vector its adapter keeps, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskvec.text import percent, plural

# Below this share of the squared norm a model with the adapter is another one than the donor.
LOW_RANK = 0.9


def energy_words(adapter: Mapping[str, Any]) -> list[str]:
    """What the figures of an adapter say, a sentence each."""
    modules = adapter["modules"].values()
    ranks = sorted({row["rank"] for row in modules if row["rank"]})
    span = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    count = sum(row["rank"] > 0 for row in modules)
    lines = [
        f"{percent(adapter['factors_energy'])} of the squared norm of {plural(count, 'module')} kept, at "
        f"{span}",
        "the vector is low-rank" if is_low_rank(adapter) else "the vector is not low-rank",
    ]
    if adapter["energy"] != adapter["factors_energy"]:
        lines.append(f"{percent(adapter['energy'])} of the whole vector")
    if adapter["left"]:
        lines.append(f"{plural(len(adapter['left']), 'tensor')} left out")
    return lines


def is_low_rank(adapter: Mapping[str, Any]) -> bool:
    """Whether the factors are near the vector that they were made of."""
    return adapter["factors_energy"] >= LOW_RANK
