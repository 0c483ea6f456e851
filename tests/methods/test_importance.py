"""Fisher averaging and SAR with maps, against float64 NumPy, element by element."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from methods.test_operations import run, term, top, write
from taskvec import errors

BF16 = ml_dtypes.bfloat16


def sparse(n: int, seed: int, dtype: Any, share: float = 0.2) -> list[np.ndarray]:
    """A base and two models that differ from it in few places."""
    rng = np.random.default_rng(seed)
    base = (rng.standard_normal(n) * 0.05).astype(dtype)
    made = [base]
    for _ in range(2):
        step = rng.standard_normal(n) * 0.01 * (rng.random(n) < share)
        made.append((base.astype(np.float64) + step).astype(dtype))
    return made


def maps(n: int, seed: int, dtype: Any, zeros: float = 0.3) -> list[np.ndarray]:
    """Two maps of squared gradients over ten orders of magnitude, with zeros and equal values."""
    rng = np.random.default_rng(seed)
    made = [10.0 ** rng.uniform(-14, -4, n) * (rng.random(n) >= zeros) for _ in range(2)]
    made[1][::7] = made[0][::7]
    return [each.astype(dtype) for each in made]


def fisher(*, weights: tuple[float, float] = (0.7, 0.4)) -> dict[str, Any]:
    terms = [term(k + 1, weights[k], None, importance=k + 3) for k in range(2)]
    return {"kind": "fisher", "terms": terms}


@pytest.mark.parametrize(("dtype", "of_map"), [(BF16, BF16), (BF16, np.float32), (np.float32, np.float64)])
@pytest.mark.parametrize("n", [1, 777, 600_001])
def test_fisher_is_numpys_mean_and_the_plain_one_where_nothing_matters(
    n: int, dtype: Any, of_map: Any, tmp_path: Path
) -> None:
    made = write(tmp_path, *sparse(n, 1, dtype), *maps(n, 2, of_map))
    got = run(tmp_path, 4, fisher())["t"]
    _, x, y, f, g = (each.astype(np.float64) for each in made)
    total = 0.7 * f + 0.4 * g
    weighed = (0.7 * f * x + 0.4 * g * y) / np.where(total == 0, 1, total)
    want = np.where(total == 0, (0.7 * x + 0.4 * y) / 1.1, weighed)
    rounded = want.astype(dtype).astype(np.float64)
    step = np.spacing(np.abs(rounded).astype(np.float32)) * (2**16 if dtype is BF16 else 1)
    assert (abs(got.astype(np.float64) - rounded) <= step * (got != rounded)).all()
    assert (got.astype(np.float64) == rounded).mean() > 0.999


@pytest.mark.parametrize("dtype", [BF16, np.float32])
@pytest.mark.parametrize("rescale", ["none", "l1", "expectation"])
@pytest.mark.parametrize(("n", "density"), [(777, 0.0), (20_000, 0.3), (600_001, 0.6), (777, 1.0)])
def test_sar_arbitrates_by_importance_then_trims_then_rescales(
    n: int, density: float, rescale: str, dtype: Any, tmp_path: Path
) -> None:
    made = write(tmp_path, *sparse(n, 3, dtype), *maps(n, 4, dtype))
    terms = [term(k + 1, (1.0, 0.5)[k], density=density, importance=k + 3) for k in range(2)]
    operation = {"kind": "sar", "terms": terms, "epsilon": 0.001, "rescale": rescale}
    got = run(tmp_path, 4, operation)["t"].astype(np.float64)
    base, *others, f, g = (each.astype(np.float64) for each in made)
    d = [o - base for o in others]
    d = [np.where(abs(x) > 0.001, x, 0) for x in d]
    first = (d[0] != 0) & ((d[1] == 0) | (f > g) | ((f == g) & (abs(d[0]) >= abs(d[1]))))
    won = [np.where(first, d[0], 0), np.where(first, 0, d[1])]
    kept = [x * top(abs(x), int(density * (x != 0).sum())) for x in won]
    step = np.zeros(n)
    for x, k, weight in zip(won, kept, (1.0, 0.5), strict=True):
        norm = abs(x).sum() / abs(k).sum() if abs(k).sum() and density < 1 else 1.0
        factor = {"none": 1.0, "l1": norm, "expectation": 1 / density if density else 1.0}[rescale]
        step += weight * factor * k
    want = base + step
    assert (step != 0).sum() == sum((k != 0).sum() for k in kept)
    tolerance = 2.0**-7 if dtype is BF16 else 1e-6
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=1e-9)
    untouched = step == 0
    np.testing.assert_array_equal(got[untouched], base[untouched])
    if density:
        assert (got.astype(dtype) == want.astype(dtype)).mean() > 0.99


@pytest.mark.parametrize("kind", ["fisher", "sar"])
def test_a_negative_importance_is_named(kind: str, tmp_path: Path) -> None:
    of_map = maps(70_000, 5, np.float32)
    of_map[1][66_000] = -1e-9
    write(tmp_path, *sparse(70_000, 6, np.float32), *of_map)
    reference = 0 if kind == "sar" else None
    more = {"density": 0.5} if kind == "sar" else {}
    terms = [term(k + 1, 1.0, reference, importance=k + 3, **more) for k in range(2)]
    with pytest.raises(
        errors.FormatError, match=r"importance of `t` in `.*4.*` is negative: .*element 66000"
    ):
        run(tmp_path, 4, {"kind": kind, "terms": terms})
    assert not any(folder.name.startswith("out") and (folder / "model.safetensors").exists()
                   for folder in tmp_path.iterdir())  # fmt: skip


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_importance_that_is_not_finite_is_named(value: float, tmp_path: Path) -> None:
    of_map = maps(1000, 5, np.float32)
    of_map[0][7] = value
    write(tmp_path, *sparse(1000, 6, np.float32), *of_map)
    with pytest.raises(errors.NonFiniteError, match=r"1 in input `t` of `.*3"):
        run(tmp_path, 4, fisher())


@pytest.mark.parametrize("kind", ["fisher", "sar"])
def test_any_number_of_threads_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    write(tmp_path, *sparse(900_000, 7, BF16), *maps(900_000, 8, BF16))
    terms = [term(k + 1, 0.7, density=0.4, importance=k + 3) for k in range(2)]
    operation = fisher() if kind == "fisher" else {"kind": "sar", "terms": terms, "rescale": "l1"}
    first = run(tmp_path, 4, operation, threads=1)["t"]
    for threads in (2, 7):
        again = run(tmp_path, 4, operation, threads=threads)["t"]
        np.testing.assert_array_equal(first.view(np.uint16), again.view(np.uint16))
