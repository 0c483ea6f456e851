"""Task vectors as things: added, scaled, selected, measured, saved and applied, against NumPy."""

from __future__ import annotations

import json
import math
import operator
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import taskvec as tv
from support.models import (
    Tensors,
    Trio,
    edit_json,
    family,
    read_tensors,
    tokenizer_json,
    write_tokenizer,
    write_trio,
)
from support.oracle import decode, narrow, same_files, ulps

Models = tuple[tv.Checkpoint, tv.Checkpoint, tv.Checkpoint]


@pytest.fixture
def models(sharded_trio: Trio) -> Models:
    """Target, donor and reference, opened."""
    target, donor, reference = map(tv.open, sharded_trio)
    return target, donor, reference


def wide(trio: Trio) -> list[Tensors]:
    """The three models in float64."""
    return [{n: a.astype(np.float64) for n, a in read_tensors(folder).items()} for folder in trio]


def flat(tensors: Tensors) -> np.ndarray:
    return np.concatenate([array.reshape(-1) for array in tensors.values()])


def test_the_operators_build_one_lazy_thing(models: Models) -> None:
    target, donor, reference = models
    vector = donor - reference
    assert isinstance(vector, tv.TaskVector)
    assert isinstance(target + 0.8 * vector, tv.Merge)
    weights = {
        "neg": -vector,
        "scaled": 0.5 * vector * 3,
        "halved": vector / 2,
        "twice": vector + vector,
        "none": vector - vector,
        "sum": sum([vector, vector, 0.5 * vector]),
        "apart": vector - 0.25 * (donor - reference),
    }
    expected = {
        "neg": -1.0, "scaled": 1.5, "halved": 0.5, "twice": 2.0, "none": 0.0, "sum": 2.5, "apart": 0.75,
    }  # fmt: skip
    for name, made in weights.items():
        assert [step.weight for step in made.steps] == [expected[name]], name
    assert vector.steps[0].weight == 1.0
    assert list(vector) == list(vector.keys()) == list(target)
    assert vector.tensors["model.norm.weight"] == (32,)
    assert "model.norm.weight" in vector
    assert len(vector) == len(target) == len(target + vector)


def test_a_merge_is_the_transfer(models: Models) -> None:
    target, donor, reference = models
    vector = donor - reference
    transfer = tv.plan_transfer(target, donor, reference, alpha=0.8)
    assert (target + 0.8 * vector).plan().json == transfer.json
    assert (target + 0.8 * vector).plan().recipe == transfer.recipe
    assert (target - -0.8 * vector).plan().json == transfer.json
    assert (target + vector).plan(alphas=0.8).json == transfer.json
    assert (target + vector).plan(alphas=[-1, 0]).outputs == tv.plan_transfer(*models, alpha="-1,0").outputs


def test_saving_a_sum_of_vectors(sharded_trio: Trio, models: Models, tmp_path: Path) -> None:
    target, donor, reference = models
    merged = target + 0.5 * (donor - reference) - 0.25 * (target - reference).select(include="mlp")
    merged.save(tmp_path / "out")
    t, d, r = wide(sharded_trio)
    for name, array in read_tensors(tmp_path / "out").items():
        other = 0.25 * (t[name] - r[name]) if "mlp" in name else 0.0
        expected = narrow(t[name] + 0.5 * (d[name] - r[name]) - other, array.dtype)
        assert ulps(array, expected).max() <= 1
    manifest = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    assert manifest["recipe"]["verb"] == "combine"
    assert manifest["command"] is None
    from taskvec.report.reproduce import python

    call = python(manifest["recipe"])
    assert call is not None
    exec(call.replace("'OUT'", repr(str(tmp_path / "again"))), {})
    same_files(tmp_path / "out", tmp_path / "again")


def test_alphas_scale_the_whole_sum(models: Models, tmp_path: Path) -> None:
    target, donor, reference = models
    merged = target + 0.5 * (donor - reference) + 0.5 * (reference - target)
    merged.save(tmp_path / "out", alphas=[0, 2])
    for name, array in read_tensors(tmp_path / "out" / "alpha=0").items():
        assert array.tobytes() == target[name].tobytes()
    for name, array in read_tensors(tmp_path / "out" / "alpha=2").items():
        assert ulps(array, donor[name]).max() <= 1


def test_norms_and_cosines_are_numpys(sharded_trio: Trio, models: Models) -> None:
    target, donor, reference = models
    t, d, r = wide(sharded_trio)
    v, w = donor - reference, 2 * (target - reference).select(exclude="norm")
    x = {name: d[name] - r[name] for name in d}
    y = {name: 2 * (t[name] - r[name]) * ("norm" not in name) for name in d}
    assert v.norm() == pytest.approx(np.linalg.norm(flat(x)), rel=1e-5)
    assert (3 * v - w).norm() == pytest.approx(np.linalg.norm(3 * flat(x) - flat(y)), rel=1e-5)
    cosine = flat(x) @ flat(y) / np.linalg.norm(flat(x)) / np.linalg.norm(flat(y))
    assert v.cosine(w) == pytest.approx(cosine, abs=1e-5)
    assert v.cosine(-v) == pytest.approx(-1.0)
    assert math.isnan(v.cosine(0 * v))
    stats = v.stats()
    assert stats.total.elements == flat(x).size
    assert stats.total.changed == np.count_nonzero(flat(x))
    assert stats.total.largest == pytest.approx(np.abs(flat(x)).max(), rel=1e-5)
    name = "model.layers.1.mlp.up_proj.weight"
    assert stats.tensors[name].norm == pytest.approx(np.linalg.norm(x[name]), rel=1e-5)
    pairs = v.compare(w)
    assert pairs[name].both_nonzero == np.count_nonzero(x[name] * y[name])
    assert pairs[name].same_sign == np.count_nonzero(x[name] * y[name] > 0)
    assert pairs["model.norm.weight"].right_nonzero == 0


def test_selections_combine(models: Models) -> None:
    _, donor, reference = models
    vector = (donor - reference).select(include=["mlp", "self_attn"]).select(include="weight", layers="1")
    expected = [n for n in donor if "layers.1." in n and ("mlp" in n or "self_attn" in n) and "weight" in n]
    assert list(vector) == expected
    assert list(vector.select(exclude="mlp")) == [name for name in expected if "mlp" not in name]
    assert list(vector.select(preset="no-embed")) == expected
    with pytest.raises(tv.RecipeError):
        vector.select(layers="0")
    with pytest.raises(tv.RecipeError):
        vector.select(include="no_such_tensor")


def test_wrong_pairs_raise_at_the_operator(tmp_path: Path, models: Models) -> None:
    target, donor, reference = models
    other = write_trio(tmp_path / "other", hidden=64)
    stranger, cousin = tv.open(other.donor), tv.open(other.reference)
    for wrong in (
        lambda: donor - cousin,
        lambda: target + (stranger - cousin),
        lambda: (donor - reference) + (stranger - cousin),
        lambda: (target + (donor - reference)) - (stranger - cousin),
    ):
        with pytest.raises(tv.CompatibilityError) as caught:
            wrong()
        assert [finding for finding in caught.value.findings if finding.level == "error"]
        assert caught.value.hint


def test_forced_findings_stay_forced(sharded_trio: Trio) -> None:
    edit_json(sharded_trio.donor / "config.json", rope_theta=1e4)
    target, donor, reference = map(tv.open, sharded_trio)
    with pytest.raises(tv.CompatibilityError):
        _ = donor - reference
    vector = tv.TaskVector.difference(donor, reference, force="config-function")
    assert (target + 0.5 * vector).plan().recipe["force"] == ["config-function"]


def test_meaningless_operations_are_type_errors(models: Models) -> None:
    target, donor, reference = models
    vector = donor - reference
    for left, calculate, right in [
        (vector, operator.add, 1),
        (vector, operator.mul, vector),
        (vector, operator.mul, True),
        (vector, operator.sub, target),
        (vector, operator.truediv, vector),
        (1, operator.sub, vector),
        (target + vector, operator.add, target),
        (target + vector, operator.sub, 1),
        (target, operator.add, target),
    ]:
        with pytest.raises(TypeError):
            calculate(left, right)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_factors_are_finite(models: Models, factor: float) -> None:
    _, donor, reference = models
    with pytest.raises(tv.RecipeError):
        _ = factor * (donor - reference)
    with pytest.raises(tv.RecipeError):
        _ = (donor - reference) / 0


def test_reprs_say_what_it_is(models: Models) -> None:
    target, donor, reference = models
    merged = target + -0.5 * (donor - reference)
    assert f"{target.spec} - 0.5 * (" in repr(merged)
    assert str(donor - reference) == f"({donor.spec} - {reference.spec})"
    assert str(-(donor - reference)) == f"-({donor.spec} - {reference.spec})"
    assert "donor" in repr(donor - reference)
    assert "tensors: 26" in repr(donor - reference)
    assert f"<td style='text-align:left'>{donor.spec}" not in merged._repr_html_()
    assert f"({donor.spec} - {reference.spec})</td>" in merged._repr_html_()


# --- saved vectors ---


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.15, 1.0])
def test_a_saved_vector_is_the_difference(tmp_path: Path, share: float, dtype: str) -> None:
    trio = family(tmp_path, share, dtype)
    report = tv.extract(trio.donor, trio.reference, tmp_path / "vec")
    _, d, r = wide(trio)
    for name, array in decode(tmp_path / "vec").items():
        assert np.array_equal(array.astype(np.float64), d[name] - r[name]), name
    assert report.vector is not None
    x = flat({name: d[name] - r[name] for name in d})
    assert report.vector["changed"] == np.count_nonzero(x)
    assert report.vector["norm"] == pytest.approx(np.linalg.norm(x), rel=1e-5)
    encodings = {row["encoding"] for row in report.vector["tensors"].values()}
    assert (
        encodings
        <= {0.0: {"zero"}, 0.01: {"index", "mask", "zero"}, 0.15: {"mask"}, 1.0: {"mask", "dense"}}[share]
    )
    if dtype == "BF16":
        limit = {0.0: 0.0, 0.01: 0.05, 0.15: 0.40, 1.0: 4.2}[share]
        assert report.vector["bytes"] <= limit * tv.open(trio.donor).total_bytes
    assert tv.verify(tmp_path / "vec").ok
    assert tv.verify(tmp_path / "vec").kind == "vector"


@pytest.mark.parametrize("alpha", [0.8, -1.5, 0.0, 1.0])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_applying_it_is_the_transfer(tmp_path: Path, dtype: str, alpha: float) -> None:
    trio = family(tmp_path, 0.2, dtype)
    tv.extract(trio.donor, trio.reference, tmp_path / "vec", max_shard_size=50_000)
    assert len(list((tmp_path / "vec").glob("*.safetensors"))) > 1
    tv.apply(trio.target, tmp_path / "vec", out=tmp_path / "applied", alpha=alpha)
    tv.transfer(*trio, tmp_path / "transferred", alpha=alpha)
    for path in (tmp_path / "transferred").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "applied" / path.name).read_bytes()


def test_a_saved_vector_is_a_vector(sharded_trio: Trio, models: Models, tmp_path: Path) -> None:
    target, donor, reference = models
    (donor - reference).save(tmp_path / "vec")
    vector = tv.load_vector(tmp_path / "vec")
    assert list(vector) == list(donor - reference)
    assert vector.tensors == (donor - reference).tensors
    assert vector.norm() == pytest.approx((donor - reference).norm())
    assert vector.cosine(donor - reference) == pytest.approx(1.0)
    (target + 0.5 * vector).save(tmp_path / "one")
    (target + 0.5 * (donor - reference)).save(tmp_path / "other")
    assert {p.name: p.read_bytes() for p in (tmp_path / "one").glob("*.safetensors")} == {
        p.name: p.read_bytes() for p in (tmp_path / "other").glob("*.safetensors")
    }
    mixed = target + vector - 0.5 * (donor - reference)
    mixed.save(tmp_path / "mixed")
    t, d, r = wide(sharded_trio)
    for name, array in read_tensors(tmp_path / "mixed").items():
        assert ulps(array, narrow(t[name] + 0.5 * (d[name] - r[name]), array.dtype)).max() <= 1


def test_several_vectors_in_one_pass(sharded_trio: Trio, tmp_path: Path) -> None:
    tv.extract(sharded_trio.donor, sharded_trio.reference, tmp_path / "a")
    tv.extract(sharded_trio.target, sharded_trio.reference, tmp_path / "b", include="mlp")
    report = tv.apply(
        sharded_trio.target, tmp_path / "a", tmp_path / "b", out=tmp_path / "out", alpha=[0.5, -0.25]
    )
    t, d, r = wide(sharded_trio)
    for name, array in read_tensors(tmp_path / "out").items():
        other = 0.25 * (t[name] - r[name]) if "mlp" in name else 0.0
        assert ulps(array, narrow(t[name] + 0.5 * (d[name] - r[name]) - other, array.dtype)).max() <= 1
    manifest = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    assert manifest["recipe"]["weights"] == [0.5, -0.25]
    assert manifest["command"].endswith("-o OUT --alpha=0.5,-0.25")
    assert len(report.outputs) == 1
    tv.apply(sharded_trio.target, tmp_path / "a", tmp_path / "b", out=tmp_path / "same", alpha=0.5)
    with pytest.raises(tv.RecipeError, match="3 values of alpha"):
        tv.apply(sharded_trio.target, tmp_path / "a", tmp_path / "b", out=tmp_path / "no", alpha=[1, 2, 3])
    tv.apply(sharded_trio.target, tmp_path / "a", out=tmp_path / "many", alpha=[0, 1])
    assert sorted(os.listdir(tmp_path / "many")) == ["alpha=0", "alpha=1"]


def test_a_lossy_type_is_a_named_choice(tmp_path: Path) -> None:
    trio = family(tmp_path, 1.0, "F32")
    report = tv.extract(trio.donor, trio.reference, tmp_path / "vec", dtype="bfloat16")
    assert report.vector is not None
    assert report.vector["dtype"] == "BF16"
    _, d, r = wide(trio)
    for name, array in decode(tmp_path / "vec").items():
        assert np.array_equal(array.astype(ml_dtypes.bfloat16), narrow(d[name] - r[name], array.dtype))


def test_a_vector_is_checked_before_weights_are_read(sharded_trio: Trio, tmp_path: Path) -> None:
    tv.extract(sharded_trio.donor, sharded_trio.reference, tmp_path / "vec")
    wider = write_trio(tmp_path / "wider", hidden=64)
    with pytest.raises(tv.CompatibilityError, match=r"hidden_size|shape"):
        tv.apply(wider.target, tmp_path / "vec", out=tmp_path / "out")
    write_tokenizer(sharded_trio.target, tokenizer_json(merges=["B A", "BA C"]))
    with pytest.raises(tv.CompatibilityError) as caught:
        tv.apply(sharded_trio.target, tmp_path / "vec", out=tmp_path / "out")
    errors = [finding.id for finding in caught.value.findings if finding.level == "error"]
    assert errors == ["tokenizer-vocabulary", "tokenizer-merges"]
    assert not (tmp_path / "out").exists()


def test_a_selected_vector_leaves_the_rest_alone(sharded_trio: Trio, tmp_path: Path) -> None:
    tv.extract(sharded_trio.donor, sharded_trio.reference, tmp_path / "vec", exclude="mlp")
    tv.apply(sharded_trio.target, tmp_path / "vec", out=tmp_path / "out", exclude="norm")
    tv.transfer(*sharded_trio, tmp_path / "transferred", exclude=["mlp", "norm"])
    for path in (tmp_path / "transferred").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_only_a_difference_can_be_saved(models: Models, tmp_path: Path) -> None:
    target, donor, reference = models
    for vector in (0.5 * (donor - reference), (donor - reference) + (target - reference)):
        with pytest.raises(tv.RecipeError, match="cannot be saved"):
            vector.save(tmp_path / "vec")


def test_a_checkpoint_is_no_vector(sharded_trio: Trio, tmp_path: Path) -> None:
    tv.transfer(*sharded_trio, tmp_path / "out")
    with pytest.raises(tv.FormatError, match="is a checkpoint, expected a saved task vector"):
        tv.load_vector(tmp_path / "out")
    with pytest.raises(tv.NotFoundError, match="is a checkpoint, expected a saved task vector"):
        tv.load_vector(sharded_trio.target)


def damaged_rows():
    """Changes to the description of one tensor, each of which is a lie."""
    return [
        {"encoding": "sparse"}, {"encoding": "dense"}, {"encoding": "zero"}, {"shape": [1]}, {"shape": "x"},
        {"shape": [-1]}, {"elements": 5}, {"dtype": "I32"}, {"origin": "x"}, {"file": 5}, {"bytes": -1},
        {"changed": None},
    ]  # fmt: skip


@pytest.mark.parametrize("change", damaged_rows(), ids=str)
def test_a_damaged_description_is_refused(tmp_path: Path, change: dict) -> None:
    trio = family(tmp_path, 0.15)
    tv.extract(trio.donor, trio.reference, tmp_path / "vec")
    path = tmp_path / "vec" / "taskvec.json"
    data = json.loads(path.read_text())
    data["vector"]["tensors"]["model.layers.0.mlp.up_proj.weight"].update(change)
    path.write_text(json.dumps(data))
    with pytest.raises(tv.FormatError):
        tv.load_vector(tmp_path / "vec")


@pytest.mark.parametrize("shape", [[1 << 62, 4], [1 << 63, 2], [1 << 56], [1 << 70, 0]], ids=str)
def test_a_shape_that_no_tensor_has_is_refused(tmp_path: Path, shape: list[int]) -> None:
    """Its product is beyond what the engine counts with; the manifest does not contradict itself."""
    trio = family(tmp_path, 0.15)
    tv.extract(trio.donor, trio.reference, tmp_path / "vec")
    path = tmp_path / "vec" / "taskvec.json"
    data = json.loads(path.read_text())
    row = next(row for row in data["vector"]["tensors"].values() if row["encoding"] in ("mask", "index"))
    data["vector"]["elements"] += math.prod(shape) - row["elements"]
    row.update(shape=shape, elements=math.prod(shape))
    path.write_text(json.dumps(data))
    with pytest.raises(tv.FormatError, match=r"damaged description of .*: `(elements|shape)` is"):
        tv.load_vector(tmp_path / "vec")


def test_missing_and_surplus_tensors_are_refused(tmp_path: Path) -> None:
    trio = family(tmp_path, 0.15)
    tv.extract(trio.donor, trio.reference, tmp_path / "vec")
    path = tmp_path / "vec" / "taskvec.json"
    data = json.loads(path.read_text())
    row = data["vector"]["tensors"].pop("model.norm.weight")
    path.write_text(json.dumps(data))
    with pytest.raises(tv.FormatError, match="does not list"):
        tv.load_vector(tmp_path / "vec")
    data["vector"]["tensors"] |= {"model.norm.weight": row, "another": row}
    path.write_text(json.dumps(data))
    with pytest.raises(tv.FormatError, match="another"):
        tv.load_vector(tmp_path / "vec")


def test_an_interrupted_extraction_goes_on(tmp_path: Path) -> None:
    trio = family(tmp_path, 0.15)

    def progress(_event: tv.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tv.extract(trio.donor, trio.reference, tmp_path / "vec", progress=progress)
    tv.extract(trio.donor, trio.reference, tmp_path / "vec")
    tv.extract(trio.donor, trio.reference, tmp_path / "undisturbed")
    same_files(tmp_path / "vec", tmp_path / "undisturbed")
    shutil.rmtree(tmp_path / "undisturbed")


def test_a_saved_vector_says_where_it_came_from(sharded_trio: Trio, tmp_path: Path) -> None:
    import jsonschema

    from taskvec.files.manifest_schema import schema

    tv.extract(sharded_trio.donor, sharded_trio.reference, tmp_path / "vec", include="mlp")
    data = json.loads((tmp_path / "vec" / "taskvec.json").read_text())
    jsonschema.validate(data, schema(), cls=jsonschema.Draft202012Validator)
    assert [source["role"] for source in data["sources"]] == ["donor", "reference"]
    assert data["command"].endswith("-o OUT --include mlp")
    assert {file["name"] for file in data["files"]} >= {"reference/config.json", "reference/tokenizer.json"}
    card = (tmp_path / "vec" / "README.md").read_text()
    assert "taskvec apply" in card
    assert "unpackbits" in card
    found = tv.inspect(tmp_path / "vec")
    assert found.kind == "vector"


# --- in memory ---


@pytest.mark.parametrize("dtypes", [("BF16",) * 3, ("F16",) * 3, ("F32", "BF16", "F64")], ids=str)
def test_a_merge_gives_the_arrays_that_it_would_write(tmp_path: Path, dtypes: tuple[str, str, str]) -> None:
    trio = write_trio(tmp_path, dtypes=dtypes, shards=(2, 3, 1))
    target, donor, reference = map(tv.open, trio)
    merged = target + 0.7 * (donor - reference).select(exclude="norm")
    merged.save(tmp_path / "out")
    written = read_tensors(tmp_path / "out")
    streamed = dict(merged.items())
    assert list(streamed) == list(written)
    for name, array in written.items():
        assert streamed[name].dtype == array.dtype
        assert streamed[name].shape == array.shape
        assert streamed[name].tobytes() == array.tobytes()
    name = "model.layers.1.mlp.up_proj.weight"
    assert merged[name].tobytes() == written[name].tobytes()
    with pytest.raises(tv.NotFoundError, match="no tensor"):
        merged["model.layers.1.mlp.up_proj.wieght"]


def test_streamed_arrays_follow_the_settings(models: Models, tmp_path: Path) -> None:
    target, donor, reference = models
    merged = target + 0.1 * (donor - reference)
    merged.save(tmp_path / "out", rounding="stochastic", seed=5)
    streamed = dict(merged.items(rounding="stochastic", seed=5, threads=1))
    for name, array in read_tensors(tmp_path / "out").items():
        assert streamed[name].tobytes() == array.tobytes()
    assert {array.dtype for _, array in merged.items(out_dtype="float32")} == {np.dtype(np.float32)}


def test_large_tensors_are_streamed_one_by_one(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskvec.run import evaluate as evaluation

    target, donor, reference = models
    whole = dict((target + (donor - reference)).items())
    monkeypatch.setattr(evaluation, "BATCH", 3000)
    for name, array in (target + (donor - reference)).items():
        assert array.tobytes() == whole[name].tobytes()


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_vector_gives_its_arrays(tmp_path: Path, is_saved: bool) -> None:
    trio = family(tmp_path, 0.15)
    _, donor, reference = map(tv.open, trio)
    vector = donor - reference
    if is_saved:
        vector.save(tmp_path / "vec")
        vector = tv.load_vector(tmp_path / "vec")
    _, d, r = wide(trio)
    arrays = dict((0.5 * vector).items())
    assert set(arrays) == set(d)
    for name, array in arrays.items():
        assert array.dtype == np.float32 or is_saved  # the exact type of a value may be float64
        expected = 0.5 * (d[name] - r[name])
        assert np.array_equal(array, expected.astype(array.dtype))
    name = "model.layers.0.mlp.up_proj.weight"
    assert np.array_equal(vector[name], 2 * arrays[name])
    with pytest.raises(tv.NotFoundError):
        vector["nothing"]
