"""The best factors of a matrix at a rank: decompositions by LAPACK, through NumPy.

Where its smaller side is not too large, the matrix of products of its columns is made in float64, and that
one's eigenvectors are the directions: all of them, and exact. It takes one pass over a matrix in blocks, and
no copy of it. Of larger ones the range is found first, by products with a random matrix and power iterations
(Halko, Martinsson and Tropp, 0909.4061), and what lies in it is decomposed. The products are cut into blocks
of fixed sizes, each computed by one thread, so that the same bits come of any number of threads.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from taskvec._core import blake3_hex
from taskvec.plan.lora_memory import AT_ONCE, directions, is_whole

# Rounds of multiplication at most, and the gain below which there are no more: so the energy kept of a flat
# spectrum, the hardest case, comes within about a hundredth of the best, and a low rank takes two rounds.
_ROUNDS = 8
_GAIN = 1e-3
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of every matrix.

    Attributes
    ----------
    rank : int
        Of the factors; the largest one, where ``energy`` decides.
    energy : float or None
        The share of the squared norm that is to be kept, by the smallest rank that does.
    seed : int
        Of the random matrices.
    """

    rank: int
    energy: float | None
    seed: int


@dataclass(frozen=True, slots=True)
class LowRank:
    """Factors of a matrix M [outputs, inputs].

    Attributes
    ----------
    b : ndarray
        [outputs, rank].
    a : ndarray
        [rank, inputs]; b·a is near M.
    squares : ndarray
        Squares of the singular values that were found, largest first, in float64.
    total : float
        ‖M‖².
    is_exact : bool
        Whether the whole matrix was decomposed.
    """

    b: np.ndarray
    a: np.ndarray
    squares: np.ndarray
    total: float
    is_exact: bool

    @property
    def rank(self) -> int:
        """Columns of ``b``."""
        return self.a.shape[0]

    def kept(self, rank: int) -> float:
        """The share of ‖M‖² that the factors keep at a rank up to their own; 1 of a zero matrix."""
        return min(1.0, float(self.squares[:rank].sum()) / self.total) if self.total else 1.0


class _Found(NamedTuple):
    """Singular values, largest first, and the left and right vectors of as many of them as are asked for.

    The left ones are [outputs, rank] times the square roots of the values, the right ones [rank, inputs]
    times the same.
    """

    squares: np.ndarray
    factors: Callable[[int], tuple[np.ndarray, np.ndarray]]


class Decomposer:
    """Decomposes matrices with the threads of one pool; used in :func:`decomposer`."""

    def __init__(self, pool: ThreadPoolExecutor, threads: int) -> None:
        self._pool = pool
        self._at_once = min(threads, AT_ONCE)

    def __call__(self, matrix: np.ndarray, wanted: Wanted, name: str) -> LowRank:
        """The best factors of a matrix, and how good they are.

        Parameters
        ----------
        matrix : ndarray
            [outputs, inputs], float32 or float64, finite.
        wanted : Wanted
        name : str
            Seeds the random numbers, with the seed.
        """
        total = self._square(matrix)
        if not total:
            return _zero(matrix, min(wanted.rank, *matrix.shape) if wanted.energy is None else 1)
        seed = f"{wanted.seed}:{name}"
        *sizes, last = _sizes(wanted, min(matrix.shape))
        for size in (*sizes, last):
            found = self._decomposed(matrix, size, seed)
            rank = _rank(found.squares, total, wanted)
            if rank is None and size == last:
                rank = min(wanted.rank, *matrix.shape)
            if rank is not None:
                b, a = found.factors(rank)
                return LowRank(b, a, found.squares, total, len(found.squares) == min(matrix.shape))
        raise AssertionError("the last size has a rank")

    def _decomposed(self, matrix: np.ndarray, size: int, seed: str) -> _Found:
        """The largest `size` directions, or all of them."""
        if matrix.shape[0] < matrix.shape[1]:
            found = self._decomposed(matrix.T, size, seed)

            def turned(rank: int) -> tuple[np.ndarray, np.ndarray]:
                b, a = found.factors(rank)
                return a.T, b.T

            return _Found(found.squares, turned)
        if is_whole(matrix.shape[1], size):
            return self._whole(matrix)
        basis = self._range(matrix, size, seed)
        inner = self._transposed_product(matrix, basis).T.astype(np.float64)
        u, s, v = np.linalg.svd(inner, full_matrices=False)

        def factors(rank: int) -> tuple[np.ndarray, np.ndarray]:
            root = np.sqrt(s[:rank])
            b = self._product(basis, (u[:, :rank] * root).astype(basis.dtype))
            return b, root[:, None] * v[:rank]

        return _Found(s * s, factors)

    def _whole(self, matrix: np.ndarray) -> _Found:
        """All directions, by the eigenvectors V of MᵀM: M V Vᵀ is the nearest matrix of V's rank."""
        values, vectors = np.linalg.eigh(self._gram(matrix))
        squares, v = np.maximum(values[::-1], 0.0), vectors[:, ::-1]

        def factors(rank: int) -> tuple[np.ndarray, np.ndarray]:
            # what is below the rounding of the products has no direction
            is_found = squares[:rank] > squares[0] * len(squares) * np.finfo(np.float64).eps
            root = np.sqrt(np.sqrt(squares[:rank]))
            right = v[:, :rank] * np.where(is_found, 1 / np.where(is_found, root, 1.0), 0.0)
            parts = self._pool.map(
                lambda rows: (matrix[rows].astype(np.float64) @ right).astype(matrix.dtype),
                _blocks(matrix.shape[0]),
            )
            return np.concatenate(list(parts)), np.where(is_found, root, 0.0)[:, None] * v[:, :rank].T

        return _Found(squares, factors)

    def _gram(self, matrix: np.ndarray) -> np.ndarray:
        """MᵀM in float64, of a few blocks of rows at a time, summed in their order."""
        total = np.zeros((matrix.shape[1], matrix.shape[1]))
        waiting: deque[Future[np.ndarray]] = deque()

        def product(rows: slice) -> np.ndarray:
            block = matrix[rows].astype(np.float64)
            return block.T @ block

        for rows in _blocks(matrix.shape[0]):
            if len(waiting) == self._at_once:
                total += waiting.popleft().result()
            waiting.append(self._pool.submit(product, rows))
        for future in waiting:
            total += future.result()
        return total

    def _range(self, matrix: np.ndarray, size: int, seed: str) -> np.ndarray:
        """An orthonormal basis [rows, size] of what the matrix maps to, as far as it is large."""
        generator = np.random.Generator(np.random.Philox(key=int(blake3_hex(seed.encode())[:32], 16)))
        basis = generator.standard_normal((matrix.shape[1], size), dtype=np.float32).astype(matrix.dtype)
        basis = np.linalg.qr(self._product(matrix, basis))[0]
        kept = 0.0
        for _ in range(_ROUNDS):
            inner = self._transposed_product(matrix, basis)
            before, kept = kept, self._square(inner)
            if kept <= (1 + _GAIN) * before:
                break
            basis = np.linalg.qr(self._product(matrix, np.linalg.qr(inner)[0]))[0]
        return basis

    def _product(self, matrix: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The product of two matrices, block of rows by block of rows."""
        parts = self._pool.map(lambda rows: matrix[rows] @ other, _blocks(matrix.shape[0]))
        return np.concatenate(list(parts))

    def _transposed_product(self, matrix: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The product of a transposed matrix and another one."""
        parts = self._pool.map(lambda rows: matrix[:, rows].T @ other, _blocks(matrix.shape[1]))
        return np.concatenate(list(parts))

    def _square(self, matrix: np.ndarray) -> float:
        """The sum of the squares of all elements, in float64."""
        few = max(1, (1 << 20) // matrix.shape[1])  # they are widened
        parts = self._pool.map(
            lambda rows: float(np.square(matrix[rows], dtype=np.float64).sum()),
            _blocks(matrix.shape[0], few),
        )
        return sum(parts)


@contextlib.contextmanager
def decomposer(threads: int) -> Iterator[Decomposer]:
    """A decomposer with so many threads; NumPy's own multiply alone meanwhile."""
    import threadpoolctl

    with threadpoolctl.threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        yield Decomposer(pool, threads)


def _sizes(wanted: Wanted, small: int) -> Sequence[int]:
    """How many directions are looked for, one attempt after the other."""
    last = directions(wanted.rank)
    if wanted.energy is None or is_whole(small, 0):
        return [last]
    return [*(size for size in (32, 128, 512, 2048) if 2 * size < last), last]


def _rank(squares: np.ndarray, total: float, wanted: Wanted) -> int | None:
    """The rank to take of these singular values; ``None`` where more of them are needed."""
    if wanted.energy is None:
        return min(wanted.rank, len(squares))
    enough = int(np.searchsorted(np.cumsum(squares), wanted.energy * total)) + 1
    return enough if enough <= min(wanted.rank, len(squares)) else None


def _zero(matrix: np.ndarray, rank: int) -> LowRank:
    outputs, inputs = matrix.shape
    return LowRank(np.zeros((outputs, rank)), np.zeros((rank, inputs)), np.zeros(rank), 0.0, True)


def _blocks(count: int, each: int = _BLOCK) -> list[slice]:
    return [slice(at, at + each) for at in range(0, count, each)]
