"""The best factors of a matrix at a rank: singular value decompositions by LAPACK, through NumPy.

A small matrix is decomposed as it is. Of a large one the range is found first, by products with a random
matrix and power iterations (Halko, Martinsson and Tropp, 0909.4061), and what lies in it is decomposed. The
products are cut into blocks of fixed sizes, each computed by one thread, so that the same bits come of any
number of threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from taskvec._core import blake3_hex
from taskvec.plan.lora_memory import EXACT, directions, is_whole

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


class Decomposer:
    """Decomposes matrices with the threads of one pool; used in :func:`decomposer`."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

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
        for size in sizes:
            u, s, v = self._decomposed(matrix, size, seed)
            rank = _rank(s * s, total, wanted)
            if rank is not None:
                return _factors(u, s, v, rank, total)
        u, s, v = self._decomposed(matrix, last, seed)
        rank = _rank(s * s, total, wanted)
        return _factors(u, s, v, rank or min(wanted.rank, *matrix.shape), total)

    def _decomposed(
        self, matrix: np.ndarray, size: int, seed: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """U, singular values and Vᵀ of the largest `size` directions, or of all of them."""
        small = min(matrix.shape)
        if is_whole(small, size):
            return np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
        if matrix.shape[0] < matrix.shape[1]:
            u, s, v = self._decomposed(matrix.T, size, seed)
            return v.T, s, u.T
        basis = self._range(matrix, size, seed)
        inner = self._transposed_product(matrix, basis).T.astype(np.float64)
        u, s, v = np.linalg.svd(inner, full_matrices=False)
        return self._product(basis, u.astype(basis.dtype)).astype(np.float64), s, v

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
        yield Decomposer(pool)


def _sizes(wanted: Wanted, small: int) -> Sequence[int]:
    """How many directions are looked for, one attempt after the other."""
    last = directions(wanted.rank)
    if wanted.energy is None or small <= EXACT:
        return [last]
    return [*(size for size in (32, 128, 512, 2048) if 2 * size < last), last]


def _rank(squares: np.ndarray, total: float, wanted: Wanted) -> int | None:
    """The rank to take of these singular values; ``None`` where more of them are needed."""
    if wanted.energy is None:
        return min(wanted.rank, len(squares))
    enough = int(np.searchsorted(np.cumsum(squares), wanted.energy * total)) + 1
    return enough if enough <= min(wanted.rank, len(squares)) else None


def _factors(u: np.ndarray, s: np.ndarray, v: np.ndarray, rank: int, total: float) -> LowRank:
    """The factors of a rank, each with the square roots of the singular values."""
    root = np.sqrt(s[:rank])
    is_exact = len(s) == min(u.shape[0], v.shape[1])
    return LowRank(u[:, :rank] * root, root[:, None] * v[:rank], s * s, total, is_exact)


def _zero(matrix: np.ndarray, rank: int) -> LowRank:
    outputs, inputs = matrix.shape
    return LowRank(np.zeros((outputs, rank)), np.zeros((rank, inputs)), np.zeros(rank), 0.0, True)


def _blocks(count: int, each: int = _BLOCK) -> list[slice]:
    return [slice(at, at + each) for at in range(0, count, each)]
