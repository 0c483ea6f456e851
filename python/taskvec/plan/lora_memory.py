"""How matrices are decomposed, by their sizes, and the memory that this takes."""

from __future__ import annotations

from collections.abc import Sequence

# Up to here the whole decomposition takes less than finding a range would.
EXACT = 512
_BEYOND = 48


def directions(rank: int) -> int:
    """Directions that are looked for where so many are wanted: a few more, to find these well."""
    return rank + max(_BEYOND, rank // 8)


def is_whole(small: int, size: int) -> bool:
    """Whether a matrix of this smaller side is decomposed as it is, where `size` directions are wanted."""
    return small <= EXACT or 2 * size > small


def working_bytes(shape: Sequence[int], rank: int) -> int:
    """Bytes that decomposing a matrix of float32 takes at most, its own among them."""
    rows, columns = max(shape), min(shape)
    size = min(columns, directions(rank))
    own = 4 * rows * columns
    if is_whole(columns, size):
        return own + 8 * (3 * rows * columns + 6 * columns * columns)
    return own + size * (24 * rows + 40 * columns) + 32 * size * size
