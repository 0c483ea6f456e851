"""A saved vector gives, bit for bit, what a transfer gives: where a difference was rounded too."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import taskvec as tv
from support.models import DTYPES, Tensors, Trio, read_tensors, write_checkpoint
from support.oracle import decode, same_files
from support.pairs import pair

ALPHAS = (-1.0, 0.0, 0.3, 1.0, 1.5)
# values whose differences are rounded, cancel, overflow or lose a sign
CORNERS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    1.0078125,
    2.0**-133,
    -(2.0**-149),
    2.0**-126,
    1e-30,
    3e38,
    -3e38,
    65504.0,
    6e-8,
)


def pattern(rng: np.random.Generator, dtype: str, count: int) -> np.ndarray:
    """Finite values of random bits, a quarter of them corners."""
    kind = DTYPES[dtype]
    words = np.dtype(f"u{kind.itemsize}")
    values = rng.integers(0, 1 << (8 * kind.itemsize), count, dtype=words).view(kind)
    with np.errstate(over="ignore"):
        corners = rng.choice(np.array(CORNERS), count).astype(kind)
    values = np.where((rng.random(count) < 0.25) & np.isfinite(corners.astype(np.float64)), corners, values)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(values.astype(np.float64)), values, np.ones(count, kind)).astype(kind)


def converted(array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        return array.astype(np.float64).astype(DTYPES[dtype])


def random_trio(root: Path, seed: int, count: int = 5000) -> Trio:
    """One tensor for each combination of three types; in many elements two or three of the models agree."""
    rng = np.random.default_rng(seed)
    models: tuple[Tensors, Tensors, Tensors] = ({}, {}, {})
    for number, dtypes in enumerate(itertools.product(("BF16", "F16", "F32"), repeat=3)):
        arrays = [pattern(rng, dtype, count) for dtype in dtypes]
        equal = rng.integers(0, 5, count)
        # 0: target is the reference; 1: the donor is; 2: all three are one; else: nothing in common
        for to, source, which in ((0, 2, (0, 2)), (1, 2, (1, 2))):
            same = converted(arrays[source], dtypes[to])
            chosen = np.isin(equal, which) & np.isfinite(same.astype(np.float64))
            arrays[to] = np.where(chosen, same, arrays[to])
        for tensors, array in zip(models, arrays, strict=True):
            tensors[f"model.layers.{number}.mlp.up_proj.weight"] = array
    folders = [write_checkpoint(root / name, m) for name, m in zip(("t", "d", "r"), models, strict=True)]
    return Trio(*folders)


def same_weights(one: Path, other: Path) -> None:
    files = sorted(one.rglob("*.safetensors"))
    assert files
    for path in files:
        mine, theirs = read_tensors(path.parent), read_tensors((other / path.relative_to(one)).parent)
        for name, array in mine.items():
            wrong = np.flatnonzero(
                array.reshape(-1).view(np.uint8) != theirs[name].reshape(-1).view(np.uint8)
            )
            assert not wrong.size, (path, name, array.dtype, wrong[:5] // array.itemsize)
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes()


@pytest.mark.parametrize("seed", range(4))
def test_applying_is_the_transfer_for_every_bit_pattern(tmp_path: Path, seed: int) -> None:
    trio = random_trio(tmp_path, seed)
    report = tv.extract(trio.donor, trio.reference, tmp_path / "vec")
    assert report.vector is not None
    assert any(row.get("exact") for row in report.vector["tensors"].values())
    for settings in ({}, {"out_dtype": "float32"}, {"out_dtype": "bfloat16", "rounding": "stochastic"}):
        place = tmp_path / f"{len(settings)}"
        options = {"alpha": ALPHAS, "force": "non-finite", **settings}
        tv.transfer(*trio, place / "transferred", **options)
        tv.apply(trio.target, tmp_path / "vec", out=place / "applied", **options)
        same_weights(place / "transferred", place / "applied")


def test_the_exact_elements_of_a_large_tensor(tmp_path: Path) -> None:
    """More than a tile, a step of the directory, a chunk and a block; and a tensor that has nothing else."""
    rng = np.random.default_rng(5)
    name, count = "model.layers.0.mlp.up_proj.weight", 1_500_003
    reference = rng.standard_normal(count).astype(ml_dtypes.bfloat16)
    donor = reference.copy()
    donor[rng.random(count) < 0.01] = -0.0
    donor[rng.random(count) < 0.01] *= 2
    zeros = np.zeros(300, ml_dtypes.bfloat16)
    models = [{name: reference, "b": zeros}, {name: donor, "b": -zeros}, {name: reference, "b": zeros}]
    folders = [write_checkpoint(tmp_path / role, m) for role, m in zip("tdr", models, strict=True)]
    tv.extract(folders[1], folders[2], tmp_path / "vec")
    rows = json.loads((tmp_path / "vec" / "taskvec.json").read_text())["vector"]["tensors"]
    assert rows[name]["exact"] == np.count_nonzero((donor == 0) & np.signbit(donor))
    assert (rows["b"]["encoding"], rows["b"]["changed"], rows["b"]["exact"]) == ("index", 0, 300)
    for threads in (1, 3):
        tv.apply(folders[0], tmp_path / "vec", out=tmp_path / f"{threads}", threads=threads)
        written = read_tensors(tmp_path / f"{threads}")
        assert written[name].tobytes() == donor.tobytes()
        assert written["b"].tobytes() == (-zeros).tobytes()
    live = {name: reference.copy(), "b": zeros.copy()}
    tv.load_vector(tmp_path / "vec").apply_(live)
    assert live[name].tobytes() == donor.tobytes()
    assert live["b"].tobytes() == (-zeros).tobytes()


def test_what_is_kept_beside_the_differences_is_documented(tmp_path: Path) -> None:
    donor, reference = np.array([-0.0, 1e-30, 3.0], np.float32), np.array([1.0, 1.0, 1.0], np.float32)
    for role, array in (("d", donor), ("r", reference)):
        write_checkpoint(tmp_path / role, {"w": array})
    tv.extract(tmp_path / "d", tmp_path / "r", tmp_path / "vec")
    stored = load_file(tmp_path / "vec" / "vector.safetensors")
    assert stored["w.exact.indices"].tolist() == [0, 1]
    assert stored["w.exact.donor"].tobytes() == donor[:2].tobytes()
    assert stored["w.exact.reference"].tobytes() == reference[:2].tobytes()
    assert tv.verify(tmp_path / "vec").ok


def test_a_vector_of_small_steps_keeps_nothing_beside(tmp_path: Path) -> None:
    tv.extract(*pair(tmp_path, 0.15), tmp_path / "vec")
    assert json.loads((tmp_path / "vec" / "taskvec.json").read_text())["vector"]["format"] == 1
    assert not [name for name in tv.open(tmp_path / "vec") if ".exact." in name]


def test_a_vector_of_a_chosen_type_keeps_nothing_beside(tmp_path: Path) -> None:
    models = random_trio(tmp_path, 9, 500)
    tv.extract(models.donor, models.reference, tmp_path / "vec", dtype="float64", include="layers.0.")
    assert not [name for name in tv.open(tmp_path / "vec") if ".exact." in name]


def test_a_difference_beyond_the_range_is_refused(tmp_path: Path) -> None:
    for role, sign in (("d", 1), ("r", -1)):
        write_checkpoint(tmp_path / role, {"w": np.array([sign * 1.7e308])})
    with pytest.raises(tv.NonFiniteError, match="`w` is beyond the range of F64"):
        tv.extract(tmp_path / "d", tmp_path / "r", tmp_path / "vec")
    assert not (tmp_path / "vec").exists()
    for role, sign in (("d", 1), ("r", -1)):
        write_checkpoint(tmp_path / role, {"w": np.array([sign * 6e4])})
    with pytest.raises(tv.NonFiniteError, match="beyond the range of F16"):
        tv.extract(tmp_path / "d", tmp_path / "r", tmp_path / "vec", dtype="float16")


def test_a_vector_with_exact_elements_counts_among_what_is_dropped(tmp_path: Path) -> None:
    """The exact elements of a vector are not part of it where a method rescales by norms."""
    rng = np.random.default_rng(8)
    name, count = "model.layers.0.mlp.up_proj.weight", 4000
    base, model = (rng.standard_normal(count).astype(ml_dtypes.bfloat16) for _ in range(2))
    reference = np.ones(count, ml_dtypes.bfloat16)
    donor = reference * np.where(rng.random(count) < 0.5, 2, 4).astype(ml_dtypes.bfloat16)
    reference[0] = 0.0
    merged = []
    for number, zero in enumerate((0.0, -0.0)):
        donor[0] = zero
        place = tmp_path / str(number)
        roles = {"base": base, "model": model, "d": donor, "r": reference}
        folders = {role: write_checkpoint(place / role, {name: array}) for role, array in roles.items()}
        tv.extract(folders["d"], folders["r"], place / "vec")
        rows = json.loads((place / "vec" / "taskvec.json").read_text())["vector"]["tensors"]
        assert bool(rows[name].get("exact")) is (number == 1)
        recipe = {
            "merge_method": "dare_linear",
            "base_model": str(folders["base"]),
            "dtype": "bfloat16",
            "models": [
                {"model": str(folders["model"]), "parameters": {"weight": 0.5, "density": 0.5}},
                {"vector": str(place / "vec"), "parameters": {"weight": 0.5, "density": 0.5}},
            ],
        }
        tv.merge(recipe, out=place / "out")
        merged.append(read_tensors(place / "out")[name])
    assert np.array_equal(merged[0].view(np.uint16), merged[1].view(np.uint16))


def stored_rows(vector: Path) -> dict[str, dict]:
    return json.loads((vector / "taskvec.json").read_text())["vector"]["tensors"]


def close_pair(dtype: str, share: float, seed: int, shape: tuple[int, int] = (400, 500)) -> list[np.ndarray]:
    """Donor and reference as training leaves them: this share of the elements has moved a little."""
    rng = np.random.default_rng(seed)
    reference = converted(rng.standard_normal(shape) * 0.05, dtype)
    step = np.where(rng.random(shape) < share, 1e-3 * rng.standard_normal(shape), 0.0)
    return [converted(reference.astype(np.float64) + step, dtype), reference]


def the_donor_again(folders: list[Path], vector: Path) -> None:
    """NumPy gives the difference from the files alone, and the donor from that and the reference."""
    donor, reference = (read_tensors(folder) for folder in folders)
    stored = {name: array for file in vector.glob("*.safetensors") for name, array in load_file(file).items()}
    decoded, rows = decode(vector), stored_rows(vector)
    for name, array in donor.items():
        wide = [tensors[name].astype(np.float64) for tensors in (donor, reference)]
        delta = wide[0] - wide[1]
        assert np.array_equal(decoded[name].astype(np.float64), delta), name
        back = np.where(delta == 0, wide[1], wide[1] + delta).ravel()
        if rows[name].get("exact"):
            back[stored[f"{name}.exact.indices"]] = stored[f"{name}.exact.donor"]
        assert back.astype(array.dtype).tobytes() == array.tobytes(), name
        for part in ("", ".values"):
            values = stored.get(f"{name}{part}", np.zeros(0))
            assert np.isfinite(values.astype(np.float64)).all(), name


def as_a_transfer(trio: list[Path], vector: Path, place: Path, **options: object) -> None:
    tv.transfer(*trio, place / "transferred", alpha=ALPHAS, **options)
    tv.apply(trio[0], vector, out=place / "applied", alpha=ALPHAS, **options)
    same_weights(place / "transferred", place / "applied")


@pytest.mark.parametrize(
    ("dtype", "share", "limit"),
    [("BF16", 1.0, 1.05), ("F16", 1.0, 1.1), ("F32", 1.0, 1.1), ("BF16", 0.15, 0.5), ("BF16", 0.01, 0.06)],
)
def test_a_vector_takes_little_more_than_a_model(
    tmp_path: Path, dtype: str, share: float, limit: float
) -> None:
    """Of elements that need more bits, each is stored by itself; the others keep a narrow type."""
    donor, reference = close_pair(dtype, share, 1)
    target = converted(reference.astype(np.float64) * 1.01, dtype)
    name = "model.layers.0.mlp.up_proj.weight"
    folders = [
        write_checkpoint(tmp_path / role, {name: array})
        for role, array in zip("tdr", (target, donor, reference), strict=True)
    ]
    tv.extract(folders[1], folders[2], tmp_path / "vec")
    row = stored_rows(tmp_path / "vec")[name]
    assert row["bytes"] <= limit * reference.nbytes
    assert row["rounded"]
    the_donor_again(folders[1:], tmp_path / "vec")
    for number, options in enumerate(({}, {"out_dtype": "float32"}, {"rounding": "stochastic", "seed": 3})):
        as_a_transfer(folders, tmp_path / "vec", tmp_path / str(number), **options)


@pytest.mark.parametrize("seed", range(3))
def test_numpy_gives_back_the_donor_of_every_bit_pattern(tmp_path: Path, seed: int) -> None:
    trio = random_trio(tmp_path, seed + 20)
    tv.extract(trio.donor, trio.reference, tmp_path / "vec")
    assert any(row.get("rounded") for row in stored_rows(tmp_path / "vec").values())
    the_donor_again([trio.donor, trio.reference], tmp_path / "vec")


@pytest.mark.parametrize(
    ("outlier", "under"),
    [
        (1e-3, 0.75),
        (-(2.0**-40), 0.75),
        (-65520.0, 0.75),
        (3e38, 3e37),
        (3e38, -3e38),  # beyond f32 too
        (2.0**-120, 2.0**-130 + 2.0**-133),
    ],
)
@pytest.mark.parametrize("share", [0.001, 0.3, 1.0])
def test_an_outlier_does_not_widen_its_tensor(
    tmp_path: Path, outlier: float, under: float, share: float
) -> None:
    rng = np.random.default_rng(4)
    reference = (rng.choice([-1.0, 1.0], 20_000) * (1 + rng.random(20_000))).astype(ml_dtypes.bfloat16)
    step = np.where(rng.random(20_000) < share, 2.0**-7, 0.0)
    donor = (reference.astype(np.float64) + step).astype(ml_dtypes.bfloat16)
    donor[7] = outlier
    reference[7] = under
    folders = [
        write_checkpoint(tmp_path / role, {"w": array}) for role, array in (("d", donor), ("r", reference))
    ]
    tv.extract(*folders, tmp_path / "vec")
    row = stored_rows(tmp_path / "vec")["w"]
    assert (row["dtype"], row["exact"], row["rounded"]) == ("BF16", 1, True)
    the_donor_again(folders, tmp_path / "vec")
    as_a_transfer([folders[1], *folders], tmp_path / "vec", tmp_path / "out", force="non-finite")


def test_a_rounded_vector_shows_what_the_models_show(tmp_path: Path) -> None:
    """In memory, from NumPy and one by one: in the type of the difference of the two models."""
    for dtype in ("BF16", "F16", "F32", "F64"):
        donor, reference = close_pair(dtype, 1.0, 3, (30, 40))
        donor[0] *= 1000
        reference[0] /= 64
        folders = [
            write_checkpoint(tmp_path / dtype / r, {"w": w}) for r, w in (("d", donor), ("r", reference))
        ]
        tv.extract(*folders, tmp_path / dtype / "vec")
        shown = tv.load_vector(tmp_path / dtype / "vec")["w"]
        expected = (tv.open(folders[0]) - tv.open(folders[1]))["w"]
        assert shown.dtype == expected.dtype == (np.float64 if dtype == "F64" else np.float32)
        assert shown.tobytes() == expected.tobytes()


def test_where_most_elements_are_wide_the_type_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    donor, reference = (rng.standard_normal(5000).astype(np.float32) * s for s in (1.0, 1e-6))
    folders = [
        write_checkpoint(tmp_path / role, {"w": array}) for role, array in (("d", donor), ("r", reference))
    ]
    tv.extract(*folders, tmp_path / "vec")
    row = stored_rows(tmp_path / "vec")["w"]
    assert row["dtype"] == "F64"
    assert "rounded" not in row
    the_donor_again(folders, tmp_path / "vec")


def test_the_vector_does_not_depend_on_threads(tmp_path: Path) -> None:
    donor, reference = close_pair("BF16", 1.0, 2, (1100, 1000))
    folders = [
        write_checkpoint(tmp_path / role, {"w": array}) for role, array in (("d", donor), ("r", reference))
    ]
    for threads in (1, 3):
        tv.extract(*folders, tmp_path / f"{threads}", threads=threads)
    same_files(tmp_path / "1", tmp_path / "3")
    assert stored_rows(tmp_path / "1")["w"]["rounded"]
    the_donor_again(folders, tmp_path / "1")
    live = {"w": reference.copy()}
    tv.load_vector(tmp_path / "1").apply_(live)
    assert live["w"].tobytes() == donor.tobytes()
