"""What it takes to compute the rows of tokens: memory, and arithmetic."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from taskvec.models.model import Model

if TYPE_CHECKING:
    from taskvec.plan.token_rows import Approximation

# Bytes of what spans the atoms that were chosen for a chunk of tokens, and of pairs that are compared.
SPANS = 512 << 20
PAIRS = 256 << 20
# Of the products of a chunk with some atoms: a tile for each thread, up to so many threads.
PRODUCTS = 4 * 1024
THREADS = 64


def chunk_of(columns: int, k: int) -> int:
    """Tokens that are approximated at a time: fixed by the sizes, so that a run goes on where it was."""
    return max(1, min(512, SPANS // max(1, 8 * k * (columns + k))))


def working_bytes(made: Approximation, target: Model, model: Model) -> int:
    """Bytes that the computation takes, at most: of one space at a time."""
    if not made.tokens:
        return 0
    rows, wanted = len(made.shared), len(made.tokens)
    columns = max(model.tensors[name].shape[1] for name in made.spaces.values())
    is_packed = any(name in model.packed for name in made.spaces.values())
    tall = max(model.tensors[name].shape[0] for name in made.spaces.values()) if is_packed else 0
    each = 8 if any(model.tensors[name].dtype == "F64" for name in made.spaces.values()) else 4
    # what is read, and the same in range and finite
    finding = each * (tall + 2 * (rows + wanted)) * columns
    computed = sum(_size(target.tensors[name].dtype) * _columns(target, name) for name in made.spaces)
    widest = max(_size(target.tensors[name].dtype) * _columns(target, name) for name in made.spaces)
    kept = wanted * (computed + 12 * made.k) + (64 << 20)
    step = chunk_of(columns, made.k)
    # of a chunk: products, what spans the chosen atoms, before and after some rows are done, and pairs
    at_once = step * (PRODUCTS * THREADS + 16 * made.k * (columns + made.k)) + PAIRS
    return max(finding + at_once, 2 * rows * widest + PAIRS) + kept


def _size(dtype: str) -> int:
    return 8 if dtype == "F64" else 4


def _columns(model: Model, name: str) -> int:
    return math.prod(model.tensors[name].shape[1:])


def operations(made: Approximation, model: Model) -> float:
    """Multiplications and additions that finding the rows takes, about."""
    each = sum(2 * model.tensors[name].shape[1] for name in set(made.spaces.values()))
    steps = made.k if made.method == "omp" else 1
    return float(len(made.tokens)) * len(made.shared) * each * steps
