"""Importance maps in recipes: found by the model's names, refused where they do not fit, counted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import taskvec as tv
from taskvec import errors

SHAPES = {
    "model.embed_tokens.weight": (32, 8),
    **{f"model.layers.{i}.mlp.{part}_proj.weight": (8, 8) for i in range(4) for part in ("up", "down")},
    "model.norm.weight": (8,),
    "lm_head.weight": (32, 8),
}
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "hidden_size": 8,
    "vocab_size": 32,
}
Arrays = dict[str, np.ndarray]


def put(folder: Path, arrays: Mapping[str, np.ndarray], *, is_model: bool = True) -> Arrays:
    folder.mkdir(parents=True)
    save_file(dict(arrays), folder / "model.safetensors")
    if is_model:
        (folder / "config.json").write_text(json.dumps(CONFIG))
    return {name: array.astype(np.float64) for name, array in arrays.items()}


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Arrays]:
    """A base, two models and their maps, of which half the elements are zero."""
    rng = np.random.default_rng(0)
    base = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    found = {"base": put(tmp_path / "base", base)}
    for name in "ab":
        step = {n: (x + rng.standard_normal(x.shape) * 0.01).astype(np.float32) for n, x in base.items()}
        found[name] = put(tmp_path / name, step)
        of_map = {n: rng.random(x.shape) ** 8 * (rng.random(x.shape) > 0.5) for n, x in base.items()}
        of_map = {n: x.astype(np.float32) for n, x in of_map.items()}
        found[f"f{name}"] = put(tmp_path / f"f{name}", of_map, is_model=False)
    return found


def recipe(folder: Path, *, method: str = "fisher", **more: Any) -> dict[str, Any]:
    models = [{"model": str(folder / n), "importance": str(folder / f"f{n}")} for n in "ab"]
    base = {"base_model": str(folder / "base")} if method == "sar" else {}
    return {"merge_method": method, **base, "models": models, **more}


def weighed(made: dict[str, Arrays], name: str, other: str | None = None) -> np.ndarray:
    x, y, f, g = (made[each][other or name] for each in ("a", "b", "fa", "fb"))
    total = f + g
    return np.where(total > 0, (f * x + g * y) / np.where(total > 0, total, 1), (x + y) / 2)


def read(folder: Path) -> Arrays:
    return load_file(folder / "model.safetensors")


def test_elements_that_matter_to_none_are_counted_also_when_it_is_run_again(
    made: dict[str, Arrays], tmp_path: Path
) -> None:
    report = tv.merge(recipe(tmp_path), tmp_path / "out")
    counts = {n: int(((made["fa"][n] + made["fb"][n]) == 0).sum()) for n in SHAPES}
    assert report.outputs[0].unweighted == {n: c for n, c in counts.items() if c}
    for name, array in read(tmp_path / "out").items():
        np.testing.assert_allclose(array, weighed(made, name), rtol=1e-6, err_msg=name)
    (note,) = [each for each in report.findings if each.id == "importance-zero"]
    assert f"{sum(counts.values()):,} elements" in note.message
    manifest = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    assert manifest["unweighted"] == report.outputs[0].unweighted
    assert [each["role"] for each in manifest["sources"]] == [
        "model 1",
        "model 2",
        "importance of model 1",
        "importance of model 2",
    ]
    again = tv.merge(recipe(tmp_path), tmp_path / "out")
    assert (again.already_done, again.outputs[0].unweighted) == (True, report.outputs[0].unweighted)
    assert report.to_dict()["outputs"][0]["unweighted"] == manifest["unweighted"]


@pytest.mark.parametrize("method", ["fisher", "sar"])
@pytest.mark.usefixtures("made")
def test_parts_give_the_bytes_and_the_counts_of_one_process(method: str, tmp_path: Path) -> None:
    asked = recipe(tmp_path, method=method)
    whole = tv.open_recipe(asked, max_shard_size=2000).save(tmp_path / "whole")
    plan = tv.open_recipe(asked, max_shard_size=2000).plan()
    for number in (2, 0, 1):
        plan.part(number, 3).run(tmp_path / "parts")
    end = tv.finish(tmp_path / "parts") if not (tmp_path / "parts" / "taskvec.json").exists() else None
    files = sorted(each.name for each in (tmp_path / "whole").glob("*.safetensors"))
    assert len(files) > 1
    for name in files:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    manifest = json.loads((tmp_path / "parts" / "taskvec.json").read_text())
    assert manifest.get("unweighted", {}) == whole.outputs[0].unweighted
    assert end is None or end.outputs[0].unweighted == whole.outputs[0].unweighted


def test_layers_of_slices_take_the_maps_of_their_layers(made: dict[str, Arrays], tmp_path: Path) -> None:
    sources = [
        [
            {"model": str(tmp_path / n), "importance": str(tmp_path / f"f{n}"), "layer_range": [first, end]}
            for n in "ab"
        ]
        for first, end in ((0, 2), (1, 4))
    ]
    tv.merge({"merge_method": "fisher", "slices": [{"sources": each} for each in sources]}, tmp_path / "out")
    got = read(tmp_path / "out")
    for layer, origin in enumerate((0, 1, 1, 2, 3)):
        name, own = (f"model.layers.{i}.mlp.up_proj.weight" for i in (layer, origin))
        np.testing.assert_allclose(got[name], weighed(made, own), rtol=1e-6)


def test_a_map_meets_a_model_in_another_layout(made: dict[str, Arrays], tmp_path: Path) -> None:
    for name in ("fa", "fb"):
        wrapped = {
            n.replace("model.", "model.language_model.", 1): x for n, x in read(tmp_path / name).items()
        }
        put(tmp_path / f"w{name}", wrapped)
    asked = recipe(tmp_path)
    for entry, name in zip(asked["models"], ("wfa", "wfb"), strict=True):
        entry["importance"] = str(tmp_path / name)
    tv.merge(asked, tmp_path / "out")
    for name, array in read(tmp_path / "out").items():
        np.testing.assert_allclose(array, weighed(made, name), rtol=1e-6, err_msg=name)


def test_a_map_may_be_made_by_an_earlier_document(made: dict[str, Arrays], tmp_path: Path) -> None:
    maps = {
        "merge_method": "linear",
        "name": "both",
        "models": [{"model": str(tmp_path / f"f{n}"), "parameters": {"weight": 1.0}} for n in "ab"],
    }
    asked = recipe(tmp_path)
    asked["models"][1]["importance"] = "both"
    tv.merge([maps, asked], tmp_path / "out")
    name = "model.norm.weight"
    x, y, f, g = (made[each][name] for each in ("a", "b", "fa", "fb"))
    g = (f + g) / 2
    total = np.where(f + g > 0, f + g, 1)
    want = np.where(f + g > 0, (f * x + g * y) / total, (x + y) / 2)
    np.testing.assert_allclose(read(tmp_path / "out")[name], want, rtol=1e-6)


def test_what_a_map_lacks_is_named_and_may_be_given(made: dict[str, Arrays], tmp_path: Path) -> None:
    some = {n: x for n, x in read(tmp_path / "fb").items() if "norm" not in n}
    save_file(some, tmp_path / "fb" / "model.safetensors")
    with pytest.raises(errors.RecipeError, match=r"fb` of `.*b` lacks `model.norm.weight`") as caught:
        tv.open_recipe(recipe(tmp_path)).plan()
    assert "default_importance" in str(caught.value.hint)
    asked = recipe(tmp_path)
    asked["models"][1]["parameters"] = {"default_importance": [{"filter": "norm", "value": 0.25}]}
    tv.merge(asked, tmp_path / "out")
    f, x, y = (made[each]["model.norm.weight"] for each in ("fa", "a", "b"))
    np.testing.assert_allclose(
        read(tmp_path / "out")["model.norm.weight"], (f * x + 0.25 * y) / (f + 0.25), rtol=1e-6
    )
    tv.merge(recipe(tmp_path, exclude="norm"), tmp_path / "left")
    np.testing.assert_array_equal(read(tmp_path / "left")["model.norm.weight"], x.astype(np.float32))


def test_a_constant_is_a_map_and_weights_count(made: dict[str, Arrays], tmp_path: Path) -> None:
    models = [{"model": str(tmp_path / n), "parameters": {"weight": w}} for n, w in (("a", 3.0), ("b", 1.0))]
    asked = {"merge_method": "fisher", "models": models, "parameters": {"default_importance": 2.0}}
    tv.merge(asked, tmp_path / "out")
    for name, array in read(tmp_path / "out").items():
        want = (3 * made["a"][name] + made["b"][name]) / 4
        np.testing.assert_allclose(array, want, rtol=1e-6)


def test_sar_gives_each_overlap_to_the_model_that_it_matters_to(
    made: dict[str, Arrays], tmp_path: Path
) -> None:
    asked = recipe(tmp_path, method="sar", parameters={"density": 1.0, "rescale": False})
    tv.merge(asked, tmp_path / "out")
    for name, array in read(tmp_path / "out").items():
        base, x, y, f, g = (made[each][name] for each in ("base", "a", "b", "fa", "fb"))
        first = (f > g) | ((f == g) & (abs(x - base) >= abs(y - base)))
        np.testing.assert_allclose(array, np.where(first, x, y), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", ["target", "bfloat16"])
def test_packed_models_count_each_element_once(form: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shapes = {name: (256, 256) if "mlp" in name else shape for name, shape in SHAPES.items()}
    counts = dict.fromkeys(shapes, 0)
    maps = [{n: (rng.random(s) > 0.6).astype(np.float32) for n, s in shapes.items()} for _ in range(2)]
    for number, of_map in enumerate(maps):
        put(tmp_path / f"f{number}", of_map, is_model=False)
        put(tmp_path / str(number), {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})
        tv.convert(tmp_path / str(number), tmp_path / f"q{number}", out_dtype="fp8-block")
    for name in shapes:
        counts[name] = int(((maps[0][name] + maps[1][name]) == 0).sum())
    models = [{"model": str(tmp_path / f"q{k}"), "importance": str(tmp_path / f"f{k}")} for k in range(2)]
    report = tv.merge({"merge_method": "fisher", "models": models}, tmp_path / "out", out_dtype=form)
    assert report.outputs[0].unweighted == {n: c for n, c in counts.items() if c}
    models[1]["importance"] = str(tmp_path / "q0")
    with pytest.raises(errors.RecipeError, match="is stored packed"):
        tv.open_recipe({"merge_method": "fisher", "models": models}).plan()


def test_a_saved_vector_has_a_map_too(made: dict[str, Arrays], tmp_path: Path) -> None:
    tv.extract(tmp_path / "a", tmp_path / "base", tmp_path / "a.vec")
    asked = recipe(tmp_path, method="sar", parameters={"density": 0.7})
    tv.merge(asked, tmp_path / "whole")
    asked["models"][0] = {"vector": str(tmp_path / "a.vec"), "importance": str(tmp_path / "fa")}
    tv.merge(asked, tmp_path / "vector")
    for name, array in read(tmp_path / "whole").items():
        np.testing.assert_allclose(read(tmp_path / "vector")[name], array, rtol=1e-5, atol=1e-7)
    assert made["a"]


@pytest.mark.parametrize("change", ["shape", "integers"])
@pytest.mark.usefixtures("made")
def test_a_map_that_does_not_fit_is_refused_before_the_run(change: str, tmp_path: Path) -> None:
    arrays = read(tmp_path / "fb")
    name = "model.norm.weight"
    arrays[name] = np.ones(9, np.float32) if change == "shape" else np.ones(8, np.int32)
    save_file(arrays, tmp_path / "fb" / "model.safetensors")
    words = r"has the shape \[9\]" if change == "shape" else "is stored as I32"
    with pytest.raises(errors.RecipeError, match=words):
        tv.merge(recipe(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("made")
def test_a_negative_value_ends_the_run_and_nothing_looks_whole(tmp_path: Path) -> None:
    arrays = read(tmp_path / "fb")
    arrays["lm_head.weight"][3, 2] = -1e-12
    save_file(arrays, tmp_path / "fb" / "model.safetensors")
    with pytest.raises(errors.FormatError, match=r"`lm_head.weight` in `.*fb.*` is negative"):
        tv.merge(recipe(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out" / "taskvec.json").exists()


@pytest.mark.usefixtures("made")
def test_where_a_map_has_no_effect_is_remarked_and_strict_refuses_it(tmp_path: Path) -> None:
    asked = recipe(tmp_path, method="linear", parameters={"weight": 1.0})
    remarks = [each for each in tv.open_recipe(asked).plan().findings if each.id == "recipe-ignored"]
    assert [("`importance` has no effect in `linear`" in each.message) for each in remarks] == [True, True]
    with pytest.raises(errors.CompatibilityError, match="recipe-ignored"):
        tv.open_recipe(asked, strict=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["models"][0].pop("importance"), "has no importance map, which `fisher` needs"),
        (lambda r: r["models"][0].update(importance="x+y"), "an importance map with an adapter"),
        (lambda r: r.update(base_model="elsewhere"), "the base model is one more input"),
        (lambda r: r.update(parameters={"weight": 0.0}), "sum to zero"),
        (lambda r: r.update(parameters={"weight": -1.0}), "of at least 0"),
        (lambda r: r["models"][0].update(importence="x"), "importence"),
    ],
)
@pytest.mark.usefixtures("made")
def test_errors_name_the_line(change: Any, words: str, tmp_path: Path) -> None:
    asked = recipe(tmp_path)
    change(asked)
    text = yaml.safe_dump(asked)
    with pytest.raises(errors.RecipeError, match=words):
        tv.open_recipe(text).plan()


@pytest.mark.usefixtures("made")
def test_from_python_and_as_a_plan_in_a_file(tmp_path: Path) -> None:
    models = [tmp_path / "a", tmp_path / "b"]
    merged = tv.fisher(models, importance=[tmp_path / "fa", tmp_path / "fb"], weight=[1.0, 1.0])
    merged.save(tmp_path / "out")
    tv.merge(recipe(tmp_path), tmp_path / "same")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "same" / "model.safetensors"
    ).read_bytes()
    plan = tv.Plan.from_bytes(tv.open_recipe(recipe(tmp_path)).plan().to_bytes())
    plan.run(tmp_path / "third")
    assert (tmp_path / "third" / "model.safetensors").read_bytes() == (
        tmp_path / "same" / "model.safetensors"
    ).read_bytes()
    with pytest.raises(errors.RecipeError, match="1 maps for 2 models"):
        tv.fisher(models, importance=[tmp_path / "fa"])
