"""Rows as combinations of others: orthogonal matching pursuit, and nearest neighbours, for many rows at once.

Nearly all of the arithmetic is the products of rows with all atoms (``atoms.py``); everything else is done
in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from taskvec.run.atoms import Atoms, norms_of

# What is left of a row, in parts of it, when it counts as found; and of an atom that is one of those before.
_FOUND = 1e-6
# An atom that keeps less than this of its length is made orthogonal a second time (Daniel, Gragg, Kaufman and
# Stewart 1976).
_TWICE = 0.7
# Rows whose spans are worked on at a time by one thread.
_GROUP = 8


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
    chosen = atoms.nearest(wanted, count)
    weights = np.full(chosen.shape, 1.0 / count)
    norms = norms_of(wanted)
    left = norms_of(wanted - combined(chosen, weights, atoms.rows))
    zero = norms == 0
    chosen[zero], weights[zero] = -1, 0.0
    told(k)
    return _padded(chosen, weights, np.where(zero, 0.0, left / np.where(zero, 1.0, norms)), k)


def pursue(wanted: np.ndarray, atoms: Atoms, k: int, told: Callable[[int], None] = _silent) -> Combination:
    """Sparse combinations of at most ``k`` atoms, by orthogonal matching pursuit (Pati, Rezaiifar and
    Krishnaprasad 1993).

    Each step takes the atom with the largest product with what is left of a row, and fits all taken ones
    again by least squares: they are made orthonormal one after the other in float64, twice where that is
    needed. Atoms are not brought to norm 1 for the choice.

    Parameters
    ----------
    wanted : ndarray
        [n, columns], finite.
    atoms : Atoms
    k : int
    told : callable
        Called with the number of steps that are done.
    """
    norms = norms_of(wanted)
    n, steps = len(wanted), min(k, len(atoms.rows), wanted.shape[1])
    found = Combination(np.full((n, k), -1, np.int32), np.zeros((n, k)), np.zeros(n))
    rows = np.flatnonzero(norms > 0)
    spans = _Spans(wanted[rows].astype(np.float64), steps)
    for step in range(steps):
        if not len(rows):
            break
        is_new = spans.add(step, atoms.best(spans.left, spans.chosen[:, :step]), atoms)
        goes_on = is_new & (norms_of(spans.left) > _FOUND * norms[rows])
        told(step + 1)
        ends = ~goes_on if step + 1 < steps else np.ones(len(rows), bool)
        if ends.any():
            done = rows[ends]
            found.atoms[done, :steps], found.weights[done, :steps] = spans.chosen[ends], spans.weights(ends)
            found.residual[done] = norms_of(spans.left[ends]) / norms[done]
            rows = rows[~ends]
            spans.keep(~ends)
    return found


class _Spans:
    """Rows, and what spans the atoms that were chosen for each.

    Attributes
    ----------
    left : ndarray
        float64 [n, columns]: what is left of the rows.
    chosen : ndarray
        int32 [n, steps]: their atoms, -1 for none.
    """

    def __init__(self, rows: np.ndarray, steps: int) -> None:
        n, columns = rows.shape
        self.left = rows
        self.chosen = np.full((n, steps), -1, np.int32)
        self._basis = np.empty((n, steps, columns))
        self._factor, self._parts = np.zeros((n, steps, steps)), np.zeros((n, steps))

    def add(self, step: int, best: np.ndarray, atoms: Atoms) -> np.ndarray:
        """Take one atom more for each row, and its part off what is left.

        Returns
        -------
        ndarray
            bool [n]: whether the atom is another one than those before together.
        """
        groups = [slice(at, at + _GROUP) for at in range(0, len(best), _GROUP)]
        is_new = np.concatenate(
            list(atoms.crew.map(lambda group: self._add(step, group, best[group], atoms), groups))
        )
        self.chosen[is_new, step] = best[is_new]
        return is_new

    def _add(self, step: int, group: slice, best: np.ndarray, atoms: Atoms) -> np.ndarray:
        atom = atoms.rows[best].astype(np.float64)
        length = norms_of(atom)
        spanned, along = self._basis[group, :step], self._factor[group, :step, step]
        if step:
            more = spanned @ atom[:, :, None]
            atom -= (more.transpose(0, 2, 1) @ spanned)[:, 0]
            along += more[:, :, 0]
            for row in np.flatnonzero(norms_of(atom) < _TWICE * length):
                again = spanned[row] @ atom[row]
                atom[row] -= again @ spanned[row]
                along[row] += again
        rest = norms_of(atom)
        is_new = (rest > _FOUND * length) & (best >= 0)
        atom /= np.where(is_new, rest, np.inf)[:, None]  # zeros where it is not
        self._basis[group, step] = atom
        self._factor[group, step, step] = rest
        part = np.einsum("nc,nc->n", atom, self.left[group])
        self._parts[group, step] = part
        self.left[group] -= part[:, None] * atom
        return is_new

    def weights(self, which: np.ndarray) -> np.ndarray:
        """The weights of the chosen atoms of some rows, from those of the basis: substituted backwards."""
        factor, chosen = self._factor[which], self.chosen[which]
        weights = np.where(chosen >= 0, self._parts[which], 0.0)
        for step in reversed(range(weights.shape[1])):
            known = np.flatnonzero(chosen[:, step] >= 0)
            after = np.einsum("ns,ns->n", factor[known, step, step + 1 :], weights[known, step + 1 :])
            weights[known, step] = (weights[known, step] - after) / factor[known, step, step]
        return weights

    def keep(self, which: np.ndarray) -> None:
        """Go on with some rows only."""
        self.left, self.chosen = self.left[which], self.chosen[which]
        self._basis, self._factor, self._parts = self._basis[which], self._factor[which], self._parts[which]


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


def _padded(chosen: np.ndarray, weights: np.ndarray, residual: np.ndarray, k: int) -> Combination:
    more = ((0, 0), (0, k - chosen.shape[1]))
    return Combination(np.pad(chosen, more, constant_values=-1), np.pad(weights, more), residual)
