"""What it takes to compute the rows of tokens: memory, and arithmetic."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from taskvec.models.model import Model

if TYPE_CHECKING:
    from taskvec.plan.token_rows import Approximation

# Bytes of the products of a chunk of tokens with all shared ones, and of what spans what was chosen for them.
PRODUCTS = 128 << 20
SPANS = 256 << 20
PAIRS = 128 << 20


def chunk_of(shared: int, columns: int, k: int) -> int:
    """Tokens that are approximated at a time: fixed by the sizes, so that a run goes on where it was."""
    by_products = PRODUCTS // max(1, 4 * shared)
    by_spans = SPANS // max(1, 8 * k * columns)
    return max(1, min(512, by_products, by_spans))


def working_bytes(made: Approximation, target: Model, model: Model) -> int:
    """Bytes that the computation takes, at most: of one space at a time."""
    if not made.tokens:
        return 0
    rows, wanted = len(made.shared), len(made.tokens)
    columns = max(model.tensors[name].shape[1] for name in made.spaces.values())
    tall = max(model.tensors[name].shape[0] for name in made.spaces.values())
    each = 8 if any(model.tensors[name].dtype == "F64" for name in made.spaces.values()) else 4
    finding = each * (tall + rows + wanted) * columns
    computed = sum(_size(target.tensors[name].dtype) * _columns(target, name) for name in made.spaces)
    widest = max(_size(target.tensors[name].dtype) * _columns(target, name) for name in made.spaces)
    own = (max(target.tensors[name].shape[0] for name in made.spaces) + rows) * widest
    kept = wanted * (computed + 12 * made.k) + (64 << 20)
    step = chunk_of(rows, columns, made.k)
    # of a chunk: products, and which of them are near the best; what spans the chosen ones, and pairs
    at_once = step * (6 * rows + 16 * made.k * (columns + made.k)) + PAIRS
    return max(finding + at_once, own) + kept


def _size(dtype: str) -> int:
    return 8 if dtype == "F64" else 4


def _columns(model: Model, name: str) -> int:
    return math.prod(model.tensors[name].shape[1:])


def operations(made: Approximation, model: Model) -> float:
    """Multiplications and additions that finding the rows takes, about."""
    each = sum(2 * model.tensors[name].shape[1] for name in set(made.spaces.values()))
    steps = made.k if made.method == "omp" else 1
    return float(len(made.tokens)) * len(made.shared) * each * steps
