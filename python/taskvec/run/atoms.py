"""Rows that others are made of, and which of them are nearest to given ones.

Products with all of them are by BLAS, in float32 where the rows are, tile by tile of atoms: of each strip of
a tile the largest product of each row is kept, and nothing else leaves the cache. Strips that come within
float32's error of a row's best are multiplied again, their atoms compared in float64, and of equal ones the
first is taken. So what is chosen depends neither on the number of threads nor on the library, as far as
float64 tells atoms apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

# Errors of a product in float32, in parts of the norms of both vectors: several times what is met.
_SLACK = 4e-6
# Atoms that are multiplied at a time: with 512 rows these are 2 MiB of products, in a core's cache, and more
# are hardly faster. And those of which the largest is kept: few are multiplied again.
_TILE = 1024
_STRIP = 256
# Elements of pairs that are compared in float64 at a time.
_PAIRS = 1 << 22


class Crew:
    """Threads that each multiply alone; used in :func:`crew`."""

    def __init__(self, pool: ThreadPoolExecutor | None = None, threads: int = 1) -> None:
        self._pool = pool
        self.threads = threads

    def map(self, function: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
        """The results of all parts, in their order."""
        return map(function, parts) if self._pool is None else self._pool.map(function, parts)


@contextlib.contextmanager
def crew(threads: int) -> Iterator[Crew]:
    """So many threads; NumPy's own multiply alone meanwhile, so that sums have the same order always."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        if threads == 1:
            yield Crew()
            return
        with ThreadPoolExecutor(threads) as pool:
            yield Crew(pool, threads)


class Atoms:
    """The rows that others are made of.

    Parameters
    ----------
    rows : ndarray
        [count, columns], float32 or float64. Those that are not finite are never chosen.
    crew : Crew, optional
        Who multiplies.
    """

    def __init__(self, rows: np.ndarray, crew: Crew | None = None) -> None:
        finite = np.isfinite(rows).all(axis=1, keepdims=True)
        self.rows = rows if finite.all() else np.where(finite, rows, 0)
        self.norms = norms_of(self.rows)
        self.longest = float(self.norms.max(initial=0.0))
        self.crew = crew or Crew()
        self._tiles = _slices(0, len(rows), _TILE)
        self._strips = _slices(0, len(rows), _STRIP)

    def best(self, wanted: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """The atom with the largest product with each row, in absolute value.

        Parameters
        ----------
        wanted : ndarray
            float64 [n, columns].
        taken : ndarray
            int32 [n, any]: atoms that are not to be chosen, -1 for none. The rows are orthogonal to them.

        Returns
        -------
        ndarray
            int32 [n]; -1 where all atoms are taken.
        """
        narrow = wanted.astype(self.rows.dtype)

        def largest(tile: slice) -> np.ndarray:
            products = narrow @ self.rows[tile].T
            strips = [products[:, strip] for strip in _slices(0, products.shape[1], _STRIP)]
            return np.stack([np.maximum(each.max(axis=1), -each.min(axis=1)) for each in strips])

        tops = np.concatenate(list(self.crew.map(largest, self._tiles)))
        near = tops.max(axis=0) - (_SLACK * self.longest * norms_of(wanted)).astype(tops.dtype)
        # Of rows that are as good as orthogonal to all atoms every one is compared: a few rows at a time.
        is_lost = near <= 0
        few = max(1, _PAIRS // 4 // max(1, len(self.rows)))
        if few < is_lost.sum() and few < len(wanted):
            parts = [
                self.best(wanted[at : at + few], taken[at : at + few]) for at in range(0, len(wanted), few)
            ]
            return np.concatenate(parts)

        def those(number: int) -> tuple[np.ndarray, np.ndarray]:
            strip = self._strips[number]
            rows = np.flatnonzero(tops[number] >= near)
            products = np.abs(narrow[rows] @ self.rows[strip].T)
            own, at = np.nonzero((taken[rows] >= strip.start) & (taken[rows] < strip.stop))
            products[own, taken[rows[own], at] - strip.start] = -np.inf
            found, atoms = np.nonzero(products >= near[rows, None])
            return rows[found], atoms + strip.start

        rows, atoms = self._all(those, len(self._strips))
        chosen = np.full(len(wanted), -1, np.int32)
        chosen[rows] = atoms  # right where there is one alone
        several = np.bincount(rows, minlength=len(wanted))[rows] > 1
        rows, atoms = rows[several], atoms[several]
        self._first(chosen, rows, atoms, np.abs(self._exact(wanted, rows, atoms)), 1)
        return chosen

    def nearest(self, wanted: np.ndarray, count: int) -> np.ndarray:
        """The atoms with the smallest angles to each row, the nearest first.

        Parameters
        ----------
        wanted : ndarray
            float64 [n, columns].
        count : int
            Of them, up to that of all.

        Returns
        -------
        ndarray
            int32 [n, count].
        """
        narrow = wanted.astype(self.rows.dtype)
        with np.errstate(divide="ignore"):
            shares = np.where(self.norms > 0, 1 / self.norms, 0).astype(narrow.dtype)

        def products(rows: np.ndarray, tile: slice) -> np.ndarray:
            found = rows @ self.rows[tile].T
            found *= shares[tile]
            found[:, self.norms[tile] == 0] = -np.inf  # no direction, so that none is nearer to it
            return found

        def largest(tile: slice) -> np.ndarray:
            found = products(narrow, tile)
            few = min(count, found.shape[1])
            return (
                found.max(axis=1, keepdims=True) if few == 1 else np.partition(found, -few, axis=1)[:, -few:]
            )

        parts = list(self.crew.map(largest, self._tiles))
        tops = np.stack([part.max(axis=1) for part in parts])
        last = np.partition(np.concatenate(parts, axis=1), -count, axis=1)[:, -count]
        near = last - (_SLACK * norms_of(wanted)).astype(last.dtype)

        def those(number: int) -> tuple[np.ndarray, np.ndarray]:
            rows = np.flatnonzero(tops[number] >= near)
            found, atoms = np.nonzero(products(narrow[rows], self._tiles[number]) >= near[rows, None])
            return rows[found], atoms + self._tiles[number].start

        rows, atoms = self._all(those, len(self._tiles))
        lengths = self.norms[atoms]
        with np.errstate(divide="ignore", invalid="ignore"):
            exact = np.where(lengths > 0, self._exact(wanted, rows, atoms) / lengths, -np.inf)
        chosen = np.full((len(wanted), count), -1, np.int32)
        self._first(chosen, rows, atoms, exact, count)
        return chosen

    def _all(
        self, those: Callable[[int], tuple[np.ndarray, np.ndarray]], count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The pairs of row and atom of so many tiles or strips."""
        parts = list(self.crew.map(those, range(count)))
        rows, atoms = (np.concatenate(each) for each in zip(*parts, strict=True))
        return rows, atoms

    @staticmethod
    def _first(
        chosen: np.ndarray, rows: np.ndarray, atoms: np.ndarray, exact: np.ndarray, count: int
    ) -> None:
        """Put the atoms with the largest products into the rows of what is chosen."""
        order = np.lexsort((atoms, -exact, rows))
        rows, atoms = rows[order], atoms[order]
        own, first = np.unique(rows, return_index=True)
        for number in range(count):
            chosen.reshape(len(chosen), -1)[own, number] = atoms[first + number]

    def _exact(self, wanted: np.ndarray, rows: np.ndarray, atoms: np.ndarray) -> np.ndarray:
        """Products of pairs in float64."""
        step = max(1, _PAIRS // max(1, wanted.shape[1]))
        parts = [
            np.einsum("ij,ij->i", wanted[rows[at : at + step]], self.rows[atoms[at : at + step]].astype("f8"))
            for at in range(0, len(rows), step)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)


def _slices(start: int, stop: int, step: int) -> list[slice]:
    return [slice(at, min(at + step, stop)) for at in range(start, stop, step)]


def norms_of(rows: np.ndarray) -> np.ndarray:
    """Norms of rows, in float64."""
    step = max(1, _PAIRS // max(1, rows.shape[1]))
    blocks = (rows[at : at + step].astype(np.float64) for at in range(0, len(rows), step))
    parts = [np.sqrt(np.einsum("ij,ij->i", block, block)) for block in blocks]
    return np.concatenate(parts) if parts else np.zeros(0)
