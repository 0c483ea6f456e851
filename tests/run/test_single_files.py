"""Single files in one folder, and variants: which files count as input."""

from __future__ import annotations

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
