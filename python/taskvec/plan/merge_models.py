"""The models, vectors and adapters of a merge, opened and fitted to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from taskvec.compat.layouts.fit import fitted as fit_layout
from taskvec.compat.layouts.parts import bound
from taskvec.compat.layouts.rewritten import in_plain_layout, like
from taskvec.errors import RecipeError
from taskvec.models.adapter import Adapter
from taskvec.models.model import Model
from taskvec.models.saved_vector import SavedVector
from taskvec.models.selection import Selection
from taskvec.plan.adapters import fitted
from taskvec.recipe.expanded import ExpandedMerge, Facts
from taskvec.recipe.model_ref import ModelRef
from taskvec.resolve.adapter import open_adapter
from taskvec.resolve.open import open as open_model
from taskvec.resolve.saved_vector import open_vector

Readable = Model | SavedVector
Opened = Mapping[ModelRef, Readable | Adapter]
Adapted = Mapping[ModelRef, tuple[Adapter, Model]]


def checkpoint(ref: ModelRef) -> Model:
    """A checkpoint that a recipe names."""
    return ref.opened if isinstance(ref.opened, Model) else open_model(ref.spec)


def opened_models(
    refs: Sequence[ModelRef], opening: Callable[[ModelRef], Model], selection: Selection
) -> Opened:
    """Everything that a recipe names; an adapter alone is fitted to the model that it is made for."""
    opened: dict[ModelRef, Readable | Adapter] = {}
    for ref in refs:
        if ref.kind == "vector":
            opened[ref] = ref.opened if isinstance(ref.opened, SavedVector) else open_vector(ref.spec)
        elif ref.kind in ("checkpoint", "importance"):
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
    model = checkpoint_of(opened, ref)
    first = next(each for each in opened.values() if isinstance(each, Model))
    return fitted(adapter, model, first if model.assembled else None)


def _fit_layouts(opened: dict[ModelRef, Readable | Adapter], selection: Selection) -> None:
    """Give every model the first one's layout."""
    models = [(ref, model) for ref, model in opened.items() if isinstance(model, Model)]
    if len(models) > 1:
        selection = bound(selection, models[0][1])
    for ref, model in models[1:]:
        opened[ref] = fit_layout(model, models[0][1], selection)


def plain_layout(
    opened: Opened, adapters: Adapted, base: Model, opening: Callable[[ModelRef], Model]
) -> tuple[Opened, Adapted, Model]:
    """The models of a merge in the layout of the base's plain twins, their adapters, and the base."""
    plain = in_plain_layout(base)
    if plain is base:
        return opened, adapters, base
    if any(isinstance(model, SavedVector) for model in opened.values()):
        raise RecipeError(
            f"experts of `{base.spec}` have rows and columns exchanged in plain checkpoints of this model, "
            "with which vectors of the packed one are incompatible",
            "convert it first: `taskvec convert`",
        )
    made: dict[ModelRef, Readable | Adapter] = {}
    for ref, model in opened.items():
        if isinstance(model, Model):
            made[ref] = plain if model is base else like(opening(ref.plain), plain)
    for ref, model in opened.items():
        if isinstance(model, Adapter):
            assert ref.made_for is not None
            made[ref] = fitted(open_adapter(ref.spec), checkpoint_of(made, ModelRef(ref.made_for)), plain)
    made = {ref: made[ref] for ref in opened}
    turned: dict[ModelRef, tuple[Adapter, Model]] = {}
    for ref in adapters:
        assert ref.adapter is not None
        model = checkpoint_of(made, ref)
        turned[ref] = fitted(open_adapter(ref.adapter), model, plain), model
    return made, turned, plain


def adapters_alone(opened: Opened) -> list[tuple[Adapter, Model]]:
    """The adapters that are taken without their model, and that model."""
    return [
        (model, checkpoint_of(opened, ModelRef(ref.made_for)))
        for ref, model in opened.items()
        if isinstance(model, Adapter) and ref.made_for is not None
    ]


def adapted(ref: ModelRef, opened: Opened) -> tuple[Adapter, Model]:
    """The adapter of a model, fitted to it, and the model."""
    assert ref.adapter is not None
    return _on(open_adapter(ref.adapter), ref, opened), checkpoint_of(opened, ref)


def facts_of(model: Readable | Adapter) -> Facts:
    """What of a model a recipe is expanded against."""
    if isinstance(model, Adapter):
        return Facts(model.changed)
    if isinstance(model, SavedVector):
        return Facts([name for name in model.tensors if name not in model.zero])
    return Facts(model.tensors.keys(), model.config)


def checkpoint_of(opened: Opened, ref: ModelRef) -> Model:
    """A model that is a checkpoint."""
    model = opened[ref]
    assert isinstance(model, Model)
    return model


def role_of(number: int, merge: ExpandedMerge) -> str:
    """What a model is called in the plan."""
    if number in merge.maps:
        return f"importance of {role_of(merge.maps[number], merge)}"
    if merge.base is None:
        return f"model {number + 1}"
    return f"model {number}" if number else "base"
