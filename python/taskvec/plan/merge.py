"""A merge recipe × the headers of its models → plan. Pure: no weight is read, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from taskvec.compat.findings import enforce, in_order
from taskvec.compat.layouts.groups import check_groups
from taskvec.compat.layouts.parts import bound, part_names, seen_whole, taken
from taskvec.dtypes import FLOAT_DTYPES
from taskvec.models.adapter import Adapter
from taskvec.models.model import Model, TensorInfo
from taskvec.models.part_names import NO_PARTS
from taskvec.plan.adapter_gaps import gap_findings
from taskvec.plan.adapters import tie_findings
from taskvec.plan.checks import refuse_conversion
from taskvec.plan.draft import Draft
from taskvec.plan.importance import check_maps
from taskvec.plan.merge_files import merge_files
from taskvec.plan.merge_findings import merge_findings, whole_tensors
from taskvec.plan.merge_models import (
    Opened,
    Readable,
    adapted,
    adapters_alone,
    checkpoint,
    checkpoint_of,
    facts_of,
    opened_models,
    plain_layout,
    role_of,
)
from taskvec.plan.merge_packed import merge_form, packed_findings
from taskvec.plan.plan import PlanRecord
from taskvec.plan.vocabulary import tokens_of
from taskvec.plan.vocabulary_files import config_changes
from taskvec.plan.vocabulary_rows import TokenRows, models_in
from taskvec.recipe.expand import expand, sources
from taskvec.recipe.expanded import ExpandedMerge
from taskvec.recipe.model_ref import ModelRef
from taskvec.recipe.schema import Recipe
from taskvec.recipe.validate import Checked
from taskvec.resolve.adapter import open_adapter
from taskvec.settings import Settings, out_dtype, written

# Findings about a tensor that was forced to be combined with one of another form: the base's is kept.
KEPT = frozenset({"shape", "vocabulary-rows", "dtype-kind"})


def plan_recipe(
    step: Checked,
    *,
    settings: Settings | None = None,
    opening: Callable[[ModelRef], Model] | None = None,
    record: Mapping[str, Any] | None = None,
) -> PlanRecord:
    """The plan of one document of a recipe.

    Parameters
    ----------
    step : Checked
    settings : Settings, optional
        What the recipe itself says of output type, rounding and seed goes before it.
    opening : callable, optional
        Opens a checkpoint; how results of earlier documents are found.
    record : mapping, optional
        What the manifest keeps as the recipe.

    Raises
    ------
    RecipeError
        The recipe is incompatible with its models' tensors.
    CompatibilityError
        The models are incompatible.
    """
    settings, recipe = settings or Settings(), step.recipe
    step = _kept_on_models(step)
    opened = opened_models(sources(step), opening or checkpoint, recipe.selection)
    adapters = {ref: adapted(ref, opened) for ref in opened if ref.adapter is not None}
    base = next(model for model in opened.values() if isinstance(model, Model))
    selection = bound(recipe.selection, base)
    facts = {ref: facts_of(model) for ref, model in opened.items()}
    merge = expand(step, facts, selection, part_names(base) if _has_filters(recipe) else NO_PARTS)
    settings = replace(
        settings,
        out_dtype=merge.out_dtype or merge.dtype or settings.out_dtype,
        rounding=merge.rounding or settings.rounding,  # type: ignore[arg-type]
        seed=settings.seed if merge.seed is None else merge.seed,
    )
    config_from = opened[merge.models[merge.config_from]]
    assert isinstance(config_from, Model)
    first = None if recipe.base_model is None else recipe.base_model.plain
    tokens = tokens_of(recipe, models_in(opened), merge.models[merge.config_from].plain, first)
    check_maps(merge, opened, selection, has_tokens=tokens is not None)
    found = merge_findings(merge, opened, config_from, recipe, tokens)
    pairs = [*adapters.values(), *adapters_alone(opened)]
    found += [*tie_findings(pairs), *gap_findings(pairs)]
    found += packed_findings(merge, opened)
    found += seen_whole(merge.method.name, whole_tensors(merge, selection))
    refuse_conversion(enforce(in_order(found), settings.force), settings)
    form = merge_form(merge, opened, config_from, selection, settings)
    if form.is_packed and not form.plain:
        found += check_groups(config_from, taken(selection, config_from.tensors))
    found = enforce(in_order([*found, *form.findings]), settings.force)
    if not form.is_packed:
        opened, adapters, config_from = plain_layout(opened, adapters, config_from, opening or checkpoint)
        selection = bound(recipe.selection, config_from)
    draft = Draft(config_from, role_of(merge.config_from, merge), is_packed=form.is_packed, plain=form.plain)
    numbers = [
        _source(draft, opened[ref], adapters.get(ref), role_of(number, merge))
        for number, ref in enumerate(merge.models)
    ]
    operations = [draft.operation(operation) for operation in merge.operations]
    copy = draft.operation({"kind": "copy"})
    rows = None if tokens is None else TokenRows(draft, tokens, opened, adapters, merge.models)
    has_slices = recipe.slices is not None or recipe.modules is not None  # no finding speaks of their tensors
    may_differ = rows is None and not has_slices and not KEPT.isdisjoint(settings.force)
    for tensor in merge.tensors:
        model, stored = tensor.template
        template = checkpoint_of(opened, merge.models[model])
        info = template.tensors[stored]
        of, operation = tensor.inputs, operations[tensor.operation]
        left = numbers[model], stored
        is_float = info.dtype in FLOAT_DTYPES and selection.matches(tensor.name)
        is_forced = may_differ and _differs(info, of, merge, opened)
        if not is_float or is_forced:
            of, operation = ((model, stored),), copy
        shape = info.shape if rows is None else rows.shape(info, of)
        inputs = [(numbers[index], name) for index, name in of]
        if operation != copy and (parts := selection.taken(tensor.name)):
            inputs = inputs if left in inputs else [*inputs, left]
            draft.take(tensor.name, parts, inputs.index(left))
        if draft.keeps_packed(stored, template):
            place = draft.source(template, role_of(model, merge)), stored
            draft.packed_tensor(tensor.name, place, operation, inputs)
        else:
            draft.tensor(tensor.name, out_dtype(info.dtype, settings), shape, operation, inputs)
    files, gone = merge_files(merge, opened, config_from, recipe, tokens)
    return draft.finish(
        alphas=merge.alphas,
        settings=settings,
        findings=found,
        recipe={
            **(record or {"verb": "merge", "recipe": [recipe.document.plain()]}),
            "alpha": list(merge.alphas),
            **written(settings),
            **({"seed": settings.seed} if merge.method.random else {}),
        },
        config={
            **merge.config_edits,
            **(config_changes(tokens, config_from, rows.count) if tokens and rows else {}),
        },
        files=files,
        left=gone,
        is_random=merge.method.random,
    )


def _differs(info: TensorInfo, of: Iterable[tuple[int, str]], merge: ExpandedMerge, opened: Opened) -> bool:
    """Whether an input of a tensor cannot be combined with it, element by element."""
    for number, name in of:
        model = opened[merge.models[number]]
        theirs = model.tensors.get(name) if isinstance(model, Model) else None
        if theirs is not None and (theirs.shape != info.shape or theirs.dtype not in FLOAT_DTYPES):
            return True
    return False


def _has_filters(recipe: Recipe) -> bool:
    """Whether a parameter has values for some tensors alone."""
    scopes = (
        scope
        for group in recipe.groups()
        for scope in (*(each.settings for each in group.scopes), *(each.parameters for each in group.sources))
    )
    return any(setting.filters for scope in scopes for setting in scope.values())


def _kept_on_models(step: Checked) -> Checked:
    """The step with the adapters named that hold whole weights: without their model these are no change."""
    alone = (ref.spec for ref in sources(step) if ref.kind == "adapter")
    return replace(step, whole=frozenset(spec for spec in alone if open_adapter(spec).whole))


def _source(draft: Draft, model: Readable | Adapter, adapted: tuple[Adapter, Model] | None, role: str) -> int:
    """The number of a model in the plan; a model with an adapter is the adapter on top of the model."""
    if isinstance(model, Adapter):
        return draft.adapter(model, role, base=None)
    number = draft.source(model, role)
    return number if adapted is None else draft.adapter(adapted[0], role, base=number)
