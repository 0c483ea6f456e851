"""Patches of reinforcement learning as donors: every known form, against NumPy; damaged ones are refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import taskvec as tv
from support.models import Trio

BF16 = ml_dtypes.bfloat16


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {
        name: array
        for file in sorted(Path(folder).glob("*.safetensors"))
        for name, array in load_file(file).items()
    }


def changes(base: Path, donor: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Positions and new values of what differs between two models."""
    one, two = tensors(base), tensors(donor)
    found = {}
    for name, array in one.items():
        places = np.flatnonzero(array.reshape(-1).view(np.uint16) != two[name].reshape(-1).view(np.uint16))
        if places.size:
            found[name] = places.astype(np.int32), two[name].reshape(-1)[places]
    return found


def as_published(place: Path, found: dict[str, Any]) -> Path:
    flat = {f"{name}.indices": places for name, (places, _) in found.items()}
    flat |= {f"{name}.values": values for name, (_, values) in found.items()}
    save_file(flat, place, metadata={"sparse": "True", "model_version": "11"})
    return place


def as_gaps(place: Path, found: dict[str, Any]) -> Path:
    flat = {}
    for name, (places, values) in found.items():
        gaps = np.diff(places.astype(np.int64), prepend=-1) - 1
        flat[f"{name}.idx"] = gaps.astype(np.uint16 if gaps.max() < 1 << 16 else np.uint32)
        flat[f"{name}.val"] = values
    save_file(flat, place, metadata={"encoding": "gap_delta"})
    return place


def as_prime(place: Path, found: dict[str, Any], base: Path, *, step: int = 2, base_step: int = 1) -> Path:
    place.mkdir()
    flat, entries, shapes = {}, [], tensors(base)
    for number, (name, (places, values)) in enumerate(found.items()):
        keys = {"indices": f"tensor_{number}.indices", "values": f"tensor_{number}.values"}
        flat[keys["indices"]], flat[keys["values"]] = places, values
        entries.append({"name": name, "shape": list(shapes[name].shape), "dtype": "bfloat16", **keys})
    save_file(flat, place / "sparse_update_patch.safetensors")
    manifest = {
        "format": "prime-rl-sparse-update", "version": 1, "step": step, "base_step": base_step,
        "compute_dtype": "bfloat16", "compressed": False, "patch_file": "sparse_update_patch.safetensors",
        "tensors": entries,
    }  # fmt: skip
    (place / "sparse_update_manifest.json").write_text(json.dumps(manifest))
    return place


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKVEC_SCRATCH", str(tmp_path / "scratch"))


@pytest.mark.parametrize("form", ["published", "gaps", "prime"])
def test_a_patch_is_a_donor(trio: Trio, tmp_path: Path, form: str) -> None:
    found = changes(trio.reference, trio.donor)
    writers = {
        "published": lambda: as_published(tmp_path / "p.safetensors", found),
        "gaps": lambda: as_gaps(tmp_path / "p.safetensors", found),
        "prime": lambda: as_prime(tmp_path / "step", found, trio.reference),
    }
    place = writers[form]()
    spec = f"{trio.reference}?patch={place}"
    with tv.storage(scratch=tmp_path / "scratch"):
        model = tv.open(spec)
        assert all(model[name].tobytes() == array.tobytes() for name, array in tensors(trio.donor).items())
        tv.transfer(trio.target, spec, trio.reference, tmp_path / "patched", alpha=0.5)
        tv.extract(spec, trio.reference, tmp_path / "vec")
    tv.transfer(*trio, tmp_path / "plain", alpha=0.5)
    one, two = tensors(tmp_path / "patched"), tensors(tmp_path / "plain")
    assert one.keys() == two.keys()
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    changed = json.loads((tmp_path / "vec" / "taskvec.json").read_text())["vector"]["changed"]
    assert changed <= sum(places.size for places, _ in found.values())
    assert changed > 0


def test_patches_follow_each_other(trio: Trio, tmp_path: Path) -> None:
    found = changes(trio.reference, trio.donor)
    names = list(found)
    first = as_prime(tmp_path / "one", {names[0]: found[names[0]]}, trio.reference, base_step=0, step=1)
    rest = {name: found[name] for name in names[1:]}
    second = as_prime(tmp_path / "two", rest, trio.reference, base_step=1, step=2)
    with tv.storage(scratch=tmp_path / "scratch"):
        tv.convert(f"{trio.reference}?patch={first}?patch={second}", tmp_path / "out")
        assert all(
            array.tobytes() == tensors(trio.donor)[name].tobytes()
            for name, array in tensors(tmp_path / "out").items()
        )
        with pytest.raises(tv.FormatError, match="leads from step 0 to 1") as caught:
            tv.open(f"{trio.reference}?patch={second}?patch={first}")
        assert caught.value.hint


def test_whole_tensors_and_a_wider_base(trio: Trio, tmp_path: Path) -> None:
    name = next(iter(changes(trio.reference, trio.donor)))
    whole = tensors(trio.donor)[name]
    other = next(each for each in changes(trio.reference, trio.donor) if each != name)
    places, values = changes(trio.reference, trio.donor)[other]
    save_file(
        {name: whole, f"{other}.indices": places, f"{other}.values": values}, tmp_path / "p.safetensors"
    )
    tv.convert(trio.reference, tmp_path / "wide", out_dtype="float32")
    with tv.storage(scratch=tmp_path / "scratch"):
        tv.convert(f"{tmp_path / 'wide'}?patch={tmp_path / 'p.safetensors'}", tmp_path / "out")
    found = tensors(tmp_path / "out")
    assert np.array_equal(found[name], whole.astype("f4"))
    assert np.array_equal(found[other].reshape(-1)[places], values.astype("f4"))


def damaged(name: str, base: Path, place: Path) -> None:
    shape = tensors(base)[name].shape
    last = int(np.prod(shape))
    flat = {f"{name}.indices": np.array([0, 1], np.int32), f"{name}.values": np.zeros(2, BF16)}
    changes_of: dict[str, Any] = {
        "beyond": {f"{name}.indices": np.array([0, last], np.int32)},
        "negative": {f"{name}.indices": np.array([-1, 1], np.int32)},
        "twice": {f"{name}.indices": np.array([1, 1], np.int32)},
        "counts": {f"{name}.values": np.zeros(3, BF16)},
        "floats": {f"{name}.indices": np.array([0, 1], np.float32)},
        "type": {f"{name}.values": np.zeros(2, np.float32)},
        "unknown": {"nobody.indices": np.array([0], np.int32), "nobody.values": np.zeros(1, BF16)},
        "whole number": {f"{name}.values": np.zeros(2, np.int64)},
        "more than all": {
            f"{name}.indices": np.zeros(last + 1, np.int32),
            f"{name}.values": np.zeros(last + 1, BF16),
        },
        "both forms": {f"{name}.idx": np.array([5], np.int32), f"{name}.val": np.zeros(1, BF16)},
        "whole too": {name: np.zeros(shape, BF16)},
        # their sum is 2^64 + 3, which comes back as position 3
        "gaps that pass the largest number": {
            f"{name}.idx": np.array([2**62] * 3 + [2**62 - 1], np.int64),
            f"{name}.val": np.zeros(4, BF16),
        },
    }
    metadata = {"encoding": "gap_delta"} if "gaps" in place.stem else None
    arrays = {**({} if "gaps" in place.stem else flat), **changes_of[place.stem]}
    save_file(arrays, place, metadata)


FAULTS = (
    "beyond", "negative", "twice", "counts", "floats", "type", "unknown", "whole number", "more than all",
    "both forms", "whole too", "gaps that pass the largest number",
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_a_patch_of_this_base_is_refused(trio: Trio, tmp_path: Path, fault: str) -> None:
    name = next(name for name in tensors(trio.reference) if "down_proj" in name)
    damaged(name, Path(trio.reference), tmp_path / f"{fault}.safetensors")
    with tv.storage(scratch=tmp_path / "scratch"), pytest.raises(tv.FormatError) as caught:
        tv.open(f"{trio.reference}?patch={tmp_path / f'{fault}.safetensors'}")
    assert caught.value.hint
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))


def test_a_model_is_not_a_patch(trio: Trio, tmp_path: Path) -> None:
    with tv.storage(scratch=tmp_path / "scratch"):
        for place in (next(Path(trio.donor).glob("*.safetensors")), trio.donor, tmp_path / "nothing"):
            with pytest.raises(tv.Error) as caught:
                tv.open(f"{trio.reference}?patch={place}")
            assert caught.value.hint


def test_positions_of_one_tensor_are_in_memory_at_a_time(tmp_path: Path) -> None:
    count, tensors_ = 300_000, 16
    random = np.random.default_rng(0)
    base = {f"layer{number}": random.standard_normal(count).astype(BF16) for number in range(tensors_)}
    patch: dict[str, np.ndarray] = {}
    for name in base:
        patch[f"{name}.indices"] = random.permutation(count).astype(np.int32)
        patch[f"{name}.values"] = random.standard_normal(count).astype(BF16)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    save_file(base, tmp_path / "base" / "model.safetensors")
    save_file(patch, tmp_path / "p.safetensors")
    with tv.storage(scratch=tmp_path / "scratch"):
        tracemalloc.start()
        found = tv.open(f"{tmp_path / 'base'}?patch={tmp_path / 'p.safetensors'}")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        for name, array in base.items():
            wanted = array.copy()
            wanted[patch[f"{name}.indices"]] = patch[f"{name}.values"]
            assert np.array_equal(found[name].view("u2"), wanted.view("u2"))
    # int64 positions and values of all tensors
    assert peak < tensors_ * count * (8 + 2) / 2
