"""Tensors that a permuted control has to leave out: shuffled values that share a sign are still the vector.

The cosine of a tensor with a permutation of itself is its squared mean over its mean square. It is next to
zero for weight matrices. Norms and biases are often moved in one direction as a whole, and would bring most
of the vector back into its own control.
"""

from __future__ import annotations

import math
import re
import sys
from array import array
from collections.abc import Sequence

import taskvec as tv

COSINE = 0.1  # with a permutation of itself, beyond what chance gives to a tensor of the size
CHANCE = 9.0  # squared standard deviations


def one_sided(target: str, donor: str, reference: str) -> list[str]:
    """The names of one-dimensional tensors whose difference goes in one direction (``[n]``, ``[1, n]``).

    Parameters
    ----------
    target, donor, reference : str
        Models; tensors are looked at that all three have under one name and in one shape.
    """
    models = [tv.open(spec) for spec in (target, donor, reference)]
    first, *rest = models
    found = []
    for name, info in first.tensors.items():
        alike = all(name in model.tensors and model.tensors[name].shape == info.shape for model in rest)
        if alike and _is_row(info.shape) and _is_one_sided(rest[0], rest[1], name, max(info.shape)):
            found.append(name)
    return found


def rows(target: str) -> list[str]:
    """The names of all one-dimensional tensors, where the values of a vector are not looked at."""
    return [name for name, info in tv.open(target).tensors.items() if _is_row(info.shape)]


def _is_row(shape: Sequence[int]) -> bool:
    """Whether a tensor has one side above one: norms and biases, whatever their form."""
    return sum(side > 1 for side in shape) == 1


def pattern(names: Sequence[str]) -> str:
    """The value of ``--exclude`` that leaves out these tensors and no others."""
    return f"^({'|'.join(map(re.escape, names))})$"


def _is_one_sided(donor: tv.Checkpoint, reference: tv.Checkpoint, name: str, size: int) -> bool:
    one, other = (_values(model, name, size) for model in (donor, reference))
    steps = [x - y for x, y in zip(one, other, strict=True)]
    square = math.fsum(step * step for step in steps) / size
    mean = math.fsum(steps) / size
    return square > 0 and mean * mean / square > COSINE + CHANCE / size


def _values(model: tv.Checkpoint, name: str, size: int) -> array[float]:
    values = array("f")
    values.frombytes(model.sample(name, 0, size))
    if sys.byteorder == "big":
        values.byteswap()
    return values
