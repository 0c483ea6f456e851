"""How matrices are decomposed, by their sizes, and the memory that this takes."""

from __future__ import annotations

from collections.abc import Sequence

# Up to here the whole decomposition takes about as long as finding the range of a rank of 16, and is exact;
# and of larger matrices where so many times the directions that are looked for are all of them. Seconds of
# one core: 8960 x 1536 takes 1.1 whole, 0.8 by its range at rank 16 and 1.4 at 64; 4864 x 896 0.2, and 0.3
# and 0.7.
EXACT = 1536
_TIMES = 8
_BEYOND = 48
# Blocks of rows that are multiplied at a time, at most: each has a product of the smaller side squared.
AT_ONCE = 8
_BLOCK = 1024


def directions(rank: int) -> int:
    """Directions that are looked for where so many are wanted: a few more, to find these well."""
    return rank + max(_BEYOND, rank // 8)


def is_whole(small: int, size: int) -> bool:
    """Whether a matrix of this smaller side is decomposed as it is, where `size` directions are wanted."""
    return small <= EXACT or _TIMES * size > small


def working_bytes(shape: Sequence[int], rank: int) -> int:
    """Bytes that decomposing a matrix of float32 takes at most, its own among them."""
    rows, columns = max(shape), min(shape)
    size = min(columns, directions(rank))
    own = 4 * rows * columns
    if is_whole(columns, size):
        blocks = AT_ONCE * (columns * columns + _BLOCK * columns)
        # the sum, eigenvectors and what LAPACK takes; the factors, twice while blocks are put together
        return own + 8 * (blocks + 6 * columns * columns) + min(rank, columns) * (8 * rows + 16 * columns)
    return own + size * (24 * rows + 40 * columns) + 32 * size * size
