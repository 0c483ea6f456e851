"""Every operation of the engine against a few lines of float64 NumPy, on the plan itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from taskvec import _core, errors
from taskvec.methods.catalogue import METHODS

Arrays = Sequence[np.ndarray]
SHAPES = {"matrix": (48, 75), "row": (1, 40), "vector": (513,), "one": (1,), "large": (300, 700)}


def models(folder: Path, count: int, *, seed: int = 0, spread: float = 1e-2) -> list[dict[str, np.ndarray]]:
    """A base and its variants in float32."""
    rng = np.random.default_rng(seed)
    base = {name: rng.standard_normal(shape) * 0.05 for name, shape in SHAPES.items()}
    made = [base] + [
        {name: array + rng.standard_normal(array.shape) * spread for name, array in base.items()}
        for _ in range(count)
    ]
    made = [{name: array.astype(np.float32) for name, array in model.items()} for model in made]
    for index, model in enumerate(made):
        (folder / str(index)).mkdir(parents=True)
        save_file(model, folder / str(index) / "model.safetensors")
    return made


def run(folder: Path, count: int, operation: dict[str, Any], **options: Any) -> dict[str, np.ndarray]:
    """The operation over the base and ``count`` models that lie in ``folder``."""
    opened = [_core.Checkpoint(folder / str(i)) for i in range(count + 1)]
    sources = [
        {"kind": "checkpoint", "path": str(folder / str(i)), "files": c.files(), "fingerprint": c.fingerprint}
        for i, c in enumerate(opened)
    ]
    rows = [
        [name, dtype, shape, 0, 0, [[i, name] for i in range(count + 1)]]
        for name, dtype, shape, *_ in opened[0].tensors()
    ]
    plan = {
        "format": 1,
        "arithmetic": 3,
        "sources": sources,
        "outputs": [{"folder": "", "alpha": 1.0}],
        "shards": ["model.safetensors"],
        "operations": [operation],
        "tensors": rows,
        "rounding": "nearest",
        "seed": options.pop("seed", 0),
    }
    out = folder / f"out-{len(list(folder.iterdir()))}"
    _core.run(json.dumps(plan).encode(), out, **options)
    return load_file(out / "model.safetensors")


def term(model: int, weight: float = 1.0, reference: int | None = 0, **more: Any) -> dict[str, Any]:
    return {"model": model, "reference": reference, "weight": weight, **more}


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """The k largest: equal ones by the lower index."""
    keep = np.zeros(scores.size, bool)
    keep[np.argsort(-scores.ravel(), kind="stable")[:k]] = True
    return keep.reshape(scores.shape)


def elected(deltas: Arrays, weights: Sequence[float], normalize: bool) -> np.ndarray:
    weighted = np.stack([w * d for d, w in zip(deltas, weights, strict=True)])
    agree = np.sign(weighted) == np.where(weighted.sum(0) >= 0, 1, -1)
    divisor = sum(w * a for w, a in zip(weights, agree, strict=True))
    return (weighted * agree).sum(0) / (np.where(divisor == 0, 1, divisor) if normalize else 1)


def ties(density: float, normalize: bool) -> Callable[[np.ndarray, Arrays], np.ndarray]:
    def oracle(base: np.ndarray, others: Arrays) -> np.ndarray:
        kept = [d * top(abs(d), int(density * d.size)) for d in (o - base for o in others)]
        return base + elected(kept, (0.7, 0.4), normalize)

    return oracle


def crumbs(density: float, gamma: float, elect: bool) -> Callable[[np.ndarray, Arrays], np.ndarray]:
    def trim(d: np.ndarray) -> np.ndarray:
        kept = int(density * d.size)
        first = min(int(gamma * d.size), d.size - kept)
        return d * (top(abs(d), first + kept) & ~top(abs(d), first))

    def oracle(base: np.ndarray, others: Arrays) -> np.ndarray:
        kept = [trim(o - base) for o in others]
        step = elected(kept, (0.7, 0.4), False) if elect else 0.7 * kept[0] + 0.4 * kept[1]
        return base + step

    return oracle


def angle(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.arccos(np.clip((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y), -1, 1)))


def slerp(x: np.ndarray, y: np.ndarray, t: float, near: float = 0.9995) -> np.ndarray:
    phi = angle(x, y)
    if abs(np.cos(phi)) > near:
        return (1 - t) * x + t * y
    return (np.sin((1 - t) * phi) * x + np.sin(t * phi) * y) / np.sin(phi)


def karcher(points: Arrays) -> np.ndarray:
    norms = [np.linalg.norm(p) for p in points]
    units = [p / n for p, n in zip(points, norms, strict=True)]
    mean = sum(units) / np.linalg.norm(sum(units))
    for _ in range(10):
        logs = [angle(mean, u) / np.sin(angle(mean, u)) * (u - np.cos(angle(mean, u)) * mean) for u in units]
        step = sum(logs) / len(logs)
        size = np.linalg.norm(step)
        if size < 1e-5:
            break
        mean = np.cos(size) * mean + np.sin(size) * step / size
    return mean * np.mean(norms)


def model_stock(base: np.ndarray, others: Arrays) -> np.ndarray:
    d = [o - base for o in others]
    cosines = [np.cos(angle(d[i], d[j])) for i in range(len(d)) for j in range(i + 1, len(d))]
    c, n = np.mean(cosines), len(d)
    return base + n * c / (1 + (n - 1) * c) * sum(d) / n


def by_row(method: Callable[[np.ndarray, Arrays], np.ndarray]) -> Callable[[np.ndarray, Arrays], np.ndarray]:
    def rows(base: np.ndarray, others: Arrays) -> np.ndarray:
        if base.ndim < 2:
            return method(base, others)
        return np.stack([method(base[i], [o[i] for o in others]) for i in range(len(base))])

    return rows


def sce(topk: float) -> Callable[[np.ndarray, Arrays], np.ndarray]:
    def oracle(base: np.ndarray, others: Arrays) -> np.ndarray:
        d = np.stack([o - base for o in others])
        variance = d.var(0)
        if topk < 1:
            d = d * top(variance, int((variance != 0).sum() * topk))
        square = (d**2).reshape(len(d), -1).mean(1)
        weight = square / square.sum() if square.sum() >= 1e-6 else np.full(len(d), 1 / len(d))
        agree = np.sign(d) == np.where(d.sum(0) >= 0, 1, -1)
        weights = weight.reshape(-1, *[1] * base.ndim) * agree
        return base + (d * weights).sum(0) / np.maximum(weights.sum(0), 1e-6)

    return oracle


def ram(epsilon: float, r: float = 0.0, alpha: float = 0.0) -> Callable[[np.ndarray, Arrays], np.ndarray]:
    def oracle(base: np.ndarray, others: Arrays) -> np.ndarray:
        d = np.stack([o - base for o in others])
        on = abs(d) > epsilon
        count = on.sum(0)
        shared = (on & (count > 1)).reshape(len(d), -1).sum(1)
        own = (on & (count == 1)).reshape(len(d), -1).sum(1)
        factor = 1 + r * np.clip(shared / np.maximum(own, epsilon), 0, alpha)
        alone = (d * on * (count == 1) * factor.reshape(-1, *[1] * base.ndim)).sum(0)
        return base + alone + (d * on * (count > 1)).sum(0) / np.maximum(count, 1)

    return oracle


def fusion(base: np.ndarray, others: Arrays) -> np.ndarray:
    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True) + 1e-8

    p, q = softmax(others[0]), softmax(base)
    importance = abs(others[0] - base) * np.maximum((p * np.log(p / q)).sum(-1, keepdims=True), 0)
    ordered = np.sort(importance.ravel())
    q1, q2, q3 = (ordered[int(f * (ordered.size - 1))] for f in (0.25, 0.5, 0.75))
    return base + (others[0] - base) * (importance >= q2 + 1.5 * (q3 - q1))


def consensus(base: np.ndarray, others: Arrays) -> np.ndarray:
    d = np.stack([o - base for o in others])
    total = d.sum(0)
    return base + 0.5 * total * ((abs(d) >= 0.6 * abs(total - d)).sum(0) >= 2)


def emr(base: np.ndarray, others: Arrays) -> np.ndarray:
    d = np.stack([o - base for o in others])
    agree = np.where(np.sign(d) == np.sign(d.sum(0)), abs(d), 0)
    return base + np.sign(d.sum(0)) * agree.max(0)


def localize(base: np.ndarray, others: Arrays) -> np.ndarray:
    kept = np.stack([d * top(abs(d), int(0.1 * d.size)) for d in (o - base for o in others)])
    return base + kept.sum(0) / np.maximum((kept != 0).sum(0), 1)


def sar(base: np.ndarray, others: Arrays) -> np.ndarray:
    d = np.stack([o - base for o in others])
    on = abs(d) > 0.004
    won = np.stack([d[0] * on[0] * ~on[1], d[1] * on[1]])  # the second matters more
    kept = [x * top(abs(x), int(0.3 * (x != 0).sum())) for x in won]
    scales = [abs(x).sum() / max(abs(k).sum(), 1e-300) for x, k in zip(won, kept, strict=True)]
    return base + 0.8 * (0.7 * scales[0] * kept[0] + 0.4 * scales[1] * kept[1])


def two(**more: Any) -> list[dict[str, Any]]:
    return [term(1, 0.7, **more), term(2, 0.4, **more)]


THREE = [term(1), term(2), term(3)]
CASES: dict[str, tuple[dict[str, Any], int, Callable[[np.ndarray, Arrays], np.ndarray]]] = {
    "linear": (
        {"kind": "linear", "terms": [term(0, 0.3, None), term(1, 0.9, None)], "normalize": True},
        1,
        lambda b, o: (0.3 * b + 0.9 * o[0]) / 1.2,
    ),
    "task_arithmetic": (
        {"kind": "task_arithmetic", "terms": two(), "lambda": 0.5},
        2,
        lambda b, o: b + 0.5 * (0.7 * (o[0] - b) + 0.4 * (o[1] - b)),
    ),
    "passthrough": (
        {"kind": "passthrough", "terms": [term(1, -0.5, None)]},
        1,
        lambda _, o: -0.5 * o[0],
    ),
    **{
        f"ties {density} {normalize}": (
            {"kind": "ties", "terms": two(density=density), "normalize": normalize, "lambda": 1.0},
            2,
            ties(density, normalize),
        )
        for density in (0.0, 0.1, 0.5, 0.999, 1.0)
        for normalize in (True, False)
    },
    **{
        f"breadcrumbs {density} {gamma} {elect}": (
            {
                "kind": "breadcrumbs_ties" if elect else "breadcrumbs",
                "terms": two(density=density, gamma=gamma),
            },
            2,
            crumbs(density, gamma, elect),
        )
        for density, gamma, elect in (
            (0.9, 0.01, False),
            (0.9, 0.3, True),
            (0.3, 0.0, False),
            (0.5, 0.02, True),
        )
    },
    "slerp": (
        {"kind": "slerp", "terms": [term(0, 1, None), term(1, 1, None)], "t": 0.3},
        1,
        lambda b, o: slerp(b, o[0], 0.3),
    ),
    "nuslerp": (
        {"kind": "nuslerp", "terms": [term(1, 0.7, None), term(2, 0.4, None)], "base": None},
        2,
        lambda _, o: slerp(o[0], o[1], 0.4 / 1.1, 1 - 1e-15),
    ),
    "nuslerp on differences, by rows": (
        {"kind": "nuslerp", "terms": two(), "base": 0, "flatten": False},
        2,
        by_row(lambda b, o: b + slerp(o[0] - b, o[1] - b, 0.4 / 1.1, 1 - 1e-15)),
    ),
    "nuslerp by columns": (
        {"kind": "nuslerp", "terms": two(), "base": 0, "flatten": False, "row_wise": True},
        2,
        lambda b, o: (
            by_row(lambda b, o: b + slerp(o[0] - b, o[1] - b, 0.4 / 1.1, 1 - 1e-15))(b.T, [x.T for x in o]).T
        ),
    ),
    "multislerp": (
        {"kind": "multislerp", "terms": [term(i, 1 / 3, None) for i in (1, 2, 3)], "base": None, "eps": 1e-8},
        3,
        lambda _, o: (
            (m := sum(x / np.linalg.norm(x) for x in o))
            / np.linalg.norm(m)
            * np.mean([*map(np.linalg.norm, o)])
        ),
    ),
    "karcher": (
        {"kind": "karcher", "terms": [term(i, 1, None) for i in (1, 2, 3)], "max_iter": 10, "tol": 1e-5},
        3,
        lambda _, o: karcher(o),
    ),
    "model_stock": ({"kind": "model_stock", "terms": THREE}, 3, model_stock),
    "model_stock by rows": (
        {"kind": "model_stock", "terms": THREE, "filter_wise": True},
        3,
        by_row(model_stock),
    ),
    "sce": ({"kind": "sce", "terms": THREE, "select_topk": 1.0}, 3, sce(1.0)),
    "sce, selected": ({"kind": "sce", "terms": THREE, "select_topk": 0.3}, 3, sce(0.3)),
    "ram": ({"kind": "ram", "terms": THREE, "epsilon": 0.01}, 3, ram(0.01)),
    "ramplus_tl": (
        {"kind": "ramplus_tl", "terms": THREE, "epsilon": 0.015, "r": 0.1, "alpha": 0.2},
        3,
        ram(0.015, 0.1, 0.2),
    ),
    "nearswap": (
        {"kind": "nearswap", "terms": [term(1)], "t": 0.005},
        1,
        lambda b, o: b + np.minimum(0.005 / np.maximum(abs(o[0] - b), 1e-6), 1) * (o[0] - b),
    ),
    "arcee_fusion": ({"kind": "arcee_fusion", "terms": [term(1)]}, 1, fusion),
    "consensus": (
        {"kind": "consensus", "terms": THREE, "tall_lambda": 0.6, "k": 2, "lambda": 0.5},
        3,
        consensus,
    ),
    "emr": ({"kind": "emr", "terms": THREE}, 3, emr),
    "fisher": (
        {
            "kind": "fisher",
            "terms": [term(1, 0.7, None, default_importance=2.0), term(2, 0.4, None, default_importance=3.0)],
        },
        2,
        lambda _, o: (1.4 * o[0] + 1.2 * o[1]) / 2.6,
    ),
    "sar": (
        {
            "kind": "sar",
            "terms": [
                term(1, 0.7, density=0.3, default_importance=1.0),
                term(2, 0.4, density=0.3, default_importance=2.0),
            ],
            "epsilon": 0.004,
            "rescale": "l1",
            "lambda": 0.8,
        },
        2,
        sar,
    ),
    "localize": ({"kind": "localize", "terms": [term(i, s=0.1) for i in (1, 2, 3)]}, 3, localize),
}


def test_every_method_has_an_oracle() -> None:
    # what is drawn at random is tested by its distribution
    drawn = {name for name, method in METHODS.items() if method.random}
    assert {operation["kind"] for operation, _, _ in CASES.values()} | drawn == set(METHODS)


@pytest.mark.parametrize("name", CASES)
def test_equals_numpy(name: str, tmp_path: Path) -> None:
    operation, count, oracle = CASES[name]
    made = models(tmp_path, count)
    got = run(tmp_path, count, operation)
    for tensor in SHAPES:
        base, *others = (model[tensor].astype(np.float64) for model in made)
        if tensor == "one" and ("nuslerp" in name or "karcher" in name):
            continue  # one element has no angle but 0 and π: covered by the tests of parallel tensors
        want = oracle(base, others)
        np.testing.assert_allclose(got[tensor], want, rtol=2e-6, atol=1e-9, err_msg=tensor)


def write(folder: Path, *arrays: np.ndarray) -> list[np.ndarray]:
    """Models of one tensor ``t`` each."""
    for index, array in enumerate(arrays):
        (folder / str(index)).mkdir(parents=True, exist_ok=True)
        save_file({"t": array}, folder / str(index) / "model.safetensors")
    return list(arrays)


def coarse(n: int, seed: int, steps: int = 4) -> np.ndarray:
    """bf16 values on a coarse grid: many equal magnitudes."""
    values = np.random.default_rng(seed).integers(-steps, steps + 1, n) / 256
    return values.astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("n", [1, 2, 777, 20_000, 600_001])
@pytest.mark.parametrize("density", [0.0, 0.013, 0.5, 0.97])
def test_ties_keeps_exactly_k_and_equal_ones_by_the_lower_index(
    n: int, density: float, tmp_path: Path
) -> None:
    base, other = write(tmp_path, np.zeros(n, ml_dtypes.bfloat16), coarse(n, 1))
    operation = {"kind": "ties", "terms": [term(1, density=density)], "normalize": False}
    got = run(tmp_path, 1, operation)["t"].astype(np.float64)
    delta = other.astype(np.float64) - base.astype(np.float64)
    np.testing.assert_array_equal(got, delta * top(abs(delta), int(density * n)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("n", "density"), [(4, 0.2), (100_000, 0.0)])
def test_what_is_not_finite_is_found_where_nothing_is_kept(
    value: float, n: int, density: float, tmp_path: Path
) -> None:
    other = coarse(n, 1)
    other[2] = value
    write(tmp_path, np.zeros(n, ml_dtypes.bfloat16), other)
    operation = {"kind": "ties", "terms": [term(1, density=density)], "normalize": True}
    with pytest.raises(errors.NonFiniteError, match="1 in input `t`"):
        run(tmp_path, 1, operation)


@pytest.mark.parametrize("rescaled", ["dare_ties", "ties"])
def test_a_difference_beyond_the_range_does_not_undo_a_whole_tensor(rescaled: str, tmp_path: Path) -> None:
    """Of finite numbers: it is dropped, or it ends the run, but its norm is one."""
    base, other = np.full(4000, 0.5, ml_dtypes.bfloat16), np.full(4000, 0.75, ml_dtypes.bfloat16)
    base[7], other[7] = -3e38, 3e38
    write(tmp_path, base, other)
    operation = {"kind": rescaled, "terms": [term(1, density=0.5)], "normalize": False, "rescale": "l1"}
    outcomes = set()
    for seed in range(8):
        try:
            got = run(tmp_path, 1, operation, seed=seed)["t"].astype(np.float64)
        except errors.NonFiniteError:
            outcomes.add("refused")
        else:
            outcomes.add("dropped")
            assert (got[:7] != 0.5).any()
    assert outcomes == ({"refused", "dropped"} if rescaled == "dare_ties" else {"refused"})


@pytest.mark.parametrize("n", [3, 50_000])
def test_breadcrumbs_of_equal_magnitudes(n: int, tmp_path: Path) -> None:
    _, other = write(tmp_path, np.zeros(n, ml_dtypes.bfloat16), coarse(n, 2))
    operation = {"kind": "breadcrumbs", "terms": [term(1, density=0.7, gamma=0.2)]}
    got = run(tmp_path, 1, operation)["t"].astype(np.float64)
    delta = other.astype(np.float64)
    kept, first = int(0.7 * n), min(int(0.2 * n), n - int(0.7 * n))
    np.testing.assert_array_equal(got, delta * (top(abs(delta), first + kept) & ~top(abs(delta), first)))


RANDOM = {
    "dare_linear": {"kind": "dare_linear", "terms": [term(1, density=0.3, stream=1)], "rescale": "none"},
    "dare_ties": {"kind": "dare_ties", "terms": [term(1, density=0.3, stream=1)], "rescale": "none"},
    "della_linear": {
        "kind": "della_linear",
        "terms": [term(1, density=0.3, epsilon=0.1, stream=1)],
        "rescale": "none",
    },
}
PREPARED = {
    "ties": {"kind": "ties", "terms": two(density=0.4), "normalize": True},
    "ties, rescaled": {"kind": "ties", "terms": two(density=0.4), "rescale": "l1"},
    "dare": {"kind": "dare_ties", "terms": [term(1, 0.7, density=0.4, stream=1)], "rescale": "l1"},
    "della": {"kind": "della", "terms": [term(1, 0.7, density=0.4, epsilon=0.1, stream=1)], "rescale": "l1"},
    "slerp": {"kind": "slerp", "terms": [term(0, 1, None), term(1, 1, None)], "t": 0.3},
    "sce": {"kind": "sce", "terms": two(), "select_topk": 0.4},
    "model_stock": {"kind": "model_stock", "terms": two(), "filter_wise": True},
    "sar": {
        "kind": "sar",
        "terms": two(density=0.4, default_importance=1.0),
        "epsilon": 0.1,
        "rescale": "l1",
    },
    "arcee_fusion": {"kind": "arcee_fusion", "terms": [term(1)]},
    "control_random": {"kind": "control_random", "terms": [term(1)]},
    "control_permute": {"kind": "control_permute", "terms": [term(1)]},
    "noised": {"kind": "noised", "terms": [term(1, 0.3, None)], "deviation": 0.2},
}


@pytest.mark.parametrize("name", PREPARED)
def test_the_same_bytes_for_any_number_of_threads(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    write(tmp_path, *(rng.standard_normal((1900, 1100)).astype(ml_dtypes.bfloat16) for _ in range(3)))
    first = run(tmp_path, 2, PREPARED[name], threads=1, seed=5)["t"]
    for threads in (2, 7):
        again = run(tmp_path, 2, PREPARED[name], threads=threads, seed=5)["t"]
        np.testing.assert_array_equal(first.view(np.uint16), again.view(np.uint16))


@pytest.mark.parametrize("name", RANDOM)
def test_random_methods_keep_their_share_and_are_seeded(name: str, tmp_path: Path) -> None:
    n = 1_000_000
    rng = np.random.default_rng(4)
    write(
        tmp_path, np.zeros((1000, 1000), np.float32), rng.standard_normal((1000, 1000)).astype(np.float32) + 3
    )
    kept = run(tmp_path, 1, RANDOM[name], seed=1)["t"] != 0
    assert abs(kept.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / n)
    assert (kept == (run(tmp_path, 1, RANDOM[name], seed=1)["t"] != 0)).all()
    other = run(tmp_path, 1, RANDOM[name], seed=2)["t"] != 0
    agreement = (kept == other).mean()
    assert abs(agreement - (0.3**2 + 0.7**2)) < 0.02


def test_dare_is_unbiased_by_expectation_and_keeps_the_norm_by_l1(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    n = 1_000_000
    delta = (rng.standard_normal(n) + 2).astype(np.float32)
    write(tmp_path, np.zeros(n, np.float32), delta)
    terms = [term(1, density=0.25, stream=1)]
    by_mean = run(tmp_path, 1, {"kind": "dare_linear", "terms": terms, "rescale": "expectation"})["t"]
    spread = np.sqrt((delta.astype(np.float64) ** 2).sum() * 3) / n
    assert abs(by_mean.mean(dtype=np.float64) - delta.mean(dtype=np.float64)) < 4 * spread
    by_norm = run(tmp_path, 1, {"kind": "dare_linear", "terms": terms, "rescale": "l1"})["t"]
    np.testing.assert_allclose(
        abs(by_norm).sum(dtype=np.float64), abs(delta).sum(dtype=np.float64), rtol=1e-6
    )


def test_della_spares_large_elements(tmp_path: Path) -> None:
    rows = np.sort(abs(np.random.default_rng(6).standard_normal((2000, 400))), axis=1).astype(np.float32)
    write(tmp_path, np.zeros_like(rows), rows)
    operation = {"kind": "della_linear", "terms": [term(1, density=0.5, epsilon=0.2)], "rescale": "none"}
    kept = (run(tmp_path, 1, operation)["t"] != 0).mean(0)
    want = 0.3 + 0.4 * np.arange(400) / 399
    assert abs(kept - want).max() < 5 * np.sqrt(0.25 / 2000)


def test_controls_have_the_norm_and_the_values_of_the_vector(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    for n in (1, 900, 65_536, 300_123):
        folder = tmp_path / str(n)
        base, donor = write(
            folder, np.zeros(n, np.float32), rng.standard_normal(n).astype(np.float32) * np.arange(n) / n
        )
        donor = write(folder, base, donor.astype(np.float32))[1]
        drawn = run(folder, 1, {"kind": "control_random", "terms": [term(1)]}, seed=1)["t"]
        np.testing.assert_allclose(np.linalg.norm(drawn), np.linalg.norm(donor), rtol=1e-5)
        mixed = run(folder, 1, {"kind": "control_permute", "terms": [term(1)]}, seed=1)["t"]
        np.testing.assert_array_equal(np.sort(mixed), np.sort(donor))
        if n > 100:
            assert abs(np.corrcoef(mixed, donor)[0, 1]) < 5 / np.sqrt(n)
            assert abs(np.corrcoef(drawn, donor)[0, 1]) < 5 / np.sqrt(n)
            assert abs(np.corrcoef(mixed, np.arange(n))[0, 1]) < 5 / np.sqrt(n)


def test_noise_is_normal_and_added_before_the_factor(tmp_path: Path) -> None:
    from scipy.stats import kstest

    x = np.random.default_rng(12).standard_normal((500, 400)).astype(np.float32)
    write(tmp_path, x)

    def noised(deviation: float, seed: int) -> np.ndarray:
        operation = {"kind": "noised", "terms": [term(0, 0.3, None)], "deviation": deviation}
        return run(tmp_path, 0, operation, seed=seed)["t"].astype(np.float64)

    np.testing.assert_array_equal(noised(0.0, 1), (0.3 * x.astype(np.float64)).astype(np.float32))
    first, second = ((noised(2.0, seed) / 0.3 - x) / 2 for seed in (1, 2))
    assert kstest(first.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 5 / np.sqrt(x.size)
    assert abs(np.corrcoef(first[0], first[1])[0, 1]) < 5 / np.sqrt(len(first[0]))
    for value in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"deviation|expected"):
            noised(value, 1)


@pytest.mark.parametrize(
    "kind",
    [
        "ties",
        "dare_ties",
        "breadcrumbs",
        "sce",
        "model_stock",
        "ram",
        "arcee_fusion",
        "emr",
        "control_random",
    ],
)
def test_no_difference_changes_nothing(kind: str, tmp_path: Path) -> None:
    array = np.random.default_rng(8).standard_normal((40, 50)).astype(ml_dtypes.bfloat16)
    write(tmp_path, array, array, array)
    more = {"density": 0.5} if kind in ("ties", "dare_ties", "breadcrumbs") else {}
    count = 1 if kind in ("arcee_fusion", "control_random") else 2
    operation: dict[str, Any] = {"kind": kind, "terms": [term(i + 1, **more) for i in range(count)]}
    if kind == "sce":
        operation["select_topk"] = 0.5
    got = run(tmp_path, 2, operation)["t"]
    np.testing.assert_array_equal(got.view(np.uint16), array.view(np.uint16))


def test_slerp_of_parallel_antiparallel_and_zero_tensors(tmp_path: Path) -> None:
    x = np.random.default_rng(9).standard_normal(100).astype(np.float32)
    for name, y in {"parallel": 2 * x, "antiparallel": -x, "zero": 0 * x}.items():
        folder = tmp_path / name
        write(folder, x, y)
        terms = [term(0, 1, None), term(1, 1, None)]
        got = run(folder, 1, {"kind": "slerp", "terms": terms, "t": 0.25})["t"]
        want = 0.75 * x + 0.25 * y if name != "zero" else np.sin(0.75 * np.pi / 2) * x
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7, err_msg=name)


def test_tensors_that_cancel_have_no_mean_direction(tmp_path: Path) -> None:
    x = np.random.default_rng(10).standard_normal(50).astype(np.float32)
    write(tmp_path, x, -x, 0 * x)
    terms = [term(i, 1 / 3, None) for i in range(3)]
    with pytest.raises(ValueError, match="cancel"):
        run(tmp_path, 2, {"kind": "multislerp", "terms": terms, "base": None})


@pytest.mark.parametrize("count", [3, 5])
def test_multislerp_of_what_nobody_changed_is_no_step(count: int, tmp_path: Path) -> None:
    x = np.random.default_rng(10).standard_normal(50).astype(np.float32)
    write(tmp_path, *[x] * (count + 1))
    terms = [term(i + 1, 1 / count) for i in range(count)]
    got = run(tmp_path, count, {"kind": "multislerp", "terms": terms, "base": 0})["t"]
    np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize(
    "multiples", [(1, -1), (1, -0.5), (1, -1, 1), (1, -2, 0.5), (-1, 1, -1, 1), (0.3, -0.7, -0.1, 0.2, 0.9)]
)
@pytest.mark.parametrize("n", [1, 1000])
def test_the_karcher_mean_of_opposite_directions_has_the_mean_norm(
    multiples: tuple[float, ...], n: int, tmp_path: Path
) -> None:
    x = np.random.default_rng(12).standard_normal(n).astype(np.float32)
    points = write(tmp_path, *[x * np.float32(k) for k in multiples])
    terms = [term(i, 1, None) for i in range(len(points))]
    operation = {"kind": "karcher", "terms": terms, "max_iter": 10, "tol": 1e-5}
    got = run(tmp_path, len(points) - 1, operation)["t"].astype(np.float64)
    norms = [np.linalg.norm(point.astype(np.float64)) for point in points]
    np.testing.assert_allclose(np.linalg.norm(got), np.mean(norms), rtol=1e-5)
    cosine = got @ x.astype(np.float64) / np.linalg.norm(got) / np.linalg.norm(x)
    np.testing.assert_allclose(abs(cosine), 1, rtol=1e-6)


@pytest.mark.parametrize(
    "shape", [(16, 3000), (17, 3000), (3000, 17), (3000, 16), (40, 9, 70), (5, 700), (1, 5), (5, 1)]
)
@pytest.mark.parametrize("row_wise", [False, True])
def test_nuslerp_along_a_dimension(shape: tuple[int, ...], row_wise: bool, tmp_path: Path) -> None:
    """Groups that are kept, and those that tiles look at themselves."""
    rng = np.random.default_rng(13)
    x, y = write(tmp_path, *(rng.standard_normal(shape).astype(np.float32) for _ in range(2)))
    terms = [term(0, 0.7, None), term(1, 0.4, None)]
    operation = {"kind": "nuslerp", "terms": terms, "base": None, "flatten": False, "row_wise": row_wise}
    got = run(tmp_path, 1, operation, threads=3)["t"]
    matrices = [each.astype(np.float64).reshape(-1, shape[-1]) for each in (x, y)]
    groups = [each.T if row_wise else each for each in matrices]
    want = np.stack([slerp(a, b, 0.4 / 1.1, 1 - 1e-15) for a, b in zip(*groups, strict=True)])
    want = (want.T if row_wise else want).reshape(shape)
    if groups[0].shape[-1] > 1:  # one element has no angle but 0 and π
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [0.1, 0.3, 0.35, 0.55, 0.7, 1.1, 1.15, 1.4, -0.3, 1 / 3])
@pytest.mark.parametrize("kind", ["lambda", "weights", "linear"])
def test_of_unrelated_models_the_results_are_the_rounded_float64(
    kind: str, factor: float, tmp_path: Path
) -> None:
    """A factor that float32 does not hold would move sums half way between two numbers of bf16."""
    rng = np.random.default_rng(14)
    made = write(
        tmp_path, *((rng.standard_normal(1 << 18) * 0.02).astype(ml_dtypes.bfloat16) for _ in range(3))
    )
    t, d, r = (each.astype(np.float64) for each in made)
    means = [term(0, factor, None), term(1, 1 - factor, None)]
    operation, want = {
        "lambda": (
            {"kind": "task_arithmetic", "terms": [term(1, 1.0, 2)], "lambda": factor},
            t + factor * (d - r),
        ),
        "weights": (
            {"kind": "task_arithmetic", "terms": [term(1, factor, 2), term(2, 0.5, 0)]},
            t + (factor * (d - r) + 0.5 * (r - t)),
        ),
        "linear": ({"kind": "linear", "terms": means}, factor * t + (1 - factor) * d),
    }[kind]
    got = run(tmp_path, 2, operation)["t"].astype(np.float64)
    assert (got == round_bf16(want)).mean() >= 0.9997


def round_bf16(x: np.ndarray) -> np.ndarray:
    """Float64 on the grid of bf16, to nearest even, by exact arithmetic."""
    unit = np.maximum(np.frexp(x)[1] - 1, -126) - 7
    return np.ldexp(np.rint(np.ldexp(x, -unit)), unit)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_an_adapter_is_added_tile_by_tile(transposed: bool, alone: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    shape, rank, scale = (700, 901), 8, 1.75
    weight = rng.standard_normal(shape).astype(np.float32)
    a = rng.standard_normal((rank, shape[0 if transposed else 1])).astype(np.float32)
    b = rng.standard_normal((shape[1 if transposed else 0], rank)).astype(np.float32)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    (tmp_path / "0").mkdir()
    file.parent.mkdir()
    save_file({"t": weight, "other": weight[:3]}, tmp_path / "0" / "model.safetensors")
    save_file({"t.A": a, "t.B": b}, file)
    opened = [_core.Checkpoint(tmp_path / "0"), _core.Checkpoint(file)]
    model = {"kind": "checkpoint", "path": str(tmp_path / "0"), "files": opened[0].files()}
    adapter = {
        "kind": "lora",
        "path": str(file),
        "files": opened[1].files(),
        "base": None if alone else 0,
        "factors": {"t": ["t.A", "t.B", scale, transposed]},
    }
    for source, checkpoint in zip((model, adapter), opened, strict=True):
        source["fingerprint"] = checkpoint.fingerprint
    step = {"kind": "task_arithmetic", "terms": [term(1, 0.5, None if alone else 0)]}
    plan = {
        "format": 1,
        "arithmetic": 3,
        "sources": [model, adapter],
        "outputs": [{"folder": "", "alpha": 1.0}],
        "shards": ["model.safetensors"],
        "operations": [step, {"kind": "copy"}],
        "tensors": [
            ["t", "F32", shape, 0, 0, [[0, "t"], [1, "t"]]],
            ["other", "F32", (3, 901), 0, 1, [[0 if alone else 1, "other"]]],
        ],
        "rounding": "nearest",
        "seed": 0,
    }
    _core.run(json.dumps(plan).encode(), tmp_path / "out")
    got = load_file(tmp_path / "out" / "model.safetensors")
    product = b.astype(np.float64) @ a.astype(np.float64)
    want = weight + 0.5 * scale * (product.T if transposed else product)
    np.testing.assert_allclose(got["t"], want, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(got["other"], weight[:3])
