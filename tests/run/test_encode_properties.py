"""What holds of packed output whatever the format: the better scale of two, and rounding by draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from support.encoded import added, output, parts_of, plan_of, same, trio, unpacked, write_trio
from support.quantised import FORMATS, Format, Parts, per_group, spread
from taskvec import _core

NAMES = [pytest.param(name, id=name.replace(" ", "-")) for name in FORMATS]
SHAPE = (192, 320)
SEEDS = 256
# Fresh scales that are powers of two or of few bits are never one unit of float32 away, nor are those of
# codes whose largest number is 1.
ONE_UNIT = [
    name
    for name, form in FORMATS.items()
    if form.scales == "F32" and form.rule not in ("ue8m0", "mlx") and form.top > 1
]


def errors(form: Format, x: np.ndarray, parts: Parts) -> np.ndarray:
    """Squared error of each group."""
    return per_group((form.decode(parts, x.shape).astype(np.float64) - x) ** 2, form.block, np.add.reduceat)


@pytest.mark.parametrize("alpha", [0.3, 1.0, -0.5])
@pytest.mark.parametrize("name", NAMES)
def test_the_better_of_two_is_never_worse_than_either(name: str, alpha: float, tmp_path: Path) -> None:
    form, shapes = FORMATS[name], {"a": SHAPE}
    models = trio(form, shapes, seed=3)
    folders, tensors = write_trio(tmp_path, form, models)
    _core.run(plan_of(form, shapes, folders, [tensors], alphas=[alpha]), tmp_path / "out")
    own, got = models[0]["a"], unpacked(form, output(tmp_path / "out"), "a")
    x = added([form.decode(model["a"], SHAPE) for model in models], alpha)
    if "global" in own and got["global"] != own["global"]:
        # under another scale of all scales the target's own mean something else
        same(got, form.quantise(x, got["global"][0]))
        return
    found, kept, new = (errors(form, x, each) for each in (got, *form.candidates(x, own)))
    # a fresh scale has to be better by more than a 1024th
    assert (found <= np.minimum(kept, new / (1 - 2.0**-10)) * (1 + 1e-6)).all()
    assert found.size < 100 or (found < kept).any()


@pytest.mark.parametrize("ulps", [-1, 1])
@pytest.mark.parametrize("name", ONE_UNIT)
def test_a_fresh_scale_one_unit_away_does_not_replace_the_targets(
    name: str, ulps: int, tmp_path: Path
) -> None:
    form, shape = FORMATS[name], (512, 640)
    # another rule than that of the file, which gives scales that differ in their last bits
    rule = "amax_448_reciprocal" if form.rule == "amax_448" else form.rule
    shapes = {"a": shape}
    models = trio(form, shapes, seed=4)
    own, donor, reference = (model["a"] for model in models)
    # only small elements take a step: the largest of each group stays, and with it the fresh scale
    numbers = form.unpack(own["codes"], shape[1])
    most = spread(per_group(np.abs(numbers), form.block, np.maximum.reduceat), shape, form.block)
    small = np.abs(numbers) < most / 2
    step = small & (np.random.default_rng(0).random(shape) < 0.3)
    units = form.unpack(reference["codes"], shape[1])
    donor.update(reference)
    donor["codes"] = form.pack(np.where(step, np.where(units == 1, 0, 1), units).astype(np.float32))
    own["scales"] = (own["scales"].view(np.uint32) + np.uint32(ulps % 2**32)).view(np.float32)
    folders, tensors = write_trio(tmp_path, form, models)
    _core.run(plan_of(form, shapes, folders, [tensors], alphas=[0.5], rule=rule), tmp_path / "out")
    got = unpacked(form, output(tmp_path / "out"), "a")
    x = added([form.decode(model["a"], shape) for model in models], 0.5)
    fresh = form.fresh(x)
    if rule == "amax_448_reciprocal":
        one, amax = np.float32(1), per_group(np.abs(x), form.block, np.maximum.reduceat)
        fresh = one / (one / amax * np.float32(448))
    away = fresh.view(np.uint32).astype(np.int64) - own["scales"].view(np.uint32)
    near = np.abs(away.reshape(own["scales"].shape)) <= 1
    assert (away != 0).any()
    assert (near & (away.reshape(near.shape) != 0)).any()
    assert got["scales"][near].tobytes() == own["scales"][near].tobytes()
    assert got["codes"].tobytes() != own["codes"].tobytes()


def many(plan: bytes, form: Format, count: int) -> bytes:
    """The plan with the tensor `a` under so many names, each of which draws by itself."""
    made = json.loads(plan)
    ends, rows = parts_of(form).values(), []
    for name, dtype, shape, _, operation, inputs, *part in made["tensors"]:
        stem, _, end = name.partition(".")
        if f".{end}" in ends:
            for index in range(count):
                packed = [[*part[0][:2], f"{stem}{index}.weight", part[0][3]]]
                rows.append([f"{stem}{index}.{end}", dtype, shape, 0, operation, inputs, *packed])
    return json.dumps(made | {"tensors": rows, "shards": ["model.safetensors"]}).encode()


@pytest.mark.parametrize("name", NAMES)
def test_rounding_by_draws_is_unbiased_and_keyed_by_element(name: str, tmp_path: Path) -> None:
    """The mean over many draws within three standard deviations; the same in any order of tiles."""
    form, shapes = FORMATS[name], {"a": (64, 128)}
    models = trio(form, shapes, share=1.0)
    folders, tensors = write_trio(tmp_path, form, models)
    x = added([form.decode(model["a"], shapes["a"]) for model in models], 0.5).astype(np.float64)
    found = []
    for seed in range(SEEDS // 64):
        plan = plan_of(form, shapes, folders, [tensors], alphas=[0.5], rounding="stochastic", seed=seed)
        _core.run(many(plan, form, 64), tmp_path / f"out-{seed}", threads=1)
        got = output(tmp_path / f"out-{seed}")
        found += [form.decode(unpacked(form, got, f"a{index}"), shapes["a"]) for index in range(64)]
    values = np.stack(found).astype(np.float64)
    mean, spread_of = values.mean(0) - x, ((values - x) ** 2).mean(0)
    assert abs(mean.sum()) < 3 * np.sqrt(spread_of.sum() / SEEDS)
    # each element that is found at both of the codes around it often enough
    low, high = values.min(0), values.max(0)
    ups = (values == high).sum(0)
    often = (high > low) & (ups >= 16) & (ups <= SEEDS - 16)
    assert ((low <= x * (1 + 1e-6 * np.sign(x))) & (x <= high * (1 + 1e-6 * np.sign(high))))[often].all()
    apart = mean[often] / np.sqrt(((x - low) * (high - x))[often] / SEEDS)
    assert often.mean() > 0.1
    assert (np.abs(apart) > 3).mean() < 0.01
    split = [{n: row} for n, row in tensors.items()][::-1]
    one, other = tmp_path / "one", tmp_path / "other"
    for out, files, threads in ((one, [tensors], 1), (other, split, 3)):
        plan = plan_of(form, shapes, folders, files, alphas=[0.5], rounding="stochastic", seed=3)
        _core.run(plan, out, threads=threads)
    assert output(one) == output(other)
