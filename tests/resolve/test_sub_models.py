"""Weights in several folders: pipelines of diffusers, modules of sentence-transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import taskvec as tv
from support.command_line import invoke
from support.hub_server import Hub, Repo
from taskvec._core import run as engine_run
from taskvec.errors import CompatibilityError, FormatError, NotFoundError, OutputError, RecipeError
from taskvec.files.variants import choose

UNET = "diffusion_pytorch_model"
COMPONENTS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
}


def note(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})


def sharded(folder: Path, tensors: dict[str, np.ndarray], stem: str, tag: str = "") -> None:
    files = [f"{stem}{tag}-{i:05d}-of-{len(tensors):05d}.safetensors" for i in range(1, len(tensors) + 1)]
    for (name, array), file in zip(tensors.items(), files, strict=True):
        save(folder / file, {name: array})
    weight_map = dict(zip(tensors, files, strict=True))
    note(folder / f"{stem}.safetensors.index{tag}.json", {"metadata": {}, "weight_map": weight_map})


def pipeline(root: Path, seed: int) -> Path:
    """The layout that diffusers writes, with a variant of the VAE."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    note(root / "model_index.json", {"_class_name": "StableDiffusionPipeline", **COMPONENTS})
    note(root / "scheduler/scheduler_config.json", {"steps": 10})
    note(root / "tokenizer/vocab.json", {"a": 0, "b": 1})
    note(root / "unet/config.json", {"_class_name": "UNet2DConditionModel", "in_channels": 4})
    note(root / "vae/config.json", {"_class_name": "AutoencoderKL", "scaling_factor": 0.18})
    note(root / "text_encoder/config.json", {"model_type": "clip_text_model", "torch_dtype": "float32"})
    sharded(root / "unet", {"conv_in.weight": normal(4, 4, 3, 3), "mid.weight": normal(8, 8)}, UNET)
    convolution = normal(4, 3, 3, 3)
    save(root / f"vae/{UNET}.safetensors", {"conv_in.weight": convolution})
    save(root / f"vae/{UNET}.fp16.safetensors", {"conv_in.weight": convolution.astype(np.float16)})
    save(root / "text_encoder/model.safetensors", {"embeddings.token_embedding.weight": normal(2, 8)})
    save(root / "sd_single_file.safetensors", {"all.in.one": normal(2)})
    return root


def weights(root: Path, tag: str = "") -> dict[str, np.ndarray]:
    """Every tensor by its sub-folder and name, of one variant where a folder has it."""
    found: dict[str, np.ndarray] = {}
    for folder in ("unet", "vae", "text_encoder"):
        files = sorted((root / folder).glob("*.safetensors"))
        tagged = [file for file in files if tag and f".{tag}" in file.name]
        plain = [file for file in files if ".fp16" not in file.name]
        for file in tagged or plain:
            found |= {f"{folder}/{name}": array for name, array in load_file(file).items()}
    return found


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [pipeline(tmp_path / name, seed) for seed, name in enumerate("tdr")]


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


OWN = {"taskvec.json", "taskvec_recipe.yaml", "README.md"}


def test_a_transfer_writes_each_sub_model_in_its_place(three: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = tv.transfer(*three, out, alpha=0.5)
    t, d, r = map(weights, three)
    made = weights(out)
    assert made.keys() == t.keys()
    for name in t:
        expected = t[name].astype(np.float64) + 0.5 * (d[name].astype(np.float64) - r[name])
        assert np.allclose(made[name], expected, rtol=1e-6, atol=1e-6)
    left = {"sd_single_file.safetensors", f"vae/{UNET}.fp16.safetensors"}
    assert names(out) == (names(three[0]) - left) | OWN
    index = json.loads((out / f"unet/{UNET}.safetensors.index.json").read_text())["weight_map"]
    assert index == {
        name: file.name for file in (out / "unet").glob("*.safetensors") for name in load_file(file)
    }
    assert tv.verify(out).ok
    assert [each.id for each in report.findings].count("variant") == 3
    again = tv.transfer(*three, out, alpha=0.5)
    assert again.already_done
    assert {shard.name for shard in again.outputs[0].shards} == {
        name for name in names(out) if name.endswith(".safetensors")
    }


@pytest.mark.parametrize("by", ["name", "option"])
def test_a_variant_is_taken_where_a_folder_has_it(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    out = tmp_path / "out"
    models = [f"{path}?variant=fp16" if by == "name" else str(path) for path in three]
    roles = [
        word for pair in zip(("--target", "--donor", "--reference"), models, strict=True) for word in pair
    ]
    option = ["--variant", "fp16"] if by == "option" else []
    assert invoke(capsys, "transfer", *roles, *option, "-o", str(out)).code == 0
    assert (out / f"vae/{UNET}.fp16.safetensors").exists()
    assert not (out / f"vae/{UNET}.safetensors").exists()
    assert (out / "text_encoder/model.safetensors").exists()
    assert weights(out, "fp16")["vae/conv_in.weight"].dtype == np.float16
    command = json.loads((out / "taskvec.json").read_text())["command"]
    assert command.count("?variant=fp16") == 3


def test_variants_alone_and_missing_ones(three: list[Path]) -> None:
    (three[0] / f"vae/{UNET}.safetensors").unlink()
    assert tv.open(three[0]).info("vae/conv_in.weight").dtype == "F16"
    with pytest.raises(NotFoundError, match="no file of the variant `bf16`") as caught:
        tv.open(f"{three[0]}?variant=bf16")
    assert "`fp16`" in str(caught.value)
    save(three[0] / f"vae/{UNET}.ema.safetensors", {"conv_in.weight": np.zeros(2, np.float32)})
    with pytest.raises(FormatError, match="several variants: `ema` and `fp16`"):
        tv.open(three[0])


@pytest.mark.parametrize(
    "index",
    [
        "model.safetensors.index.fp16.json",
        "model.safetensors.fp16.index.json",
        "model.fp16.safetensors.index.json",
    ],
)
@pytest.mark.parametrize(
    "file", ["model.fp16-00001-of-00001.safetensors", "model-00001-of-00001.fp16.safetensors"]
)
def test_each_way_to_name_a_variant(index: str, file: str) -> None:
    there = [index, file, "model.safetensors", "config.json"]
    chosen = choose("te/", there, lambda _: {"weight_map": {"a": file}}, "fp16")
    assert chosen is not None
    assert (chosen.files, chosen.index, chosen.variant, chosen.others) == (
        (f"te/{file}",), f"te/{index}", "fp16", ("",)
    )  # fmt: skip
    plain = choose("te/", there, lambda _: {}, None)
    assert plain is not None
    assert (plain.files, plain.index, plain.variant) == (("te/model.safetensors",), None, None)


def test_one_folder_with_a_variant(tmp_path: Path) -> None:
    for role in "tdr":
        sharded(tmp_path / role, {"a": np.ones(3, np.float32), "b": np.ones(2, np.float32)}, "model")
        halves = {"a": np.full(3, 2, np.float16), "b": np.full(2, 2, np.float16)}
        sharded(tmp_path / role, halves, "model", ".fp16")
    out = tmp_path / "out"
    tv.transfer(*(f"{tmp_path / role}?variant=fp16" for role in "tdr"), out)
    assert names(out) - OWN == {
        "model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors",
        "model.safetensors.index.fp16.json",
    }  # fmt: skip
    assert tv.verify(out).ok


def test_a_saved_vector_is_looked_at_whatever_the_variant(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tv.extract(three[1], three[2], tmp_path / "v.vec")
    done = invoke(capsys, "inspect", tmp_path / "v.vec", "--variant", "fp16")
    assert done.code == 0
    assert "vector" in done.out
    with pytest.raises(NotFoundError, match="no file of the variant"), tv.storage(variant="bf16"):
        tv.inspect(three[0])


def test_a_variant_for_all_is_none_of_saved_vectors(three: list[Path], tmp_path: Path) -> None:
    target, donor, reference = three
    tv.extract(donor, reference, tmp_path / "vector")
    with tv.storage(variant="fp16"):
        report = tv.apply(target, tmp_path / "vector", out=tmp_path / "out")
        assert Path(tv.open(target).sub_models["vae/"].files[0]).name == f"{UNET}.fp16.safetensors"
        shutil.copytree(reference, tmp_path / "plain")
        (tmp_path / f"plain/vae/{UNET}.fp16.safetensors").unlink()
        with pytest.raises(NotFoundError, match=r"`.*plain`: no file of the variant `fp16`"):
            tv.open(tmp_path / "plain")
    assert (tmp_path / f"out/vae/{UNET}.fp16.safetensors").exists()
    # the vector has steps for every folder
    assert not [each for each in report.findings if each.id == "files-kept"]


def test_links_to_folders_are_named(three: list[Path], tmp_path: Path) -> None:
    (three[0] / "vae").rename(tmp_path / "vae")
    (three[0] / "vae").symlink_to(tmp_path / "vae")
    with pytest.raises(NotFoundError, match="names `vae`") as caught:
        tv.open(three[0])
    assert "links to folders are not followed" in str(caught.value.hint)
    models = [sentence(tmp_path / f"s{seed}", seed) for seed in range(3)]
    (models[0] / "2_Dense").rename(tmp_path / "dense")
    (models[0] / "2_Dense").symlink_to(tmp_path / "dense")
    report = tv.transfer(*models, tmp_path / "out", force=["config-function"])
    (left,) = [each for each in report.findings if each.id == "files-left" and each.level == "warning"]
    assert "`2_Dense/`" in left.found
    assert "`modules.json` names them" in left.found


def test_cards_name_what_loads_an_output(three: list[Path], tmp_path: Path) -> None:
    tv.transfer(*three, tmp_path / "one")
    assert "\nlibrary_name: diffusers\n" in (tmp_path / "one/README.md").read_text()
    models = [sentence(tmp_path / f"s{seed}", seed) for seed in range(3)]
    tv.transfer(*models, tmp_path / "two")
    assert "\nlibrary_name: sentence-transformers\n" in (tmp_path / "two/README.md").read_text()


def test_a_link_to_each_file_as_the_hubs_cache_has_them(three: list[Path], tmp_path: Path) -> None:
    blobs = tmp_path / "models--o--m/blobs"
    snapshot = tmp_path / "models--o--m/snapshots/0123"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(each for each in three[0].rglob("*") if each.is_file())):
        (blobs / str(number)).write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(three[0])
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    tv.transfer(*three, tmp_path / "one")
    tv.transfer(tmp_path / "models--o--m", *three[1:], tmp_path / "two")
    assert names(tmp_path / "one") == names(tmp_path / "two")
    for name in names(tmp_path / "one") - OWN:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_folders_with_other_weights_make_no_pipeline(tmp_path: Path) -> None:
    one = {"w": np.zeros((2, 2), np.float32)}
    save(tmp_path / "model.safetensors", one)
    for name in ("checkpoint-5/model", "original/consolidated", "onnx/model", f"vae/{UNET}", "2_Dense/model"):
        save(tmp_path / f"{name}.safetensors", {"other": one["w"]})
    note(tmp_path / "1_Pooling/config.json", {})
    opened = tv.open(tmp_path)
    assert set(opened.keys()) == {"w"}
    assert not opened.sub_models


def test_words_of_selections_are_found_behind_a_folder(tmp_path: Path) -> None:
    encoder = ["embed_tokens", "layers.0.fc", "ln_f", "lm_head"]
    second = ["shared", "encoder.block.0.fc", "encoder.final_layer_norm", "output"]
    models = []
    for seed, name in enumerate("tdr"):
        random = np.random.default_rng(seed)
        for folder, words in {"text_encoder": encoder, "text_encoder_2": second}.items():
            tensors = {f"{word}.weight": random.normal(size=(4, 4)).astype(np.float32) for word in words}
            save(tmp_path / name / folder / "model.safetensors", tensors)
        note(tmp_path / name / "model_index.json", {"text_encoder": ["t", "T"], "text_encoder_2": ["t", "T"]})
        models.append(tmp_path / name)
    before = tv.open(models[0])

    def changed(**selection: Any) -> set[str]:
        out = tmp_path / "out"
        tv.transfer(*models, out, overwrite=True, **selection)
        after = tv.open(out)
        return {n.removesuffix(".weight") for n in after.tensors if not np.array_equal(after[n], before[n])}

    layers = {"text_encoder/layers.0.fc", "text_encoder_2/encoder.block.0.fc"}
    norms = {"text_encoder/ln_f", "text_encoder_2/encoder.final_layer_norm"}
    assert changed(preset="no-embed") == layers | norms
    assert changed(preset="no-embed-norm") == layers
    assert changed(layers="0") == layers
    assert changed(include="^text_encoder/") == {f"text_encoder/{word}" for word in encoder}
    # as a regular expression it would take `text_encoder_2` too
    with pytest.raises(RecipeError, match="not a regular expression of names") as caught:
        changed(include="text_encoder/*")
    assert "`^text_encoder/`" in str(caught.value.hint)


def test_selections_and_vectors_use_the_names_with_folders(three: list[Path], tmp_path: Path) -> None:
    tv.transfer(*three, tmp_path / "part", include="^unet/")
    t, d = map(weights, three[:2])
    made = weights(tmp_path / "part")
    assert np.array_equal(made["vae/conv_in.weight"], t["vae/conv_in.weight"])
    assert not np.array_equal(made["unet/mid.weight"], t["unet/mid.weight"])
    tv.extract(three[1], three[2], tmp_path / "vector")
    tv.apply(three[0], tmp_path / "vector", out=tmp_path / "applied")
    tv.transfer(*three, tmp_path / "whole")
    whole, applied = weights(tmp_path / "whole"), weights(tmp_path / "applied")
    for name in t:
        assert np.array_equal(whole[name], applied[name]), name
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(path), "parameters": {"weight": 0.5}} for path in three[:2]],
    }
    tv.merge(recipe, tmp_path / "mean")
    tv.average(three[:2], tmp_path / "average")
    for out in (tmp_path / "mean", tmp_path / "average"):
        for name, array in weights(out).items():
            assert np.allclose(array, (t[name].astype(np.float64) + d[name]) / 2, atol=1e-7)
    found = tv.diff(three[0], tmp_path / "mean").to_dict()
    assert "unet/mid.weight" in json.dumps(found)


def test_types_and_sizes_hold_in_each_folder(three: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    tv.convert(three[0], out, out_dtype="bfloat16", max_shard_size=300)
    assert json.loads((out / "text_encoder/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert {name for name in names(out) if name.startswith("unet/")} == {
        f"unet/{UNET}-00001-of-00002.safetensors", f"unet/{UNET}-00002-of-00002.safetensors",
        f"unet/{UNET}.safetensors.index.json", "unet/config.json",
    }  # fmt: skip
    opened = tv.open(out)
    assert {info.dtype for info in opened.tensors.values()} == {"BF16"}
    tv.convert(three[0], tmp_path / "one", out_dtype="bfloat16", max_shard_size="1GB")
    assert {name for name in names(tmp_path / "one") if name.startswith("unet/")} == {
        f"unet/{UNET}.safetensors", "unet/config.json"
    }  # fmt: skip


def test_several_alphas_overwriting_and_resuming(three: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    tv.transfer(*three, out, alpha=[0.5, 1])
    one = weights(out / "alpha=1")
    tv.transfer(*three, tmp_path / "single", alpha=1)
    assert all(np.array_equal(one[name], array) for name, array in weights(tmp_path / "single").items())
    # another pipeline, without the text encoder, in its place
    for path in three:
        shutil.rmtree(path / "text_encoder")
        note(path / "model_index.json", {"unet": COMPONENTS["unet"], "vae": COMPONENTS["vae"]})
    with pytest.raises(OutputError, match="finished output"):
        tv.transfer(*three, tmp_path / "single")
    tv.transfer(*three, tmp_path / "single", overwrite=True)
    assert not (tmp_path / "single/text_encoder").exists()
    assert tv.verify(tmp_path / "single").ok


def test_functions_and_tokenizers_are_compared_in_each_folder(three: list[Path], tmp_path: Path) -> None:
    note(
        three[1] / "unet/config.json",
        {"_class_name": "UNet2DConditionModel", "in_channels": 4, "num_heads": 9},
    )
    note(
        three[0] / "unet/config.json",
        {"_class_name": "UNet2DConditionModel", "in_channels": 4, "num_heads": 8},
    )
    note(three[1] / "tokenizer/vocab.json", {"a": 1, "b": 0})
    with pytest.raises(CompatibilityError) as caught:
        tv.transfer(*three, tmp_path / "out")
    found = {each.id: each.subject for each in caught.value.findings if each.level == "error"}
    assert "donor/unet" in found["config-function"]
    assert "donor/tokenizer" in found["tokenizer-vocabulary"]
    assert not (tmp_path / "out").exists()


def test_what_is_not_whole_is_refused_by_name(three: list[Path]) -> None:
    (three[0] / f"unet/{UNET}-00002-of-00002.safetensors").unlink()
    with pytest.raises(NotFoundError, match=f"`{UNET}-00002-of-00002.safetensors`"):
        tv.open(three[0])
    shutil.rmtree(three[1] / "vae")
    with pytest.raises(NotFoundError, match="names `vae`"):
        tv.open(three[1])
    index = three[2] / f"unet/{UNET}.safetensors.index.json"
    note(index, {"weight_map": {"other.weight": f"{UNET}-00001-of-00002.safetensors"}})
    with pytest.raises(FormatError, match="lists other tensors"):
        tv.open(three[2])
    for outside in ("../../elsewhere.safetensors", "./../elsewhere.safetensors", ".//elsewhere.safetensors"):
        note(index, {"weight_map": {"a": outside}})
        with pytest.raises(FormatError, match="not a bare name"):
            tv.open(three[2])


def test_a_dot_before_the_names_of_an_index_is_its_own_folder(three: list[Path]) -> None:
    before = list(tv.open(three[2]))
    index = three[2] / f"unet/{UNET}.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    note(index, {"weight_map": {tensor: f"./{file}" for tensor, file in names.items()}})
    assert list(tv.open(three[2])) == before


def test_pickles_and_packed_sub_models_are_refused_by_name(three: list[Path]) -> None:
    (three[0] / f"vae/{UNET}.safetensors").unlink()
    (three[0] / f"vae/{UNET}.fp16.safetensors").unlink()
    (three[0] / f"vae/{UNET}.bin").write_bytes(b"pickle")
    with pytest.raises(FormatError, match="pickle form"):
        tv.open(three[0])
    note(three[1] / "unet/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}})
    with pytest.raises(FormatError, match=r"`unet/`.*packed"):
        tv.open(three[1])


def sentence(root: Path, seed: int, dense: str = "2_Dense") -> Path:
    rng = np.random.default_rng(seed)
    save(root / "model.safetensors", {"embed_tokens.weight": rng.normal(size=(16, 8)).astype(np.float32)})
    save(root / dense / "model.safetensors", {"linear.weight": rng.normal(size=(8, 8)).astype(np.float32)})
    note(root / dense / "config.json", {"in_features": 8, "out_features": 8, "bias": False})
    note(root / "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    note(root / "config.json", {"model_type": "gemma3_text", "num_hidden_layers": 1})
    paths = ["", "1_Pooling", dense]
    note(root / "modules.json", [{"idx": i, "name": str(i), "path": path} for i, path in enumerate(paths)])
    return root


def test_dense_modules_are_computed_with(tmp_path: Path) -> None:
    three = [sentence(tmp_path / name, seed) for seed, name in enumerate("tdr")]
    out = tmp_path / "out"
    tv.transfer(*three, out)
    t, d, r, made = (load_file(path / "2_Dense/model.safetensors")["linear.weight"] for path in [*three, out])
    assert np.allclose(made, t.astype(np.float64) + (d.astype(np.float64) - r), atol=1e-6)
    assert names(out) == names(three[0]) | OWN
    assert set(tv.open(out).tensors) == {"embed_tokens.weight", "2_Dense/linear.weight"}


@pytest.mark.parametrize("form", ["fp8-block", "fp8-channel", "mxfp4", "int4-g32"])
def test_modules_stay_plain_where_a_format_is_declared_at_the_top(tmp_path: Path, form: str) -> None:
    model = sentence(tmp_path / "model", 0)
    wide = np.random.default_rng(0).normal(size=(128, 128)).astype(np.float32)
    save(model / "model.safetensors", {"layers.0.mlp.up_proj.weight": wide})
    save(model / "2_Dense/model.safetensors", {"linear.weight": wide})
    report = tv.convert(model, tmp_path / "out", out_dtype=form)
    (said,) = [each for each in report.findings if each.id == "convert-plain"]
    assert "`2_Dense/`" in said.subject
    assert np.array_equal(load_file(tmp_path / "out/2_Dense/model.safetensors")["linear.weight"], wide)
    assert set(tv.open(tmp_path / "out").packed) == {"layers.0.mlp.up_proj.weight"}


def test_a_pipeline_is_not_packed(three: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="several models in folders") as caught:
        tv.convert(three[0], tmp_path / "out", out_dtype="fp8-block")
    assert "/unet`" in str(caught.value.hint) or "/text_encoder`" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_a_killed_run_goes_on(three: list[Path], tmp_path: Path) -> None:
    """What a kill leaves: state, a shard that the journal lists, and one half written."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    tv.transfer(*three, whole)
    engine_run(tv.plan_transfer(*three).json, out)
    (out / "unet" / f".{UNET}-00001-of-00002.safetensors.part").write_bytes(b"half")
    (out / f"vae/{UNET}.safetensors").unlink()
    report = tv.transfer(*three, out)
    assert report.resumed_shards == 3
    for name, array in weights(whole).items():
        assert np.array_equal(array, weights(out)[name])
    assert names(out) == names(whole)


@pytest.mark.parametrize("tag", ["", "?variant=fp16"])
def test_pipelines_on_the_hub(three: list[Path], tmp_path: Path, hub: Hub, tag: str) -> None:
    tv.transfer(*(f"{path}{tag}" for path in three), tmp_path / "local")
    for path in three:
        hub.repos[f"org/{path.name}"] = Repo.from_folder(path)
    opened = tv.open(f"org/t{tag}")
    assert opened.fingerprint == tv.open(f"{three[0]}{tag}").fingerprint
    assert opened.configs == tv.open(three[0]).configs
    tv.transfer(*(f"org/{path.name}{tag}" for path in three), tmp_path / "out")
    assert names(tmp_path / "out") == names(tmp_path / "local")
    assert weights(tmp_path / "out", "fp16").keys() == weights(three[0]).keys()
    for name, array in weights(tmp_path / "local", "fp16").items():
        assert np.array_equal(array, weights(tmp_path / "out", "fp16")[name])
    # the other variant, and the single file at the top, stay where they are
    asked = {request.path for request in hub.requests}
    other = f"vae/{UNET}.safetensors" if tag else f"vae/{UNET}.fp16.safetensors"
    assert not any(path.endswith((other, "sd_single_file.safetensors")) for path in asked)


def test_files_beside_each_other_on_the_hub(tmp_path: Path, hub: Hub) -> None:
    draws = np.random.default_rng(0)
    folders = [tmp_path / name for name in ("t", "d", "r")]
    for folder in folders:
        for part in ("encoder", "decoder"):
            save(folder / f"{part}.safetensors", {f"{part}.w": draws.normal(size=(4, 3)).astype(np.float32)})
        hub.repos[f"org/{folder.name}"] = Repo.from_folder(folder)
    tv.transfer(*folders, tmp_path / "local")
    tv.transfer(*(f"org/{folder.name}" for folder in folders), tmp_path / "out")
    assert tv.open("org/t").fingerprint == tv.open(folders[0]).fingerprint
    assert names(tmp_path / "out") == names(tmp_path / "local")
    assert "encoder.safetensors" in names(tmp_path / "out")
    for part in ("encoder", "decoder"):
        local, fetched = (load_file(tmp_path / out / f"{part}.safetensors") for out in ("local", "out"))
        assert np.array_equal(local[f"{part}.w"], fetched[f"{part}.w"])


def test_adapters_are_of_one_model(three: list[Path], tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="weights in `text_encoder`, `unet` and `vae`, and an adapter is of one"
    ):
        tv.extract_lora(three[1], three[2], tmp_path / "adapter", rank=2)
    assert not (tmp_path / "adapter").exists()
