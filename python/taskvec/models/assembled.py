"""Tensors assembled of pieces of stored ones, where a model stores its weights in another layout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Piece(NamedTuple):
    """A box of elements of a stored tensor, and where it goes; all in elements.

    Attributes
    ----------
    name : str
        The stored tensor; empty where the elements are zero.
    sizes : tuple of int
        Lengths of its dimensions, at most four.
    to : int
        The first element in the assembled tensor.
    to_strides : tuple of int
        Elements between neighbours there, for each dimension.
    start : int
        The first element in the stored tensor.
    strides : tuple of int
        Elements between neighbours there.
    """

    name: str
    sizes: tuple[int, ...]
    to: int
    to_strides: tuple[int, ...]
    start: int
    strides: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.sizes)


class Assembled(NamedTuple):
    """A tensor of another layout: its shape, and the pieces that together have each of its elements once.

    ``shapes`` are those of the stored tensors, where their files do not say them: in a saved vector.
    """

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    shapes: Mapping[str, tuple[int, ...]] = {}
