"""A recipe against the tensor names of its models: what every output tensor is made of.

No weight is read, and no file: names and configs come in, plain data goes out. The rules are mergekit's,
found by running it. A gradient runs over the layers of a slice, or of the whole stack; tensors outside of
layers have its first value. Those that come before the layers belong to the first slice, those after them to
the last. Filters of a model's parameters are looked for in that model's tensor name, filters of the others in
the output's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskvec.compat.findings import finding
from taskvec.host import collector_paused
from taskvec.models.part_names import NO_PARTS, PartNames
from taskvec.models.selection import Selection
from taskvec.models.tensor_names import is_first, kind_of_stack, main_stack, modules, split_by, stacks
from taskvec.recipe.config_edits import Origin, edits, layer_count
from taskvec.recipe.expand_group import Collected, Merger, maps_of, read_from
from taskvec.recipe.expanded import ExpandedMerge, Facts
from taskvec.recipe.model_ref import ModelRef
from taskvec.recipe.schema import Group, Recipe
from taskvec.recipe.unmatched import unmatched
from taskvec.recipe.validate import Checked
from taskvec.text import nearest, shown

MAXIMUM_OUTPUT_LAYERS = 10_000


def sources(step: Checked) -> tuple[ModelRef, ...]:
    """Everything that has to be opened for a recipe, the model that gives config and other files first."""
    found: dict[ModelRef, None] = {_config_from(step.recipe): None}
    for group in step.recipe.groups():
        for source in group.sources:
            found.update(dict.fromkeys(read_from(step, group, source)))
    # Last: models have the numbers that they have without maps.
    for group in step.recipe.groups():
        found.update(dict.fromkeys(each for each in maps_of(step, group) if each is not None))
    return tuple(found)


def expand(
    step: Checked,
    facts: Mapping[ModelRef, Facts],
    selection: Selection | None = None,
    parts: PartNames = NO_PARTS,
) -> ExpandedMerge:
    """Every output tensor with its inputs and its operation.

    Parameters
    ----------
    step : Checked
    facts : mapping
        Of every model of :func:`sources`.
    selection : Selection, optional
        The recipe's own, where it knows the parts of tensors.
    parts : PartNames
        The weights in the first model's tensors, for filters.

    Raises
    ------
    RecipeError
        Layers or modules that a model does not have; weights that sum to zero for some tensor.
    """
    with collector_paused():
        return _Expander(step, facts, selection or step.recipe.selection, parts).run()


def _config_from(recipe: Recipe) -> ModelRef:
    if recipe.base_model is not None:
        return recipe.base_model
    group = next(recipe.groups())
    return group.base or group.sources[0].ref


class _Expander:
    def __init__(
        self, step: Checked, facts: Mapping[ModelRef, Facts], selection: Selection, parts: PartNames
    ) -> None:
        self.recipe = step.recipe
        self.method = step.method
        self.remarks = list(step.remarks)
        self.collected = Collected(step, facts, sources(step), selection, parts)
        self.models = self.collected.models
        self.config_from = 0
        self.config: dict[str, Any] = {}
        self._counts: dict[int, dict[str, int]] = {}

    def run(self) -> ExpandedMerge:
        recipe, collected = self.recipe, self.collected
        groups: dict[str | None, list[Merger]] = {}
        for group in recipe.groups():
            groups.setdefault(group.module, []).append(Merger(collected, group, self.config_from))
        names = list(collected.names[self.config_from])
        if recipe.modules is None:
            self.part(names, groups[None])
        else:
            self.by_module(names, groups)
        mergers = [merger for each in groups.values() for merger in each]
        self.remarks += unmatched(recipe, mergers, (tensor.name for tensor in collected.tensors))
        has_base = self.method.base != "input" and next(recipe.groups()).base is not None
        return ExpandedMerge(
            method=self.method,
            models=tuple(self.models),
            base=self.config_from if has_base else None,
            config_from=self.config_from,
            operations=collected.operations,
            tensors=tuple(collected.tensors),
            config_edits=self.config,
            tokenizer_from=self.tokenizer(),
            chat_template=recipe.chat_template,
            dtype=recipe.dtype,
            out_dtype=recipe.out_dtype,
            alphas=recipe.alpha or (1.0,),
            rounding=recipe.rounding,
            seed=recipe.seed,
            missing=tuple(collected.missing),
            maps=collected.maps,
            unmapped=tuple(collected.unmapped),
            remarks=tuple(self.remarks),
        )

    def tokenizer(self) -> int:
        """The model whose tokenizer the output has."""
        chosen = self.recipe.tokenizer_from
        if not isinstance(chosen, ModelRef):
            return self.config_from
        for ref, number in self.models.items():
            if ref.kind == "checkpoint" and ref.spec == chosen.spec:
                return number
        path = ("tokenizer", "source") if self.recipe.tokenizer is not None else ("tokenizer_source",)
        known = ["base", "union", *(ref.spec for ref in self.models)]
        near = nearest(str(chosen).removeprefix("model:"), known)  # so written in old recipes
        raise self.recipe.error(
            path,
            f"`{shown(str(chosen))}` is not one of the models of this merge",
            f"did you mean `{near}`?" if near else "choose one of them, or `base`",
        )

    def layers(self, model: int, stack: str) -> int:
        """Layers of a model's stack: what its config says, or as many as it has where these are fewer."""
        stored = self.stacks(model).get(stack, 0)
        stated = layer_count(self.collected.configs[model], self.kind(stack))
        return stored if stated is None else min(stored, stated)

    def kind(self, stack: str) -> str:
        """Which part of the config speaks of a stack; an encoder or decoder alone is the text part."""
        kind = kind_of_stack(stack)
        kinds = {kind_of_stack(other) for other in self.stacks(self.config_from)}
        return kind if kind not in ("encoder", "decoder") or {"encoder", "decoder"} <= kinds else "text"

    def stacks(self, model: int) -> dict[str, int]:
        """A model's stacks, counted once; most models have the names of the first."""
        names = self.collected.names
        if model not in self._counts:
            is_alike = model != self.config_from and names[model].keys() == names[self.config_from].keys()
            if is_alike:
                self._counts[model] = self.stacks(self.config_from)
            else:
                self._counts[model] = stacks(names[model], self.collected.places)
        return self._counts[model]

    # --- parts of the model -------------------------------------------------------------------------------

    def by_module(self, names: Sequence[str], groups: Mapping[str | None, list[Merger]]) -> None:
        """Each module by its own groups; what is in none is a copy."""
        wanted = [module for module in groups if module is not None]
        parts = split_by(names, wanted)
        model = shown(str(self.ref(self.config_from)))
        known = [*modules(names), *(stack.rstrip(".") for stack in stacks(names, self.collected.places))]
        if parts is None:
            unknown = next((name for name in wanted if name not in known), wanted[0])
            near = nearest(unknown, known)
            raise self.recipe.error(
                ("modules", unknown),
                f"`{model}` has no module `{shown(unknown)}`",
                f"did you mean `{near}`?" if near else f"it has {_listed(known)}",
                key=True,
            )
        for name in wanted:
            if not parts[name]:
                message = f"no tensor of `{model}` belongs to module `{shown(name)}`"
                raise self.recipe.error(("modules", name), message, f"it has {_listed(known)}", key=True)
            self.part(parts[name], groups[name])
        if rest := parts[""]:
            for name in rest:
                self.collected.copy(name, self.config_from, name)
            found = f"{len(rest)} tensors are in no module of the recipe and copied from `{model}`"
            self.remarks.append(finding("recipe-modules", f"`{shown(rest[0])}` …", "", found))

    def part(self, names: Sequence[str], mergers: Sequence[Merger]) -> None:
        """One part of the model, whole or in slices."""
        if mergers[0].group.is_slice:
            self.sliced(names, mergers)
        else:
            self.whole(names, mergers[0])

    def whole(self, names: Sequence[str], merger: Merger) -> None:
        """Models from end to end."""
        places = self.collected.places
        found = {place.stack for place in map(places.__getitem__, names) if place is not None}
        counts = {stack: self.layers(self.config_from, stack) for stack in found}
        for stack, count in counts.items():
            for source in merger.group.sources:
                number = self.number(source.ref)
                other = count if number is None else self.layers(number, stack)
                if other not in (0, count):
                    raise self.recipe.error(
                        source.path or ("base_model",),
                        f"`{shown(str(source.ref))}` has {other} layers, and "
                        f"`{shown(str(self.ref(self.config_from)))}` {count}",
                        "merge runs of equal length by `slices`",
                    )
        for name in names:
            place = places[name]
            merger.emit(name, None, 0.0 if place is None else _position(place.layer, counts[place.stack]))

    def sliced(self, names: Sequence[str], mergers: Sequence[Merger]) -> None:
        """Runs of layers one after the other, and around them what is outside of layers."""
        first, last = mergers[0], mergers[-1]
        stack = self.stack_of(names, first.group)
        outside = [name for name in names if self.collected.places[name] is None]
        for name in filter(is_first, outside):
            first.emit(name, None, 0.0)
        origins: list[Origin] = []
        for merger in mergers:
            self.slice(merger, stack, origins)
        if not origins:
            raise self.recipe.error(first.group.path, "no layers at all", "give a slice at least one layer")
        self.extras(names, stack, len(origins))
        for name in outside:
            if not is_first(name):
                last.emit(name, None, 0.0)
        changes, problems = edits(self.collected.configs[self.config_from], self.kind(stack), origins)
        self.config.update(changes)
        self.remarks += [
            finding(
                "recipe-layers",
                f"config key `{key}`",
                "a pattern that repeats over the layers",
                "the new order of layers breaks it, so some layers would be run as another kind",
                "take layers in whole periods",
            )
            for key in problems
        ]

    def stack_of(self, names: Sequence[str], group: Group) -> str:
        """The stack whose layers slices are of."""
        found = stacks(names, self.collected.places)
        stack = main_stack(found)
        if stack is None and not found:
            raise self.recipe.error(group.path, "a part without layers has no slices", "merge it by `models`")
        if stack is None:
            raise self.recipe.error(
                group.path,
                f"layers of which part? There are {_listed([name.rstrip('.') for name in found])}",
                f"put the slices under `modules`: {_listed(list(modules(names)))}",
            )
        return stack

    def slice(self, merger: Merger, stack: str, origins: list[Origin]) -> None:
        """One run of layers, after those in `origins`."""
        group = merger.group
        starts = self.starts(merger, stack)
        first, end = merger.template.layers or (0, 0)
        start = len(origins)
        if start + end - first > MAXIMUM_OUTPUT_LAYERS:
            message = f"more than {MAXIMUM_OUTPUT_LAYERS} layers in all"
            raise self.recipe.error(group.path, message, "take fewer")
        rests = self.collected.rests(merger.template_model, stack)
        config = self.collected.configs[merger.template_model]
        for offset in range(end - first):
            position = _position(offset, end - first)
            origins.append(Origin(config, first + offset))
            for rest in rests.get(first + offset, ()):
                own = [f"{stack}{begin + offset}{rest}" for begin in starts]
                merger.emit(f"{stack}{start + offset}{rest}", own, position)

    def starts(self, merger: Merger, stack: str) -> list[int]:
        """The first layer of each source, all of them within the model."""
        result = []
        for index, source in enumerate(merger.group.sources):
            first, end = source.layers or (0, 0)
            # A vector has the layers of the model that it is added to, be they changed or not.
            number = self.number(source.ref)
            count = self.layers(merger.template_model if number is None else number, stack)
            if end > count:
                raise self.recipe.error(
                    (*merger.group.path, "sources", index, "layer_range"),
                    f"layer range [{first}, {end}] of `{shown(str(source.ref))}`, which has {count} layers",
                    f"write at most `[{min(first, count)}, {count}]`",
                )
            result.append(first)
        return result

    def extras(self, names: Sequence[str], stack: str, total: int) -> None:
        """Layers that the config does not count (predictors of further tokens) stay behind the last one."""
        count = self.layers(self.config_from, stack)
        for name in names:
            place = self.collected.places[name]
            if place is None:
                continue
            if place.stack != stack:
                self.collected.copy(name, self.config_from, name)
            elif place.layer >= count:
                self.collected.copy(place.at(total + place.layer - count), self.config_from, name)

    def number(self, ref: ModelRef) -> int | None:
        """The number of a model, with or without its adapter; ``None`` for vectors."""
        return self.models.get(ref, self.models.get(ref.plain)) if ref.kind == "checkpoint" else None

    def ref(self, number: int) -> ModelRef:
        """The model of that number."""
        return list(self.models)[number]


def _position(layer: int, count: int) -> float:
    """Where in a run of layers one is: 0 the first, 1 the last, and 1 for the only one, as in mergekit."""
    return min(layer / (count - 1), 1.0) if count > 1 else 1.0


def _listed(names: Sequence[str]) -> str:
    more = " …" if len(names) > 8 else ""
    return ", ".join(f"`{shown(name)}`" for name in names[:8]) + more
