"""The reader of a model that is fitted to another layout."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskvec.models.assembled import Assembled, Piece
    from taskvec.models.model import TensorInfo, Weights


class AssembledReader:
    """A reader of a model's weights that also knows its assembled tensors.

    Parameters
    ----------
    weights : Weights
        The reader of the stored tensors.
    stored : mapping of str to TensorInfo
        The stored tensors.
    assembled : mapping of str to Assembled
        The others.
    """

    def __init__(
        self, weights: Weights, stored: Mapping[str, TensorInfo], assembled: Mapping[str, Assembled]
    ) -> None:
        self.under, self.stored, self.assembled = weights, stored, assembled

    def __getattr__(self, name: str) -> Any:
        return getattr(self.under, name)

    def read(self, name: str) -> Any:
        """The bytes of a tensor, in row-major order, little-endian."""
        made = self.assembled.get(name)
        if made is None:
            return self.under.read(name)
        (only,) = {piece.name for piece in made.pieces if piece.name}
        data = memoryview(self.under.read(only))
        size = len(data) // math.prod(self.stored[only].shape)
        out = bytearray(math.prod(made.shape) * size)
        for to, start, count in _runs(made.pieces, 0, math.prod(made.shape)):
            if start is not None:
                out[to * size : (to + count) * size] = data[start[1] * size : (start[1] + count) * size]
        return bytes(out)

    def sample(self, name: str, start: int, count: int) -> bytes:
        """Elements ``start`` to ``start + count`` of a tensor as little-endian float32."""
        made = self.assembled.get(name)
        if made is None:
            return self.under.sample(name, start, count)
        out = bytearray(4 * count)
        for to, stored, length in _runs(made.pieces, start, start + count):
            if stored is not None:
                at = to - start
                out[4 * at : 4 * (at + length)] = self.under.sample(stored[0], stored[1], length)
        return bytes(out)


def _runs(pieces: Sequence[Piece], first: int, end: int) -> Iterator[tuple[int, tuple[str, int] | None, int]]:
    """Runs of neighbours within a range: where they go, stored name and first element there, and how many."""
    for piece in pieces:
        dims = [
            (n, to, at)
            for n, to, at in zip(piece.sizes, piece.to_strides, piece.strides, strict=True)
            if n > 1
        ]
        dims.sort(key=lambda dim: -dim[1])
        while len(dims) > 1 and all(dims[-2][k] == dims[-1][k] * dims[-1][0] for k in (1, 2)):
            (n, to, at), (outer, _, _) = dims.pop(), dims[-1]
            dims[-1] = (n * outer, to, at)
        is_run = bool(dims) and dims[-1][1:] == (1, 1)
        length = dims.pop()[0] if is_run else 1
        ranges = []
        for depth, (n, to, _) in enumerate(dims):
            inside = sum((m - 1) * step for m, step, _ in dims[depth + 1 :]) + length
            # the outermost dimension alone can be cut without looking at the others
            low = max(0, -(-(first - piece.to - inside + 1) // to)) if depth == 0 else 0
            high = min(n, (end - 1 - piece.to) // to + 1) if depth == 0 else n
            ranges.append(range(low, max(low, high)))
        for index in itertools.product(*ranges):
            to = piece.to + sum(i * dim[1] for i, dim in zip(index, dims, strict=True))
            at = piece.start + sum(i * dim[2] for i, dim in zip(index, dims, strict=True))
            cut = max(0, first - to)
            count = min(length, end - to) - cut
            if count > 0:
                yield to + cut, (piece.name, at + cut) if piece.name else None, count
