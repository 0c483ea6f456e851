"""What a vector is made of, against a few lines of float64 NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.models import qwen2_config, write_checkpoint
from taskvec.errors import RecipeError
from taskvec.lazy.composition import spectrum
from taskvec.models.tensor_groups import layer_groups, module_kind
from taskvec.report.composition_page import page, write

NAMES = [f"model.layers.{n}.{m}.weight" for n in range(4) for m in ("self_attn.q_proj", "mlp.up_proj")]
SHAPES = {**dict.fromkeys(NAMES, (16, 12)), "model.norm.weight": (12,), "model.embed_tokens.weight": (20, 12)}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    found = {}
    for name in ("base", "reference", "donor", "other"):
        tensors = {key: rng.normal(size=shape).astype(np.float32) for key, shape in SHAPES.items()}
        if name == "donor":
            tensors = {
                k: np.where(rng.random(v.shape) < 0.3, v, found["reference"][k]) for k, v in tensors.items()
            }
        found[name] = tensors
        write_checkpoint(folder / name, tensors, config=qwen2_config(layers=4))
    return folder, found


def step(found, one: str, other: str, names=SHAPES) -> np.ndarray:
    parts = [(found[one][n].astype(np.float64) - found[other][n]).reshape(-1) for n in names]
    return np.concatenate(parts)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


@pytest.fixture(scope="module")
def analysed(models):
    folder, _ = models
    return tv.analyse(
        folder / "donor", folder / "reference", sft=folder / "base", others=[folder / "other"], groups=2
    )


def test_norms_and_shares(models, analysed):
    found = models[1]
    whole = step(found, "donor", "reference")
    assert analysed.total.norm == pytest.approx(np.linalg.norm(whole))
    assert analysed.total.changed == np.count_nonzero(whole)
    for layer, row in analysed.layers.items():
        names = [n for n in SHAPES if (f".{layer}." in n if layer is not None else "layers" not in n)]
        own = step(found, "donor", "reference", names)
        assert row.norm == pytest.approx(np.linalg.norm(own))
        assert row.share == pytest.approx((own @ own) / (whole @ whole))
        assert row.largest == pytest.approx(np.abs(own).max())
    assert sum(row.share for row in analysed.kinds.values()) == pytest.approx(1)
    assert list(analysed.groups) == ["layers-0-1", "layers-2-3", "outside"]
    assert sum(row.share for row in analysed.groups.values()) == pytest.approx(1)


def test_how_concentrated_it_is(models, analysed):
    whole = np.sort(step(models[1], "donor", "reference") ** 2)[::-1]
    held = np.cumsum(whole) / whole.sum()
    for amount, share in analysed.total.top.items():
        count = amount / 100 * whole.size
        wanted = np.interp(count, np.arange(whole.size + 1), np.concatenate([[0], held]))
        assert share == pytest.approx(wanted, abs=2e-3)
    for share, part in analysed.total.needed.items():
        assert part == pytest.approx(np.searchsorted(held, share) / whole.size, abs=5e-3)


def test_ranks(models, analysed):
    for name in NAMES:
        matrix = models[1]["donor"][name].astype(np.float64) - models[1]["reference"][name]
        s = np.linalg.svd(matrix, compute_uv=False)
        p = s / s.sum()
        row = analysed.tensors[name].spectrum
        assert row.rank == pytest.approx(np.exp(-(p * np.log(p)).sum()))
        assert row.stable_rank == pytest.approx((s**2).sum() / s[0] ** 2)
        assert row.energy[4] == pytest.approx((s[:4] ** 2).sum() / (s**2).sum())
        assert row.full_rank == pytest.approx(12)
    rows = [(analysed.tensors[n], analysed.tensors[n].norm ** 2) for n in SHAPES if len(SHAPES[n]) == 2]
    mean = sum(r.spectrum.rank * square for r, square in rows) / sum(square for _, square in rows)
    assert analysed.total.spectrum.rank == pytest.approx(mean)
    assert spectrum(np.zeros((3, 4))) is None


def test_cosines_and_signs(models, analysed):
    found = models[1]
    v, s, w = (
        step(found, *pair) for pair in (("donor", "reference"), ("reference", "base"), ("other", "reference"))
    )
    both = (v != 0) & (s != 0)
    alike = analysed.total.alike["SFT"]
    assert alike.cosine == pytest.approx(cosine(v, s), abs=1e-9)
    assert alike.sign_agreement == pytest.approx((np.sign(v) == np.sign(s))[both].mean())
    assert analysed.cosines["SFT"]["other"] == pytest.approx(cosine(s, w), abs=1e-9)
    assert analysed.cosines["v"]["v"] == 1.0
    names = [n for n in SHAPES if ".2." in n]
    own = cosine(step(found, "donor", "reference", names), step(found, "reference", "base", names))
    assert analysed.layers[2].alike["SFT"].cosine == pytest.approx(own)


def test_a_vector_that_is_zero_has_no_shares(models):
    folder, _ = models
    found = tv.analyse(folder / "base", folder / "base", sft=folder / "other")
    assert found.total.share is None
    assert found.total.top is None
    assert found.total.spectrum is None
    assert found.total.alike["SFT"].cosine is None
    assert "not zero" in page(found)


def test_files_and_page(analysed, tmp_path):
    paths = write(analysed, tmp_path / "out")
    content = json.loads(paths[0].read_text())
    assert content["total"]["norm"] == analysed.total.norm
    assert [row["layer"] for row in content["layers"]] == [None, 0, 1, 2, 3]
    text = paths[1].read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert text.count('class="map"') == 4


def test_a_saved_vector_is_the_same(models, analysed, tmp_path):
    folder, _ = models
    tv.extract(folder / "donor", folder / "reference", tmp_path / "vec")
    tv.extract(folder / "reference", folder / "base", tmp_path / "sft")
    found = tv.analyse(tmp_path / "vec", sft=tmp_path / "sft")
    assert found.total.norm == pytest.approx(analysed.total.norm, rel=1e-6)
    assert found.total.alike["SFT"].cosine == pytest.approx(analysed.total.alike["SFT"].cosine)


def test_what_does_not_fit_is_refused(models, tmp_path):
    folder, _ = models
    tv.extract(folder / "donor", folder / "reference", tmp_path / "vec")
    with pytest.raises(RecipeError, match="needs a reference"):
        tv.analyse(folder / "donor")
    with pytest.raises(RecipeError, match="no reference of its own"):
        tv.analyse(tmp_path / "vec", folder / "reference")
    with pytest.raises(RecipeError, match="needs the reference"):
        tv.analyse(tmp_path / "vec", sft=folder / "base")
    with pytest.raises(RecipeError, match="4 layers"):
        tv.analyse(tmp_path / "vec", groups=5)
    with pytest.raises(RecipeError, match="1 or more"):
        tv.analyse(tmp_path / "vec", groups=0)


def test_groups_of_layers_and_kinds_of_module():
    names = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(7)] + ["lm_head.weight"]
    found = layer_groups(names, 3)
    assert list(found) == ["layers-0-1", "layers-2-3", "layers-4-6", "outside"]
    assert [name for own in found.values() for name in own] == names
    kinds = {
        "model.layers.0.input_layernorm.weight": "norms",
        "model.layers.0.post_attention_layernorm.weight": "norms",
        "model.layers.0.self_attn.q_norm.weight": "norms",
        "transformer.h.0.ln_1.weight": "norms",
        "model.layers.0.self_attn.o_proj.weight": "attention",
        "transformer.h.3.attn.c_attn.weight": "attention",
        "model.layers.0.mlp.experts.3.down_proj.weight": "feed-forward",
        "model.layers.0.block_sparse_moe.gate.weight": "feed-forward",
        "lm_head.weight": "vocabulary",
        "model.embed_tokens.weight": "vocabulary",
    }
    assert {name: module_kind(name) for name in kinds} == kinds
