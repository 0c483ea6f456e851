"""Lineage: what a sample of the weights says about who descends from whom."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.models import DTYPES, Trio, read_tensors, write_trio, write_weights
from taskvec.compat.lineage import BLOCKS, ELEMENTS, TENSORS, lineage, measure
from taskvec.resolve.open import open as open_checkpoint


def findings(target: Path, donor: Path, reference: Path) -> list[str]:
    return [f"{f.level} {f.id}" for f in lineage(*map(open_checkpoint, (target, donor, reference)))]


@pytest.fixture
def stranger(tmp_path: Path) -> Trio:
    return write_trio(tmp_path / "stranger", seed=100)


def test_roles(trio: Trio, stranger: Trio, tmp_path: Path) -> None:
    copy = shutil.copytree(trio.donor, tmp_path / "copy")
    t, d, r = trio
    cases = [
        ((t, d, r), ["note lineage"]),
        # Exchanged roles
        ((r, d, t), ["warning swapped-roles"]),
        ((d, t, r), ["warning swapped-roles"]),
        # A copy is found from its values; the same files are found from the headers, and not told twice
        ((t, d, copy), ["warning zero-vector"]),
        ((t, d, d), []),
        # Unrelated models
        ((t, d, stranger.reference), ["warning unrelated-reference"]),
        ((stranger.target, d, r), ["warning unrelated-target"]),
        # A target that is the reference or the donor is a legitimate choice
        ((r, d, r), ["note lineage"]),
    ]
    for folders, expected in cases:
        assert findings(*folders) == expected, folders


def test_numbers_are_told(trio: Trio, stranger: Trio) -> None:
    (finding,) = lineage(*map(open_checkpoint, (trio.target, trio.donor, stranger.reference)))
    for part in ("‖donor − reference‖ = 1.4", "‖donor − target‖ = 0.2", "of ‖reference‖, from 15 tensors"):
        assert part in finding.message


def test_distances_agree_with_whole_tensors(trio: Trio) -> None:
    distances = measure(*map(open_checkpoint, trio))
    assert distances is not None
    t, d, r = (
        {n: a.astype(np.float64) for n, a in read_tensors(folder).items() if a.ndim > 1} for folder in trio
    )

    def rms(one: dict, other: dict) -> float:
        return float(np.sqrt(np.mean([np.sum((one[n] - other[n]) ** 2) / np.sum(r[n] ** 2) for n in r])))

    assert distances.donor_reference == pytest.approx(rms(d, r), rel=0.1)
    assert distances.target_reference == pytest.approx(rms(t, r), rel=0.1)
    assert distances.donor_target == pytest.approx(rms(d, t), rel=0.1)


@pytest.mark.parametrize("dtype", ["F16", "F32", "F64", "F8_E4M3", "F8_E5M2"])
def test_every_float_type(tmp_path: Path, dtype: str) -> None:
    trio = write_trio(tmp_path, dtype=dtype)
    assert findings(*trio) == ["note lineage"]


def test_mixed_types_and_heads(tmp_path: Path) -> None:
    trio = write_trio(tmp_path, dtypes=("F32", "BF16", "BF16"), tied=False, donor_tied=True)
    assert findings(*trio) == ["note lineage"]


def test_a_very_sparse_step_is_no_zero(trio: Trio, tmp_path: Path) -> None:
    """One element in a thousand, away from the blocks of the first sample."""
    tensors = {n: a.copy() for n, a in read_tensors(trio.reference).items()}
    for array in tensors.values():
        flat = array.reshape(-1)
        flat[7] = flat[7] + DTYPES["BF16"].type(0.01)
    shutil.copytree(trio.reference, tmp_path / "sparse")
    write_weights(tmp_path / "sparse", tensors)
    assert findings(trio.target, tmp_path / "sparse", trio.reference) == ["note lineage"]


def test_non_finite_values_are_left_out(trio: Trio, tmp_path: Path) -> None:
    tensors = {n: a.copy() for n, a in read_tensors(trio.donor).items()}
    for number, array in enumerate(tensors.values()):
        array.reshape(-1)[:: number + 2] = (np.nan, np.inf, -np.inf)[number % 3]
    shutil.copytree(trio.donor, tmp_path / "holes")
    write_weights(tmp_path / "holes", tensors)
    with np.errstate(all="raise"):
        assert findings(trio.target, tmp_path / "holes", trio.reference) == ["note lineage"]


def test_nothing_to_compare(tmp_path: Path) -> None:
    for name, array in (("t", np.zeros((4, 4), np.float32)), ("d", np.zeros((0, 4), np.float32))):
        write_weights(tmp_path / name, {"x": array})
    shutil.copytree(tmp_path / "t", tmp_path / "u")
    shutil.copytree(tmp_path / "t", tmp_path / "v")
    assert findings(tmp_path / "t", tmp_path / "u", tmp_path / "v") == []
    assert findings(tmp_path / "t", tmp_path / "d", tmp_path / "u") == []


def test_integer_tensors_that_differ(trio: Trio) -> None:
    for number, folder in enumerate(trio):
        tensors = dict(read_tensors(folder))
        tensors["model.mask"] = np.arange(4) % 2 == 0
        tensors["model.positions"] = np.arange(8) + (number == 1)
        write_weights(folder, tensors)
    found = lineage(*map(open_checkpoint, trio))
    assert [f"{f.level} {f.id}" for f in found] == ["warning non-float-differs", "note lineage"]
    assert "`model.positions`" in found[0].message
    assert "donor" in found[0].subject
    assert "model.mask" not in found[0].message


def test_integer_tensors_that_differ_in_a_merge_are_told(trio: Trio) -> None:
    for number, folder in enumerate(trio):
        write_weights(folder, {**read_tensors(folder), "model.position_ids": np.arange(8) + (number == 1)})
    merge = tv.linear([trio.target, trio.donor, trio.reference], weight=0.5)
    found = {each.id: each for each in merge.plan().findings}
    assert "`model.position_ids` differ" in found["non-float-differs"].message
    assert found["non-float-differs"].subject == "integer tensors of " + str(trio.donor)


def test_what_is_not_compared_is_not_called_equal(trio: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskvec.compat.integers.MOST_BYTES", 100)
    for number, folder in enumerate(trio):
        tensors = {"model.position_ids": np.arange(8), "model.token_type_ids": np.arange(8) + number}
        write_weights(folder, {**read_tensors(folder), **tensors})
    found = {each.id: each for each in lineage(*map(open_checkpoint, trio))}
    assert "non-float-differs" not in found
    assert "`model.token_type_ids` are too large to be compared" in found["non-float"].message


def test_the_sample_is_small() -> None:
    assert TENSORS * BLOCKS * ELEMENTS * 2 <= 64 << 10
