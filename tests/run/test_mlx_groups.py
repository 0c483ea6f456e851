"""MLX in groups of 64 and 128 columns, of all widths: read and written as NumPy does it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.encoded import added, output, plan_of, same, stored, trio, unpacked, write_trio
from support.models import DTYPES, Trio, edit_json, read_tensors
from support.packed_integers import mlx as ways
from support.packed_models import Values, Way, expected, is_packed, packed_trio
from support.quantised import mlx
from taskvec import _core

GROUPS, BITS = (64, 128), (2, 3, 4, 5, 6, 8)
SHAPES = {"a": (192, 128), "b": (300, 384), "e": (3, 40, 256)}
SCALES = ("F16", "BF16", "F32")
each_size = pytest.mark.parametrize(("bits", "group"), [(bits, group) for group in GROUPS for bits in BITS])


def model(
    root: Path, bits: int, group: int, facts: dict[str, int]
) -> tuple[Trio, tuple[Values, Values, Values]]:
    way = Way("MLX", {}, *ways(bits, group), more={"quantization": facts})
    sizes = {"hidden": 256, "intermediate": 384, "heads": 4}
    trio_of, values = packed_trio(root, way, shards=2, **sizes)
    return trio_of, values


@each_size
def test_read(bits: int, group: int, tmp_path: Path) -> None:
    trio_of, values = model(tmp_path, bits, group, {"bits": bits, "group_size": group})
    opened = tv.open(trio_of.target)
    words = {packed.format.words for packed in opened.packed.values()}
    assert words == {f"MLX {bits} bits, group {group}, F16 scales and biases"}
    for name, value in values[0].items():
        assert np.array_equal(opened[name].astype(np.float32), value.astype(np.float32)), name
    tv.transfer(*trio_of, tmp_path / "out", out_dtype="bfloat16")
    out = read_tensors(tmp_path / "out")
    for name in values[0]:
        wanted = expected(values, name)
        assert out[name].dtype == DTYPES["BF16"]
        assert np.mean(out[name] != wanted) < 1e-3, name  # of float64; a tie may fall to the other side
        assert np.allclose(out[name].astype(np.float32), wanted.astype(np.float32), rtol=2**-7, atol=1e-6), (
            name
        )


@each_size
def test_read_without_a_config(bits: int, group: int, tmp_path: Path) -> None:
    """Headers show the product of bits and group; where others have it too, the config has to say which."""
    trio_of, values = model(tmp_path, bits, group, {"bits": bits, "group_size": group})
    edit_json(trio_of.target / "config.json", quantization=None)
    opened = tv.open(trio_of.target)
    alike = [b for b in BITS for g in (32, 64, 128) if b * g == bits * group]
    if len(alike) > 1:
        assert not opened.packed
        assert "`quantization` in config.json has to say which" in str(opened.unreadable)
    else:
        name = next(filter(is_packed, values[0]))
        assert np.array_equal(opened[name], values[0][name])


@each_size
def test_written(bits: int, group: int, tmp_path: Path) -> None:
    trio_of, values = model(tmp_path, bits, group, {"bits": bits, "group_size": group})
    report = tv.transfer(
        *trio_of, tmp_path / "out", alpha=0.75, out_dtype="target", force=["quantised-switch"]
    )
    assert report.survival is not None
    before, after = read_tensors(trio_of.target), read_tensors(tmp_path / "out")
    assert [(name, each.dtype, each.shape) for name, each in after.items()] == [
        (name, each.dtype, each.shape) for name, each in before.items()
    ]
    form = mlx(bits, group, "F16")
    for name in filter(is_packed, values[0]):
        ends = {"codes": name, **{end: f"{name[:-6]}{end}" for end in ("scales", "biases")}}
        own = {role: before[stored_name] for role, stored_name in ends.items()}
        x = added([each[name] for each in values], 0.75)
        same({role: after[stored_name] for role, stored_name in ends.items()}, form.better(x, own))


@each_size
@pytest.mark.parametrize("alpha", [0.75, 0.7])
def test_the_better_scale_of_each_group(bits: int, group: int, alpha: float, tmp_path: Path) -> None:
    form = mlx(bits, group, SCALES[(bits + group // 64) % 3])
    models = trio(form, SHAPES)
    folders, tensors = write_trio(tmp_path, form, models)
    _core.run(plan_of(form, SHAPES, folders, [tensors], alphas=[alpha]), tmp_path / "out")
    moved = 0
    for tensor, shape in SHAPES.items():
        own = models[0][tensor]
        got = unpacked(form, output(tmp_path / "out"), tensor)
        same(got, form.better(added([form.decode(each[tensor], shape) for each in models], alpha), own))
        moved += got["scales"].tobytes() != own["scales"].tobytes()
    assert moved


@each_size
def test_identities_to_the_byte(bits: int, group: int, tmp_path: Path) -> None:
    form = mlx(bits, group, "F16")
    target, donor, reference = trio(form, SHAPES)
    cases = {
        "alpha 0": ([target, donor, reference], 0.0, target),
        "donor is reference": ([target, reference, reference], 1.0, target),
        "target is reference": ([reference, donor, reference], 1.0, donor),
    }
    for case, (models, alpha, wanted) in cases.items():
        folders, tensors = write_trio(tmp_path / case, form, models)
        report = json.loads(
            _core.run(plan_of(form, SHAPES, folders, [tensors], alphas=[alpha]), tmp_path / case / "out")
        )
        assert report["outputs"]
        assert output(tmp_path / case / "out") == stored(form, wanted), case
