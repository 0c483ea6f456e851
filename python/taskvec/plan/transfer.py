"""The plan of a transfer, from its steps and headers. Pure: no weight is read, and nothing is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from taskvec.arguments import one_of
from taskvec.compat.findings import enforce, in_order
from taskvec.compat.layouts.groups import check_groups
from taskvec.compat.layouts.parts import bound, seen_whole, taken
from taskvec.compat.layouts.rewritten import in_plain_layout, like
from taskvec.compat.layouts.vocabulary import missing_rows
from taskvec.compat.tied_heads import head_of
from taskvec.errors import RecipeError
from taskvec.host import collector_paused
from taskvec.models.model import Model
from taskvec.models.part_names import StoredPart
from taskvec.models.selection import Selection, selection_recipe
from taskvec.models.source import pinned
from taskvec.models.tensor_names import layer_of
from taskvec.plan.checks import findings, refuse_conversion
from taskvec.plan.delta import Step
from taskvec.plan.draft import Draft
from taskvec.plan.packed_output import PLAIN
from taskvec.plan.packed_steps import form_of, rounding
from taskvec.plan.plan import PlanRecord
from taskvec.settings import Settings, out_dtype, parse_alphas, written
from taskvec.text import kind_of, listed, shown

Control = Literal["random", "permute"]
TokenizerSource = Literal["union", "base", "target", "donor"]
# The stored names that serve for each tensor of a target.
_Names = Mapping[str, tuple[str, ...]]


def plan_transfer(
    target: Model,
    donor: Model,
    reference: Model,
    *,
    selection: Selection | None = None,
    settings: Settings | None = None,
    alphas: Sequence[float] = (1.0,),
    layer_scale: Sequence[float] | None = None,
    control: Control | None = None,
    tokenizer: TokenizerSource | None = None,
) -> PlanRecord:
    """The plan of target + α·(donor − reference); see :func:`plan_steps`."""
    step = Step(1.0, donor, reference, selection or Selection())
    return plan_steps(
        target, [step], settings=settings, alphas=alphas, layer_scale=layer_scale, control=control,
        tokenizer=tokenizer,
    )  # fmt: skip


@collector_paused()
def plan_steps(
    target: Model,
    steps: Sequence[Step],
    *,
    settings: Settings | None = None,
    alphas: Sequence[float] = (1.0,),
    layer_scale: Sequence[float] | None = None,
    control: Control | None = None,
    is_plain: bool = False,
    tokenizer: TokenizerSource | None = None,
) -> PlanRecord:
    """The plan of target + α·Σ w·(donor − reference), in one pass.

    Tensors outside the selection, tensors that are not floats, and those of which donor or reference lack the
    counterpart are the target's; the findings name the latter. A control puts a random vector of the same
    norms, or the vector's own values in another order, in the place of the vector: what it does to a model,
    the vector does not do by what it carries. ``is_plain`` says that packed weights are written plain unless
    the settings ask for the target's own format. ``tokenizer`` says whose vocabulary the output has where
    those of the models differ: the target's (``base``), the donor's, or that of all (``union``).

    Raises
    ------
    CompatibilityError
        The checkpoints are incompatible; ``findings`` says where.
    RecipeError
        The selection matches nothing, an alpha is not finite or given twice, ``force`` names no finding, or a
        control is asked for of several steps.
    """
    settings, alphas = settings or Settings(), parse_alphas(alphas)
    if control is not None:
        one_of(control, "control", get_args(Control))
        if len(steps) != 1:
            raise RecipeError(f"a control of {len(steps)} vectors cannot be made", "give one vector")
    joined = None
    if tokenizer is not None:
        one_of(tokenizer, "tokenizer", get_args(TokenizerSource))
        from taskvec.plan.vocabulary_transfer import join  # few transfers need it

        joined = join(target, steps, tokenizer)
    if joined is not None:
        target, steps = joined.target, joined.steps
    given, is_limited = steps, len(steps) > 1
    steps = [step.fitted(target, is_limited=is_limited) for step in steps]
    ties = [step.tie(target) for step in steps]
    found = findings(target, steps, ties, force=settings.force)
    found = enforce(found if joined is None else joined.settled(found), settings.force)
    refuse_conversion(found, settings)
    stored = [step.stored(target, tie) for step, tie in zip(steps, ties, strict=True)]
    form = (
        PLAIN if is_plain and settings.out_dtype is None else form_of(target, steps, stored, settings, alphas)
    )
    found = in_order([*found, *form.findings, *rounding(target, steps, stored, form, settings, alphas)])
    found = enforce(found, settings.force)
    if control is not None:
        found = in_order([*found, *seen_whole(f"control_{control}", list(_taken(target, steps, stored)))])
    if form.is_packed and not form.plain:
        found = in_order([*found, *check_groups(target, _taken(target, steps, stored))])
    plain = target if form.is_packed else in_plain_layout(target)
    if plain is not target:
        target, steps = plain, [_turned(step, plain, is_limited=is_limited) for step in given]
        before, stored = stored, [step.stored(plain, tie) for step, tie in zip(steps, ties, strict=True)]
        _hold_all(before, stored, plain)
    draft = Draft(target, is_packed=form.is_packed, plain=form.plain)
    suffixes = [f" {number}" for number in range(1, len(steps) + 1)] if len(steps) > 1 else [""]
    terms = [_Term(draft, *each) for each in zip(steps, stored, suffixes, strict=True)]
    _fill(draft, terms, layer_scales(target, layer_scale), settings, control)
    recipe = _recipe(target, steps, alphas, settings)
    recipe |= {"layer_scale": list(layer_scale)} if layer_scale else {}
    recipe |= {"control": control, "seed": settings.seed} if control else {}
    recipe |= {"tokenizer": tokenizer} if tokenizer else {}
    changes, files, left = (None, None, ()) if joined is None else joined.finish(draft, stored[0])
    return draft.finish(
        alphas=alphas, settings=settings, findings=found, recipe=recipe, is_random=control is not None,
        config=changes, files=files, left=left,
    )  # fmt: skip


def _turned(step: Step, plain: Model, *, is_limited: bool) -> Step:
    """A step with its models in the layout of a target's plain twins."""
    if step.reference is not None:
        assert isinstance(step.donor, Model)
        step = step._replace(donor=like(step.donor, plain), reference=like(step.reference, plain))
    return step.fitted(plain, is_limited=is_limited)


def _hold_all(
    before: Sequence[Mapping[str, tuple[str, ...]]],
    after: Sequence[Mapping[str, tuple[str, ...]]],
    plain: Model,
) -> None:
    """Return if no tensor has lost its step in another layout.

    Raises
    ------
    RecipeError
        One has.
    """
    lost = [name for one, other in zip(before, after, strict=True) for name in one if name not in other]
    if lost:
        raise RecipeError(
            f"{listed(lost)} of `{plain.spec}` have rows and columns exchanged in plain checkpoints of this "
            "model, with which the other models are incompatible",
            "write its own format: `--out-dtype target`",
        )


def _taken(
    target: Model, steps: Sequence[Step], stored: Sequence[_Names]
) -> dict[str, tuple[StoredPart, ...]]:
    """The weights that steps take of the target's tensors, where these are not all of a tensor."""
    found: dict[str, tuple[StoredPart, ...]] = {}
    for step, names in zip(steps, stored, strict=True):
        for name, parts in taken(bound(step.wanted, target), names).items():
            found[name] = (*found.get(name, ()), *parts)
    return found


class _Term:
    """A step in a draft: its sources, and the stored names that serve for each target tensor."""

    def __init__(self, draft: Draft, step: Step, stored: Mapping[str, tuple[str, ...]], suffix: str) -> None:
        self.sources = [draft.source(source, f"{role}{suffix}") for role, source in step.sources]
        self.stored = stored
        self.weight = step.weight
        self.selection = bound(step.wanted, draft.base)
        rows = missing_rows(step.models[0][1]).items()
        self.rows = {name: _first_rows(draft.base, name, count) for name, count in rows}


def _fill(
    draft: Draft,
    terms: Sequence[_Term],
    scales: Mapping[str, float],
    settings: Settings,
    control: Control | None,
) -> None:
    """Put every tensor of the target into a draft, with the terms that it takes."""
    factor = 1.0
    if len(terms) == 1:
        # one step has its weight in the final factor, which is rounded once with alpha
        factor, terms[0].weight = terms[0].weight, 1.0
    copy = draft.operation({"kind": "copy"})
    dtypes = {dtype: out_dtype(dtype, settings) for dtype in draft.base.dtypes}
    known: dict[tuple[float, tuple[tuple[float, int], ...]], int] = {}
    for name, info in draft.base.tensors.items():
        inputs, given = [(0, name)], ()
        for term in terms:
            stored = term.stored.get(name)
            if stored is not None:
                # of a tensor in which a vector is zero there is nothing to read; it is measured all the same
                inputs += zip(term.sources, stored, strict=bool(stored))
                given += ((term.weight, len(stored)),)
        if control and not any(count for _, count in given):
            given = ()
        if parts := _parts(name, terms):
            draft.take(name, parts)
        key = factor * scales.get(name, 1.0), given
        operation = known.get(key) if given else copy
        if operation is None:
            made = task_arithmetic(given, key[0])
            made["kind"] = f"control_{control}" if control else made["kind"]
            operation = known[key] = draft.operation(made)
        if draft.keeps_packed(name):
            draft.packed_tensor(name, (0, name), operation, inputs)
        else:
            draft.tensor(name, dtypes[info.dtype], info.shape, operation, inputs)


def _parts(name: str, terms: Sequence[_Term]) -> tuple[StoredPart, ...]:
    """The weights in a tensor that any term takes; none where they are all of it."""
    parts: dict[tuple[int, tuple[tuple[int, int], ...]], StoredPart] = {}
    for term in terms:
        if name in term.stored:
            own = term.selection.taken(name) or term.rows.get(name, ())
            if not own:
                return ()
            parts.update(((part.first, part.axes), part) for part in own)
    return tuple(parts.values())


def _first_rows(target: Model, name: str, count: int) -> tuple[StoredPart, ...]:
    """The rows of an embedding or head that all models have in common."""
    width = math.prod(target.tensors[name].shape[1:])
    return (StoredPart(name, 0, ((count * width, 1),)),) if count else ()


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
    target: Model,
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


def layer_scales(target: Model, gradient: Sequence[float] | None) -> dict[str, float]:
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
    is_list = isinstance(gradient, list | tuple)
    if (
        not is_list
        or not gradient
        or not all(isinstance(n, int | float) and math.isfinite(n) for n in gradient)
    ):
        found = shown(list(gradient)) if is_list else kind_of(gradient)
        raise RecipeError(f"layer scale {found} is not a list of finite numbers", "write it as `0,0.5,1`")
    layers = {name: layer_of(name) for name in target.tensors}
    numbers = [layer for layer in layers.values() if layer is not None]
    if not numbers:
        raise RecipeError(f"`{target.spec}` has no numbered layers", "leave out the layer scale")
    last = max(numbers)
    embedding = head_of(target).embedding
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
