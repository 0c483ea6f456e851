"""What the user asked for × headers → plan. Pure: no weight is read, and nothing is written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from taskvec import compat
from taskvec.adapter import WEIGHTS, Adapter
from taskvec.checkpoint import Checkpoint
from taskvec.companions import CARD, is_own
from taskvec.errors import RecipeError
from taskvec.findings import finding, forced, in_order, listed
from taskvec.layout import Sized, layout
from taskvec.plan import ARITHMETIC, FORMAT, Plan, config_changes
from taskvec.plan_rows import Rows
from taskvec.selection import Selection, layer_of
from taskvec.settings import DTYPE_BYTES, FLOAT_DTYPES, Settings, format_alpha, parse_alphas
from taskvec.steps import Step

if TYPE_CHECKING:
    from taskvec.findings import Finding
    from taskvec.saved import SavedVector

Control = Literal["random", "permute"]


class Draft:
    """A plan in the making: sources, operations and tensors are added, and refer to each other by number.

    Parameters
    ----------
    base : Checkpoint
        The first source: the output has its tensor order, its weight files, and its other files.
    role : str
        What the base is called.
    """

    def __init__(self, base: Checkpoint, role: str = "target") -> None:
        self.checkpoints: list[Checkpoint | SavedVector | Adapter] = []
        self.roles: list[str] = []
        self._sources: dict[tuple[str, str], int] = {}
        self._operations: dict[str, int] = {}
        self._rows = Rows()
        self.base = base
        self.source(base, role)

    def source(self, checkpoint: Checkpoint | SavedVector, role: str) -> int:
        """The number of a source; one that plays two roles is one source."""
        key = source_path(checkpoint), checkpoint.fingerprint
        number = self._sources.setdefault(key, len(self._sources))
        if number == len(self.checkpoints):
            self.checkpoints.append(checkpoint)
            self.roles.append(role)
        elif role not in self.roles[number].split(" and "):
            self.roles[number] += f" and {role}"
        return number

    def adapter(self, adapter: Adapter, role: str, *, base: int | None) -> int:
        """The number of an adapter, on top of source `base` or alone."""
        key = str(adapter.path), f"{adapter.fingerprint} on {base}"
        number = self._sources.setdefault(key, len(self._sources))
        if number == len(self.checkpoints):
            model = None if base is None else self.checkpoints[base]
            self.checkpoints.append(
                adapter.on_top_of(model, base)
                if isinstance(model, Checkpoint) and base is not None
                else adapter
            )
            self.roles.append(role)
        return number

    def operation(self, operation: Mapping[str, Any]) -> int:
        """The number of an operation; equal ones are one."""
        return self._operations.setdefault(json.dumps(operation), len(self._operations))

    def tensor(
        self, name: str, dtype: str, shape: Sequence[int], operation: int, inputs: list[tuple[int, str]]
    ) -> None:
        """Add an output tensor: its inputs are pairs of source and stored name."""
        self._rows.append(name, dtype, shape, operation, inputs)

    def finish(
        self,
        *,
        alphas: Sequence[float],
        settings: Settings,
        findings: Sequence[Finding],
        recipe: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
        is_random: bool = False,
    ) -> Plan:
        """Lay the tensors out over weight files and make the plan.

        ``config`` are changes beside those of types, as :class:`Plan` has them; ``is_random`` says that an
        operation draws random numbers.
        """
        sized = [Sized(name, math.prod(shape) * DTYPE_BYTES[dtype]) for name, dtype, shape, *_ in self._rows]
        shards, self._rows.shards = layout(sized, self.base.tensors, max_shard_size=settings.max_shard_size)
        del sized
        is_single = len(alphas) == 1
        document = {
            "format": FORMAT,
            "arithmetic": ARITHMETIC,
            "sources": [source_document(checkpoint) for checkpoint in self.checkpoints],
            "outputs": [
                {"folder": "" if is_single else f"alpha={format_alpha(alpha)}", "alpha": alpha}
                for alpha in alphas
            ],
            "shards": shards,
            "operations": [json.loads(operation) for operation in self._operations],
            "tensors": self._rows,
            "rounding": settings.rounding,
            # without random draws the seed changes nothing, and is no reason to begin again
            "seed": settings.seed if is_random or settings.rounding == "stochastic" else 0,
        }
        changes = config_changes(document, self.base) if settings.out_dtype else {}
        return Plan.make(
            document,
            self.checkpoints,
            self.roles,
            findings=findings,
            recipe=recipe,
            config={**changes, **(config or {})},
            files=files,
        )


def source_path(checkpoint: Checkpoint | SavedVector) -> str:
    """Where the engine finds a checkpoint: its folder, or its file if it was opened as a single one."""
    folder = checkpoint.location
    file = Path(checkpoint.spec).name
    is_file = checkpoint.repository is None and file in checkpoint.file_sizes and not (folder / file).is_dir()
    return str(folder / file) if is_file else str(folder)


def source_document(source: Checkpoint | SavedVector | Adapter) -> dict[str, Any]:
    """A source as the engine's part of a plan has it."""
    if isinstance(source, Adapter):
        return {
            "kind": "lora",
            "path": str(source.path / WEIGHTS),
            "files": [[name, size] for name, size in source.file_sizes.items()],
            "fingerprint": source.fingerprint,
            "base": source.base,
            "factors": source.factors,
        }
    return {
        "kind": source.kind,
        "path": source_path(source),
        "files": [[name, size] for name, size in source.file_sizes.items()],
        "fingerprint": source.fingerprint,
    }


def out_dtype(dtype: str, settings: Settings) -> str:
    """The type in which a tensor of this type is written; only floats change theirs."""
    return settings.out_dtype if settings.out_dtype and dtype in FLOAT_DTYPES else dtype


def findings(target: Checkpoint, steps: Sequence[Step], *, force: Iterable[str] = ()) -> list[Finding]:
    """Everything that is to be said about adding steps to a target, errors first.

    The lineage is looked at (a sample of the weights) only where the headers give no error and the weights
    are here.
    """
    found: list[Finding] = []
    for step in steps:
        said = check_step(target, step, force)
        models = [target, *(model for _, model in step.models)]
        is_local = all(model.path is not None for model in models)
        if len(models) == 3 and is_local and not any(each.level == "error" for each in said):
            said = [*said, *compat.lineage(*models)]
        found += [each for each in said if each not in found]
    own = [name for name in target.other_files if is_own(name) and name.lower() != CARD.lower()]
    if own:
        what = f"{listed(own)} of an earlier run of taskvec do not come along to the output"
        found.append(finding("files-left", "files of the target", "", what))
    return in_order(found)


def with_lineage(plan: Plan, checkpoints: Sequence[object]) -> Plan:
    """The plan with what a sample of the weights says; for one that was made when they were not here yet.

    Parameters
    ----------
    plan : Plan
        Made from headers.
    checkpoints : sequence
        Its sources in their order, downloaded.
    """
    by_role = {
        role: checkpoint
        for source, checkpoint in zip(plan.sources, checkpoints, strict=True)
        for role in source.role.split(" and ")
    }
    found = list(plan.findings)
    for role in [role for role in by_role if role.startswith("donor")]:
        roles = ("target", role, role.replace("donor", "reference"))
        models = [model for model in map(by_role.get, roles) if isinstance(model, Checkpoint)]
        if len(models) == 3:
            found += [each for each in compat.lineage(*models) if each not in found]
    return replace(plan, findings=tuple(in_order(found)))


def check_step(target: Checkpoint, step: Step, force: Iterable[str] = ()) -> list[Finding]:
    """What headers, config and tokenizer say about adding a step to a target."""
    if step.reference is None:
        said = compat.check_models(step.models, target, role="target", selection=step.wanted)
        return forced(said, force)
    (_, donor), (_, reference) = step.models
    return compat.check_transfer(target, donor, reference, selection=step.wanted, force=force)


def plan_transfer(
    target: Checkpoint,
    donor: Checkpoint,
    reference: Checkpoint,
    *,
    selection: Selection | None = None,
    settings: Settings | None = None,
    alphas: Sequence[float] = (1.0,),
    layer_scale: Sequence[float] | None = None,
    control: Control | None = None,
) -> Plan:
    """The plan of target + α·(donor − reference); see :func:`plan_steps`."""
    step = Step(1.0, donor, reference, selection or Selection())
    return plan_steps(
        target, [step], settings=settings, alphas=alphas, layer_scale=layer_scale, control=control
    )


def plan_steps(
    target: Checkpoint,
    steps: Sequence[Step],
    *,
    settings: Settings | None = None,
    alphas: Sequence[float] = (1.0,),
    layer_scale: Sequence[float] | None = None,
    control: Control | None = None,
) -> Plan:
    """The plan of target + α·Σ w·(donor − reference), in one pass.

    Tensors outside the selection, tensors that are no floats, and those of which donor or reference lack the
    counterpart are the target's; the findings name the latter. A control puts a random vector of the same
    norms, or the vector's own values in another order, in the place of the vector: what it does to a model,
    the vector does not do by what it carries.

    Raises
    ------
    CompatibilityError
        The checkpoints do not fit each other; ``findings`` says where.
    RecipeError
        The selection matches nothing, an alpha is not finite or given twice, ``force`` names no finding, or a
        control is asked for of several steps.
    """
    settings, alphas = settings or Settings(), parse_alphas(alphas)
    if control is not None and (control not in get_args(Control) or len(steps) != 1):
        raise RecipeError(
            f"control `{control}` of {len(steps)} vectors cannot be made",
            "it is `random` or `permute`, of one vector",
        )
    found = compat.enforce(findings(target, steps, force=settings.force), settings.force)
    refuse_conversion(found, settings)
    draft = Draft(target)
    terms = [_Term(draft, target, step, number, len(steps)) for number, step in enumerate(steps, 1)]
    factor = 1.0
    if len(terms) == 1:
        # one step has its weight in the final factor, which is rounded once with alpha
        factor, terms[0].weight = terms[0].weight, 1.0
    scales = layer_scales(target, layer_scale)
    copy = draft.operation({"kind": "copy"})
    dtypes = {dtype: out_dtype(dtype, settings) for dtype in target.dtypes}
    known: dict[tuple[float, tuple[tuple[float, int], ...]], int] = {}
    for name, info in target.tensors.items():
        inputs, taken = [(0, name)], ()
        for term in terms:
            stored = term.stored.get(name)
            if stored is not None:
                # of a tensor in which a vector is zero there is nothing to read; it is measured all the same
                inputs += zip(term.sources, stored, strict=bool(stored))
                taken += ((term.weight, len(stored)),)
        if control and not any(count for _, count in taken):
            taken = ()
        key = factor * scales.get(name, 1.0), taken
        operation = known.get(key) if taken else copy
        if operation is None:
            made = task_arithmetic(taken, key[0])
            made["kind"] = f"control_{control}" if control else made["kind"]
            operation = known[key] = draft.operation(made)
        draft.tensor(name, dtypes[info.dtype], info.shape, operation, inputs)
    recipe = _recipe(target, steps, alphas, settings)
    recipe |= {"layer_scale": list(layer_scale)} if layer_scale else {}
    recipe |= {"control": control, "seed": settings.seed} if control else {}
    return draft.finish(
        alphas=alphas, settings=settings, findings=found, recipe=recipe, is_random=control is not None
    )


class _Term:
    """A step in a draft: its sources, and the stored names that serve for each target tensor."""

    def __init__(self, draft: Draft, target: Checkpoint, step: Step, number: int, count: int) -> None:
        suffix = f" {number}" if count > 1 else ""
        self.sources = [draft.source(source, f"{role}{suffix}") for role, source in step.sources]
        self.stored = step.stored(target)
        self.weight = step.weight


def task_arithmetic(terms: Sequence[tuple[float, int]], scale: float) -> dict[str, Any]:
    """The operation target + α·scale·Σ w·vector.

    Parameters
    ----------
    terms : sequence of (float, int)
        Weight and number of inputs of each vector: two for donor − reference, one for a saved vector, none
        for one that is zero. The inputs are the target's tensor, then theirs in order.
    scale : float
        Final factor.
    """
    made, at = [], 1
    for weight, inputs in terms:
        if inputs:
            made.append({"model": at, "reference": at + 1 if inputs == 2 else None, "weight": weight})
        at += inputs
    return {"kind": "task_arithmetic", "terms": made, "lambda": scale}


def _recipe(
    target: Checkpoint,
    steps: Sequence[Step],
    alphas: Sequence[float],
    settings: Settings,
) -> dict[str, Any]:
    terms = [
        {**{role: pinned(source) for role, source in step.sources}, **selection_recipe(step.selection)}
        for step in steps
    ]
    head: dict[str, Any] = {"verb": "combine", "target": pinned(target)}
    if len({step.selection for step in steps}) == 1 and all(step.reference is None for step in steps):
        head |= {"verb": "apply", "vectors": [term["vector"] for term in terms]}
        head |= {"weights": [step.weight for step in steps], **selection_recipe(steps[0].selection)}
    elif len(steps) == 1 and steps[0].weight == 1.0:
        head |= {"verb": "transfer", **terms[0]}
    else:
        head["terms"] = [{"weight": step.weight, **term} for step, term in zip(steps, terms, strict=True)]
    return {**head, "alpha": list(alphas), **written(settings)}


def refuse_conversion(found: Iterable[Finding], settings: Settings) -> None:
    """A quantised tensor is no plain number: it can be copied, not converted.

    Raises
    ------
    RecipeError
        Both are asked for.
    """
    if settings.out_dtype and any(each.id.startswith("quantised") for each in found):
        raise RecipeError(
            "the target holds quantised tensors, which another output type would turn into other numbers",
            "leave the output type away",
        )


def layer_scales(target: Checkpoint, gradient: Sequence[float] | None) -> dict[str, float]:
    """The factor of each tensor: the gradient spread evenly over the layers.

    What comes before the layers in the file has the first value, what comes after them the last; a gradient
    is a list of values between which is interpolated, as in a mergekit recipe.

    Raises
    ------
    RecipeError
        The gradient is empty or not finite, or the target has no layers.
    """
    if gradient is None:
        return {}
    if not gradient or not all(math.isfinite(value) for value in gradient):
        raise RecipeError(
            f"layer scale {list(gradient)} is no list of finite numbers", "write it as `0,0.5,1`"
        )
    layers = {name: layer_of(name) for name in target.tensors}
    numbers = [layer for layer in layers.values() if layer is not None]
    if not numbers:
        raise RecipeError(f"`{target.spec}` has no numbered layers", "leave the layer scale away")
    last = max(numbers)
    embedding = compat.tie_decision(target, []).base.embedding
    scales = {}
    for name, layer in layers.items():
        position = (0.0 if name == embedding else 1.0) if layer is None else layer / last if last else 0.0
        scales[name] = _interpolate(gradient, position)
    return scales


def _interpolate(gradient: Sequence[float], position: float) -> float:
    at = position * (len(gradient) - 1)
    below = min(int(at), len(gradient) - 1)
    above = min(below + 1, len(gradient) - 1)
    share = at - below
    return (1 - share) * gradient[below] + share * gradient[above]


def pinned(checkpoint: Checkpoint | SavedVector) -> str:
    """What names a checkpoint for good: a hub name with its commit, or what the user wrote."""
    if checkpoint.repository and checkpoint.revision:
        return f"hf://{checkpoint.repository}@{checkpoint.revision}"
    return checkpoint.spec


def selection_recipe(selection: Selection) -> dict[str, Any]:
    """The parts of a selection that are not the default, as a recipe has them."""
    values = {name: getattr(selection, name) for name in ("include", "exclude", "preset", "layers")}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {name: value for name, value in values.items() if value and value != "full"}


def written(settings: Settings) -> dict[str, Any]:
    """The settings that change what is written, without those that have their default."""
    values = {
        "out_dtype": settings.out_dtype,
        "rounding": settings.rounding if settings.rounding != "nearest" else None,
        "seed": settings.seed if settings.rounding == "stochastic" else None,
        "max_shard_size": settings.max_shard_size,
        "force": list(settings.force) or None,
    }
    return {name: value for name, value in values.items() if value is not None}
