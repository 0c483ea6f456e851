"""Rows as combinations of others: orthogonal matching pursuit, and nearest neighbours, for many rows at once.

Products with all atoms are by BLAS, in float32 where these are; those that are within its error of the best
are compared in float64, and of equal ones the first is taken. So what is chosen depends neither on the
number of threads nor on the library, as far as float64 tells atoms apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Errors of a product in float32, in parts of the norms of both vectors: several times what is met.
_SLACK = 4e-6
# What is left of a row, in parts of it, when it counts as found; and of an atom that is one of those before.
_FOUND = 1e-6
# Elements of pairs that are compared in float64 at a time.
_PAIRS = 1 << 22


class Combination(NamedTuple):
    """Combinations of atoms, one for each of ``n`` rows.

    Attributes
    ----------
    atoms : ndarray
        int32 [n, k]: their numbers, -1 where there are fewer.
    weights : ndarray
        float64 [n, k].
    residual : ndarray
        float64 [n]: the norm of what is left, in parts of the row's; 0 of a row of zeros, which has no atoms.
    """

    atoms: np.ndarray
    weights: np.ndarray
    residual: np.ndarray


class Atoms:
    """The rows that others are made of.

    Parameters
    ----------
    rows : ndarray
        [count, columns], float32 or float64. Those that are not finite are never chosen.
    """

    def __init__(self, rows: np.ndarray) -> None:
        finite = np.isfinite(rows).all(axis=1, keepdims=True)
        self.rows = rows if finite.all() else np.where(finite, rows, 0)
        self.norms = _norms(self.rows)
        self.longest = float(self.norms.max(initial=0.0))

    def best(self, wanted: np.ndarray, taken: np.ndarray, *, by_angle: bool = False) -> np.ndarray:
        """The atom with the largest product with each row, in absolute value; by angle the nearest one.

        Parameters
        ----------
        wanted : ndarray
            float64 [n, columns].
        taken : ndarray
            int32 [n, any]: atoms that are not to be chosen, -1 for none.
        by_angle : bool
            Take the products with atoms of norm 1, and not their absolute values.
        """
        products = wanted.astype(self.rows.dtype) @ self.rows.T
        if by_angle:
            products /= np.where(self.norms > 0, self.norms, np.inf).astype(products.dtype)
            products[:, self.norms == 0] = -np.inf  # no direction, so that none is nearer to it
        else:
            np.abs(products, out=products)
        rows, places = np.nonzero(taken >= 0)
        products[rows, taken[rows, places]] = -np.inf
        slack = _SLACK * _norms(wanted) * (1.0 if by_angle else self.longest)
        near = products.max(axis=1) - slack
        rows, atoms = np.nonzero(products >= near[:, None].astype(products.dtype))
        exact = self._exact(wanted, rows, atoms)
        if by_angle:
            lengths = self.norms[atoms]
            exact = np.where(lengths > 0, exact / np.where(lengths > 0, lengths, 1.0), -np.inf)
        else:
            exact = abs(exact)
        order = np.lexsort((atoms, -exact, rows))
        _, first = np.unique(rows[order], return_index=True)
        return atoms[order][first].astype(np.int32)

    def _exact(self, wanted: np.ndarray, rows: np.ndarray, atoms: np.ndarray) -> np.ndarray:
        """Products of pairs in float64."""
        step = max(1, _PAIRS // max(1, wanted.shape[1]))
        parts = [
            np.einsum("ij,ij->i", wanted[rows[at : at + step]], self.rows[atoms[at : at + step]].astype("f8"))
            for at in range(0, len(rows), step)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)


def _silent(_: int) -> None:
    pass


def nearest(wanted: np.ndarray, atoms: Atoms, k: int, told: Callable[[int], None] = _silent) -> Combination:
    """The mean of the ``k`` atoms with the smallest angles to each row; the residual is that of the mean.

    Parameters
    ----------
    wanted : ndarray
        [n, columns], finite.
    atoms : Atoms
    k : int
    told : callable
        Called with the number of steps that are done.
    """
    wanted = wanted.astype(np.float64)
    count = min(k, len(atoms.rows))
    chosen = np.full((len(wanted), count), -1, np.int32)
    for step in range(count):
        chosen[:, step] = atoms.best(wanted, chosen, by_angle=True)
        told(step + 1)
    weights = np.full(chosen.shape, 1.0 / count)
    norms = _norms(wanted)
    left = _norms(wanted - combined(chosen, weights, atoms.rows))
    zero = norms == 0
    chosen[zero], weights[zero] = -1, 0.0
    return _padded(chosen, weights, np.where(zero, 0.0, left / np.where(zero, 1.0, norms)), k)


def pursue(wanted: np.ndarray, atoms: Atoms, k: int, told: Callable[[int], None] = _silent) -> Combination:
    """Sparse combinations of at most ``k`` atoms, by orthogonal matching pursuit (Pati, Rezaiifar and
    Krishnaprasad 1993).

    Each step takes the atom with the largest product with what is left of a row, and fits all taken ones
    again by least squares: they are made orthonormal one after the other, twice, in float64. Atoms are not
    brought to norm 1 for the choice.

    Parameters
    ----------
    wanted : ndarray
        [n, columns], finite.
    atoms : Atoms
    k : int
    told : callable
        Called with the number of steps that are done.
    """
    left = wanted.astype(np.float64)
    n, columns = left.shape
    steps = min(k, len(atoms.rows), columns)
    norms = _norms(left)
    chosen = np.full((n, steps), -1, np.int32)
    basis, factor = np.zeros((n, steps, columns)), np.zeros((n, steps, steps))
    parts = np.zeros((n, steps))
    going = np.flatnonzero(norms > 0)
    for step in range(steps):
        if not len(going):
            break
        best = atoms.best(left[going], chosen[going])
        atom = atoms.rows[best].astype(np.float64)
        length = _norms(atom)
        spanned = basis[going, :step]
        along = np.zeros((len(going), step))
        for _ in range(2):
            more = np.einsum("nsc,nc->ns", spanned, atom)
            atom -= np.einsum("ns,nsc->nc", more, spanned)
            along += more
        rest = _norms(atom)
        is_new = rest > _FOUND * length
        going, atom, rest = going[is_new], atom[is_new], rest[is_new]
        chosen[going, step] = best[is_new]
        basis[going, step] = atom / rest[:, None]
        factor[going, step, step], factor[going, :step, step] = rest, along[is_new]
        parts[going, step] = np.einsum("nc,nc->n", basis[going, step], left[going])
        left[going] -= parts[going, step, None] * basis[going, step]
        going = going[_norms(left[going]) > _FOUND * norms[going]]
        told(step + 1)
    weights = _solved(factor, parts, chosen)
    return _padded(chosen, weights, _norms(left) / np.where(norms > 0, norms, 1.0), k)


def combined(atoms: np.ndarray, weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Combinations of rows, in float64: [n, columns].

    Parameters
    ----------
    atoms, weights : ndarray
        As of :class:`Combination`.
    rows : ndarray
        [count, columns], which the atoms are numbers of.
    """
    total = np.zeros((len(atoms), *rows.shape[1:]))
    for step in range(atoms.shape[1]):
        taken = np.flatnonzero(atoms[:, step] >= 0)
        total[taken] += (rows[atoms[taken, step]].astype(np.float64).T * weights[taken, step]).T
    return total


def _solved(factor: np.ndarray, parts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The weights of the atoms, by those of the basis: substituted backwards."""
    weights = np.zeros_like(parts)
    for step in reversed(range(parts.shape[1])):
        known = np.flatnonzero(chosen[:, step] >= 0)
        after = np.einsum("ns,ns->n", factor[known, step, step + 1 :], weights[known, step + 1 :])
        weights[known, step] = (parts[known, step] - after) / factor[known, step, step]
    return weights


def _padded(chosen: np.ndarray, weights: np.ndarray, residual: np.ndarray, k: int) -> Combination:
    more = ((0, 0), (0, k - chosen.shape[1]))
    return Combination(np.pad(chosen, more, constant_values=-1), np.pad(weights, more), residual)


def _norms(rows: np.ndarray) -> np.ndarray:
    """Norms of rows, in float64."""
    step = max(1, _PAIRS // max(1, rows.shape[1]))
    blocks = (rows[at : at + step].astype(np.float64) for at in range(0, len(rows), step))
    parts = [np.sqrt(np.einsum("ij,ij->i", block, block)) for block in blocks]
    return np.concatenate(parts) if parts else np.zeros(0)
