"""Single files in one folder, and variants: which files count as input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.models import Trio, read_safetensors, safetensors_bytes
from taskvec.errors import FormatError, OutputError


@pytest.fixture
def models(trio: Trio, tmp_path: Path) -> Path:
    """A folder of three single files and of one that nobody asks for."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name, source in zip("abc", trio, strict=True):
        (folder / f"{name}.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    (folder / "unrelated.safetensors").write_bytes(b"no safetensors file at all")
    return folder


def files(folder: Path) -> list[Path]:
    return [folder / f"{name}.safetensors" for name in "abc"]


@pytest.mark.parametrize("alphas", [1.0, (0.5, 1.0)])
def test_the_output_may_lie_beside_its_inputs(models: Path, alphas: float | tuple[float, ...]) -> None:
    report = tv.transfer(*files(models), models / "merged", alpha=alphas)
    target, donor, reference = (read_safetensors(file) for file in files(models))
    out = read_safetensors(Path(report.outputs[-1].folder) / report.outputs[-1].shards[0].name)
    for name in target:
        exact = sum(
            sign * x[name].astype(np.float64) for sign, x in ((1, target), (1, donor), (-1, reference))
        )
        assert np.array_equal(out[name], exact.astype(np.float32).astype(target[name].dtype))


def test_a_vector_may_lie_beside_its_inputs(models: Path) -> None:
    target, donor, reference = files(models)
    tv.extract(donor, reference, models / "vector")
    tv.apply(target, models / "vector", out=models / "merged")


def test_the_folder_of_an_input_is_no_output(models: Path) -> None:
    with pytest.raises(OutputError, match="contains the input"):
        tv.transfer(*files(models), models, overwrite=True)
    assert all(file.exists() for file in files(models))


def test_an_output_within_a_model_is_refused(trio: Trio) -> None:
    with pytest.raises(OutputError, match="lies within the input"):
        tv.transfer(*trio, trio.target / "merged")


@pytest.mark.parametrize("name", ["model.safetensors.index.fp16.json", "model.safetensors.fp16.index.json"])
def test_a_variant(trio: Trio, tmp_path: Path, name: str) -> None:
    shard = safetensors_bytes({"a.weight": np.ones((2, 2), np.float16)})
    (trio.target / name).write_text('{"weight_map": {"a.weight": "model.fp16-00001-of-00001.safetensors"}}')
    (trio.target / "model.fp16-00001-of-00001.safetensors").write_bytes(shard)
    tv.transfer(*trio, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if "fp16" in path.name]
    (trio.target / "model.safetensors").unlink()
    with pytest.raises(FormatError, match="index of a variant") as caught:
        tv.open(trio.target)
    assert "`model.safetensors.index.json`" in str(caught.value.hint)
    (trio.target / name).rename(trio.target / "model.safetensors.index.json")
    assert list(tv.open(trio.target).keys()) == ["a.weight"]


def write_parts(folder: Path, seed: int) -> dict[str, np.ndarray]:
    """A model as two files of other names beside each other, without config.json and index."""
    draws = np.random.default_rng(seed)
    folder.mkdir()
    tensors: dict[str, np.ndarray] = {}
    for part in ("encoder", "decoder"):
        own = {f"{part}.{n}.weight": draws.normal(size=(6, 5)).astype(np.float32) for n in range(3)}
        own[f"{part}.steps"] = np.array([seed], np.int64)
        (folder / f"{part}.safetensors").write_bytes(safetensors_bytes(own))
        tensors |= own
    return tensors


@pytest.mark.parametrize("limit", [None, 200])
def test_files_beside_each_other_are_one_model(tmp_path: Path, limit: int | None) -> None:
    made = {name: write_parts(tmp_path / name, seed) for seed, name in enumerate("abc")}
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "a"),
        "models": [
            {"model": str(tmp_path / name), "parameters": {"weight": weight}}
            for name, weight in (("b", 0.5), ("c", -0.25))
        ],
    }
    out = tmp_path / "out"
    tv.merge(recipe, out, max_shard_size=limit)
    names = {path.name for path in out.glob("*.safetensors")}
    if limit is None:
        assert names == {"encoder.safetensors", "decoder.safetensors"}
    else:
        assert len(names) > 2
        assert all(name.startswith("model-") for name in names)
    assert [path.name for path in out.rglob("taskvec.json")] == ["taskvec.json"]
    # The index makes the output a model for every tool.
    listed = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    found: dict[str, np.ndarray] = {}
    for name in sorted(names):
        inside = read_safetensors(out / name)
        assert {tensor for tensor, file in listed.items() if file == name} == set(inside)
        found |= inside
    assert found.keys() == made["a"].keys()
    a, b, c = made.values()
    for name, array in found.items():
        if name.endswith("steps"):
            assert np.array_equal(array, a[name])
        else:
            exact = a[name] + 0.5 * (b[name] - a[name].astype(np.float64)) - 0.25 * (c[name] - a[name])
            np.testing.assert_allclose(array, exact, atol=1e-6)
    assert set(tv.open(out).keys()) == set(found)
    assert tv.verify(out).ok
    # As a transfer, and into a vector and back.
    tv.extract(tmp_path / "b", tmp_path / "c", tmp_path / "vector")
    tv.apply(tmp_path / "a", tmp_path / "vector", out=tmp_path / "applied")
    assert {path.name for path in (tmp_path / "applied").glob("*.safetensors")} == {
        "encoder.safetensors", "decoder.safetensors"
    }  # fmt: skip


def test_files_that_are_several_models_are_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_parts(folder, 1)
    (folder / "again.safetensors").write_bytes((folder / "encoder.safetensors").read_bytes())
    with pytest.raises(FormatError, match=r"is in both `again\.saf\S+ and `encoder\.saf") as caught:
        tv.open(folder)
    assert str(caught.value.hint) == "of several models, give the path of one file"
    # Parts of one file are not enough of it.
    (folder / "again.safetensors").rename(folder / "weights-00001-of-00003.safetensors")
    with pytest.raises(FormatError, match="no index"):
        tv.open(folder)
