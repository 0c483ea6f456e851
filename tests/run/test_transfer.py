"""The main job, whole: target + α·(donor − reference) against NumPy and safetensors, and what comes out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

import taskvec as tv
from support.models import (
    DTYPES,
    Trio,
    edit_json,
    qwen2_config,
    qwen2_shapes,
    random_tensors,
    read_tensors,
    tuned,
    write_checkpoint,
    write_trio,
)
from support.oracle import oracle, same_files, ulps

FLOATS = ("BF16", "F16", "F32", "F64")


@pytest.mark.parametrize("alpha", [-1.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("dtypes", [(kind,) * 3 for kind in FLOATS] + [("BF16", "F32", "F16")], ids=str)
def test_every_element_is_the_rounded_value(
    tmp_path: Path, dtypes: tuple[str, str, str], alpha: float
) -> None:
    trio = write_trio(tmp_path, dtypes=dtypes, shards=(2, 3, 1))
    tv.transfer(*trio, tmp_path / "out", alpha=alpha)
    written = read_tensors(tmp_path / "out")
    assert list(written) == list(read_tensors(trio.target))
    wrong = total = 0
    for name, array in written.items():
        expected = oracle(trio, alpha, name, DTYPES[dtypes[0]])
        distance = ulps(array, expected)
        assert distance.max(initial=0) <= 1, name
        wrong += np.count_nonzero(distance)
        total += array.size
    assert wrong <= 0.0003 * total


def test_alpha_zero_is_the_target(sharded_trio: Trio, tmp_path: Path) -> None:
    report = tv.transfer(*sharded_trio, tmp_path / "out", alpha=0)
    for name, array in read_tensors(sharded_trio.target).items():
        assert read_tensors(tmp_path / "out")[name].tobytes() == array.tobytes()
    assert not [finding for finding in report.findings if finding.id == "rounded-away"]


@pytest.mark.parametrize("dtype", FLOATS)
def test_target_as_reference_gives_the_donor(tmp_path: Path, dtype: str) -> None:
    trio = write_trio(tmp_path, dtype=dtype)
    tv.transfer(trio.target, trio.donor, trio.target, tmp_path / "out")
    for name, array in read_tensors(trio.donor).items():
        assert read_tensors(tmp_path / "out")[name].tobytes() == array.tobytes()


def test_safetensors_reads_the_output(sharded_trio: Trio, tmp_path: Path) -> None:
    tv.transfer(*sharded_trio, tmp_path / "out", alpha=0.8)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    seen = {}
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(tmp_path / "out" / file, framework="np") as opened:
            assert opened.metadata() == {"format": "pt"}
            for name in opened.keys():  # noqa: SIM118
                seen[name] = (file, opened.get_slice(name).get_shape())
    assert {name: file for name, (file, _) in seen.items()} == index["weight_map"]
    expected = {name: list(info.shape) for name, info in tv.open(sharded_trio.target).tensors.items()}
    assert {name: shape for name, (_, shape) in seen.items()} == expected


def test_index_of_a_sharded_output(sharded_trio: Trio, tmp_path: Path) -> None:
    tv.transfer(*sharded_trio, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    tensors = read_tensors(sharded_trio.target)
    assert index["metadata"] == {
        "total_parameters": sum(array.size for array in tensors.values()),
        "total_size": sum(array.nbytes for array in tensors.values()),
    }
    assert list(index["weight_map"]) == sorted(tensors)
    target = json.loads((sharded_trio.target / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == target["weight_map"]


def test_a_single_file_needs_no_index(trio: Trio, tmp_path: Path) -> None:
    tv.transfer(*trio, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in names
    assert "model.safetensors.index.json" not in names
    assert ".taskvec" not in names


@pytest.mark.parametrize("limit", [9_000, "40kB", "1GB"])
def test_max_shard_size_asks_for_another_layout(trio: Trio, tmp_path: Path, limit: int | str) -> None:
    tv.transfer(*trio, tmp_path / "out", max_shard_size=limit)
    tv.transfer(*trio, tmp_path / "plain")
    assert read_tensors(tmp_path / "out").keys() == read_tensors(tmp_path / "plain").keys()
    for name, array in read_tensors(tmp_path / "plain").items():
        assert read_tensors(tmp_path / "out")[name].tobytes() == array.tobytes()
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    if limit == "1GB":
        assert files == ["model.safetensors"]
    else:
        assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
        tv.open(tmp_path / "out")


def test_out_dtype_converts_every_float_and_says_so(tmp_path: Path) -> None:
    trio = write_trio(tmp_path, shards=2)
    text = (trio.target / "config.json").read_text()
    tv.transfer(*trio, tmp_path / "out", alpha=0.5, out_dtype="float32", include="mlp")
    written = read_tensors(tmp_path / "out")
    assert {array.dtype for array in written.values()} == {np.dtype(np.float32)}
    for name, array in written.items():
        factor = 0.5 if "mlp" in name else 0.0
        assert np.array_equal(array, oracle(trio, factor, name, np.dtype(np.float32)))
    changed = (tmp_path / "out" / "config.json").read_text()
    assert changed == text.replace('"bfloat16"', '"float32"')
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in written.values())


def test_stochastic_rounding_is_unbiased_and_repeatable(tmp_path: Path) -> None:
    trio = write_trio(tmp_path, hidden=128, intermediate=256)
    for seed in (1, 1, 2):
        out = tmp_path / f"out-{seed}"
        tv.transfer(*trio, out, alpha=0.05, rounding="stochastic", seed=seed, overwrite=True)
    first, second = (read_tensors(tmp_path / f"out-{seed}") for seed in (1, 2))
    name = "model.layers.0.mlp.up_proj.weight"
    t, d, r = (read_tensors(folder)[name].astype(np.float64) for folder in trio)
    exact = t + 0.05 * (d - r)
    for written in (first, second):
        found = written[name].astype(np.float32)
        gap = 65536.0 * np.spacing(np.maximum(np.abs(found), np.abs(exact).astype(np.float32)))
        error = (found.astype(np.float64) - exact) / gap
        assert np.abs(error).max() <= 1.0
        assert abs(error[exact != t].mean()) < 5 * 0.5 / np.sqrt(np.count_nonzero(exact != t))
    assert first[name].tobytes() != second[name].tobytes()


@pytest.mark.parametrize(
    ("selection", "taken"),
    [
        ({"include": r"layers\.0\."}, lambda n: "layers.0." in n),
        ({"exclude": ["mlp", "norm"]}, lambda n: "mlp" not in n and "norm" not in n),
        ({"preset": "no-embed"}, lambda n: "embed_tokens" not in n),
        ({"layers": "1"}, lambda n: "layers.1." in n),
    ],
    ids=["include", "exclude", "preset", "layers"],
)
def test_what_is_not_selected_is_the_target(trio: Trio, tmp_path: Path, selection: dict, taken) -> None:
    tv.transfer(*trio, tmp_path / "out", **selection)
    target, whole = read_tensors(trio.target), read_tensors(tmp_path / "out")
    tv.transfer(*trio, tmp_path / "full")
    full = read_tensors(tmp_path / "full")
    for name, array in whole.items():
        assert array.tobytes() == (full if taken(name) else target)[name].tobytes(), name


def test_layer_scale_is_a_gradient_over_the_layers(tmp_path: Path) -> None:
    trio = write_trio(tmp_path, layers=3)
    tv.transfer(*trio, tmp_path / "out", alpha=0.8, layer_scale=[0.0, 1.0])
    for name, array in read_tensors(tmp_path / "out").items():
        layer = name.split(".")[2] if "layers" in name else None
        scale = {"0": 0.0, "1": 0.5, "2": 1.0, None: 0.0 if "embed" in name else 1.0}[layer]
        assert ulps(array, oracle(trio, 0.8 * scale, name, array.dtype)).max() <= 1


def test_several_alphas_are_the_single_runs(sharded_trio: Trio, tmp_path: Path) -> None:
    report = tv.transfer(*sharded_trio, tmp_path / "all", alpha="-1,0,0.5")
    assert [Path(output.folder).name for output in report.outputs] == ["alpha=-1", "alpha=0", "alpha=0.5"]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["alpha=-1", "alpha=0", "alpha=0.5"]
    for alpha in (-1, 0, 0.5):
        tv.transfer(*sharded_trio, tmp_path / "one", alpha=alpha, overwrite=True)
        same_files(tmp_path / "all" / f"alpha={alpha}", tmp_path / "one")
    assert report.bytes_read == sum(tv.open(folder).total_bytes for folder in sharded_trio)


@pytest.mark.parametrize("name", ["n" * 251 + ".txt", "\u00e9" * 127, "deep/" + "d" * 255 + "/" + "f" * 255])
def test_companions_whose_names_are_as_long_as_names_may_be(name: str, trio: Trio, tmp_path: Path) -> None:
    assert max(len(part.encode()) for part in name.split("/")) >= 254
    place = trio.target / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("long")
    out = tmp_path / "out"
    tv.transfer(*trio, out, alpha=[0.5, 1])
    tv.transfer(*trio, out / "one", alpha=0.5)
    tv.transfer(*trio, out / "one", alpha=1, overwrite=True)
    for folder in (out / "alpha=0.5", out / "alpha=1", out / "one"):
        assert (folder / name).read_text() == "long"
        assert tv.verify(folder).ok


def test_other_files_come_along_byte_for_byte(trio: Trio, tmp_path: Path) -> None:
    (trio.target / "sub" / "deep").mkdir(parents=True)
    (trio.target / "sub" / "deep" / "notes.txt").write_bytes(b"\x00\xff notes")
    (trio.target / "sub" / "README.md").write_text("inner")
    (trio.target / "LICENSE").write_text("as is")
    (trio.target / "pytorch_model.bin").write_bytes(b"old weights")
    (trio.target / "taskvec.json").write_text("{}")
    config = (trio.target / "config.json").read_text().replace("\n", "\r\n") + "\t\n"
    (trio.target / "config.json").write_bytes(config.encode())
    report = tv.transfer(*trio, tmp_path / "out")
    out = tmp_path / "out"
    for name in ("sub/deep/notes.txt", "sub/README.md", "LICENSE", "tokenizer.json", "config.json"):
        assert (out / name).read_bytes() == (trio.target / name).read_bytes(), name
    assert not (out / "pytorch_model.bin").exists()
    assert (out / "README.md").read_bytes() != (trio.target / "README.md").read_bytes()
    assert json.loads((out / "taskvec.json").read_text())["kind"] == "checkpoint"
    left = [finding.found for finding in report.findings if finding.id == "files-left"]
    assert any("pytorch_model.bin" in found for found in left)
    assert any("taskvec.json" in found for found in left)


def test_untied_donor_of_a_tied_target(tmp_path: Path) -> None:
    trio = write_trio(tmp_path, tied=True, donor_tied=False)
    report = tv.transfer(*trio, tmp_path / "out")
    assert "lm_head.weight" not in read_tensors(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    assert [finding for finding in report.findings if finding.id == "tied-head"]


def test_tied_donor_of_an_untied_target(tmp_path: Path) -> None:
    trio = write_trio(tmp_path, tied=False, donor_tied=True)
    tv.transfer(*trio, tmp_path / "out", alpha=0.5)
    t = read_tensors(trio.target)["lm_head.weight"].astype(np.float32)
    d, r = (read_tensors(folder)["model.embed_tokens.weight"].astype(np.float32) for folder in list(trio)[1:])
    expected = (t + np.float32(0.5) * (d - r)).astype(ml_dtypes.bfloat16)
    assert read_tensors(tmp_path / "out")["lm_head.weight"].tobytes() == expected.tobytes()


def test_integers_are_copied_and_named(tmp_path: Path) -> None:
    config = qwen2_config()
    folders = []
    for number, name in enumerate(("target", "donor", "reference")):
        tensors = tuned(random_tensors(qwen2_shapes(config)), seed=number)
        tensors["steps"] = np.arange(number, number + 5, dtype=np.int64)
        tensors["empty"] = np.empty((0, 7), np.int32)
        tensors["flag"] = np.array(True)
        folders.append(write_checkpoint(tmp_path / name, tensors, config))
    report = tv.transfer(*folders, tmp_path / "out")
    written = read_tensors(tmp_path / "out")
    assert written["steps"].tolist() == [0, 1, 2, 3, 4]
    assert written["empty"].shape == (0, 7)
    assert {"non-float", "non-float-differs"} & {finding.id for finding in report.findings}


def test_forced_missing_tensors_are_the_target(trio: Trio, tmp_path: Path) -> None:
    tensors = read_tensors(trio.donor)
    tensors.pop("model.norm.weight")
    shutil.rmtree(trio.donor)
    write_checkpoint(trio.donor, tensors, qwen2_config())
    with pytest.raises(tv.CompatibilityError, match=r"model\.norm\.weight") as caught:
        tv.transfer(*trio, tmp_path / "out")
    assert [finding.id for finding in caught.value.findings if finding.level == "error"] == ["tensor-missing"]
    assert not (tmp_path / "out").exists()
    tv.transfer(*trio, tmp_path / "out", force="tensor-missing")
    written = read_tensors(tmp_path / "out")["model.norm.weight"]
    assert written.tobytes() == read_tensors(trio.target)["model.norm.weight"].tobytes()


def test_non_finite_values_are_an_error_that_names_them(trio: Trio, tmp_path: Path) -> None:
    tensors = read_tensors(trio.donor)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name].reshape(-1)[[3, 7]] = np.nan, np.inf
    shutil.rmtree(trio.donor)
    write_checkpoint(trio.donor, tensors, qwen2_config())
    with pytest.raises(tv.NonFiniteError, match=r"2 in .*up_proj"):
        tv.transfer(*trio, tmp_path / "out")
    assert not (tmp_path / "out" / "taskvec.json").exists()
    report = tv.transfer(*trio, tmp_path / "out", force="non-finite", overwrite=True)
    assert {(tensor, count) for tensor, _, count in report.outputs[0].non_finite} == {(name, 2)}
    manifest = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    assert manifest["non_finite"]
    assert manifest["recipe"]["force"] == ["non-finite"]


def test_survival_is_what_numpy_measures(tmp_path: Path) -> None:
    trio = write_trio(tmp_path)
    report = tv.transfer(*trio, tmp_path / "out", alpha=0.3)
    row = report.survival
    assert row is not None
    step, moved, dot, lost, changed = 0.0, 0.0, 0.0, 0, 0
    written = read_tensors(tmp_path / "out")
    for name, array in written.items():
        t, d, r = (read_tensors(folder)[name].astype(np.float64) for folder in trio)
        wish, done = 0.3 * (d - r), array.astype(np.float64) - t
        step, moved, dot = step + (wish**2).sum(), moved + (done**2).sum(), dot + (wish * done).sum()
        changed += np.count_nonzero(wish)
        lost += np.count_nonzero((wish != 0) & (done == 0))
    assert (row.changed, row.rounded_away) == (changed, lost)
    assert row.step_norm == pytest.approx(np.sqrt(step), rel=1e-5)
    assert row.moved_norm == pytest.approx(np.sqrt(moved), rel=1e-5)
    assert row.cosine == pytest.approx(dot / np.sqrt(step * moved), rel=1e-5)
    assert set(report.outputs[0].tensors) == set(written)


def test_a_step_that_is_rounded_away_is_a_warning(trio: Trio, tmp_path: Path) -> None:
    report = tv.transfer(*trio, tmp_path / "out", alpha=0.01)
    (warning,) = [finding for finding in report.findings if finding.id == "rounded-away"]
    assert "--out-dtype float32" in warning.fix
    assert "--rounding stochastic" in warning.fix
    kept = tv.transfer(*trio, tmp_path / "wide", alpha=0.01, out_dtype="float32")
    assert not [finding for finding in kept.findings if finding.id == "rounded-away"]


def test_a_model_may_play_two_roles(trio: Trio, tmp_path: Path) -> None:
    report = tv.transfer(trio.target, trio.donor, trio.target, tmp_path / "out", alpha=0.5)
    assert report.bytes_read == 3 * tv.open(trio.target).total_bytes
    plan = tv.plan_transfer(trio.target, trio.donor, trio.target)
    assert [source.role for source in plan.sources] == ["target and reference", "donor"]


def test_single_files_are_models_too(trio: Trio, tmp_path: Path) -> None:
    files = [folder / "model.safetensors" for folder in trio]
    tv.transfer(*files, tmp_path / "out", alpha=0.8)
    tv.transfer(*trio, tmp_path / "folders", alpha=0.8)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "folders")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "out" / "config.json").exists()


def test_edited_json_helper_keeps_nested_types(trio: Trio, tmp_path: Path) -> None:
    edit_json(trio.target / "config.json", text_config={"torch_dtype": "bfloat16", "x": 1})
    for folder in (trio.donor, trio.reference):
        edit_json(folder / "config.json", text_config={"torch_dtype": "bfloat16", "x": 1})
    tv.transfer(*trio, tmp_path / "out", out_dtype="float16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float16"
    assert config["text_config"] == {"torch_dtype": "float16", "x": 1}


@pytest.mark.parametrize("control", ["random", "permute"])
def test_controls_have_the_vectors_norms_and_nothing_else(tmp_path: Path, control: str) -> None:
    trio = write_trio(tmp_path, dtype="F32", hidden=64)
    options = {"control": control, "alpha": 0.5}
    tv.transfer(*trio, tmp_path / "one", seed=1, **options)
    tv.transfer(*trio, tmp_path / "two", seed=2, **options)
    tv.transfer(*trio, tmp_path / "again", seed=1, threads=1, **options)
    same_files(tmp_path / "one", tmp_path / "again")
    for name, array in read_tensors(tmp_path / "one").items():
        t, d, r = (read_tensors(folder)[name].astype(np.float64) for folder in trio)
        wish, done = 0.5 * (d - r), array - t
        if np.count_nonzero(wish) < 50:
            continue
        assert np.linalg.norm(done) == pytest.approx(np.linalg.norm(wish), rel=1e-3)
        cosine = (wish * done).sum() / np.linalg.norm(wish) / np.linalg.norm(done)
        assert abs(cosine) < 6 / np.sqrt(np.count_nonzero(wish)), name
        assert read_tensors(tmp_path / "two")[name].tobytes() != array.tobytes()
    manifest = json.loads((tmp_path / "one" / "taskvec.json").read_text())
    assert (manifest["recipe"]["control"], manifest["recipe"]["seed"]) == (control, 1)
    assert "This is a control" in (tmp_path / "one" / "README.md").read_text()


def test_a_control_is_made_of_one_vector(trio: Trio) -> None:
    with pytest.raises(tv.RecipeError, match="control"):
        tv.plan_transfer(*trio, control="shuffle")  # type: ignore[arg-type]
