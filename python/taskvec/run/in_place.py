"""Task vectors added to a model in memory, and taken away again, in place.

Tensors on the CPU are changed by the engine: the bytes are those of a run over files. Tensors on another
device are changed there by torch, with the same formula: target + α·Δ in float32 (in float64 where a type is
wider than bfloat16), rounded once. What the engine does beyond that, repeating in float64 the sums that
cancel, is not done there: a result can differ in its last bit.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from taskvec._core import digest_arrays, in_place
from taskvec.errors import FormatError, NonFiniteError, RecipeError
from taskvec.models.model import Model, TensorInfo
from taskvec.models.state_dict import address, buffers, bytes_of, dtype_of, in_memory, is_torch
from taskvec.models.storage import plain
from taskvec.plan import transfer as planning
from taskvec.plan.delta import Step
from taskvec.progress import Callback, meter
from taskvec.report.report import Survival
from taskvec.run.evaluate import evaluated
from taskvec.settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from taskvec.compat.findings import Finding
    from taskvec.plan.plan import PlanRecord

NARROW = frozenset({"BF16", "F8_E4M3", "F8_E5M2"})


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a model in memory.

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
        What the comparison of model and vector said.
    """

    tensors: int
    exact: bool = False
    survival: Survival | None = None
    findings: tuple[Finding, ...] = ()


class Live(NamedTuple):
    """A tensor of the model: its bytes where they lie, or a copy of them that goes back when it changes."""

    tensor: Any
    info: TensorInfo
    data: np.ndarray | None
    is_copy: bool = False


@dataclass(slots=True)
class Kept:
    """What some tensors were before a change, and what they were right after it."""

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
    tensors, config = _of_model(model)
    live = _live(tensors, {name for step in steps for name in step.own()})
    target = in_memory(
        {name: each.info for name, each in live.items()}, {}, config, name="the model in memory"
    )
    plan = planning.plan_steps(target, steps, settings=settings, alphas=[alpha])
    document = json.loads(plan.json)
    is_changed = [bool(operation.get("terms")) for operation in document["operations"]]
    rows = [row for row in document["tensors"] if is_changed[row[4]]]
    live = {row[0]: live[row[0]] for row in rows}
    _refuse_overlaps(live, plan.checkpoints[1:])
    on_cpu = [row for row in rows if live[row[0]].data is not None]
    elsewhere = [row for row in rows if live[row[0]].data is None]
    job = _Job(plan, document, live, settings)
    is_checked = "non-finite" not in settings.force
    if is_checked:
        job.engine(on_cpu, write=False, progress=progress)
        job.torch(elsewhere, write=False)
    record = None if kept is None else Kept(alpha, live, {name: _copy(each) for name, each in live.items()})
    try:
        survival = job.engine(on_cpu, write=True, progress=progress)
        job.torch(elsewhere, write=True)
    finally:
        _write_back(live.values())
    if kept is not None and record is not None:
        record.after = _state(live, settings)
        kept.append(record)
    # what a model in memory never has is not missing
    findings = tuple(each for each in plan.findings if each.id not in ("config-missing", "tokenizer-missing"))
    return Change(len(rows), survival=survival, findings=findings)


def restored(kept: list[Kept], model: Any, alpha: float | None, settings: Settings) -> Change | None:
    """Puts back what the last change with this alpha has kept, if nothing else has changed since."""
    tensors, _ = _of_model(model)
    for record in reversed(kept):
        here = {name: tensors.get(name) for name in record.live}
        if (alpha is not None and alpha != record.alpha) or not _is_same(here, record, settings):
            continue
        for name, original in record.originals.items():
            each = record.live[name]
            if each.data is None:
                each.tensor.copy_(original)
            else:
                each.data[...] = original
        _write_back(record.live.values())
        kept.remove(record)
        return Change(len(record.live), exact=True)
    return None


def say_inexact() -> None:
    """A warning that what was taken away was rounded."""
    warnings.warn(
        "the originals were not kept, so target − α·v is rounded and can differ from them in the last bit; "
        "`apply_(…, keep=True)` keeps them",
        stacklevel=3,
    )


class _Job:
    """A planned change: the engine does it on the CPU, torch elsewhere."""

    def __init__(
        self, plan: PlanRecord, document: Mapping[str, Any], live: Mapping[str, Live], settings: Settings
    ) -> None:
        self.plan = plan
        self.document = document
        self.live = live
        self.settings = settings

    def engine(self, rows: Sequence[list[Any]], *, write: bool, progress: Callback | None) -> Survival | None:
        if not rows:
            return None
        part = {
            **self.document,
            "shards": ["part.safetensors"],
            "tensors": [[*row[:3], 0, *row[4:]] for row in rows],
        }
        # what stands in the targets is source 0, of which nothing is held over
        held = [[], *buffers(self.plan.checkpoints[1:])]
        try:
            figures = in_place(
                json.dumps(part, separators=(",", ":")).encode(),
                [data for row in rows if (data := self.live[row[0]].data) is not None],
                memories=held,
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

    def torch(self, rows: Sequence[list[Any]], *, write: bool) -> None:
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

    def _deltas(self, rows: Sequence[list[Any]]) -> Iterator[np.ndarray]:
        """Σ w·(donor − reference) of each row, computed by the engine."""
        operations: list[dict[str, Any]] = []
        sums: list[list[Any]] = []
        for row in rows:
            terms = []
            for term in self.document["operations"][row[4]]["terms"]:
                terms.append({"model": term["model"] - 1, "reference": None, "weight": term["weight"]})
                if term["reference"] is not None:
                    terms.append(
                        {"model": term["reference"] - 1, "reference": None, "weight": -term["weight"]}
                    )
            operations.append({"kind": "linear", "terms": terms})
            sources = [self.plan.checkpoints[source].tensors[stored].dtype for source, stored in row[5][1:]]
            is_narrow = {row[1], *sources} <= NARROW
            sums.append([row[0], "F32" if is_narrow else "F64", row[2], 0, len(operations) - 1, row[5][1:]])
        document = {**self.document, "operations": operations, "rounding": "nearest"}
        held = [[], *buffers(self.plan.checkpoints[1:])]
        allowed = "non-finite" in self.settings.force
        made = evaluated(document, sums, held, self.settings.threads, allowed)
        return (array for _, array in made)


def stepped(tensor: Any, delta: np.ndarray, factor: float) -> Any:
    """target + factor·Δ on the tensor's own device, in the type of Δ and rounded once."""
    import torch

    step = torch.from_numpy(delta.copy()).to(tensor.device)
    moved = (tensor.detach().to(step.dtype) + factor * step).to(tensor.dtype)
    return torch.where(step == 0, tensor.detach(), moved)


def _of_model(model: Any) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The tensors of a model or mapping, and its config where it has one."""
    if isinstance(model, Mapping):
        return model, {}
    if not hasattr(model, "state_dict"):
        raise RecipeError(
            f"a {type(model).__name__} is no model in memory",
            "give a torch module, or a mapping of names to tensors or arrays",
        )
    to_dict = getattr(getattr(model, "config", None), "to_dict", dict)
    return model.state_dict(), to_dict()


def _live(tensors: Mapping[str, Any], wanted: set[str]) -> dict[str, Live]:
    """The tensors that can be changed; of several names for one memory, the one that the vector has."""
    live: dict[str, Live] = {}
    known: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        try:
            dtype = dtype_of(name, tensor)
        except FormatError:
            continue
        each = _place(name, tensor, plain(name, dtype, tuple(tensor.shape)))
        place = _identity(tensor)
        first = known.setdefault(place, name) if each.info.nbytes else name
        if first != name and name in wanted and first not in wanted:
            del live[first]
            known[place] = first = name
        if first == name:
            live[name] = each
    return live


def _place(name: str, tensor: Any, info: TensorInfo) -> Live:
    if is_torch(tensor):
        if tensor.device.type == "meta":
            raise FormatError(f"`{name}` has no data yet", "load the weights first")
        if tensor.device.type != "cpu":
            return Live(tensor, info, None)
        if not tensor.is_contiguous():
            return Live(tensor, info, bytes_of(name, tensor.detach().contiguous()), True)
        return Live(tensor, info, bytes_of(name, tensor))
    if not tensor.flags.writeable:
        raise FormatError(f"`{name}` is read-only", "give a copy that can be changed")
    if not tensor.flags.c_contiguous:
        return Live(tensor, info, bytes_of(name, tensor.copy(order="C")), True)
    return Live(tensor, info, bytes_of(name, tensor))


def _identity(tensor: Any) -> tuple[object, ...]:
    if is_torch(tensor):
        return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
    return address(tensor)[0], tensor.shape, tensor.strides, tensor.dtype


def _refuse_overlaps(live: Mapping[str, Live], sources: Iterable[object]) -> None:
    """No byte is changed twice, and none is changed that the vector is computed from."""
    changed = sorted(
        (*address(each.data), name)
        for name, each in live.items()
        if each.data is not None and each.data.nbytes
    )
    for (_, end, name), (start, _, other) in itertools.pairwise(changed):
        if start < end:
            raise RecipeError(f"`{name}` and `{other}` share part of their memory", "give each its own")
    read = [
        (*address(data), None)
        for source in sources
        if isinstance(source, Model) and source.kind == "memory"
        for data in source.weights.arrays.values()
        if data.nbytes
    ]
    spans = sorted([*changed, *read], key=lambda span: span[:2])
    end, last = -1, None
    for start, stop, name in spans:
        if start < end and (name is None) != (last is None):
            raise RecipeError(
                f"the vector is computed from `{name or last}`, which it would change",
                "make the vector from a copy of the tensors",
            )
        if stop > end:
            end, last = stop, name


def _copy(each: Live) -> Any:
    return each.tensor.detach().clone() if each.data is None else each.data.copy()


def _write_back(live: Iterable[Live]) -> None:
    for each in live:
        if each.is_copy and each.data is not None:
            if is_torch(each.tensor):
                import torch

                same = torch.from_numpy(each.data).view(each.tensor.dtype).reshape(each.tensor.shape)
                each.tensor.detach().copy_(same)
            else:
                each.tensor[...] = each.data.view(each.tensor.dtype).reshape(each.tensor.shape)


def _state(live: Mapping[str, Live], settings: Settings) -> dict[str, object]:
    """What tells whether tensors have been changed: a digest, or torch's own count of changes."""
    data = {name: each.data for name, each in live.items() if each.data is not None}
    digests = digest_arrays(list(data.values()), threads=settings.threads or 0)
    state: dict[str, object] = dict(zip(data, digests, strict=True))
    return state | {name: each.tensor._version for name, each in live.items() if each.data is None}


def _is_same(here: Mapping[str, Any], record: Kept, settings: Settings) -> bool:
    """Whether these are the tensors of a record, as its change left them."""
    for name, tensor in here.items():
        if tensor is None or _identity(tensor) != _identity(record.live[name].tensor):
            return False
    now = {name: _place(name, tensor, record.live[name].info) for name, tensor in here.items()}
    return _state(now, settings) == record.after
