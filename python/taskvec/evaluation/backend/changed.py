"""The tensors of an arm: target plus a delta, made on the device where that gives the engine's bits."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from taskvec.evaluation.backend.delta import Delta, Placement, vector_norms
from taskvec.evaluation.backend.stepped import stepped
from taskvec.evaluation.record import Merged, write_whole
from taskvec.report.report import Output, rounding_findings
from taskvec.report.survival import Survival
from taskvec.run.evaluate import measured_of_plan

TYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_SUMMED = ("BF16", "F16", "F32", "F64")
# Kinds of devices whose torch is known to compute each operation as IEEE 754 has it, float64 too.
EXACT = ("cuda",)

Sums = dict[str, dict[str, Any]]


def is_plain(plan: Any) -> bool:
    """Whether a plan makes of its target nothing but other values of the same tensors, all of them plain."""
    target = plan.checkpoints[0]
    plain = not any(source.get("packed") or source.get("assembled") for source in plan.document["sources"])
    if not plain or plan.config or plan.files or plan.left:
        return False
    rows = {row[0]: (row[1], tuple(row[2])) for row in plan.document["tensors"]}
    stored = {name: (info.dtype, tuple(info.shape)) for name, info in target.tensors.items()}
    return rows == stored and all(rows[name][0] in TYPES for name in changed_names(plan))


def changed_names(plan: Any) -> list[str]:
    """The tensors that a plan computes; the others are the target's."""
    operations = plan.document["operations"]
    return [row[0] for row in plan.document["tensors"] if operations[row[4]]["kind"] != "copy"]


def changed_tensors(
    plan: Any, targets: Mapping[str, torch.Tensor], sums: Sums, force: Sequence[str] = ()
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that a plan computes, with the bytes that a run would write.

    Parameters
    ----------
    plan : PlanRecord
        One of which :func:`is_plain` holds.
    targets : mapping of str to Tensor
        The target's own values in their stored types, as far as they are on a device whose torch computes
        exactly: there its sum is made on that device. All else the engine computes.
    sums : dict
        Gets the sums of each tensor that takes a step.
    force : sequence of str
        Findings that are gone on in spite of; ``non-finite`` matters here.

    Raises
    ------
    NonFiniteError
        A value would not be finite, and that is not forced.
    """
    by_engine = []
    for row in plan.document["tensors"]:
        if plan.document["operations"][row[4]]["kind"] == "copy":
            continue
        made = _on_device(plan, row, targets.get(row[0]))
        if made is None:
            by_engine.append(row[0])
        else:
            sums[row[0]] = made[1]
            yield row[0], made[0]
    yield from _by_engine(plan, by_engine, sums, force)


def _by_engine(
    plan: Any, names: Sequence[str], sums: Sums, force: Sequence[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    if not names:
        return
    for tensors, found in measured_of_plan(plan, names, allow_non_finite="non-finite" in force):
        sums.update(found)
        for name, dtype, shape, data in tensors:
            yield name, _tensor(data, dtype, shape)


def _on_device(
    plan: Any, row: Sequence[Any], target: torch.Tensor | None
) -> tuple[torch.Tensor, dict[str, Any]] | None:
    """A tensor as torch makes it where that is known to be the engine's; None where it is not."""
    if target is None or not _is_known(plan, row):
        return None
    operation, (_, *sides) = plan.document["operations"][row[4]], row[5]
    donor, reference = (_read(plan.checkpoints[source], name, target.device) for source, name in sides)
    factor = plan.outputs[0].alpha * operation["lambda"]
    made, sums = stepped(target, donor, reference, factor)
    finite = all(bool(each.isfinite().all()) for each in (target, donor, reference, made))
    return (made, sums) if finite else None  # the engine counts and names what is not


def _is_known(plan: Any, row: Sequence[Any]) -> bool:
    """Whether a row is the one sum that :func:`stepped` computes: of stored floats, rounded to nearest."""
    name, dtype, shape, _, number, inputs = row[:6]
    operation = plan.document["operations"][number]
    if len(row) != 6 or operation["kind"] != "task_arithmetic" or plan.document["rounding"] != "nearest":
        return False
    if name in plan.document.get("taken", {}):
        return False
    if operation["terms"] != [{"model": 1, "reference": 2, "weight": 1.0}] or len(inputs) != 3:
        return False
    sources = plan.document["sources"]
    return dtype in _SUMMED and all(
        sources[source]["kind"] == "checkpoint"
        and plan.checkpoints[source].tensors[stored].dtype in _SUMMED
        and tuple(plan.checkpoints[source].tensors[stored].shape) == tuple(shape)
        for source, stored in inputs
    )


def _read(model: Any, name: str, device: torch.device) -> torch.Tensor:
    info = model.tensors[name]
    return _tensor(np.frombuffer(model.reader.read(name), np.uint8), info.dtype, info.shape).to(device)


def _tensor(data: np.ndarray, dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """Bytes as a tensor over the same memory: it is read from, never written to, which torch cannot know."""
    if not data.size:
        return torch.empty(tuple(shape), dtype=TYPES[dtype])
    if data.__array_interface__["data"][0] % TYPES[dtype].itemsize:
        data = data.copy()  # after a tensor of a narrower type, where its values would lie across words
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(data).view(TYPES[dtype]).reshape(tuple(shape))


def measure(placement: Placement) -> None:
    """Write the facts of what is added to a target again, without a model that it is added to."""
    delta = placement.delta
    assert delta is not None
    plan, sums = delta.plan(placement.target), dict[str, Any]()
    for _ in changed_tensors(plan, {}, sums, delta.force):
        pass
    note_facts(placement, plan, delta, sums)


def note_facts(placement: Placement, plan: Any, delta: Delta, sums: Sums) -> None:
    """Write the facts of what is added to a target, as those of a merge are written."""
    if placement.facts is not None:
        made = facts_of(plan, delta, sums, placement.name, placement.command)
        content = {"identity": placement.identity, **made.to_json()}
        write_whole(placement.facts, json.dumps(content, indent=1))


def facts_of(plan: Any, delta: Delta, sums: Sums, name: str, command: str) -> Merged:
    """What a run of the plan would have reported: survival, norms, findings."""
    order = [row[0] for row in plan.document["tensors"] if row[0] in sums]
    tensors = {each: Survival.of_sums([sums[each]]) for each in order}
    total = Survival.measured(Survival.of_sums(sums[each] for each in order))
    output = Output(name, delta.alpha, (), total, tensors, ())
    found = [*plan.findings, *rounding_findings([output], delta.rounding)]
    return Merged(
        folder="",
        survival=total.to_dict() if total else None,
        norms=vector_norms(tensors, delta.alpha),
        findings=[finding.to_dict() for finding in found],
        command=command,
    )
