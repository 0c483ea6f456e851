"""Output in the target's own quantised format: plans written by hand, against NumPy and stored bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.encoded import (
    SHAPES,
    added,
    form_takes_any_columns,
    output,
    parts_of,
    plan_of,
    same,
    source,
    stored,
    trio,
    unpacked,
    weights,
    write_trio,
)
from support.quantised import FORMATS, Format, array, read, write
from taskvec import _core, errors

NAMES = [pytest.param(name, id=name.replace(" ", "-")) for name in FORMATS]


@pytest.mark.parametrize("alpha", [0.75, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_the_better_scale_of_each_group(name: str, alpha: float, tmp_path: Path) -> None:
    form = FORMATS[name]
    models = trio(form, SHAPES)
    folders, tensors = write_trio(tmp_path, form, models)
    out = tmp_path / "out"
    report = json.loads(_core.run(plan_of(form, SHAPES, folders, [tensors], alphas=[alpha]), out))
    found = output(out)
    moved = 0
    measured = {row["name"]: row for row in report["outputs"][0]["survival"]["tensors"]}
    for tensor, shape in SHAPES.items():
        own = models[0][tensor]
        values = [form.decode(model[tensor], shape) for model in models]
        x = added(values, alpha)
        still = np.all(x == values[0])
        wanted = own if still else form.better(x, own)
        if "global" in own:
            number = (
                own["global"][0] if form.plan["global"] == "multiply" else np.float32(1) / own["global"][0]
            )
            if np.abs(x).max() > number * np.float32(6) * np.float32(464):
                wanted = form.quantise(x)
        got = unpacked(form, found, tensor)
        same(got, wanted)
        moved += got["scales"].tobytes() != own["scales"].tobytes()
        # What became of the step, on the decoded output.
        row = measured[tensor + parts_of(form)["codes"]]
        step = alpha * (values[1] - values[2]).astype(np.float64)
        change = form.decode(got, shape) - values[0].astype(np.float64)
        assert row["elements"] == np.prod(shape)
        assert row["changed"] == np.count_nonzero(step)
        assert np.isclose(row["step_norm"], np.linalg.norm(step), rtol=1e-4)
        assert np.isclose(row["moved_norm"], np.linalg.norm(change), rtol=1e-4)
    assert moved > 0


@pytest.mark.parametrize("name", ["block fp8 bf16", "channel fp8", "mxfp4"])
def test_tensors_of_many_patches(name: str, tmp_path: Path) -> None:
    form, shapes = (
        FORMATS[name],
        {"kv": (576, 7168), "odd": (300, 200 if form_takes_any_columns(name) else 224)},
    )
    models = trio(form, shapes)
    folders, tensors = write_trio(tmp_path, form, models)
    _core.run(plan_of(form, shapes, folders, [tensors]), tmp_path / "out", max_memory=32 << 20)
    for tensor, shape in shapes.items():
        x = added([form.decode(model[tensor], shape) for model in models], 1.0)
        same(unpacked(form, output(tmp_path / "out"), tensor), form.better(x, models[0][tensor]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scales_first", [False, True])
def test_identities_to_the_byte(name: str, scales_first: bool, tmp_path: Path) -> None:
    form = FORMATS[name]
    target, donor, reference = trio(form, SHAPES)
    cases = {
        "alpha 0": ([target, donor, reference], 0.0, target),
        "donor is reference": ([target, reference, reference], 1.0, target),
        "target is reference": ([reference, donor, reference], 1.0, donor),
        "target is reference, half": ([reference, reference, reference], 0.5, reference),
    }
    for case, (models, alpha, wanted) in cases.items():
        folder = tmp_path / case
        folders, tensors = write_trio(folder, form, models, scales_first=scales_first)
        _core.run(plan_of(form, SHAPES, folders, [tensors], alphas=[alpha]), folder / "out")
        assert output(folder / "out") == stored(form, wanted, scales_first=scales_first), case


@pytest.mark.parametrize("name", NAMES)
def test_groups_that_are_the_references_become_the_donors(name: str, tmp_path: Path) -> None:
    form = FORMATS[name]
    models = trio(form, SHAPES)
    whole = "global" in form.plan
    for tensor in SHAPES:
        for role in models[0][tensor]:
            # The upper half of the target, rounded down to groups, is the reference's.
            rows = len(models[0][tensor][role]) // 2
            models[0][tensor][role] = models[0][tensor][role].copy()
            models[0][tensor][role][:rows] = models[2][tensor][role][:rows]
    folders, tensors = write_trio(tmp_path, form, models)
    _core.run(plan_of(form, SHAPES, folders, [tensors]), tmp_path / "out")
    found = output(tmp_path / "out")
    for tensor in SHAPES:
        got, donor = unpacked(form, found, tensor), models[1][tensor]
        # Rows of whole groups, or matrices, that are the reference's.
        rows = len(got["codes"]) // 2
        rows = rows // form.block[0] * form.block[0] if got["codes"].ndim == 2 else rows
        if not whole:
            assert got["codes"][:rows].tobytes() == donor["codes"][:rows].tobytes()


def test_several_alphas_shards_threads_and_orders(tmp_path: Path) -> None:
    for name in ("block fp8", "mxfp4", "int3", "nvfp4", "channel fp8", "mlx 3"):
        form = FORMATS[name]
        shapes = {"a": (700, 2048), "b": (300, 224), "w": (256, 9024 if name in ("int3", "mlx 3") else 9000)}
        if form.kind == "e2m1":
            shapes["w"] = (256, 9024)
        models = trio(form, shapes)
        folder = tmp_path / name
        folders, tensors = write_trio(folder, form, models)
        alphas = [0.5, 1.0, -0.25]
        _core.run(plan_of(form, shapes, folders, [tensors], alphas=alphas), folder / "all", threads=2)
        whole = {alpha: output(folder / "all" / f"alpha-{alpha}") for alpha in alphas}
        names = list(tensors)
        scales = {n: tensors[n] for n in names if n.endswith(("scale", "scales", "biases"))}
        others = {n: tensors[n] for n in names if n not in scales}
        layouts = [
            [scales, others],
            [others, scales],
            [scales | others],
            [{n: tensors[n]} for n in reversed(names)],
        ]
        for index, layout in enumerate(layouts):
            for threads in (1, 3):
                out = folder / f"out-{index}-{threads}"
                plan = plan_of(form, shapes, folders, layout, alphas=[0.5])
                _core.run(plan, out, threads=threads)
                assert output(out) == whole[0.5]


@pytest.mark.parametrize("name", ["block fp8", "mxfp4", "nvfp4 modelopt", "mlx 4"])
def test_a_run_goes_on_after_a_shard(name: str, tmp_path: Path) -> None:
    form, shapes = FORMATS[name], {"a": (700, 2048), "b": (512, 1024)}
    models = trio(form, shapes)
    folders, tensors = write_trio(tmp_path, form, models)
    scales = {n: row for n, row in tensors.items() if n.endswith(("scale", "scales", "biases"))}
    others = {n: row for n, row in tensors.items() if n not in scales}
    for index, layout in enumerate(([scales, others], [others, scales])):
        plan = plan_of(form, shapes, folders, layout, alphas=[0.5, 1.0])
        first = json.loads(_core.run(plan, tmp_path / f"whole-{index}"))
        for alpha in (0.5, 1.0):
            for lost in ("model-0.safetensors", "model-1.safetensors"):
                out = tmp_path / f"again-{index}-{alpha}-{lost}"
                subprocess.run(["cp", "-r", tmp_path / f"whole-{index}", out], check=True)
                (out / f"alpha-{alpha}" / lost).unlink()
                report = json.loads(_core.run(plan, out))
                assert report["resumed_shards"] == 3
                for each in (0.5, 1.0):
                    assert output(out / f"alpha-{each}") == output(
                        tmp_path / f"whole-{index}" / f"alpha-{each}"
                    )
                for before, after in zip(first["outputs"], report["outputs"], strict=True):
                    assert before["survival"] == after["survival"]


@pytest.mark.parametrize("name", ["block fp8", "nvfp4", "int4 pair", "mlx 8"])
def test_a_killed_run_ends_in_the_same_bytes(name: str, tmp_path: Path) -> None:
    form, shapes = FORMATS[name], {f"t{i}": (512, 1024) for i in range(12)}
    models = trio(form, shapes)
    folders, tensors = write_trio(tmp_path, form, models)
    layout = [{n: row for n, row in tensors.items() if n.startswith(f"{each}.")} for each in shapes]
    plan = plan_of(form, shapes, folders, layout)
    _core.run(plan, tmp_path / "whole")
    (tmp_path / "plan.json").write_bytes(plan)
    code = "import sys; from taskvec import _core; a = sys.argv\n"
    code += "_core.run(open(a[1], 'rb').read(), a[2], threads=1)"
    for _ in range(4):
        run = subprocess.Popen([sys.executable, "-c", code, tmp_path / "plan.json", tmp_path / "out"])
        deadline = time.monotonic() + 10
        count = len(list((tmp_path / "out").glob("*.safetensors")))
        while run.poll() is None and time.monotonic() < deadline:
            if len(list((tmp_path / "out").glob("*.safetensors"))) > count:
                break
        if run.poll() is None:
            os.kill(run.pid, signal.SIGKILL)
        run.wait()
    _core.run(plan, tmp_path / "out")
    assert output(tmp_path / "out") == output(tmp_path / "whole")


def test_a_global_scale_is_kept_until_it_is_too_small(tmp_path: Path) -> None:
    for name in ("nvfp4", "nvfp4 modelopt"):
        form, shapes = FORMATS[name], {"a": (64, 128)}
        rng = np.random.default_rng(0)
        reference = weights(shapes["a"], rng)
        donor = reference + np.where(
            rng.random(shapes["a"]) < 0.01, np.float32(4) * np.abs(reference).max(), 0
        )
        models = [
            {"a": form.quantise(v.astype(np.float32))}
            for v in (reference * np.float32(0.9), donor, reference)
        ]
        folders, tensors = write_trio(tmp_path / name, form, models)
        values = [form.decode(model["a"], shapes["a"]) for model in models]
        for alpha, is_kept in ((0.05, True), (1.0, False)):
            out = tmp_path / name / f"out-{alpha}"
            _core.run(plan_of(form, shapes, folders, [tensors], alphas=[alpha]), out)
            got, own = unpacked(form, output(out), "a"), models[0]["a"]
            assert (got["global"] == own["global"]) == is_kept
            x = added(values, alpha)
            if not is_kept:
                most = np.abs(x).max()
                multiply = form.plan["global"] == "multiply"
                glob = most / np.float32(2688) if multiply else np.float32(1) / most * np.float32(2688)
                same(got, form.quantise(x, glob))


@pytest.mark.parametrize("codes", ["F8_E4M3", "I8"])
def test_one_scale_for_a_whole_tensor(codes: str, tmp_path: Path) -> None:
    top = 448.0 if codes == "F8_E4M3" else 127.0
    rule = "amax_448" if codes == "F8_E4M3" else "amax_127"
    plain = FORMATS["channel fp8" if codes == "F8_E4M3" else "channel int8"]
    plan = plain.plan | {"block": [0, 0]}
    form = Format(plan, codes, "F32", (0, 0), top, rule)
    shapes = {"a": (192, 160), "e": (3, 160, 96)}
    models = trio(form, shapes)
    for model in models:
        model["a"]["scales"] = model["a"]["scales"].reshape(())
    folders, tensors = write_trio(tmp_path, form, models)
    for alpha in (0.3, 1.0, 20.0):
        out = tmp_path / f"out-{alpha}"
        _core.run(plan_of(form, shapes, folders, [tensors], alphas=[alpha]), out)
        for tensor, shape in shapes.items():
            own, got = models[0][tensor], unpacked(form, output(out), tensor)
            x = added([form.decode(model[tensor], shape) for model in models], alpha)
            most = np.abs(x).reshape(-1 if tensor == "e" else 1, x.shape[-2] * x.shape[-1]).max(-1)
            if tensor == "e":
                most = np.abs(x).max((-1, -2))
            limit = 464.0 if codes == "F8_E4M3" else 127.5
            kept = most <= np.abs(own["scales"]).reshape(-1) * np.float32(limit)
            scales = np.where(kept, own["scales"].reshape(-1), most / np.float32(top)).astype(np.float32)
            each = scales.reshape(-1, 1, 1) if tensor == "e" else scales[0]
            same(got, {"codes": form.pack(form.round(x / each)), "scales": scales})
    for case, order, wanted in (("d", (0, 2, 2), 0), ("t", (2, 1, 2), 1)):
        folders, tensors = write_trio(tmp_path / case, form, [models[i] for i in order])
        _core.run(plan_of(form, shapes, folders, [tensors]), tmp_path / case / "out")
        assert output(tmp_path / case / "out") == stored(form, models[wanted])


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_every_cpu_level_gives_the_same_bytes(rounding: str, tmp_path: Path) -> None:
    plans = []
    for name in FORMATS:
        form, shapes = FORMATS[name], {"a": (130, 160), "e": (2, 40, 544)}
        models = trio(form, shapes)
        folders, tensors = write_trio(tmp_path / name, form, models)
        plans.append(tmp_path / name / "plan.json")
        plan = plan_of(form, shapes, folders, [tensors], alphas=[0.8], rounding=rounding)
        plans[-1].write_bytes(plan)
    code = "import sys; from taskvec import _core\n"
    code += "for p in sys.argv[2:]: _core.run(open(p, 'rb').read(), p + sys.argv[1])"
    for level in _core.cpu_levels():
        environment = os.environ | {"TASKVEC_CPU": level}
        subprocess.run([sys.executable, "-c", code, level, *plans], env=environment, check=True)
    for plan in plans:
        found = [output(Path(f"{plan}{level}")) for level in _core.cpu_levels()]
        assert all(one == found[0] for one in found)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    for name in ("block fp8", "mxfp4", "int4", "channel fp8", "channel int8"):
        form, shapes = FORMATS[name], {"a": (256, 256)}
        models = trio(form, shapes)
        if form.codes == "F8_E4M3":
            codes = models[1]["a"]["codes"].copy()
            codes.view(np.uint8)[5, 7] = 0x7F
            models[1]["a"]["codes"] = codes
        else:
            scales = models[1]["a"]["scales"].copy()
            scales[1, 0] = 255 if form.scales == "U8" else np.nan
            models[1]["a"]["scales"] = scales
        folders, tensors = write_trio(tmp_path / name, form, models)
        plan = plan_of(form, shapes, folders, [tensors])
        with pytest.raises(errors.NonFiniteError, match="donor"):
            _core.run(plan, tmp_path / name / "out")
        report = json.loads(_core.run(plan, tmp_path / name / "out", allow_non_finite=True))
        assert report["outputs"][0]["non_finite"]
        got = unpacked(form, output(tmp_path / name / "out"), "a")
        values = form.decode(got, shapes["a"])
        if form.codes == "F8_E4M3":
            assert np.isnan(values[5, 7])
            assert np.isnan(values).sum() == 1
        else:
            assert np.isfinite(values).all()
        # The same NaN in the reference, so that donor and reference are equal: the target's bytes.
        same_models = [models[0], models[1], models[1]]
        folders, tensors = write_trio(tmp_path / name / "same", form, same_models)
        _core.run(plan_of(form, shapes, folders, [tensors]), tmp_path / name / "still", allow_non_finite=True)
        assert output(tmp_path / name / "still") == stored(form, models[0])


def test_plans_that_cannot_be(tmp_path: Path) -> None:
    form, shapes = FORMATS["block fp8"], {"a": (192, 160)}
    models = trio(form, shapes)
    folders, tensors = write_trio(tmp_path, form, models)
    good = json.loads(plan_of(form, shapes, folders, [tensors]))

    def refused(change: Any, match: str) -> None:
        plan = json.loads(json.dumps(good))
        change(plan)
        with pytest.raises(errors.RecipeError, match=match):
            _core.run(json.dumps(plan).encode(), tmp_path / "out", overwrite=True)

    def rows_of(plan: Any, ending: str) -> list[Any]:
        return [row for row in plan["tensors"] if row[0].endswith(ending)]

    refused(lambda plan: plan.update(encodings=[]), "refers to something")
    refused(lambda plan: plan["encodings"][0].update(rule="best"), "rule|variant")
    refused(lambda plan: plan["tensors"].remove(rows_of(plan, "scale")[0]), "scales are not written")
    refused(lambda plan: rows_of(plan, "scale")[0].__setitem__(2, [1, 1]), "do not fit")
    refused(lambda plan: rows_of(plan, "scale")[0].__setitem__(5, [[0, "a.weight"]] * 3), "belong together")
    refused(lambda plan: rows_of(plan, "a.weight")[0].__setitem__(1, "F16"), "codes of F16")
    refused(lambda plan: plan["sources"][0].pop("packed"), "F8|own|stored|format")
    refused(lambda plan: plan["encodings"][0].update(rule="own", own=False), "no rule")


GOLDEN = {
    "block_fp8_float": ("scaled", "amax_448_reciprocal", {"block": [128, 128]}, ".weight_scale_inv"),
    "block_fp8_ue8m0": ("scaled", "ue8m0", {"block": [128, 128]}, ".weight_scale_inv"),
    "ct_fp8_block_float32": ("scaled", "ct_448", {"block": [128, 128]}, ".weight_scale"),
    "ct_fp8_channel_bfloat16": ("scaled", "ct_448", {"block": [1, 0]}, ".weight_scale"),
    "ct_int8_channel_float32": ("scaled", "ct_127", {"block": [1, 0]}, ".weight_scale"),
    "ct_mxfp8_float32": ("scaled", "mx_ct", {"block": [1, 32]}, ".weight_scale"),
    "ct_mxfp4_bfloat16": ("e2m1", "mx_ct", {"group": 32}, ".weight_scale"),
    "ct_nvfp4_bfloat16": ("e2m1", "nvfp4", {"group": 16, "global": "divide"}, ".weight_scale"),
    "modelopt_nvfp4": ("e2m1", "nvfp4", {"group": 16, "global": "multiply"}, ".weight_scale"),
    "ct_pack_int3_g32_sym_bfloat16": ("packed_int", "ct", {"bits": 3, "group": 32}, ".weight_scale"),
    "ct_pack_int4_g32_sym_bfloat16": ("packed_int", "ct", {"bits": 4, "group": 32}, ".weight_scale"),
    "ct_pack_int4_g32_sym_float32": ("packed_int", "ct", {"bits": 4, "group": 32}, ".weight_scale"),
    "ct_pack_int4_gch_sym_bfloat16": ("packed_int", "ct", {"bits": 4, "group": 0}, ".weight_scale"),
    "ct_pack_int8_g128_sym_bfloat16": ("packed_int", "ct", {"bits": 8, "group": 128}, ".weight_scale"),
    "ct_pack_int8_g128_sym_float32": ("packed_int", "ct", {"bits": 8, "group": 128}, ".weight_scale"),
    "ct_pack_int4_g128_asym_float32": ("packed_int", "ct", {"bits": 4, "group": 128}, ".weight_scale"),
}
GOLDEN_FILES = Path(__file__).parent.parent / "data" / "golden"


@pytest.mark.parametrize("name", GOLDEN)
def test_what_other_tools_write(name: str, tmp_path: Path) -> None:
    """The package that defines a format gives these bytes for these numbers."""
    kind, rule, parameters, scales = GOLDEN[name]
    tensors = read(GOLDEN_FILES / f"{name}.safetensors")
    dtype, shape, data = tensors.pop("expect.source")
    packed = {n: row for n, row in tensors.items() if n.startswith("x.")}
    write(tmp_path / "model" / "model.safetensors", {"x.weight": (dtype, shape, data)})
    roles = {
        ".weight": "codes",
        ".weight_packed": "codes",
        scales: "scales",
        ".weight_zero_point": "zeros",
        ".weight_global_scale": "global",
        ".weight_scale_2": "global",
        ".weight_shape": "shape",
    }
    found = {roles[n[1:]]: n[1:] for n in packed}
    endings = {role: ending for role, ending in found.items() if role != "shape"}
    encoding = {
        "kind": kind,
        "dtype": "BF16",
        "strip": ".weight",
        "parts": endings,
        "rule": rule,
        "own": False,
    } | parameters
    rows = [
        [n, d, list(s), 0, 0, [[0, "x.weight"]], [0, roles[n[1:]], "x.weight", list(shape)]]
        for n, (d, s, _) in packed.items()
    ]
    plan = {
        "format": 1,
        "arithmetic": 3,
        "sources": [source(tmp_path / "model", None, {})],
        "outputs": [{"folder": "", "alpha": 1.0}],
        "shards": ["model.safetensors"],
        "operations": [{"kind": "copy"}],
        "tensors": rows,
        "encodings": [encoding],
        "rounding": "nearest",
        "seed": 0,
    }
    report = json.loads(_core.run(json.dumps(plan).encode(), tmp_path / "out"))
    got = output(tmp_path / "out")
    for n, row in packed.items():
        wanted, values = array(row), array(got[n])
        differ = np.count_nonzero(values.view(f"u{values.itemsize}") != wanted.view(f"u{wanted.itemsize}"))
        assert differ == 0, f"{n}: {differ} of {wanted.size}"
    assert report["outputs"][0]["survival"]["tensors"][0]["moved_norm"] > 0
