"""Plans whose output is packed, and what NumPy makes of the same models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from support.quantised import DTYPES, Format, Parts, Stored, array, read, write
from taskvec import _core

Shapes = Mapping[str, tuple[int, ...]]
SHAPES: Shapes = {"a": (192, 160), "b": (300, 224), "c": (64, 576), "e": (3, 160, 96)}
TRANSFER = {"kind": "task_arithmetic", "terms": [{"model": 1, "reference": 2, "weight": 1.0}]}


def weights(shape: tuple[int, ...], rng: np.random.Generator, *, size: float = 0.05) -> np.ndarray:
    """Rows of different size, as weights have."""
    rows = np.exp(rng.standard_normal((*shape[:-1], 1)) * 0.5)
    return (rng.standard_normal(shape) * rows * size).astype(ml_dtypes.bfloat16).astype(np.float32)


def trio(form: Format, shapes: Shapes, *, seed: int = 0, share: float = 0.3) -> list[dict[str, Parts]]:
    """Target, donor and reference: packed tensors by name."""
    rng = np.random.default_rng(seed)
    models: list[dict[str, Parts]] = [{}, {}, {}]
    for name, shape in shapes.items():
        reference = weights(shape, rng)
        change = rng.standard_normal(shape) * np.abs(reference) * 0.3 * (rng.random(shape) < share)
        target = reference * (1 + 0.05 * rng.standard_normal(shape))
        for model, values in zip(models, (target, reference + change, reference), strict=True):
            model[name] = form.quantise(values.astype(np.float32))
    return models


def form_takes_any_columns(name: str) -> bool:
    """Whether groups may be short."""
    return "fp8" in name and not name.startswith("mx")


def parts_of(form: Format) -> dict[str, str]:
    """The endings of the parts."""
    return dict(form.plan["parts"])  # type: ignore[call-overload]


def stored(form: Format, tensors: Mapping[str, Parts], *, scales_first: bool = False) -> Stored:
    """Packed tensors as they lie in a file; next to each a plain one."""
    found: Stored = {}
    for name, parts in tensors.items():
        for role, ending in parts_of(form).items():
            dtype = {"codes": form.codes, "global": "F32"}.get(role, form.scales)
            data = np.ascontiguousarray(parts[role])
            found[name + ending] = (dtype, data.shape, data.astype(DTYPES[dtype], copy=False).tobytes())
        found[f"{name}.norm"] = ("F32", (3,), np.arange(3, dtype=np.float32).tobytes())
    if scales_first:
        found = dict(sorted(found.items(), key=lambda item: not item[0].endswith("scale")))
    return found


def source(folder: Path, form: Format | None, shapes: Shapes) -> dict[str, Any]:
    """A source of a plan."""
    opened = _core.Checkpoint(folder)
    row: dict[str, Any] = {
        "kind": "checkpoint",
        "path": str(folder),
        "files": opened.files(),
        "fingerprint": opened.fingerprint,
    }
    if form:
        tensors = {f"{name}.weight": [0, list(shape)] for name, shape in shapes.items()}
        row["packed"] = {"formats": [form.plan], "tensors": tensors}
    return row


def rows(
    form: Format,
    shapes: Shapes,
    files: Sequence[Stored],
    inputs: Sequence[int],
    *,
    codes: int = 0,
    copy: int = 1,
) -> list[Any]:
    """The output's tensors: those of `files`, one for each shard."""
    ends = parts_of(form)
    found: list[Any] = []
    for shard, tensors in enumerate(files):
        for name, (dtype, shape, _) in tensors.items():
            stem, _, end = name.partition(".")
            role = next((role for role, ending in ends.items() if ending == f".{end}"), None)
            if role is None:
                found.append([name, dtype, list(shape), shard, copy, [[0, name]]])
                continue
            wanted = [[index, f"{stem}.weight"] for index in inputs]
            part = [0, role, f"{stem}.weight", list(shapes[stem])]
            found.append([name, dtype, list(shape), shard, codes, wanted, part])
    return found


def plan_of(
    form: Format,
    shapes: Shapes,
    folders: Sequence[Path],
    files: Sequence[Stored],
    *,
    alphas: Sequence[float] = (1.0,),
    operation: Mapping[str, Any] = TRANSFER,
    own: bool = True,
    rule: str | None = None,
    packed: bool = True,
    **more: Any,
) -> bytes:
    """A plan as the engine takes it."""
    inputs = range(1 if operation["kind"] == "copy" else len(folders))
    several = len(alphas) > 1
    return json.dumps(
        {
            "format": 1,
            "arithmetic": 3,
            "sources": [source(folder, form if packed else None, shapes) for folder in folders],
            "outputs": [{"folder": f"alpha-{a}" if several else "", "alpha": a} for a in alphas],
            "shards": [f"model-{i}.safetensors" for i in range(len(files))],
            "operations": [operation, {"kind": "copy", "stored": packed}],
            "tensors": rows(form, shapes, files, inputs),
            "encodings": [form.plan | {"rule": rule or form.rule, "own": own}],
            "rounding": "nearest",
            "seed": 0,
        }
        | more
    ).encode()


def write_trio(
    tmp: Path, form: Format, models: Sequence[dict[str, Parts]], **options: Any
) -> tuple[list[Path], Stored]:
    """The models in folders; what the target stores."""
    folders = [tmp / name for name in ("target", "donor", "reference")][: len(models)]
    for folder, model in zip(folders, models, strict=True):
        write(folder / "model.safetensors", stored(form, model, **options))
    return folders, stored(form, models[0], **options)


def output(folder: Path) -> Stored:
    """What was written, all files together."""
    return {name: row for file in sorted(folder.glob("*.safetensors")) for name, row in read(file).items()}


def unpacked(form: Format, tensors: Stored, name: str) -> Parts:
    """The parts of one tensor of an output."""
    return {role: array(tensors[name + ending]) for role, ending in parts_of(form).items()}


def added(parts: Sequence[np.ndarray], alpha: float) -> np.ndarray:
    """The target with α times the difference, in float32; where that cancels, or α is none, from float64."""
    target, donor, reference = parts
    delta, factor = donor - reference, np.float32(alpha)
    wide = target.astype(np.float64) + alpha * delta.astype(np.float64)
    x = target + factor * delta if float(factor) == alpha else wide.astype(np.float32)
    x = np.where(delta == 0, target, x)
    wide = target.astype(np.float64) + alpha * (donor.astype(np.float64) - reference)
    x = np.where(np.abs(x) < np.abs(target) / 4096, wide.astype(np.float32), x).astype(np.float32)
    is_reference = target.view(np.uint32) == reference.view(np.uint32)
    return np.where(is_reference & (alpha == 1), donor, x)


def same(found: Parts, wanted: Parts) -> None:
    """Equal to the byte."""
    for role, values in wanted.items():
        assert found[role].tobytes() == np.ascontiguousarray(values).tobytes(), role
