"""Was the step really added? Each answer against merges that NumPy and PEFT's arithmetic make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import taskvec as tv
from support.command_line import invoke
from support.families import write_adapter, write_model
from support.models import Trio

BF16 = ml_dtypes.bfloat16


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {
        name: array
        for file in sorted(Path(folder).glob("*.safetensors"))
        for name, array in load_file(file).items()
    }


def write(folder: Path, base: Path, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    shutil.copy(base / "config.json", folder / "config.json")
    save_file(arrays, folder / "model.safetensors")
    return folder


def added(
    base: Path, donor: Path, alpha: float, *, without: str = "-", dtype: type = BF16
) -> dict[str, np.ndarray]:
    """base + alpha * (donor - base) in float64, rounded once."""
    b, d = tensors(base), tensors(donor)
    return {
        name: array if without in name
        else (array.astype("f8") + alpha * (d[name].astype("f8") - array.astype("f8"))).astype(dtype)
        for name, array in b.items()
    }  # fmt: skip


@pytest.mark.parametrize("alpha", [1.0, 0.5, -0.3, 2.0])
def test_a_merge_is_found_with_its_factor(trio: Trio, tmp_path: Path, alpha: float) -> None:
    place = write(tmp_path / "merged", trio.reference, added(trio.reference, trio.donor, alpha))
    found = tv.check_merge(trio.reference, trio.donor, place)
    assert found.verdict == "added", found.to_dict()
    assert found.alpha == pytest.approx(alpha, rel=0.01)
    assert set(found.counts) <= {"added", "no-step", "rounded-away"}
    assert tv.check_merge(trio.reference, trio.donor, place, alpha=alpha)
    wrong = tv.check_merge(trio.reference, trio.donor, place, alpha=alpha + 0.5)
    assert wrong.verdict == "wrong-alpha"


def test_our_own_transfer_is_one(trio: Trio, tmp_path: Path) -> None:
    tv.transfer(trio.reference, trio.donor, trio.reference, tmp_path / "out", alpha=0.8)
    found = tv.check_merge(trio.reference, trio.donor, tmp_path / "out")
    assert found.ok
    assert found.alpha == pytest.approx(0.8, rel=0.01)


@pytest.mark.parametrize("layers", [None, "0"])
@pytest.mark.parametrize("alpha", [1.0, 0.5, -2.0])
def test_a_saved_vector_on_another_model(
    trio: Trio, tmp_path: Path, alpha: float, layers: str | None
) -> None:
    """The target and not the reference is what a vector was added to; NumPy adds it here."""
    vector = tmp_path / "v.vec"
    tv.extract(trio.donor, trio.reference, vector, layers=layers)
    t, d, r = tensors(trio.target), tensors(trio.donor), tensors(trio.reference)
    arrays = {
        name: (array.astype("f8") + alpha * (d[name].astype("f8") - r[name].astype("f8"))).astype(BF16)
        if layers is None or ".layers.0." in name
        else array
        for name, array in t.items()
    }
    place = write(tmp_path / "merged", trio.target, arrays)
    found = tv.check_merge(trio.target, vector, place, alpha=alpha)
    assert found.verdict == "added", found.to_dict()
    assert {name for name, each in found.tensors.items() if each.status == "added"} <= {
        name for name in t if (t[name] != arrays[name]).any()
    }
    name = next(name for name in arrays if ".layers.0.mlp" in name and (arrays[name] != t[name]).any())
    part = write(tmp_path / "part", trio.target, {**arrays, name: t[name]})
    assert tv.check_merge(trio.target, vector, part).tensors[name].status == "base"
    assert tv.check_merge(trio.target, vector, trio.target).verdict == "not-added"
    assert not tv.check_merge(trio.reference, vector, place), "another base"


def test_a_base_that_was_saved_again_is_not_a_merge(trio: Trio) -> None:
    found = tv.check_merge(trio.reference, trio.donor, trio.reference)
    assert found.verdict == "not-added"
    assert found.counts.get("base")
    assert any("is the base" in guess for guess in found.guesses)


def test_modules_that_were_left_out_are_named(trio: Trio, tmp_path: Path) -> None:
    place = write(
        tmp_path / "m", trio.reference, added(trio.reference, trio.donor, 1.0, without="mlp.down_proj")
    )
    found = tv.check_merge(trio.reference, trio.donor, place)
    assert found.verdict == "partly-added"
    missing = {name for name, each in found.tensors.items() if each.status == "base"}
    assert missing == {name for name in found.tensors if "mlp.down_proj" in name}
    assert any("down_proj" in guess for guess in found.guesses)


def test_different_factors_are_several(trio: Trio, tmp_path: Path) -> None:
    one, two = added(trio.reference, trio.donor, 1.0), added(trio.reference, trio.donor, 0.5)
    both = {name: (one if "layers.0" in name else two)[name] for name in one}
    found = tv.check_merge(trio.reference, trio.donor, write(tmp_path / "m", trio.reference, both))
    assert found.verdict == "several-alphas"


def test_another_base_is_seen(trio: Trio, tmp_path: Path) -> None:
    place = write(tmp_path / "m", trio.target, added(trio.target, trio.donor, 0.3))
    found = tv.check_merge(trio.reference, trio.donor, place)
    assert found.verdict == "other"
    assert found.guesses


def test_a_step_below_the_type_is_not_called_missing(trio: Trio, tmp_path: Path) -> None:
    base = tensors(trio.reference)
    small = {name: array.astype("f4") * np.float32(1 + 2.0**-14) for name, array in base.items()}
    donor = write(tmp_path / "near", trio.reference, small)
    found = tv.check_merge(trio.reference, donor, trio.reference)
    assert found.verdict == "not-added"
    assert set(found.counts) == {"rounded-away"}


def test_one_element_that_was_changed_by_hand_is_another_model(trio: Trio, tmp_path: Path) -> None:
    arrays = added(trio.reference, trio.donor, 1.0)
    name = next(name for name in arrays if "down_proj" in name)
    flat = arrays[name].reshape(-1).copy()
    flat[: max(2, flat.size // 100)] = BF16(3.0)
    arrays[name] = flat.reshape(arrays[name].shape)
    found = tv.check_merge(trio.reference, trio.donor, write(tmp_path / "m", trio.reference, arrays))
    assert found.verdict == "other"
    assert found.tensors[name].status == "other"


# --- adapters ---------------------------------------------------------------------------------------------
LAYERS, RANK = 2, 2


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, Path]:
    base = write_model(tmp_path / "base", "qwen2", LAYERS, seed=1)
    return base, write_adapter(tmp_path / "lora", "qwen2", LAYERS, rank=RANK)


def merged(base: Path, lora: Path, scale: float, *, twice: bool = False) -> dict[str, np.ndarray]:
    """base + scale * B A; ``twice`` rounds the product to bfloat16 first, as tools do that merge in place."""
    arrays, factors = tensors(base), load_file(lora / "adapter_model.safetensors")
    for key in [key for key in factors if key.endswith("lora_A.weight")]:
        name = key.removeprefix("base_model.model.").replace(".lora_A", "")
        product = scale * (factors[key.replace("lora_A", "lora_B")].astype("f8") @ factors[key].astype("f8"))
        product = product.astype(BF16).astype("f8") if twice else product
        arrays[name] = (arrays[name].astype("f8") + product).astype(BF16)
    return arrays


@pytest.mark.parametrize("twice", [False, True])
def test_an_adapter_that_was_merged(adapter: tuple[Path, Path], tmp_path: Path, twice: bool) -> None:
    base, lora = adapter
    place = write(tmp_path / "m", base, merged(base, lora, 4 / RANK, twice=twice))
    found = tv.check_merge(base, lora, place)
    assert found.verdict == "added", found.to_dict()
    assert found.alpha == pytest.approx(1.0, rel=0.01)
    assert found.counts["added"] == LAYERS


@pytest.mark.parametrize(
    ("scale", "words"),
    [(4 / RANK**0.5, "sqrt(r)"), (1.0, "left out"), (-4 / RANK, "subtracted")],
)
def test_usual_mistakes_in_the_scale_are_named(
    adapter: tuple[Path, Path], tmp_path: Path, scale: float, words: str
) -> None:
    base, lora = adapter
    place = write(tmp_path / "m", base, merged(base, lora, scale))
    found = tv.check_merge(base, lora, place, alpha=1.0)
    assert found.verdict == "wrong-alpha"
    assert any(words in guess for guess in found.guesses), found.guesses


def test_an_adapter_that_was_not_merged(
    adapter: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, lora = adapter
    done = invoke(capsys, "check-merge", base, lora, base, "--json")
    assert done.code == 1
    record = json.loads(done.out)
    assert (record["verdict"], record["ok"], record["counts"]["base"]) == ("not-added", False, LAYERS)
    place = write(tmp_path / "m", base, merged(base, lora, 4 / RANK))
    done = invoke(capsys, "check-merge", base, lora, place)
    assert done.code == 0
    assert "added to every tensor" in done.out


def test_models_without_a_common_tensor(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_file({"x": np.zeros((2, 2), np.float32)}, other / "model.safetensors")
    (other / "config.json").write_text("{}")
    done = invoke(capsys, "check-merge", trio.reference, other, trio.donor)
    assert done.code == 2
    assert "hint:" in done.err


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["donor", "merged"])
def test_values_that_are_not_finite_are_not_compared(which: str, value: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = {f"model.layers.{n}.a.weight": rng.standard_normal((8, 8)).astype(np.float32) for n in range(2)}
    step = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in base}
    sides = {"base": base, "donor": {n: base[n] + step[n] for n in base}}
    sides["merged"] = {name: array.copy() for name, array in sides["donor"].items()}
    sides[which]["model.layers.0.a.weight"][1, 1] = value
    for folder, arrays in sides.items():
        (tmp_path / folder).mkdir()
        save_file(arrays, tmp_path / folder / "model.safetensors")
    found = tv.check_merge(*(tmp_path / folder for folder in ("base", "donor", "merged")))
    assert {name: each.status for name, each in found.tensors.items()} == {
        "model.layers.0.a.weight": "other", "model.layers.1.a.weight": "added",
    }  # fmt: skip
    assert found.guesses == ("not compared: 1 tensor with values that are NaN or infinite",)
