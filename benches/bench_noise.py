"""What is left of a vector in quantised models: noise and survival of three placements in each format.

    python benches/bench_noise.py [--size 1024] [--record DIR] [FORMAT ...]

A synthetic triple: rows of different size, the target 2 % from the reference, the donor one to three ulps
of bfloat16 from it on a fifth of the elements, and a plain matrix with the same step. The placements: (a)
all three are quantised, (b) the target is, (c) donor and reference are. ``projection`` is the share of the
true vector that the output has, ``cosine`` that of what the output changed with it; the change is taken from
the target as the output's form holds it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.packed import document
from support.quantised import DTYPES, FORMATS, Format, Parts, Stored, array, read, write
from taskvec import _core, host
from taskvec.report.noise import Sums, noise_of

BF16 = ml_dtypes.bfloat16
NAMES = [
    "block fp8", "block fp8 bf16", "block fp8 ue8m0", "channel fp8", "channel int8", "mxfp8", "mxfp4",
    "nvfp4", "int4",
]  # fmt: skip
TRANSFER = {"kind": "task_arithmetic", "terms": [{"model": 1, "reference": 2, "weight": 1.0}]}
# Which of target, donor and reference are packed, how the output is stored and rounded.
PLACEMENTS = {
    "a packed": ((True, True, True), True, "nearest"),
    "a plain": ((True, True, True), False, "nearest"),
    "b packed": ((True, False, False), True, "nearest"),
    "b stochastic": ((True, False, False), True, "stochastic"),
    "b plain": ((True, False, False), False, "nearest"),
    "c plain": ((False, True, True), False, "nearest"),
}


def weights(rng: np.random.Generator, size: int) -> np.ndarray:
    rows = np.exp(rng.standard_normal((size, 1)) * 0.5) * 0.02
    return (rng.standard_normal((size, size)) * rows).astype(BF16).astype(np.float32)


def stepped(weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    ulp = np.exp2(np.floor(np.log2(np.abs(weight) + 1e-12)) - 7)
    step = rng.integers(1, 4, weight.shape) * rng.choice([-1, 1], weight.shape) * ulp
    return (weight + step * (rng.random(weight.shape) < 0.2)).astype(BF16).astype(np.float32)


def ends_of(form: Format) -> dict[str, str]:
    return dict(form.plan["parts"])  # type: ignore[call-overload]


def stored(form: Format, values: np.ndarray, plain: np.ndarray, *, packed: bool) -> Stored:
    """A matrix, packed or not, and a plain one."""
    tensors: Stored = {"plain": ("BF16", plain.shape, plain.astype(BF16).tobytes())}
    if not packed:
        return tensors | {"x.weight": ("BF16", values.shape, values.astype(BF16).tobytes())}
    parts, types = form.quantise(values), {"codes": form.codes, "scales": form.scales, "global": "F32"}
    for role, end in ends_of(form).items():
        data = np.ascontiguousarray(parts[role]).astype(DTYPES[types[role]], copy=False)
        tensors["x" + end] = (types[role], data.shape, data.tobytes())
    return tensors


def values_of(form: Format, tensors: Stored, shape: tuple[int, int]) -> np.ndarray:
    if "x.weight" in tensors and tensors["x.weight"][0] == "BF16":
        return array(tensors["x.weight"]).astype(np.float64)
    parts: Parts = {role: array(tensors["x" + end]) for role, end in ends_of(form).items()}
    return form.decode(parts, shape).astype(np.float64)


def source(folder: Path, form: Format, shape: tuple[int, int], *, packed: bool) -> dict[str, Any]:
    opened = _core.Checkpoint(folder)
    held = {"path": str(folder), "files": opened.files(), "fingerprint": opened.fingerprint}
    tables = {"formats": [form.plan], "tensors": {"x.weight": [0, list(shape)]}}
    return {"kind": "checkpoint", **held} | ({"packed": tables} if packed else {})


def placed(root: Path, form: Format, models: list[Any], name: str) -> dict[str, Any]:
    """One placement of a triple: what the run measured, and what is true."""
    packs, is_packed, rounding = PLACEMENTS[name]
    shape, folders, files = models[0][0].shape, [], []
    for role, packed, (values, plain) in zip(("target", "donor", "reference"), packs, models, strict=True):
        files.append(stored(form, values, plain, packed=packed))
        folders.append(root / name / role)
        write(folders[-1] / "model.safetensors", files[-1])
    inputs = [[[index, each] for index in range(3)] for each in ("plain", "x.weight")]
    rows: list[Any] = [["plain", "BF16", list(shape), 0, 0, inputs[0]]]
    if is_packed:
        for role, end in ends_of(form).items():
            dtype, size, _ = files[0]["x" + end]
            rows.append(["x" + end, dtype, list(size), 0, 0, inputs[1], [0, role, "x.weight", list(shape)]])
    else:
        rows.append(["x.weight", "BF16", list(shape), 0, 0, inputs[1]])
    sources = [source(at, form, shape, packed=packed) for at, packed in zip(folders, packs, strict=True)]
    plan = document(sources, rows, dict(TRANSFER)) | {"rounding": rounding}
    if is_packed:
        plan["encodings"] = [form.plan | {"rule": form.rule, "own": True}]
    report = json.loads(_core.run(json.dumps(plan).encode(), root / name / "out"))["outputs"][0]
    start = values_of(form, files[0], shape)
    start = start if is_packed else start.astype(np.float32).astype(BF16).astype(np.float64)
    moved = (values_of(form, read(root / name / "out" / "model.safetensors"), shape) - start).ravel()
    true = (models[1][0].astype(np.float64) - models[2][0]).ravel()
    figures: dict[str, Any] = {
        "projection": round(float(moved @ true / (true @ true)), 4),
        "cosine": round(float(moved @ true / max(np.sqrt((moved @ moved) * (true @ true)), 1e-300)), 4),
        "step_over_weights": round(float(np.sqrt((moved @ moved) / (start.ravel() @ start.ravel()))), 5),
    }
    measured = next(row for row in report["survival"]["tensors"] if row["name"] != "plain")
    figures["rounded_away"] = round(measured["rounded_away"] / max(measured["changed"], 1), 4)
    if "noise" in report:
        each = report["noise"]["tensors"]
        packed_rows, plain_rows = (
            [Sums.of(r) for r in each if r["stored"] == s] for s in ("packed", "plain")
        )
        noise = noise_of(f"{form.scales} scales", packed_rows, plain_rows)
        if noise is not None:
            step = values_of(form, files[1], shape).ravel() - values_of(form, files[2], shape).ravel()
            known = float(step @ true / np.sqrt((step @ step) * (true @ true)))
            figures["noise"] = {
                "true_cosine": round(known, 4),
                **{f: round(v, 4) for f, v in noise.to_dict().items() if isinstance(v, float)},
            }
    return figures


def triple(size: int) -> list[Any]:
    rng = np.random.default_rng(12)
    reference, plain = weights(rng, size), weights(rng, size)
    target = (reference * (1 + 0.02 * rng.standard_normal(reference.shape))).astype(BF16).astype(np.float32)
    return [(target, plain), (stepped(reference, rng), stepped(plain, rng)), (reference, plain)]


def measure(names: list[str], size: int) -> dict[str, Any]:
    """Every placement in every format."""
    models, found = triple(size), {}
    for name in names:
        with tempfile.TemporaryDirectory() as root:
            found[name] = {each: placed(Path(root), FORMATS[name], models, each) for each in PLACEMENTS}
        for each, row in found[name].items():
            estimate = row.get("noise", {})
            print(
                f"{name:16} {each:13} projection {row['projection']:6.3f}  cosine {row['cosine']:.3f}  "
                f"rounded away {row['rounded_away']:6.1%}  "
                + (f"estimate {estimate['cosine']:.3f} of {estimate['true_cosine']:.3f}" if estimate else ""),
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("formats", nargs="*", default=NAMES)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.formats, arguments.size)
    if arguments.record:
        now, cpu = datetime.datetime.now(datetime.UTC), host.cpu_name()
        data = {
            "schema": 1,
            "date": now.isoformat(timespec="seconds"),
            "machine": {"cpu": cpu, "python": platform.python_version(), "taskvec": _core.__version__},
            "size": arguments.size,
            "formats": found,
        }
        folder = arguments.record / (re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-") or "unknown")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{now:%Y-%m-%d}-noise.json").write_text(json.dumps(data, indent=2) + "\n")


def test_every_placement_in_one_format(tmp_path: Path) -> None:
    models = triple(128)
    for each in PLACEMENTS:
        assert placed(tmp_path, FORMATS["mxfp4"], models, each)["projection"] is not None


if __name__ == "__main__":
    main()
