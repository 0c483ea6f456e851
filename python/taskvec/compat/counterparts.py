"""Counterparts: which stored tensor of each model belongs to a tensor of the target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from taskvec.compat.tied_heads import TieDecision
from taskvec.dtypes import FLOAT_DTYPES

if TYPE_CHECKING:
    from taskvec.models.model import Model

Others = Sequence[tuple[str, "Model"]]


def counterparts(
    base: Model, others: Others, selected: Sequence[str], tie: TieDecision
) -> dict[str, tuple[str, ...]]:
    """The stored names that each selected tensor is combined with, one per other model.

    A tensor that is not in the result is copied from the base: it is not selected or not float, or another
    model lacks it, has it in another shape, or not as a float.
    """
    return dict(iterate_counterparts(base, others, selected, tie))


def iterate_counterparts(
    base: Model, others: Others, selected: Sequence[str], tie: TieDecision
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The same one after the other."""
    tables = [(checkpoint.tensors.get, tie.substitutes.get(role)) for role, checkpoint in others]
    own = base.tensors.get
    for name in selected:
        info = own(name)
        if info is None or info.dtype not in FLOAT_DTYPES:
            continue
        shape, stored = info.shape, []
        for get, substitutes in tables:
            other_name = substitutes.get(name, name) if substitutes else name
            other = get(other_name)
            if other is None or other.shape != shape or other.dtype not in FLOAT_DTYPES:
                break
            stored.append(other_name)
        else:
            yield name, tuple(stored)
