"""Task vectors added to a model in memory, and taken away again, in place.

Tensors on the CPU are changed by the engine: the bytes are those of a run over files. Tensors on another
device are changed there by torch, with the same formula: target + α·Δ in float32 (in float64 where a type is
wider than bfloat16), rounded once. What the engine does beyond that, repeating in float64 the sums that
cancel, is not done there: a result can differ in its last bit.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from taskvec._core import in_place
from taskvec.errors import FormatError, NonFiniteError, RecipeError, warn
from taskvec.models.source import here
from taskvec.models.state_dict import buffers_of, in_memory
from taskvec.plan.delta import Step
from taskvec.plan.rows import Operations, Row, encode_part
from taskvec.plan.transfer import plan_steps
from taskvec.progress import Callback, meter
from taskvec.report.survival import Survival
from taskvec.resolve.remote import materialised
from taskvec.run.evaluate import evaluated
from taskvec.run.live import (
    Live,
    copied,
    is_same,
    live_tensors,
    of_model,
    refuse_overlaps,
    state,
    write_back,
)
from taskvec.settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from taskvec.compat.findings import Finding
    from taskvec.plan.plan import PlanRecord

# Types whose differences are computed in float32; all others need float64.
NARROW = frozenset({"BF16", "F8_E4M3", "F8_E5M2"})


@dataclass(frozen=True, slots=True)
class Change:
    """The change of a model in memory.

    Attributes
    ----------
    tensors : int
        How many were changed; tied ones count once.
    exact : bool
        Whether a removal put the original bytes back.
    survival : Survival or None
        What is left of the step after rounding, of the tensors on the CPU; ``None`` where originals were put
        back.
    findings : tuple of Finding
        Those of the comparison of model and vector.
    """

    tensors: int
    exact: bool = False
    survival: Survival | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(slots=True)
class Kept:
    """The values of some tensors before a change, and their state right after it."""

    alpha: float
    live: dict[str, Live]
    originals: dict[str, Any]
    after: dict[str, object] = field(default_factory=dict)


def change(
    steps: Sequence[Step],
    model: Any,
    *,
    alpha: float,
    settings: Settings,
    kept: list[Kept] | None,
    progress: Callback | None,
) -> Change:
    """Add α times the sum of some steps to the tensors of a model.

    Parameters
    ----------
    steps : sequence of Step
        Of a task vector.
    model : Module or mapping of str to Tensor or ndarray
        What is changed in place.
    alpha : float
        Factor.
    settings : Settings
        ``rounding``, ``seed``, ``threads`` and ``force`` matter here.
    kept : list of Kept, optional
        Gets a copy of what was there before.
    progress : callable, optional
        Called with a :class:`taskvec.Progress`.
    """
    for step in steps:
        for _, source in step.sources:
            materialised(source, progress)
    tensors, config = of_model(model)
    live = live_tensors(tensors, {name for step in steps for name in step.own()})
    target = in_memory(
        {name: each.info for name, each in live.items()}, {}, config, name="the model in memory"
    )
    if target.packed:
        name, packed = next(iter(target.packed.items()))
        raise FormatError(
            f"`{name}` of the model in memory is {packed.format.words}, and cannot be changed in place",
            "load the model dequantised, or add the vector to its files (`taskvec apply`)",
        )
    plan = plan_steps(target, steps, settings=settings, alphas=[alpha])
    is_changed = [bool(operation.get("terms")) for operation in plan.document["operations"]]
    rows = [row for row in plan.document["tensors"] if is_changed[row[4]]]
    live = {row[0]: live[row[0]] for row in rows}
    refuse_overlaps(live, plan.checkpoints[1:])
    on_cpu = [row for row in rows if live[row[0]].data is not None]
    elsewhere = [row for row in rows if live[row[0]].data is None]
    job = _Job(plan, live, settings)
    is_checked = "non-finite" not in settings.force
    if is_checked:
        job.engine(on_cpu, write=False, progress=progress)
        job.torch(elsewhere, write=False)
    with _keeping(kept, alpha, live, settings):
        survival = job.engine(on_cpu, write=True, progress=progress)
        job.torch(elsewhere, write=True)
    # what a model in memory never has is not missing
    findings = tuple(each for each in plan.findings if each.id not in ("config-missing", "tokenizer-missing"))
    return Change(len(rows), survival=survival, findings=findings)


@contextlib.contextmanager
def _keeping(
    kept: list[Kept] | None, alpha: float, live: Mapping[str, Live], settings: Settings
) -> Iterator[None]:
    """Writes back what is changed in copies, and keeps the originals also of a change that does not end."""
    if kept is None:
        try:
            yield
        finally:
            write_back(live.values())
        return
    before = state(live, settings.threads)
    record = Kept(alpha, dict(live), {name: copied(each) for name, each in live.items()})
    kept.append(record)
    try:
        yield
    except BaseException as error:
        write_back(live.values())
        record.after = state(live, settings.threads)
        if record.after == before:
            kept.remove(record)
        else:
            error.add_note("the model is changed, in part or as a whole; `remove_` puts back the originals")
        raise
    write_back(live.values())
    record.after = state(live, settings.threads)


def restored(kept: list[Kept], model: Any, alpha: float | None, settings: Settings) -> Change | None:
    """Puts back what the last change with this alpha has kept, if nothing else has changed since."""
    tensors, _ = of_model(model)
    for record in reversed(kept):
        here = {name: tensors.get(name) for name in record.live}
        if (alpha is not None and alpha != record.alpha) or not is_same(
            here, record.live, record.after, settings.threads
        ):
            continue
        for name, original in record.originals.items():
            each = record.live[name]
            if each.data is None:
                each.tensor.copy_(original)
            else:
                each.data[...] = original
        write_back(record.live.values())
        kept.remove(record)
        return Change(len(record.live), exact=True)
    return None


def say_inexact() -> None:
    """A warning that what was taken away was rounded."""
    warn(
        "the originals were not kept, so target − α·v is rounded and can differ from them in the last bit; "
        "`apply_(…, keep=True)` keeps them"
    )


class _Job:
    """A planned change: the engine does it on the CPU, torch elsewhere."""

    def __init__(self, plan: PlanRecord, live: Mapping[str, Live], settings: Settings) -> None:
        self.plan = plan
        self.document = here(plan.document, plan.checkpoints)
        # the targets are source 0, of which nothing is read over
        self.buffers = [[], *buffers_of(plan.checkpoints[1:])]
        self.live = live
        self.settings = settings

    def engine(self, rows: Sequence[Row], *, write: bool, progress: Callback | None) -> Survival | None:
        if not rows:
            return None
        try:
            figures = in_place(
                encode_part(self.document, rows),
                [data for row in rows if (data := self.live[row[0]].data) is not None],
                memories=self.buffers,
                threads=self.settings.threads or 0,
                write=write,
                allow_non_finite="non-finite" in self.settings.force,
                progress=meter(progress, "merge" if write else "prepare"),
            )
        except KeyboardInterrupt:
            if write:
                raise KeyboardInterrupt("interrupted; the change had begun and is complete") from None
            raise
        return Survival.from_dict(json.loads(figures)["total"])

    def torch(self, rows: Sequence[Row], *, write: bool) -> None:
        if rows and self.settings.rounding != "nearest":
            raise RecipeError(
                "tensors that are not on the CPU cannot be rounded stochastically",
                "bring the model to the CPU, or round to nearest",
            )
        for row, delta in zip(rows, self._deltas(rows), strict=True):
            tensor = self.live[row[0]].tensor
            operation = self.document["operations"][row[4]]
            factor = self.document["outputs"][0]["alpha"] * operation.get("lambda", 1.0)
            moved = stepped(tensor, delta, factor)
            if not write and not moved.isfinite().all():
                raise NonFiniteError(
                    f"values that are not finite (NaN or infinity) in the result for `{row[0]}`",
                    "exclude the tensor, or go on with `force='non-finite'`",
                )
            if write:
                tensor.detach().copy_(moved)

    def _deltas(self, rows: Sequence[Row]) -> Iterator[np.ndarray]:
        """Σ w·(donor − reference) of each row, computed by the engine."""
        operations = Operations()
        sums: list[Row] = []
        for name, dtype, shape, _, number, (_, *inputs) in rows:
            operation = operations.number(_sum(self.document["operations"][number]["terms"]))
            types = {self.plan.checkpoints[source].tensors[stored].dtype for source, stored in inputs}
            is_narrow = {dtype, *types} <= NARROW
            sums.append((name, "F32" if is_narrow else "F64", shape, 0, operation, inputs))
        document = {**self.document, "operations": operations.all, "rounding": "nearest", "taken": {}}
        allowed = "non-finite" in self.settings.force
        made = evaluated(document, sums, self.buffers, self.settings.threads, allowed)
        taken = self.document.get("taken", {})
        return (limited(array, taken[name][1]) if name in taken else array for name, array in made)


def _sum(terms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The operation Σ w·(model − reference) of these terms, without the target's tensor in front."""
    sides: list[dict[str, Any]] = []
    for term in terms:
        for model, sign in ((term["model"], 1), (term["reference"], -1)):
            if model is not None:
                sides.append({"model": model - 1, "reference": None, "weight": sign * term["weight"]})
    return {"kind": "linear", "terms": sides}


def limited(delta: np.ndarray, parts: Sequence[tuple[int, Sequence[tuple[int, int]]]]) -> np.ndarray:
    """Δ where parts of a tensor have it, and zero elsewhere.

    Parameters
    ----------
    delta : ndarray
    parts : sequence of (first element, (length, step) of each dimension)
        As a plan has them, in elements.
    """
    import numpy as np

    values, made = np.ascontiguousarray(delta).reshape(-1), np.zeros(delta.size, delta.dtype)
    for first, axes in parts:
        shape = [count for count, _ in axes]
        strides = [step * values.itemsize for _, step in axes]
        to, source = (np.lib.stride_tricks.as_strided(x[first:], shape, strides) for x in (made, values))
        to[...] = source
    return made.reshape(delta.shape)


def stepped(tensor: Any, delta: np.ndarray, factor: float) -> Any:
    """target + factor·Δ on the tensor's own device, in the type of Δ and rounded once."""
    import torch

    step = torch.from_numpy(delta.copy()).to(tensor.device)
    moved = (tensor.detach().to(step.dtype) + factor * step).to(tensor.dtype)
    return torch.where(step == 0, tensor.detach(), moved)
