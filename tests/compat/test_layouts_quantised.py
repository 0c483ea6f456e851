"""Layouts in quantised checkpoints: selected parts, ragged experts, vocabularies, heads and predictors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import taskvec as tv
from support.layouts import (
    EXPERTS,
    INNER,
    LAYERS,
    LAYOUTS,
    Tensors,
    fused,
    load,
    near,
    one_by_one,
    plus,
    save,
)
from support.packed_floats import scaled
from support.packed_models import BY_NAME, Way, packed_tensors, plain_values

RNG = np.random.default_rng(11)
WIDE, HEADS, GROUPS, SIZE = 64, 4, 2, 32
ROWS = {"q_proj": HEADS * SIZE, "k_proj": GROUPS * SIZE, "v_proj": GROUPS * SIZE}
PHI3 = {
    "model_type": "phi3",
    "hidden_size": WIDE,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": SIZE,
    "num_hidden_layers": 1,
    "torch_dtype": "bfloat16",
}
FORMATS = ["block FP8, F32 scales", "CT INT4 group 32", "CT MXFP4", "CT NVFP4", "CT INT4 zero points"]
STEM = "model.layers.0.self_attn"


def numbers(*shape: int, size: float = 0.05) -> np.ndarray:
    return (RNG.standard_normal(shape, np.float32) * size).astype(ml_dtypes.bfloat16)


def attention() -> Tensors:
    weights = {f"{STEM}.{kind}.weight": numbers(rows, WIDE) for kind, rows in ROWS.items()}
    return {**weights, "model.norm.weight": numbers(WIDE)}


def joined(model: Tensors) -> Tensors:
    parts = [model[f"{STEM}.{kind}.weight"] for kind in ROWS]
    return {
        f"{STEM}.qkv_proj.weight": np.concatenate(parts),
        "model.norm.weight": model["model.norm.weight"],
    }


def quantisation(way: Way) -> dict[str, Any]:
    return {"quantization_config": dict(way.config)}


def rows_of(kind: str) -> slice:
    first = sum(ROWS[each] for each in list(ROWS)[: list(ROWS).index(kind)])
    return slice(first, first + ROWS[kind])


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_a_packed_tensor(tmp_path: Path, name: str, kind: str) -> None:
    """The others keep their codes and scales, down to groups that hold none of the selected rows."""
    way, whole = BY_NAME[name], f"{STEM}.qkv_proj.weight"
    reference = attention()
    donor = plus(reference, attention())
    stored = packed_tensors(joined(attention()), way)
    own = plain_values(stored, {whole: (256, WIDE), "model.norm.weight": (WIDE,)}, way)[whole]
    target = save(tmp_path / "t", stored, {**PHI3, **quantisation(way)})
    others = [save(tmp_path / role, each, PHI3) for role, each in (("d", donor), ("r", reference))]
    rows = rows_of(kind)
    single = f"{STEM}.{kind}.weight"
    wanted = own.astype(np.float64)
    wanted[rows] += donor[single].astype(np.float64) - reference[single].astype(np.float64)

    tv.transfer(target, *others, out=tmp_path / "plain", out_dtype="bfloat16", include=[kind])
    plain = load(tmp_path / "plain" / "model.safetensors")[whole]
    assert np.allclose(plain.astype(np.float64), wanted, rtol=2**-7, atol=1e-5)
    outside = np.ones(256, bool)
    outside[rows] = False
    assert plain[outside].tobytes() == own[outside].astype(ml_dtypes.bfloat16).tobytes()

    options = {"out_dtype": "target", "include": [kind], "force": ["quantised-lost"]}
    report = tv.transfer(target, *others, out=tmp_path / "packed", **options)
    found = load(tmp_path / "packed" / "model.safetensors")
    decoded = plain_values(found, {whole: (256, WIDE), "model.norm.weight": (WIDE,)}, way)[whole]
    step = np.abs(wanted[rows]).max() * (0.07 if "FP8" in name else 0.35)
    assert np.abs(decoded[rows] - wanted[rows]).max() <= step
    ids = {each.id for each in report.findings}
    is_cut = name.startswith("block") and kind != "q_proj"
    assert ("selection-groups" in ids) == (is_cut or name == "CT NVFP4")
    if name == "CT NVFP4":
        # one scale of all scales: outgrown by the selected rows, it is made again
        assert np.abs(decoded[outside] - own[outside]).max() <= np.abs(own[outside]).max() * 0.2
        return
    far = outside.copy()
    if is_cut:
        far[128:] = False
    assert decoded[far].tobytes() == own[far].tobytes()
    for part, value in stored.items():
        if part.startswith(f"{STEM}.") and value.ndim == 2 and "zero" not in part and "shape" not in part:
            each = value.shape[0] // 2 if name.startswith("block") and "scale" in part else value.shape[0]
            kept = far[:: 256 // value.shape[0]] if each != value.shape[0] else far
            assert value[kept].tobytes() == found[part][kept].tobytes(), part


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", ["block FP8, F32 scales", "CT MXFP4", "CT NVFP4"])
def test_equal_rows_become_the_donors_bytes_in_selected_groups_alone(
    tmp_path: Path, name: str, kind: str
) -> None:
    """Target and reference are one model: alpha 1 is the donor where a group is selected as a whole."""
    way, whole = BY_NAME[name], f"{STEM}.qkv_proj.weight"
    models = {role: packed_tensors(joined(attention()), way) for role in ("t", "d")}
    paths = [save(tmp_path / role, each, {**PHI3, **quantisation(way)}) for role, each in models.items()]
    tv.transfer(paths[0], paths[1], paths[0], out=tmp_path / "out", include=[kind])
    found = load(tmp_path / "out" / "model.safetensors")
    shapes = {whole: (256, WIDE), "model.norm.weight": (WIDE,)}
    own, theirs, got = (plain_values(each, shapes, way)[whole] for each in (*models.values(), found))
    rows, outside = rows_of(kind), np.ones(256, bool)
    outside[rows] = False
    if name == "CT MXFP4" or (name.startswith("block") and kind == "q_proj"):
        assert got[rows].tobytes() == theirs[rows].tobytes()
        assert got[outside].tobytes() == own[outside].tobytes()
    else:
        assert np.abs(got[rows] - theirs[rows]).max() <= np.abs(theirs).max() * 0.2
        assert np.abs(got[outside] - own[outside]).max() <= np.abs(own).max() * 0.2


RAGGED = 16
FP8 = {
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [RAGGED, RAGGED],
    },
}
_PACK, _UNPACK = scaled(".weight_scale_inv", (RAGGED, RAGGED))


def ragged(model: Tensors) -> Tensors:
    """The model with its experts in blocks of FP8, of which the last ones are cut off."""
    made: Tensors = {}
    for name, value in model.items():
        if ".experts." not in name:
            made[name] = value
            continue
        parts = [_PACK(each.astype(np.float32)) for each in value.reshape(-1, *value.shape[-2:])]
        for end, key in ((".weight", name), (".weight_scale_inv", f"{name}_scale_inv")):
            stack = np.stack([part[end] for part in parts])
            made[key] = stack if value.ndim == 3 else stack[0]
    return made


def values(model: Tensors) -> Tensors:
    made: Tensors = {}
    for name, value in model.items():
        if f"{name}_scale_inv" in model:
            scale = model[f"{name}_scale_inv"]
            wide = np.repeat(np.repeat(scale, RAGGED, -2), RAGGED, -1)
            made[name] = value.astype(np.float32) * wide[..., : value.shape[-2], : value.shape[-1]]
        elif not name.endswith("_scale_inv"):
            made[name] = value
    return made


@pytest.mark.parametrize("theirs", ["one by one", "fused", "transposed", "wrapped, fused"])
@pytest.mark.parametrize("mine", ["one by one", "fused"])
@pytest.mark.parametrize("out_dtype", ["bfloat16", "target"])
def test_ragged_experts(tmp_path: Path, mine: str, theirs: str, out_dtype: str) -> None:
    assert INNER % RAGGED
    reference = one_by_one()
    donor, stored = plus(reference, one_by_one()), ragged(LAYOUTS[mine](one_by_one()))
    own = values(stored)
    moved = {n: donor[n].astype(np.float64) - reference[n].astype(np.float64) for n in donor}
    moved = fused(moved) if mine == "fused" else moved
    wanted = {name: own[name].astype(np.float64) + moved[name] for name in own}
    target = save(tmp_path / "t", stored, FP8)
    others = [save(tmp_path / role, LAYOUTS[theirs](each)) for role, each in (("d", donor), ("r", reference))]
    tv.transfer(target, *others, out=tmp_path / "out", out_dtype=out_dtype, force=["quantised-lost"])
    found = load(tmp_path / "out" / "model.safetensors")
    if out_dtype == "bfloat16":
        near(found, {name: value.astype(ml_dtypes.bfloat16) for name, value in wanted.items()})
        return
    for name, value in values(found).items():
        expected = wanted[name]
        assert np.abs(value.astype(np.float64) - expected).max() <= np.abs(expected).max() * 0.07, name


@pytest.mark.parametrize("mine", ["one by one", "fused"])
def test_ragged_experts_of_donors(tmp_path: Path, mine: str) -> None:
    """Donor and reference are packed, blocks of the last rows cut off, and fused where the target is not."""
    other = "fused" if mine == "one by one" else "one by one"
    target, parts = one_by_one(), [ragged(LAYOUTS[other](one_by_one())) for _ in range(2)]
    decoded = [values(part) for part in parts]
    if other == "fused":
        stems = [f"model.layers.{layer}.mlp.experts" for layer in range(LAYERS)]
        for each in decoded:
            for stem in stems:
                up, down = each.pop(f"{stem}.gate_up_proj"), each.pop(f"{stem}.down_proj")
                for e in range(EXPERTS):
                    each[f"{stem}.{e}.gate_proj.weight"] = up[e][:INNER]
                    each[f"{stem}.{e}.up_proj.weight"] = up[e][INNER:]
                    each[f"{stem}.{e}.down_proj.weight"] = down[e]
    wanted = {
        name: (
            value.astype(np.float64)
            + decoded[0][name].astype(np.float64)
            - decoded[1][name].astype(np.float64)
        ).astype(ml_dtypes.bfloat16)
        for name, value in target.items()
    }
    paths = [save(tmp_path / "t", LAYOUTS[mine](target))]
    paths += [save(tmp_path / role, each, FP8) for role, each in zip("dr", parts, strict=True)]
    tv.transfer(*paths, out=tmp_path / "out", out_dtype="bfloat16")
    near(load(tmp_path / "out" / "model.safetensors"), LAYOUTS[mine](wanted))


EMBEDDING, HEAD, WORDS = "model.embed_tokens.weight", "lm_head.weight", 48


def dense(*, words: int = WORDS, head: bool = True) -> Tensors:
    weights = {EMBEDDING: numbers(words, WIDE), f"{STEM}.o_proj.weight": numbers(160, 192)}
    weights |= {"model.norm.weight": numbers(WIDE)}
    return {**weights, **({HEAD: numbers(words, WIDE)} if head else {})}


def config(way: Way, *, words: int = WORDS, tied: bool = False) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "hidden_size": WIDE,
        "num_hidden_layers": 1,
        "vocab_size": words,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        **quantisation(way),
    }


PAIR = ["block FP8, F32 scales", "CT INT4 group 32"]


class Case:
    """Three packed models, their values, and what a transfer of them gives."""

    def __init__(self, folder: Path, way: Way, models: list[Tensors], configs: list[dict]) -> None:
        self.stored = [packed_tensors(each, way) for each in models]
        self.values = [
            plain_values(stored, {name: value.shape for name, value in model.items()}, way)
            for stored, model in zip(self.stored, models, strict=True)
        ]
        self.paths = [
            save(folder / role, each, settings)
            for role, each, settings in zip("tdr", self.stored, configs, strict=True)
        ]
        self.folder = folder

    def step(self, name: str, rows: int | None = None) -> np.ndarray:
        donor, reference = (each[name][:rows].astype(np.float64) for each in self.values[1:])
        return donor - reference

    def run(self, **options: object) -> Tensors:
        out = self.folder / f"out {len(list(self.folder.iterdir()))}"
        self.report = tv.transfer(*self.paths, out=out, **options)
        return load(out / "model.safetensors")

    def check(self, found: Tensors, steps: dict[str, np.ndarray], kept: dict[str, np.ndarray]) -> None:
        """Tensors with their step within a rounding to bfloat16, and others to the byte."""
        for name, step in steps.items():
            wanted = self.values[0][name][: len(step)].astype(np.float64) + step
            assert np.allclose(found[name][: len(step)].astype(np.float64), wanted, rtol=2**-7, atol=1e-5), (
                name
            )
        for name, value in kept.items():
            assert found[name][len(found[name]) - len(value) :].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("name", PAIR)
def test_padded_vocabularies(tmp_path: Path, name: str) -> None:
    way = BY_NAME[name]
    models = [dense(words=WORDS + 8), dense(), dense()]
    configs = [config(way, words=len(each[HEAD])) for each in models]
    case = Case(tmp_path, way, models, configs)
    linear = f"{STEM}.o_proj.weight"
    plain = case.run(out_dtype="bfloat16")
    steps = {EMBEDDING: case.step(EMBEDDING), HEAD: case.step(HEAD), linear: case.step(linear)}
    rest = {each: models[0][each][WORDS:] for each in (EMBEDDING, HEAD)}
    case.check(plain, steps, rest)
    packed = case.run(out_dtype="target")
    del steps[linear]
    case.check(packed, steps, rest)
    assert any(each.id == "vocabulary-padded" for each in case.report.findings)
    assert {each: value.dtype for each, value in packed.items()} == {
        each: value.dtype for each, value in case.stored[0].items()
    }


@pytest.mark.parametrize("name", PAIR)
@pytest.mark.parametrize("tied", [(True, False), (False, True), (True, True)])
def test_tied_heads(tmp_path: Path, name: str, tied: tuple[bool, bool]) -> None:
    way = BY_NAME[name]
    models = [dense(head=not is_tied) for is_tied in (tied[0], tied[1], tied[1])]
    configs = [config(way, tied=is_tied) for is_tied in (tied[0], tied[1], tied[1])]
    case = Case(tmp_path, way, models, configs)
    for out_dtype in ("bfloat16", "target"):
        found = case.run(out_dtype=out_dtype)
        steps = {EMBEDDING: case.step(EMBEDDING)}
        if not tied[0]:
            steps[HEAD] = case.step(EMBEDDING if tied[1] else HEAD)
        case.check(found, steps, {})
        assert (HEAD in found) == (not tied[0])


@pytest.mark.parametrize("name", PAIR)
def test_stored_copies_of_predictors(tmp_path: Path, name: str) -> None:
    """Layers for further tokens: copies take the same vector, what the donor lacks keeps its codes."""
    way = BY_NAME[name]
    target, stem = dense(), "model.layers.1"
    target |= {
        f"{stem}.embed_tokens.weight": target[EMBEDDING],
        f"{stem}.shared_head.head.weight": target[HEAD],
    }
    target |= {f"{stem}.eh_proj.weight": numbers(160, 192), f"{stem}.enorm.weight": numbers(WIDE)}
    case = Case(tmp_path, way, [target, dense(), dense()], [config(way)] * 3)
    for out_dtype in ("bfloat16", "target"):
        found = case.run(out_dtype=out_dtype)
        steps = {EMBEDDING: case.step(EMBEDDING), HEAD: case.step(HEAD)}
        case.check(found, steps, {f"{stem}.enorm.weight": target[f"{stem}.enorm.weight"]})
        assert found[f"{stem}.embed_tokens.weight"].tobytes() == found[EMBEDDING].tobytes()
        assert found[f"{stem}.shared_head.head.weight"].tobytes() == found[HEAD].tobytes()
        assert any(each.id == "predictor-kept" for each in case.report.findings)
        if out_dtype == "target":
            own = {each: value for each, value in case.stored[0].items() if ".eh_proj." in each}
            assert own
            assert all(found[each].tobytes() == value.tobytes() for each, value in own.items())
