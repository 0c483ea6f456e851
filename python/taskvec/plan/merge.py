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
from taskvec.compat.layouts.rewritten import in_plain_layout, like
from taskvec.compat.quantised import check_basis
from taskvec.compat.tensors import unused_selection
from taskvec.compat.tokenizer import SETTINGS, TEMPLATE, is_tokenizer_file, vocabulary_difference
from taskvec.dtypes import FLOAT_DTYPES
from taskvec.errors import RecipeError
from taskvec.files.json import parse_object
from taskvec.methods.operation import COPY
from taskvec.models.adapter import Adapter
from taskvec.models.model import Model
from taskvec.models.saved_vector import SavedVector
from taskvec.plan.adapters import fitted, tie_findings
from taskvec.plan.checks import refuse_conversion
from taskvec.plan.draft import Draft
from taskvec.plan.merge_packed import merge_form, packed_findings
from taskvec.plan.plan import PlanRecord
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
    opened = _opened(sources(step), opening or _checkpoint)
    adapters = {ref: _adapted(ref, opened) for ref in opened if ref.adapter is not None}
    merge = expand(step, {ref: _facts(model) for ref, model in opened.items()})
    settings = replace(
        settings,
        out_dtype=merge.out_dtype or merge.dtype or settings.out_dtype,
        rounding=merge.rounding or settings.rounding,  # type: ignore[arg-type]
        seed=settings.seed if merge.seed is None else merge.seed,
    )
    config_from = opened[merge.models[merge.config_from]]
    assert isinstance(config_from, Model)
    found = _findings(merge, opened, config_from, recipe)
    found += tie_findings([*adapters.values(), *_alone(opened)])
    found += packed_findings(merge, opened)
    refuse_conversion(enforce(in_order(found), settings.force), settings)
    form = merge_form(merge, opened, config_from, recipe.selection, settings)
    found = enforce(in_order([*found, *form.findings]), settings.force)
    if not form.is_packed:
        opened, config_from = _in_plain_layout(opened, config_from, opening or _checkpoint)
    draft = Draft(config_from, _role(merge.config_from, merge), is_packed=form.is_packed)
    numbers = [
        _source(draft, opened[ref], adapters.get(ref), _role(number, merge))
        for number, ref in enumerate(merge.models)
    ]
    operations = [draft.operation(operation) for operation in merge.operations]
    copy = draft.operation({"kind": "copy"})
    for tensor in merge.tensors:
        model, stored = tensor.template
        template = _checkpoint_of(opened, merge.models[model])
        info = template.tensors[stored]
        inputs = [(numbers[index], name) for index, name in tensor.inputs]
        operation = operations[tensor.operation]
        if info.dtype not in FLOAT_DTYPES or not recipe.selection.matches(tensor.name):
            inputs, operation = [(numbers[model], stored)], copy
        if form.is_packed and stored in template.packed:
            place = draft.source(template, _role(model, merge)), stored
            draft.packed_tensor(tensor.name, place, operation, inputs)
        else:
            draft.tensor(tensor.name, out_dtype(info.dtype, settings), info.shape, operation, inputs)
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
        config=merge.config_edits,
        files=_files(merge, opened, config_from, recipe),
        is_random=merge.method.random,
    )


def _checkpoint(ref: ModelRef) -> Model:
    return ref.opened if isinstance(ref.opened, Model) else open_model(ref.spec)


def _opened(refs: Sequence[ModelRef], opening: Callable[[ModelRef], Model]) -> Opened:
    """Everything that a recipe names; an adapter alone is fitted to the model that it is made for."""
    opened: dict[ModelRef, Readable | Adapter] = {}
    for ref in refs:
        if ref.kind == "vector":
            opened[ref] = ref.opened if isinstance(ref.opened, SavedVector) else open_vector(ref.spec)
        elif ref.kind == "checkpoint":
            opened[ref] = opening(ref.plain)
        else:
            opened[ref] = open_adapter(ref.spec)
    _fit_layouts(opened, refs)
    for ref, adapter in opened.items():
        if isinstance(adapter, Adapter):
            assert ref.made_for is not None
            opened[ref] = fitted(adapter, _checkpoint_of(opened, ModelRef(ref.made_for)))
    return opened


def _kept_on_models(step: Checked) -> Checked:
    """The step with the adapters named that hold whole weights: without their model these are no change."""
    alone = (ref.spec for ref in sources(step) if ref.kind == "adapter")
    return replace(step, whole=frozenset(spec for spec in alone if open_adapter(spec).whole))


def _fit_layouts(opened: dict[ModelRef, Readable | Adapter], refs: Sequence[ModelRef]) -> None:
    """Give every model the first one's layout; an adapter's model keeps the names that it is made for."""
    adapted = {ref.plain for ref in refs if ref.adapter is not None}
    adapted |= {ModelRef(ref.made_for) for ref in refs if ref.made_for is not None}
    models = [(ref, model) for ref, model in opened.items() if isinstance(model, Model)]
    for ref, model in models[1:]:
        if ref not in adapted:
            opened[ref] = fit_layout(model, models[0][1])


def _in_plain_layout(
    opened: Opened, base: Model, opening: Callable[[ModelRef], Model]
) -> tuple[Opened, Model]:
    """The models of a merge in the layout of the base's plain twins, and the base."""
    plain = in_plain_layout(base)
    if plain is base:
        return opened, base
    adapted = any(ref.adapter is not None or isinstance(model, Adapter) for ref, model in opened.items())
    if adapted or any(isinstance(model, SavedVector) for model in opened.values()):
        raise RecipeError(
            f"experts of `{base.spec}` have rows and columns exchanged in plain checkpoints of this model, "
            "which vectors and adapters of the packed one do not fit",
            "convert it first: `taskvec convert`",
        )
    made = {ref: plain if model is base else like(opening(ref.plain), plain) for ref, model in opened.items()}
    return made, plain


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
    model = _checkpoint_of(opened, ref)
    return fitted(open_adapter(ref.adapter), model), model


def _facts(model: Readable | Adapter) -> Facts:
    if isinstance(model, Adapter):
        return Facts(model.factors.keys())
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


def _files(merge: ExpandedMerge, opened: Opened, config_from: Model, recipe: Recipe) -> dict[str, bytes]:
    """Tokenizer files where they are of another model, and the chat template that the recipe names."""
    files: dict[str, bytes] = {}
    _check_union(recipe, opened, config_from)
    chosen = _checkpoint_of(opened, merge.models[merge.tokenizer_from])
    if chosen is not config_from:
        files = {name: chosen.read_file(name) for name in chosen.other_files if is_tokenizer_file(name)}
        if TEMPLATE in config_from.other_files and TEMPLATE not in files and (own := template_of(chosen)):
            files[TEMPLATE] = own.encode()  # its file would go before what is in the settings
    if merge.chat_template is not None:
        if SETTINGS in config_from.other_files or SETTINGS in files:
            text = files.get(SETTINGS) or config_from.read_file(SETTINGS)
            settings = parse_object(text, SETTINGS)
            settings.pop("chat_template", None)
            files[SETTINGS] = json.dumps(settings, indent=2, ensure_ascii=False).encode()
        files[TEMPLATE] = _template(merge.chat_template, opened, recipe).encode()
    return files


def _check_union(recipe: Recipe, opened: Opened, base: Model) -> None:
    """Hold that the vocabularies whose union is asked for are equal: it is the base's then."""
    if recipe.tokenizer_from != "union":
        return
    for model in opened.values():
        if isinstance(model, Model) and model is not base and (why := vocabulary_difference(base, model)):
            raise recipe.error(
                ("tokenizer",) if recipe.tokenizer is not None else ("tokenizer_source",),
                "a tokenizer of all vocabularies together (`union`) cannot be made yet, and these are not "
                f"known to be equal to that of `{base.spec}`: {why}",
                "merge models of one vocabulary; or leave embedding and head out: `tokenizer_source: base` "
                "and `preset: no-embed`",
                key=True,
            )


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


def _findings(merge: ExpandedMerge, opened: Opened, config_from: Model, recipe: Recipe) -> list[Finding]:
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
