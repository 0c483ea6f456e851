"""``diff``: every figure against NumPy, for checkpoints and for vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import taskvec as tv
from support.models import Trio, read_tensors, write_trio
from taskvec.models.tensor_names import module_of


def wide(folder: Path) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float64).reshape(-1) for name, array in read_tensors(folder).items()}


def test_figures_of_checkpoints_are_numpys(sharded_trio: Trio) -> None:
    found = tv.diff(sharded_trio.reference, sharded_trio.donor)
    r, d = wide(sharded_trio.reference), wide(sharded_trio.donor)
    assert set(found.tensors) == set(r)
    assert found.kind == "checkpoints"
    for name, pair in found.tensors.items():
        x, y = r[name], d[name]
        assert pair.relative_norm == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-4)
        assert pair.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-5)
        assert pair.changed == np.count_nonzero(x != y)
        assert pair.largest == pytest.approx(np.abs(x - y).max(), rel=1e-5)
    x, y = (np.concatenate([side[name] for name in r]) for side in (r, d))
    assert found.total.difference_norm == pytest.approx(np.linalg.norm(x - y), rel=1e-5)
    assert found.total.changed_share == np.count_nonzero(x != y) / x.size


def test_layers_and_modules_add_up(sharded_trio: Trio) -> None:
    found = tv.diff(sharded_trio.reference, sharded_trio.donor, exclude="bias")
    assert list(found.layers) == [None, 0, 1]
    assert "mlp.up_proj" in found.modules
    assert {"embed_tokens", "norm", "input_layernorm"} <= set(found.modules)
    for grouped in (found.layers, found.modules, found.grid):
        assert sum(pair.changed for pair in grouped.values()) == found.total.changed
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    assert found.modules["mlp.up_proj"].changed == sum(found.tensors[name].changed for name in names)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["total"]["changed"] == found.total.changed
    assert "elements differ" in str(found)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_known_and_not_zero(value: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ("model.layers.0.a.weight", "model.layers.0.b.weight")
    left = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in names}
    right = {name: array + np.float32(0.01) for name, array in left.items()}
    right[names[0]] = right[names[0]].copy()
    right[names[0]][3, 3] = value
    for folder, tensors in (("left", left), ("right", right)):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors")
    found = tv.diff(tmp_path / "left", tmp_path / "right")
    broken, whole = (found.tensors[name] for name in names)
    assert (broken.non_finite, broken.relative_norm, broken.cosine) == (1, None, None)
    x, y = (tensors[names[1]].astype(np.float64).ravel() for tensors in (left, right))
    assert whole.relative_norm == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-4)
    assert found.total.relative_norm is found.total.cosine is None
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    row = data["tensors"][0]
    assert row["right_norm"] is row["difference_norm"] is row["largest"] is None
    assert row["left_norm"] == pytest.approx(np.linalg.norm(left[names[0]].astype(np.float64)), rel=1e-5)


def test_the_same_checkpoint_does_not_differ(sharded_trio: Trio, tmp_path: Path) -> None:
    tv.transfer(*sharded_trio, tmp_path / "out", alpha=0)
    found = tv.diff(sharded_trio.target, tmp_path / "out")
    assert (found.total.changed, found.total.relative_norm) == (0, 0.0)
    assert found.total.cosine == pytest.approx(1.0)


def test_vectors_have_supports_and_signs(sharded_trio: Trio, tmp_path: Path) -> None:
    tv.extract(sharded_trio.donor, sharded_trio.reference, tmp_path / "v")
    tv.extract(sharded_trio.target, sharded_trio.reference, tmp_path / "w")
    found = tv.diff(tmp_path / "v", tmp_path / "w")
    assert found.kind == "vectors"
    t, d, r = map(wide, sharded_trio)
    for name, pair in found.tensors.items():
        x, y = d[name] - r[name], t[name] - r[name]
        both = (x != 0) & (y != 0)
        assert pair.both_nonzero == np.count_nonzero(both)
        either = np.count_nonzero((x != 0) | (y != 0))
        assert pair.overlap == (np.count_nonzero(both) / either if either else None)
        if pair.both_nonzero:
            assert pair.sign_agreement == np.count_nonzero((x * y)[both] > 0) / pair.both_nonzero
    lazy = tv.diff(
        tv.open(sharded_trio.donor) - tv.open(sharded_trio.reference),
        tv.load_vector(tmp_path / "w"),
    )
    assert lazy.total == found.total


def test_what_is_not_compared_is_named(tmp_path: Path) -> None:
    one = write_trio(tmp_path / "one", tied=False).target
    other = write_trio(tmp_path / "other", tied=True, layers=3).target
    found = tv.diff(one, other)
    assert found.unmatched["lm_head.weight"] == "only in the left"
    assert found.unmatched["model.layers.2.mlp.up_proj.weight"] == "only in the right"
    assert any(finding.level == "error" for finding in found.findings)
    wider = write_trio(tmp_path / "wider", hidden=64).target
    with pytest.raises(tv.CompatibilityError, match="no float tensor"):
        tv.diff(one, wider)


def test_a_vector_and_a_checkpoint_are_no_pair(sharded_trio: Trio, tmp_path: Path) -> None:
    tv.extract(sharded_trio.donor, sharded_trio.reference, tmp_path / "v")
    with pytest.raises(tv.RecipeError, match="cannot be compared"):
        tv.diff(tmp_path / "v", sharded_trio.donor)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "self_attn.q_proj"),
        ("model.layers.3.self_attn.q_proj.bias", "self_attn.q_proj.bias"),
        ("model.layers.3.mlp.experts.17.up_proj.weight", "mlp.experts.*.up_proj"),
        ("model.embed_tokens.weight", "embed_tokens"),
        ("lm_head.weight", "lm_head"),
        ("transformer.h.0.attn.c_attn.weight", "attn.c_attn"),
    ],
)
def test_modules_have_short_names(name: str, module: str) -> None:
    assert module_of(name) == module
