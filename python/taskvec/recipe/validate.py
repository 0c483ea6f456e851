"""Checks of a recipe against its method, before any model is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from taskvec.compat.findings import Finding, finding
from taskvec.errors import RecipeError
from taskvec.methods.catalogue import METHODS, PARAMETERS, PUBLISHED, nearest_method, owners
from taskvec.methods.method import Method, Parameter
from taskvec.methods.operation import DEFAULT
from taskvec.methods.values import Setting, SettingError, coerce
from taskvec.recipe.document import dotted
from taskvec.recipe.schema import Group, Recipe, SliceInput, Source
from taskvec.text import Key, nearest, shown

MAXIMUM_FILTERS = 256

# How alike an unknown parameter has to be to one of another method to be taken for a typo of it.
_ALIKE = 0.75


@dataclass(frozen=True, slots=True)
class Checked:
    """A recipe in which nothing is wrong, as far as can be known without its models.

    Attributes
    ----------
    recipe : Recipe
    method : Method
    remarks : tuple of Finding
        On what has no effect.
    whole : frozenset of str
        The adapters that are known to hold whole weights: each stays on its model.
    """

    recipe: Recipe
    method: Method
    remarks: tuple[Finding, ...]
    whole: frozenset[str] = frozenset()


def check(recipe: Recipe) -> Checked:
    """A recipe with its method, and notes on what has no effect in it.

    Raises
    ------
    RecipeError
        The method is unknown; a parameter is not one of it, stands where it has no effect, has a value out of
        range, or is missing; the models are too few or too many, or the base is missing.
    """
    method = _method(recipe)
    remarks: list[Finding] = []
    if recipe.alpha is not None and not method.step:
        raise recipe.error(
            ("alpha",),
            f"`alpha` scales a step from the base, and `{method.name}` makes none",
            "remove `alpha`, or choose a method that adds to a base",
            key=True,
        )
    checked: set[tuple[Key, ...]] = set()
    filters: set[str] = set()
    for group in recipe.groups():
        _check_inputs(recipe, method, group)
        for scope in group.scopes:
            if scope.path not in checked:
                checked.add(scope.path)
                remarks += _check_settings(recipe, method, scope.settings, scope.path, filters)
        for source in group.sources:
            if source.parameters:
                remarks += _check_source(recipe, method, group, source, filters)
            remarks += _check_importance(recipe, method, group, source)
        _check_required(recipe, method, group)
    if len(filters) > MAXIMUM_FILTERS:
        raise recipe.error(
            ("parameters",), f"{len(filters)} different filters, more than {MAXIMUM_FILTERS}", "use fewer"
        )
    return Checked(recipe, method, tuple(remarks))


def _method(recipe: Recipe) -> Method:
    name = recipe.merge_method
    if name in METHODS:
        return METHODS[name]
    near = nearest_method(name)
    raise recipe.error(
        ("merge_method",),
        f"unknown merge method `{shown(name)}`",
        f"did you mean `{near}`?" if near else "`taskvec methods` lists them",
    )


# --- models -----------------------------------------------------------------------------------------------
def _check_inputs(recipe: Recipe, method: Method, group: Group) -> None:
    _check_layers(recipe, group)
    for source in group.sources:
        _check_difference(recipe, method, source)
    _check_twice(recipe, method, group)
    is_used = method.base != "input"
    has_base = any(group.is_base(source) for source in group.sources)
    if method.base == "required" and group.base is None:
        raise recipe.error(
            ("merge_method",),
            f"`{method.name}` needs a base model",
            "add `base_model: …`, what the models were fine-tuned from"
            if method.step
            else "add `base_model: …`, the one of the two models that t = 0 stands for",
        )
    if is_used and group.base is not None and not has_base:
        raise recipe.error(
            group.path,
            f"the base `{shown(str(group.base))}` is not among the sources of this slice",
            "list it with the layers to which the step is added; it needs no parameters",
        )
    count = len(group.sources) - (has_base and is_used)
    if count < method.least or (method.most is not None and count > method.most):
        besides = " besides the base" if is_used else ""
        raise recipe.error(
            group.path,
            f"`{method.name}` takes {_counted(method)}{besides}, found {count}",
            _count_hint(method, count, group),
        )


def _counted(method: Method) -> str:
    return f"{method.models} model{'' if method.models == '1' else 's'}"


def _count_hint(method: Method, count: int, group: Group) -> str | None:
    if count < method.least:
        return "list more models" if count else "list the models to merge: `- model: org/name`"
    if method.base == "input" and method.most == 1:
        implied = any(not source.path for source in group.sources)
        return "remove `base_model`" if implied else "give each model a slice of its own"
    return method.hint or _MORE


_MORE = "leave some out, or choose a method that takes more: `linear`, `karcher`, `ties`"


def _check_layers(recipe: Recipe, group: Group) -> None:
    lengths = [source.layers[1] - source.layers[0] for source in group.sources if source.layers is not None]
    for index, length in enumerate(lengths):
        if length != lengths[0]:
            raise recipe.error(
                (*group.path, "sources", index, "layer_range"),
                f"{length} layers here, and {lengths[0]} in the first source of this slice",
                "all sources of a slice have equally many layers",
            )


def _check_difference(recipe: Recipe, method: Method, source: Source) -> None:
    difference = "vector" if source.ref.kind == "vector" else "relative_to"
    if source.ref.kind != "vector" and source.relative_to is None:
        return
    if not method.step:
        raise recipe.error(
            (*source.path, difference),
            f"`{difference}` is for methods that add to a base; `{method.name}` takes whole models",
            "task_arithmetic adds them as they are",
            key=True,
        )
    if source.relative_to == source.ref:
        raise recipe.error(
            (*source.path, "relative_to"),
            f"`{shown(str(source.ref))}` relative to itself is a vector of zeros",
            "name the model that it was trained from",
        )


def _check_twice(recipe: Recipe, method: Method, group: Group) -> None:
    seen: dict[tuple[object, object], Source] = {}
    for source in group.sources:
        first = seen.setdefault((source.ref, source.relative_to), source)
        if first is not source:
            raise recipe.error(
                source.path,
                f"`{shown(str(source.ref))}` is listed twice, first at `{dotted(first.path)}`",
                "name it once, with the sum of the weights" if method.parameter("weight") else "name it once",
            )


# --- parameters -------------------------------------------------------------------------------------------
def _check_settings(
    recipe: Recipe,
    method: Method,
    settings: Mapping[str, Setting],
    path: Sequence[Key],
    filters: set[str],
    *,
    is_of_model: bool = False,
    is_slice: bool = False,
) -> Iterator[Finding]:
    for name, setting in settings.items():
        parameter = _parameter(recipe, method, name, (*path, name))
        if parameter is None:
            yield _foreign(recipe, method, name, (*path, name))
            continue
        if is_of_model and parameter.scope == "merge":
            yield _of_merge(recipe, name, (*path, name), is_slice)
            continue
        filters.update(setting.filters)
        is_default = True
        for below, value in setting.leaves():
            try:
                is_default &= coerce(parameter, value) == parameter.default
            except SettingError as error:
                raise recipe.error((*path, name, *below), error.message, error.hint) from None
        if parameter.ignored and not is_default:
            yield _ignored(recipe, (*path, name), f"`{name}` has no effect in `{method.name}`")


def _check_source(
    recipe: Recipe, method: Method, group: Group, source: Source, filters: set[str]
) -> Iterator[Finding]:
    path = (*source.path, "parameters")
    yield from _check_settings(
        recipe, method, source.parameters, path, filters, is_of_model=True, is_slice=group.is_slice
    )
    if method.base != "input" and group.is_base(source):
        # A word that the method does not have is told already.
        own = [name for name in source.parameters if method.parameter(name) is not None]
        names = " and ".join(f"`{name}`" for name in own)
        if own:
            why = "the difference of the base from itself is zero"
            yield _ignored(recipe, path, f"no effect of {names}: {why}")


def _check_importance(recipe: Recipe, method: Method, group: Group, source: Source) -> Iterator[Finding]:
    is_base = method.base != "input" and group.is_base(source)
    if source.importance is not None and (is_base or not method.importance):
        what = "the base" if is_base else f"`{method.name}`"
        path = (*source.path, "importance")
        yield _ignored(recipe, path, f"`importance` has no effect in {what}")
        return
    if not method.importance or is_base or source.importance is not None:
        return
    scopes = (source.parameters, *(scope.settings for scope in group.scopes))
    if any(DEFAULT in settings for settings in scopes):
        return
    if not source.path:
        raise recipe.error(
            ("base_model",),
            f"the base model is one more input of `{method.name}`, and has no importance map",
            "remove `base_model`, or list it among the models with its `importance`",
        )
    raise recipe.error(
        source.path,
        f"`{shown(str(source.ref))}` has no importance map, which `{method.name}` needs",
        "add `importance: FOLDER` to it (`taskvec importance` makes one), or the same for every element: "
        f"`parameters: {{{DEFAULT}: 1.0}}`",
    )


def _ignored(recipe: Recipe, path: Sequence[Key], found: str) -> Finding:
    return finding("recipe-ignored", recipe.document.place(path, key=True), "", found, "remove it")


def _of_merge(recipe: Recipe, name: str, path: Sequence[Key], is_slice: bool) -> Finding:
    """The note on a parameter of the whole merge that one model has; mergekit passes over it too."""
    return finding(
        "recipe-ignored",
        recipe.document.place(path, key=True),
        "",
        f"`{name}` is one value for the whole merge, not one per model, and has no effect here",
        f"move it to the {'slice' if is_slice else 'recipe'}'s `parameters`",
    )


def _foreign(recipe: Recipe, method: Method, name: str, path: Sequence[Key]) -> Finding:
    """The note on a parameter of other methods that this one does not have."""
    near = nearest(name, [p.name for p in method.parameters])
    by = owners(name)
    of = f": it belongs to {', '.join(f'`{each}`' for each in by[:4])}" if 0 < len(by) <= 4 else ""
    return finding(
        "recipe-ignored",
        recipe.document.place(path, key=True),
        "",
        f"`{name}` is not a parameter of `{method.name}` and has no effect",
        f"remove it{of}, or did you mean `{near}`?" if near else f"remove it{of}",
    )


def _own_place(name: str, path: Sequence[Key]) -> str | None:
    """Where a word stands that is a key of a recipe, or of one of its models, and not a parameter."""
    if name in SliceInput.model_fields and any(key in ("models", "sources") for key in path):
        return "of the model: `{model: NAME, " + name + ": ...}`"
    return "of the recipe itself" if name in Recipe.model_fields else None


def _parameter(recipe: Recipe, method: Method, name: str, path: Sequence[Key]) -> Parameter | None:
    """The parameter of that name; ``None`` for a word of other methods that this one does not have."""
    parameter = method.parameter(name)
    if parameter is not None or name in PUBLISHED | PARAMETERS:
        return parameter
    near = nearest(name, [p.name for p in method.parameters]) or nearest(name, PARAMETERS, _ALIKE)
    if place := _own_place(name, path):
        hint = f"it is a key {place}, outside of `parameters`"
    elif near is not None:
        hint = f"did you mean `{near}`?"
    elif method.parameters:
        hint = f"it has {', '.join(f'`{p.name}`' for p in method.parameters)}"
    else:
        hint = "it has none"
    raise recipe.error(path, f"`{shown(name)}` is not a parameter of `{method.name}`", hint, key=True)


def _check_required(recipe: Recipe, method: Method, group: Group) -> None:
    for parameter in (p for p in method.parameters if p.required):
        if any(parameter.name in scope.settings for scope in group.scopes):
            continue
        name = parameter.name
        if parameter is not None and parameter.scope == "merge":
            raise recipe.error(
                ("merge_method",),
                f"`{method.name}` needs the parameter `{name}`",
                f"add `parameters: {{{name}: 0.5}}`: {parameter.text}",
            )
        for source in group.sources:
            if name in source.parameters or (method.base != "input" and group.is_base(source)):
                continue
            raise _without(recipe, method, source, name)


def _without(recipe: Recipe, method: Method, source: Source, name: str) -> RecipeError:
    if not source.path:
        return recipe.error(
            ("base_model",),
            f"the base model is one more input of `{method.name}`, and has no `{name}`",
            f"remove `base_model`, or list it among the models with its `{name}`",
        )
    return recipe.error(
        source.path,
        f"`{shown(str(source.ref))}` has no `{name}`, which `{method.name}` needs",
        f"add `parameters: {{{name}: 1.0}}` to it, or `{name}` to the recipe's parameters",
    )
