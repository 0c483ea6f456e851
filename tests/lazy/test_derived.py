"""Vectors made of a vector, against a few lines of float64 NumPy."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import taskvec as tv
from support.models import qwen2_config, write_checkpoint
from taskvec.errors import NonFiniteError, RecipeError
from taskvec.lazy.derived import Rule, derive

SHAPES = {
    "model.embed_tokens.weight": (24, 12),
    "model.layers.0.self_attn.q_proj.weight": (12, 12),
    "model.layers.0.mlp.up_proj.weight": (20, 12),
    "model.layers.0.input_layernorm.weight": (12,),
    "model.layers.1.self_attn.q_proj.weight": (12, 12),
    "model.norm.weight": (12,),
}


def model(folder: Path, seed: int, dtype: type = np.float32, *, near: dict | None = None) -> dict:
    rng = np.random.default_rng(seed)
    tensors = {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}
    if near is not None:  # a step on half of the elements, with many equal magnitudes
        tensors = {
            name: (value + rng.integers(-4, 5, value.shape) / 64 * (rng.random(value.shape) < 0.5)).astype(
                dtype
            )
            for name, value in near.items()
        }
    write_checkpoint(folder, tensors, config=qwen2_config())
    return tensors


@pytest.fixture(params=[np.float32, ml_dtypes.bfloat16, np.float64])
def made(tmp_path, request):
    base = model(tmp_path / "base", 1, request.param)
    reference = model(tmp_path / "reference", 2, request.param, near=base)
    donor = model(tmp_path / "donor", 3, request.param, near=reference)
    wide = np.float64 if request.param is np.float64 else np.float32
    names = list(tv.open(tmp_path / "reference").tensors)  # in the file's order, in which ties are taken
    v = {name: donor[name].astype(wide) - reference[name].astype(wide) for name in names}
    s = {name: reference[name].astype(wide) - base[name].astype(wide) for name in names}
    v, s = ({name: array.astype(np.float64) for name, array in each.items()} for each in (v, s))
    vector = tv.open(tmp_path / "donor") - tv.open(tmp_path / "reference")
    sft = tv.open(tmp_path / "reference") - tv.open(tmp_path / "base")
    return tmp_path, vector, sft, v, s


def flat(tensors: dict) -> np.ndarray:
    return np.concatenate([np.asarray(tensors[name], np.float64).reshape(-1) for name in sorted(SHAPES)])


def values(folder: str) -> dict:
    return dict(tv.load_vector(folder).items())


@pytest.mark.parametrize("amount", [1, 7, 30, 100])
def test_the_largest_elements_of_the_whole_vector(made, amount):
    folder, vector, _, v, _ = made
    found = derive(vector, {"top": Rule("top", amount)}, folder / "out")["top"]
    whole = np.concatenate([array.reshape(-1) for array in v.values()])
    count = min(np.count_nonzero(whole), round(amount / 100 * whole.size))
    kept = np.argsort(-np.abs(whole), kind="stable")[:count]
    wanted = np.zeros_like(whole)
    wanted[kept] = whole[kept]
    own = values(found.folder)
    assert np.array_equal(np.concatenate([own[name].reshape(-1) for name in v]), wanted)
    assert found.norm == pytest.approx(np.linalg.norm(wanted))
    assert found.cosine == pytest.approx(np.linalg.norm(wanted) / np.linalg.norm(whole))


@pytest.mark.parametrize("rank", [1, 3, 50])
def test_the_best_matrices_of_a_rank(made, rank):
    folder, vector, _, v, _ = made
    found = derive(vector, {"rank": Rule("rank", rank)}, folder / "out")["rank"]
    size = 0
    for name, array in values(found.folder).items():
        if v[name].ndim == 1:
            np.testing.assert_allclose(array, v[name], atol=1e-6)
            size += 4 * v[name].size
            continue
        u, s, w = np.linalg.svd(v[name])
        np.testing.assert_allclose(array, u[:, :rank][:, : len(s)] * s[:rank] @ w[: len(s)][:rank], atol=1e-5)
        size += 4 * min(rank, *v[name].shape) * sum(v[name].shape)
    assert found.bytes == size


def test_signs_with_one_scale_per_tensor(made):
    folder, vector, _, v, _ = made
    found = derive(vector, {"sign": Rule("sign")}, folder / "out")["sign"]
    for name, array in values(found.folder).items():
        scale = np.abs(v[name][v[name] != 0]).mean()
        np.testing.assert_allclose(array, np.sign(v[name]) * scale, rtol=1e-6)
    planes = sum((1 if np.all(a) else 2) * math.ceil(a.size / 8) + 4 for a in v.values())
    assert found.bytes == planes


def test_without_the_projection_on_another_vector(made):
    folder, vector, sft, v, s = made
    found = derive(vector, {"rest": Rule("without")}, folder / "out", other=sft)["rest"]
    one, other = flat(v), flat(s)
    wanted = one - one @ other / (other @ other) * other
    np.testing.assert_allclose(flat(values(found.folder)), wanted, atol=1e-6)
    assert abs(flat(values(found.folder)) @ other) < 1e-4
    assert found.cosine == pytest.approx(wanted @ one / np.linalg.norm(wanted) / np.linalg.norm(one))


def test_what_is_made_is_a_saved_vector_that_is_applied(made):
    folder, vector, _, v, _ = made
    found = derive(vector, {"top": Rule("top", 20), "sign": Rule("sign")}, folder / "out")
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["sign", "top"]
    for one in found.values():
        assert tv.verify(one.folder).ok
        out = folder / "applied"
        tv.apply(folder / "base", one.folder, out=out, overwrite=True, out_dtype="float32")
        base, step = dict(tv.open(folder / "base").items()), values(one.folder)
        for name, array in tv.open(out).items():
            wanted = np.asarray(base[name], np.float64) + step[name]
            np.testing.assert_allclose(np.asarray(array, np.float64), wanted, atol=1e-6)
    assert set(v) == set(SHAPES)


def test_what_cannot_be_made_leaves_nothing(made):
    folder, vector, sft, _, _ = made
    with pytest.raises(RecipeError, match="no other vector"):
        derive(vector, {"rest": Rule("without")}, folder / "out")
    with pytest.raises(RecipeError, match="is zero"):
        derive(vector, {"rest": Rule("without")}, folder / "out", other=sft - sft)
    assert not list((folder / "out").iterdir())
    for wrong in (("top", 0), ("top", 101), ("rank", 0), ("rank", 1.5)):
        with pytest.raises(RecipeError):
            Rule(*wrong)


def test_values_that_are_not_finite_are_named(tmp_path):
    base = model(tmp_path / "reference", 1)
    broken = {name: value.copy() for name, value in base.items()}
    broken["model.norm.weight"][3] = np.inf
    write_checkpoint(tmp_path / "donor", broken, config=qwen2_config())
    vector = tv.open(tmp_path / "donor") - tv.open(tmp_path / "reference")
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight"):
        derive(vector, {"sign": Rule("sign")}, tmp_path / "out")
