"""``--layer-scale``: a gradient over the layers, times α, layer by layer against NumPy."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.command_line import invoke
from support.models import Trio, read_tensors, write_trio
from support.oracle import oracle, ulps

LAYERS = 5


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Trio:
    return write_trio(tmp_path_factory.mktemp("family"), layers=LAYERS, dtype="F32", tied=False)


@pytest.mark.parametrize("verb", ["transfer", "apply"])
@pytest.mark.parametrize(
    ("gradient", "expected"),
    [
        ("0,0.5,1", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("1,-1", (1.0, 0.5, 0.0, -0.5, -1.0)),
        ("0,0.5,1,0", (0.0, 0.375, 0.75, 0.75, 0.0)),
        ("0.5", (0.5,) * 5),
        ("0,1,0,1,0", (0.0, 1.0, 0.0, 1.0, 0.0)),
    ],
)
@pytest.mark.parametrize(
    ("options", "is_selected"),
    [
        ([], bool),
        (["--layers", "1-3"], lambda name: any(f"layers.{layer}." in name for layer in (1, 2, 3))),
        (["--preset", "no-embed-norm"], lambda name: not re.search("norm|embed|lm_head", name)),
        (["--layers", "0,4", "--preset", "no-embed"], re.compile(r"layers\.[04]\.").search),
    ],
    ids=["all", "layers", "preset", "both"],
)
def test_each_layer_has_its_factor(
    family: Trio,
    tmp_path: Path,
    verb: str,
    gradient: str,
    expected: tuple[float, ...],
    options: list[str],
    is_selected,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if verb == "apply":
        tv.extract(family.donor, family.reference, tmp_path / "vec")
        models = [family.target, tmp_path / "vec"]
    else:
        names = ("--target", "--donor", "--reference")
        models = [part for pair in zip(names, family, strict=True) for part in pair]
    arguments = ["--alpha", "0.8", "--layer-scale", gradient, *options]
    done = invoke(capsys, verb, *models, "-o", tmp_path / "out", *arguments)
    assert done.code == 0, done.err
    first, last = (float(part) for part in (gradient.split(",")[0], gradient.split(",")[-1]))
    target = read_tensors(family.target)
    for name, array in read_tensors(tmp_path / "out").items():
        layer = int(name.split(".")[2]) if ".layers." in name else None
        scale = expected[layer] if layer is not None else first if "embed" in name else last
        if not is_selected(name) or not scale:
            assert array.tobytes() == target[name].tobytes(), name
        else:
            assert ulps(array, oracle(family, 0.8 * scale, name, array.dtype)).max() <= 1, name
            assert not np.array_equal(array, target[name]), name


@pytest.mark.parametrize("gradient", ["", "x", "0,nan", "0,,1", "inf"])
def test_what_is_no_gradient(
    family: Trio, tmp_path: Path, gradient: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("--target", "--donor", "--reference")
    models = [part for pair in zip(names, family, strict=True) for part in pair]
    done = invoke(capsys, "transfer", *models, "-o", tmp_path / "out", "--layer-scale", gradient)
    assert done.code == 2
    assert "layer" in done.err
    assert not (tmp_path / "out").exists()
