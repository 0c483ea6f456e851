"""The plan: what it says, how it is laid out, and that nothing but inputs and settings is in it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

import taskvec as tv
from support.models import (
    Trio,
    edit_json,
    header_bytes,
    qwen2_config,
    qwen2_shapes,
    random_tensors,
    write_checkpoint,
    write_trio,
)
from taskvec.errors import OutputError
from taskvec.host import free_space
from taskvec.lazy.plan import Plan
from taskvec.models.model import TensorInfo
from taskvec.plan import delta
from taskvec.plan import transfer as planning
from taskvec.plan.layout import DEFAULT_SHARD_SIZE, Sized, layout


def document(plan: Plan) -> dict:
    return json.loads(plan.json)


def test_the_engine_part(sharded_trio: Trio) -> None:
    plan = tv.plan_transfer(*sharded_trio, alpha=0.8)
    data = document(plan)
    assert list(data) == [
        "format", "arithmetic", "sources", "outputs", "shards", "operations", "tensors", "rounding", "seed",
    ]  # fmt: skip
    assert data["outputs"] == [{"folder": "", "alpha": 0.8}]
    assert data["shards"] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert data["operations"][1] == {
        "kind": "task_arithmetic",
        "terms": [{"model": 1, "reference": 2, "weight": 1.0}],
        "lambda": 1.0,
    }
    target = tv.open(sharded_trio.target)
    assert [row[0] for row in data["tensors"]] == list(target)
    name, dtype, shape, shard, operation, inputs = data["tensors"][3]
    assert (dtype, tuple(shape), operation) == ("BF16", target.tensors[name].shape, 1)
    assert inputs == [[0, name], [1, name], [2, name]]
    assert data["shards"][shard] == target.tensors[name].file
    assert [source["path"] for source in data["sources"]] == [str(folder) for folder in sharded_trio]


def test_a_plan_knows_its_figures(sharded_trio: Trio, tmp_path: Path) -> None:
    plan = tv.plan_transfer(*sharded_trio, alpha=[0, 1], include="mlp")
    models = [tv.open(folder) for folder in sharded_trio]
    mlp = sum(info.nbytes for name, info in models[0].tensors.items() if "mlp" in name)
    assert plan.tensors == len(models[0])
    assert plan.merged == sum("mlp" in name for name in models[0])
    assert [source.bytes_in for source in plan.sources] == [models[0].total_bytes, mlp, mlp]
    assert plan.bytes_out == 2 * models[0].total_bytes
    assert plan.parameters == models[0].total_parameters
    assert plan.download == 0
    assert plan.memory(2) < plan.memory(4) < 300e6
    assert free_space(tmp_path / "not" / "there") > 0
    data = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert data["schema"] == 1
    assert data["bytes_in"] == plan.bytes_in
    assert "26 merged" not in str(plan)
    assert plan.digest[:16] in str(plan)


def test_the_same_request_is_the_same_plan(sharded_trio: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tv.plan_transfer(*sharded_trio, alpha=0.8)
    monkeypatch.chdir(sharded_trio.target.parent)
    second = tv.plan_transfer("target", "donor", "reference", alpha="0.8", threads=3, overwrite=True, seed=7)
    assert first.json == second.json
    assert first.digest == second.digest
    assert tv.plan_transfer(*sharded_trio, alpha=0.8000001).digest != first.digest
    assert tv.plan_transfer(*sharded_trio, alpha=0.8, rounding="stochastic", seed=7).digest != first.digest


def test_a_plan_comes_back_from_its_json(sharded_trio: Trio, tmp_path: Path) -> None:
    plan = tv.plan_transfer(*sharded_trio, alpha=0.8, out_dtype="float32")
    again = Plan.from_json(plan.json, recipe=plan.recipe)
    assert (again.digest, again.shards, again.weight_map) == (plan.digest, plan.shards, plan.weight_map)
    assert (again.merged, again.bytes_in, again.config) == (plan.merged, plan.bytes_in, plan.config)
    again.run(tmp_path / "again")
    plan.run(tmp_path / "plan")
    for path in (tmp_path / "plan").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    Plan.from_json(plan.json).run(tmp_path / "bare")
    assert tv.verify(tmp_path / "bare").ok


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"format": 9, "arithmetic": 1, "sources": []}'])
def test_what_is_no_plan_is_refused(data: bytes) -> None:
    with pytest.raises(tv.RecipeError, match="plan"):
        Plan.from_json(data)


def test_a_plan_of_other_inputs_is_refused(sharded_trio: Trio, tmp_path: Path) -> None:
    plan = tv.plan_transfer(*sharded_trio)
    for folder in sharded_trio:
        shutil.rmtree(folder)
    write_trio(sharded_trio.target.parent, shards=(2, 3, 1), layers=3)
    with pytest.raises(tv.FormatError, match="not what it was"):
        Plan.from_json(plan.json)
    with pytest.raises(tv.FormatError, match="not what it was"):
        plan.run(tmp_path / "out")


@pytest.mark.parametrize("alpha", ["", "x", "nan", [float("inf")], "1,1.0", "0,-0", []])
def test_a_useless_alpha_is_refused(trio: Trio, alpha: object) -> None:
    with pytest.raises(tv.RecipeError, match="alpha"):
        tv.plan_transfer(*trio, alpha=alpha)  # type: ignore[arg-type]


def test_alphas_name_their_folders(trio: Trio) -> None:
    plan = tv.plan_transfer(*trio, alpha=[-1.0, 0.0, 0.5, 1e-7, 2])
    names = [output.folder for output in plan.outputs]
    assert names == ["alpha=-1", "alpha=0", "alpha=0.5", "alpha=1e-07", "alpha=2"]
    assert [output.folder for output in tv.plan_transfer(*trio, alpha=[0.5]).outputs] == [""]


def test_a_selection_that_matches_nothing_is_refused(trio: Trio) -> None:
    with pytest.raises(tv.RecipeError, match="matches none"):
        tv.plan_transfer(*trio, include="no_such_tensor")


def test_force_names_findings(trio: Trio) -> None:
    edit_json(trio.donor / "config.json", rope_theta=10000.0)
    with pytest.raises(tv.CompatibilityError, match="rope_theta") as caught:
        tv.plan_transfer(*trio)
    assert "--force config-function" in (caught.value.hint or "")
    plan = tv.plan_transfer(*trio, force="config-function")
    assert plan.recipe["force"] == ["config-function"]
    assert [finding.level for finding in plan.findings if finding.id == "config-function"] == ["warning"]
    with pytest.raises(tv.RecipeError, match="no finding `config-functoin`") as wrong:
        tv.plan_transfer(*trio, force="config-functoin")
    assert "config-function" in (wrong.value.hint or "")


@pytest.mark.parametrize("scale", [[], [0.0, float("nan")]])
def test_a_useless_layer_scale_is_refused(trio: Trio, scale: list[float]) -> None:
    with pytest.raises(tv.RecipeError, match="layer scale"):
        tv.plan_transfer(*trio, layer_scale=scale)


def test_formats_that_are_not_read_are_not_converted(tmp_path: Path) -> None:
    folders = []
    for seed, role in enumerate(("target", "donor", "reference")):
        config = qwen2_config(quantization_config={"quant_method": "torchao"})
        tensors = random_tensors(qwen2_shapes(config), seed=seed)
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = random_tensors({name: (64, 32)}, seed=seed, dtype="F8_E4M3")[name]
        tensors[f"{name}_scale_inv"] = random_tensors({name: (1, 1)}, dtype="F32")[name]
        folders.append(write_checkpoint(tmp_path / role, tensors, config))
    with pytest.raises(tv.CompatibilityError):
        tv.plan_transfer(*folders)
    plan = tv.plan_transfer(*folders, include="self_attn")
    assert plan.copied
    with pytest.raises(tv.RecipeError, match="quantised"):
        tv.plan_transfer(*folders, include="self_attn", out_dtype="float32")


def infos(sizes: list[int], files: list[str], dtype: str = "BF16") -> dict[str, TensorInfo]:
    return {
        f"t{i}": TensorInfo(f"t{i}", dtype, (size // 2,), size, file)
        for i, (size, file) in enumerate(zip(sizes, files, strict=True))
    }


def test_layout_keeps_the_files_of_the_target() -> None:
    own = infos([10, 20, 30], ["a.safetensors", "a.safetensors", "b.safetensors"])
    tensors = [Sized(name, info.nbytes) for name, info in own.items()]
    assert layout([*tensors, Sized("new", 4)], own) == (["a.safetensors", "b.safetensors"], [0, 0, 1, 1])


def test_layout_fills_files_up_to_a_size() -> None:
    own = infos([10, 20, 30, 100, 5], ["a.safetensors"] * 5)
    tensors = [Sized(name, info.nbytes) for name, info in own.items()]
    shards, of = layout(tensors, own, max_shard_size=60)
    assert of == [0, 0, 0, 1, 2]
    assert shards == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert layout(tensors, own, max_shard_size=165) == (["model.safetensors"], [0] * 5)


def test_layout_is_made_again_where_a_wider_type_makes_large_files() -> None:
    big = DEFAULT_SHARD_SIZE // 4
    own = infos([big] * 4, ["a.safetensors"] * 4)
    assert layout([Sized(name, big) for name in own], own).shards == ["a.safetensors"]
    shards, of = layout([Sized(name, 2 * big) for name in own], own)
    assert (len(shards), of) == (2, [0, 0, 1, 1])
    larger = infos([4 * big] * 2, ["a.safetensors"] * 2)
    assert layout([Sized(name, 2 * big) for name in larger], larger).shards == ["a.safetensors"]


def test_config_names_the_new_type(trio: Trio) -> None:
    assert tv.plan_transfer(*trio).config == {}
    assert tv.plan_transfer(*trio, out_dtype="bf16").config == {}
    assert tv.plan_transfer(*trio, out_dtype="fp32").config == {"dtype": "float32"}
    for folder in trio:
        edit_json(folder / "config.json", dtype=None)
    assert tv.plan_transfer(*trio, out_dtype="fp32").config == {}


def test_steps_share_sources_and_operations(trio: Trio) -> None:
    target, donor, reference = map(tv.open, trio)
    everything = tv.Selection()
    plan = planning.plan_steps(
        target,
        [
            delta.Step(0.5, donor, reference, everything),
            delta.Step(-2.0, target, reference, tv.Selection(include=("mlp",))),
        ],
    )
    data = document(plan)
    assert len(data["sources"]) == 3
    assert [source.role for source in plan.sources] == [
        "target and donor 2",
        "donor 1",
        "reference 1 and reference 2",
    ]
    rows = {row[0]: row for row in data["tensors"]}
    mlp, norm = rows["model.layers.0.mlp.up_proj.weight"], rows["model.norm.weight"]
    assert [source for source, _ in mlp[5]] == [0, 1, 2, 0, 2]
    assert [source for source, _ in norm[5]] == [0, 1, 2]
    assert [term["weight"] for term in data["operations"][mlp[4]]["terms"]] == [0.5, -2.0]
    assert len(data["operations"]) == 3


def test_many_tensors_are_planned_quickly(tmp_path: Path) -> None:
    count = 30_000
    rows = {
        f"model.layers.{i // 12}.mlp.experts.{i % 12}.up_proj.weight": {
            "dtype": "BF16",
            "shape": [1, 1],
            "data_offsets": [2 * i, 2 * i + 2],
        }
        for i in range(count)
    }
    data = header_bytes({"__metadata__": {"format": "pt"}, **rows}) + bytes(2 * count)
    for role in ("target", "donor", "reference"):
        (tmp_path / role).mkdir()
        (tmp_path / role / "model.safetensors").write_bytes(data)
        (tmp_path / role / "config.json").write_text(json.dumps(qwen2_config(layers=count // 12)))
    models = [tv.open(tmp_path / role) for role in ("target", "donor", "reference")]
    begin = time.process_time()
    plan = tv.plan_transfer(*models)
    assert plan.merged == count
    # three seconds are allowed for 100 000 tensors, headers included; a loaded machine gets slack
    assert time.process_time() - begin < 3


@pytest.mark.parametrize(("length", "is_refused"), [(249, False), (250, True), (255, True)])
def test_a_file_name_that_cannot_be_written_is_refused_by_the_plan(
    trio: Trio, tmp_path: Path, length: int, is_refused: bool
) -> None:
    for folder in trio:
        (folder / "model.safetensors").rename(folder / f"{'x' * (length - 12)}.safetensors")
    if is_refused:
        with pytest.raises(OutputError, match=f"a name of {length} bytes, expected at most 249"):
            tv.plan_transfer(*trio)
    else:
        tv.transfer(*trio, tmp_path / "kept")
    tv.transfer(*trio, tmp_path / "out", max_shard_size="5GB")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_coefficients_that_are_kept_of_columns_count_as_memory(tmp_path: Path) -> None:
    trio = write_trio(tmp_path, hidden=64, intermediate=64)
    models = [{"model": str(folder), "parameters": {"weight": 1.0}} for folder in [*trio][:2]]

    def memory(**parameters: bool) -> int:
        recipe = {"merge_method": "nuslerp", "models": models, "parameters": parameters}
        return tv.open_recipe(recipe).plan().memory(2)

    flat = memory()
    assert memory(nuslerp_flatten=False) == flat  # rows are short
    assert memory(nuslerp_flatten=False, nuslerp_row_wise=True) > flat
    assert tv.plan_extract(trio.donor, trio.reference).memory(2) > 0  # no operations
