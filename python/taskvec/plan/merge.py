"""A merge recipe × the headers of its models → plan. Pure: no weight is read, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from taskvec.compat.check import check_models
from taskvec.compat.companions import check_copied, check_files
from taskvec.compat.findings import Finding, enforce, finding, in_order
from taskvec.compat.formats import check_formats
from taskvec.compat.layouts.fit import fitted as fit_layout
from taskvec.compat.layouts.groups import check_groups
from taskvec.compat.layouts.parts import bound, part_names, taken
from taskvec.compat.layouts.rewritten import in_plain_layout, like
from taskvec.compat.quantised import check_basis
from taskvec.compat.tensors import unused_selection
from taskvec.compat.tokenizer import SETTINGS, TEMPLATE, is_tokenizer_file
from taskvec.dtypes import FLOAT_DTYPES
from taskvec.errors import RecipeError
from taskvec.files.json import parse_object
from taskvec.methods.operation import COPY
from taskvec.models.adapter import Adapter
from taskvec.models.model import Model
from taskvec.models.part_names import NO_PARTS
from taskvec.models.saved_vector import SavedVector
from taskvec.models.selection import Selection
from taskvec.plan.adapters import fitted, tie_findings
from taskvec.plan.checks import refuse_conversion
from taskvec.plan.draft import Draft
from taskvec.plan.merge_packed import merge_form, packed_findings
from taskvec.plan.plan import PlanRecord
from taskvec.plan.vocabulary import SETTLED, Tokens, tokens_of
from taskvec.plan.vocabulary_files import config_changes, files_of
from taskvec.plan.vocabulary_rows import TokenRows, models_in, shaped
from taskvec.recipe.chat_templates import TEMPLATES, most_common, template_of
from taskvec.recipe.expand import expand, sources
from taskvec.recipe.expanded import ExpandedMerge, Facts
from taskvec.recipe.model_ref import ModelRef
from taskvec.recipe.schema import Recipe
from taskvec.recipe.validate import Checked
from taskvec.resolve.adapter import open_adapter
from taskvec.resolve.open import open as open_model
from taskvec.resolve.saved_vector import open_vector
from taskvec.settings import Settings, out_dtype, written
from taskvec.text import listed

Readable = Model | SavedVector
Opened = Mapping[ModelRef, Readable | Adapter]
Adapted = Mapping[ModelRef, tuple[Adapter, Model]]


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
        The recipe does not fit its models' tensors.
    CompatibilityError
        The models do not fit each other.
    """
    settings, recipe = settings or Settings(), step.recipe
    step = _kept_on_models(step)
    opened = _opened(sources(step), opening or _checkpoint, recipe.selection)
    adapters = {ref: _adapted(ref, opened) for ref in opened if ref.adapter is not None}
    base = next(model for model in opened.values() if isinstance(model, Model))
    selection = bound(recipe.selection, base)
    facts = {ref: _facts(model) for ref, model in opened.items()}
    merge = expand(step, facts, selection, part_names(base) if _has_filters(recipe) else NO_PARTS)
    settings = replace(
        settings,
        out_dtype=merge.out_dtype or merge.dtype or settings.out_dtype,
        rounding=merge.rounding or settings.rounding,  # type: ignore[arg-type]
        seed=settings.seed if merge.seed is None else merge.seed,
    )
    config_from = opened[merge.models[merge.config_from]]
    assert isinstance(config_from, Model)
    base = None if recipe.base_model is None else recipe.base_model.plain
    tokens = tokens_of(recipe, models_in(opened), merge.models[merge.config_from].plain, base)
    found = _findings(merge, opened, config_from, recipe, tokens)
    found += tie_findings([*adapters.values(), *_alone(opened)])
    found += packed_findings(merge, opened)
    refuse_conversion(enforce(in_order(found), settings.force), settings)
    form = merge_form(merge, opened, config_from, selection, settings)
    if form.is_packed:
        found += check_groups(config_from, taken(selection, config_from.tensors))
    found = enforce(in_order([*found, *form.findings]), settings.force)
    if not form.is_packed:
        opened, adapters, config_from = _in_plain_layout(
            opened, adapters, config_from, opening or _checkpoint
        )
        selection = bound(recipe.selection, config_from)
    draft = Draft(config_from, _role(merge.config_from, merge), is_packed=form.is_packed)
    numbers = [
        _source(draft, opened[ref], adapters.get(ref), _role(number, merge))
        for number, ref in enumerate(merge.models)
    ]
    operations = [draft.operation(operation) for operation in merge.operations]
    copy = draft.operation({"kind": "copy"})
    rows = None if tokens is None else TokenRows(draft, tokens, opened, adapters, merge.models)
    for tensor in merge.tensors:
        model, stored = tensor.template
        template = _checkpoint_of(opened, merge.models[model])
        info = template.tensors[stored]
        of, operation = tensor.inputs, operations[tensor.operation]
        left = numbers[model], stored
        if info.dtype not in FLOAT_DTYPES or not selection.matches(tensor.name):
            of, operation = ((model, stored),), copy
        shape = info.shape if rows is None else rows.shape(info, of)
        inputs = [(numbers[index], name) for index, name in of]
        if operation != copy and (parts := selection.taken(tensor.name)):
            inputs = inputs if left in inputs else [*inputs, left]
            draft.take(tensor.name, parts, inputs.index(left))
        if form.is_packed and stored in template.packed:
            place = draft.source(template, _role(model, merge)), stored
            draft.packed_tensor(tensor.name, place, operation, inputs)
        else:
            draft.tensor(tensor.name, out_dtype(info.dtype, settings), shape, operation, inputs)
    files, left = _files(merge, opened, config_from, recipe, tokens)
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
        left=left,
        is_random=merge.method.random,
    )


def _checkpoint(ref: ModelRef) -> Model:
    return ref.opened if isinstance(ref.opened, Model) else open_model(ref.spec)


def _opened(refs: Sequence[ModelRef], opening: Callable[[ModelRef], Model], selection: Selection) -> Opened:
    """Everything that a recipe names; an adapter alone is fitted to the model that it is made for."""
    opened: dict[ModelRef, Readable | Adapter] = {}
    for ref in refs:
        if ref.kind == "vector":
            opened[ref] = ref.opened if isinstance(ref.opened, SavedVector) else open_vector(ref.spec)
        elif ref.kind == "checkpoint":
            opened[ref] = opening(ref.plain)
        else:
            opened[ref] = open_adapter(ref.spec)
    _fit_layouts(opened, selection)
    for ref, adapter in opened.items():
        if isinstance(adapter, Adapter):
            assert ref.made_for is not None
            opened[ref] = _on(adapter, ModelRef(ref.made_for), opened)
    return opened


def _on(adapter: Adapter, ref: ModelRef, opened: Opened) -> Adapter:
    """An adapter fitted to its model, in the layout that this one has here."""
    model = _checkpoint_of(opened, ref)
    first = next(each for each in opened.values() if isinstance(each, Model))
    return fitted(adapter, model, first if model.assembled else None)


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


def _fit_layouts(opened: dict[ModelRef, Readable | Adapter], selection: Selection) -> None:
    """Give every model the first one's layout."""
    models = [(ref, model) for ref, model in opened.items() if isinstance(model, Model)]
    if len(models) > 1:
        selection = bound(selection, models[0][1])
    for ref, model in models[1:]:
        opened[ref] = fit_layout(model, models[0][1], selection)


def _in_plain_layout(
    opened: Opened, adapters: Adapted, base: Model, opening: Callable[[ModelRef], Model]
) -> tuple[Opened, Adapted, Model]:
    """The models of a merge in the layout of the base's plain twins, their adapters, and the base."""
    plain = in_plain_layout(base)
    if plain is base:
        return opened, adapters, base
    if any(isinstance(model, SavedVector) for model in opened.values()):
        raise RecipeError(
            f"experts of `{base.spec}` have rows and columns exchanged in plain checkpoints of this model, "
            "which vectors of the packed one do not fit",
            "convert it first: `taskvec convert`",
        )
    made: dict[ModelRef, Readable | Adapter] = {}
    for ref, model in opened.items():
        if isinstance(model, Model):
            made[ref] = plain if model is base else like(opening(ref.plain), plain)
    for ref, model in opened.items():
        if isinstance(model, Adapter):
            assert ref.made_for is not None
            made[ref] = fitted(open_adapter(ref.spec), _checkpoint_of(made, ModelRef(ref.made_for)), plain)
    made = {ref: made[ref] for ref in opened}
    turned: dict[ModelRef, tuple[Adapter, Model]] = {}
    for ref in adapters:
        assert ref.adapter is not None
        model = _checkpoint_of(made, ref)
        turned[ref] = fitted(open_adapter(ref.adapter), model, plain), model
    return made, turned, plain


def _alone(opened: Opened) -> list[tuple[Adapter, Model]]:
    """The adapters that are taken without their model, and that model."""
    return [
        (model, _checkpoint_of(opened, ModelRef(ref.made_for)))
        for ref, model in opened.items()
        if isinstance(model, Adapter) and ref.made_for is not None
    ]


def _adapted(ref: ModelRef, opened: Opened) -> tuple[Adapter, Model]:
    """The adapter of a model, fitted to it, and the model."""
    assert ref.adapter is not None
    return _on(open_adapter(ref.adapter), ref, opened), _checkpoint_of(opened, ref)


def _facts(model: Readable | Adapter) -> Facts:
    if isinstance(model, Adapter):
        return Facts(model.changed)
    if isinstance(model, SavedVector):
        return Facts([name for name in model.tensors if name not in model.zero])
    return Facts(model.tensors.keys(), model.config)


def _checkpoint_of(opened: Opened, ref: ModelRef) -> Model:
    model = opened[ref]
    assert isinstance(model, Model)
    return model


def _source(draft: Draft, model: Readable | Adapter, adapted: tuple[Adapter, Model] | None, role: str) -> int:
    """The number of a model in the plan; a model with an adapter is the adapter on top of the model."""
    if isinstance(model, Adapter):
        return draft.adapter(model, role, base=None)
    number = draft.source(model, role)
    return number if adapted is None else draft.adapter(adapted[0], role, base=number)


def _files(
    merge: ExpandedMerge, opened: Opened, config_from: Model, recipe: Recipe, tokens: Tokens | None
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Tokenizer files where they are not the base's, and the chat template; the base's that are left."""
    files: dict[str, bytes] = {}
    left: tuple[str, ...] = ()
    chosen = _checkpoint_of(opened, merge.models[merge.tokenizer_from])
    if tokens is not None:
        files, left = files_of(tokens, config_from)
    elif chosen is not config_from:
        files = {name: chosen.read_file(name) for name in chosen.other_files if is_tokenizer_file(name)}
    if chosen is not config_from and TEMPLATE in config_from.other_files and TEMPLATE not in files:
        left = tuple(name for name in left if name != TEMPLATE)
        if own := template_of(chosen):
            files[TEMPLATE] = own.encode()  # its file would go before what is in the settings
    if merge.chat_template is not None:
        if SETTINGS in config_from.other_files or SETTINGS in files:
            text = files.get(SETTINGS) or config_from.read_file(SETTINGS)
            settings = parse_object(text, SETTINGS)
            settings.pop("chat_template", None)
            files[SETTINGS] = json.dumps(settings, indent=2, ensure_ascii=False).encode()
        files[TEMPLATE] = _template(merge.chat_template, opened, recipe).encode()
    return files, tuple(name for name in left if name not in files)


def _template(chosen: str, opened: Opened, recipe: Recipe) -> str:
    """The chat template that a recipe means: a known one by name, ``auto``, or the template itself."""
    if chosen != "auto":
        return TEMPLATES.get(chosen, chosen)
    # A model that is only subtracted is not an input. An adapter has its model's template.
    inputs = dict.fromkeys(
        ref.plain
        for group in recipe.groups()
        for ref in (group.base, *(source.ref for source in group.sources))
        if ref is not None and ref.kind != "vector"
    )
    by_name = {ref.plain: model for ref, model in opened.items() if isinstance(model, Model)}
    template = most_common(by_name[ref] for ref in inputs)
    if template is None:
        raise recipe.error(
            ("chat_template",),
            "`chat_template` is `auto`, and none of the models has a chat template",
            f"name one ({', '.join(f'`{name}`' for name in TEMPLATES)}), or remove `chat_template`",
        )
    return template


def _role(number: int, merge: ExpandedMerge) -> str:
    if merge.base is None:
        return f"model {number + 1}"
    return f"model {number}" if number else "base"


def _computed(merge: ExpandedMerge) -> list[str]:
    """Stored names of the tensors that are computed with and not only copied."""
    rows = (tensor for tensor in merge.tensors if merge.operations[tensor.operation] != COPY)
    return list(dict.fromkeys(name for tensor in rows for _, name in tensor.inputs))


def _copied(merge: ExpandedMerge, opened: Opened) -> set[str]:
    """Output tensors that are no floats: one model's bytes, whether or not the others have them."""
    dtypes = (
        {
            tensor.name: _checkpoint_of(opened, merge.models[tensor.template[0]])
            .tensors[tensor.template[1]]
            .dtype
            for tensor in merge.tensors
        }
        if merge.missing
        else {}
    )
    return {name for name, dtype in dtypes.items() if dtype not in FLOAT_DTYPES}


def _findings(
    merge: ExpandedMerge, opened: Opened, config_from: Model, recipe: Recipe, tokens: Tokens | None
) -> list[Finding]:
    if tokens is not None:
        seen = {ref: shaped(model, tokens, models_in(opened)) for ref, model in models_in(opened).items()}
        opened = {ref: seen.get(ref.plain, model) for ref, model in opened.items()}
        config_from = seen[merge.models[merge.config_from].plain]
        found = _findings(merge, opened, config_from, recipe, None)
        return [*(each for each in found if each.id not in SETTLED), *tokens.findings]
    found = list(merge.remarks)
    others = [
        (str(ref), model)
        for ref, model in opened.items()
        if isinstance(model, Model) and model is not config_from
    ]
    has_slices = recipe.slices is not None or recipe.modules is not None
    if has_slices:
        found += unused_selection(recipe.selection, [tensor.name for tensor in merge.tensors])
        found += check_files(_role(merge.config_from, merge), config_from)
        models = [(str(merge.models[merge.config_from]), config_from), *others]
        found += check_formats(models, _computed(merge))
        found += check_basis(models, _computed(merge))
    else:
        found += check_models(others, config_from, selection=recipe.selection)
    tokenizer = _checkpoint_of(opened, merge.models[merge.tokenizer_from])
    if tokenizer is not config_from:
        found += check_copied(str(merge.models[merge.tokenizer_from]), tokenizer, tokenizer_only=True)
    copied = _copied(merge, opened)
    for name, models in merge.missing:
        if name in copied:
            continue
        missing = listed([str(merge.models[index]) for index in models])
        found.append(finding("tensor-missing", name, "in every model", f"not in {missing}"))
    return found
