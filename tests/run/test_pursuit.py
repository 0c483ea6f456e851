"""Orthogonal matching pursuit and nearest rows against float64 NumPy, over more atoms than a tile has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from taskvec.run import atoms as searched
from taskvec.run.atoms import Atoms, crew
from taskvec.run.pursuit import nearest, pursue


def pursued(row: np.ndarray, atoms: np.ndarray, k: int) -> tuple[list[int], np.ndarray]:
    """The atom with the largest product with what is left, then least squares over all taken, by QR."""
    chosen, weights, left = [], np.zeros(0), row
    for _ in range(k):
        products = np.abs(atoms @ left)
        products[chosen] = -1
        chosen.append(int(products.argmax()))
        weights = np.linalg.lstsq(atoms[chosen].T, row, rcond=None)[0]
        left = row - weights @ atoms[chosen]
    return chosen, weights


def alike(rng: np.random.Generator, count: int, columns: int) -> np.ndarray:
    """Rows with a mean, of different lengths, a falling spectrum, and neighbours that differ by little."""
    rows = rng.standard_normal((count, columns)) * np.arange(1, columns + 1) ** -0.5 + 0.3
    rows *= rng.uniform(0.2, 3, (count, 1))
    rows[1::7] = rows[: len(rows[1::7])] * (1 + 1e-3 * rng.standard_normal((len(rows[1::7]), columns)))
    return rows


def opposite(rng: np.random.Generator, count: int, columns: int) -> np.ndarray:
    """Rows that come twice, with both signs and in other tiles: the first of them is taken."""
    half = rng.standard_normal((count // 2, columns))
    return np.concatenate([half, -half])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("made", [alike, opposite])
@pytest.mark.parametrize("threads", [1, 3])
def test_chosen_atoms_and_weights(
    made: Callable[[np.random.Generator, int, int], np.ndarray], dtype: type, threads: int
) -> None:
    rng = np.random.default_rng(5)
    columns, k = 48, 20
    rows = made(rng, 2 * searched._TILE + 300, columns).astype(dtype)
    wanted = rng.standard_normal((37, columns)).astype(dtype)
    wanted[3], wanted[5], wanted[7] = 0, rows[100], 2 * rows[4] - rows[1500]
    steps: list[int] = []
    with crew(threads) as workers:
        found = pursue(wanted, Atoms(rows, workers), k, steps.append)
    assert steps == list(range(1, k + 1))
    exact = rows.astype(np.float64)
    assert (found.atoms[3] == -1).all()
    assert found.residual[3] == 0
    assert found.residual[5] < 1e-6
    assert made is alike or found.atoms[5, 0] == 100
    for number, row in enumerate(wanted.astype(np.float64)):
        if number in (3, 5, 7):
            continue
        chosen, weights = pursued(row, exact, k)
        assert found.atoms[number].tolist() == chosen
        np.testing.assert_allclose(found.weights[number], weights, rtol=0, atol=1e-9 * abs(weights).max())
        left = np.linalg.norm(row - weights @ exact[chosen]) / np.linalg.norm(row)
        assert found.residual[number] == pytest.approx(left, rel=1e-9)


def test_few_atoms_that_span_little() -> None:
    """What is left is orthogonal to all atoms: none is taken twice, weights are those of least squares."""
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal((3000, 4)) @ rng.standard_normal((4, 32))).astype(np.float32)
    wanted = rng.standard_normal((20, 32)).astype(np.float32)
    found = pursue(wanted, Atoms(rows), 8)
    exact = rows.astype(np.float64)
    for number, row in enumerate(wanted.astype(np.float64)):
        taken = found.atoms[number][found.atoms[number] >= 0]
        assert len(taken) == len(set(taken.tolist())) >= 4
        best = np.linalg.norm(row - exact.T @ np.linalg.lstsq(exact.T, row, rcond=1e-6)[0])
        left = row - found.weights[number] @ exact[found.atoms[number]]
        assert np.linalg.norm(left) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("k", [1, 3, 1500])
def test_nearest_by_angle(k: int) -> None:
    rng = np.random.default_rng(2)
    rows = alike(rng, 2 * searched._TILE + 77, 24).astype(np.float32)
    rows[[0, 1100]] = 0
    rows[2000] = rows[17] * 2  # the same angle: the first one is nearer
    wanted = rng.standard_normal((15, 24)).astype(np.float32)
    wanted[2] = rows[17]
    with crew(2) as workers:
        found = nearest(wanted, Atoms(rows, workers), k)
    exact = rows.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1)
    cosines = np.where(norms > 0, wanted @ exact.T / np.where(norms > 0, norms, 1), -np.inf)
    cosines[:, norms == 0] = -np.inf
    order = np.argsort(-np.round(cosines, 12), axis=1, kind="stable")[:, :k]
    assert (
        found.atoms == order
    ).mean() > 0.999  # but for angles that float64 tells apart, rounded ones do not
    assert (found.atoms[:, 0] == order[:, 0]).all()
    assert found.atoms[2, 0] == 17
    mean = exact[order].mean(axis=1)
    left = np.linalg.norm(wanted - mean, axis=1) / np.linalg.norm(wanted, axis=1)
    np.testing.assert_allclose(found.residual, left, rtol=1e-6)
