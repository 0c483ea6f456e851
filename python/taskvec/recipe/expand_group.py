"""Tensors that are merged with each other: which inputs they have, and which operation joins them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from taskvec.methods.method import Parameter
from taskvec.methods.operation import COPY, DEFAULT, Term, operation
from taskvec.methods.values import Setting, SettingError, lookup
from taskvec.models.part_names import PartNames, block_name
from taskvec.models.selection import Selection
from taskvec.models.tensor_names import Places
from taskvec.recipe.expanded import ExpandedTensor, Facts
from taskvec.recipe.model_ref import ModelRef
from taskvec.recipe.schema import Group, Source
from taskvec.recipe.validate import Checked
from taskvec.text import shown


def read_from(step: Checked, group: Group, source: Source) -> tuple[ModelRef, ...]:
    """The models that the tensors of a source are made of, without the base.

    A model with an adapter, taken relative to that model itself, is the adapter alone: nothing is added only
    to be subtracted again. Whole weights of an adapter are a change together with their model alone.
    """
    if source.ref.kind == "vector":
        return (source.ref,)
    reference = source.relative_to or group.base
    adapter = None if source.ref.adapter in step.whole else source.ref.adapter
    if step.method.step and adapter is not None and reference == source.ref.plain:
        return ModelRef(adapter, "adapter", made_for=source.ref.spec), source.ref.plain
    return (source.ref,) if source.relative_to is None else (source.ref, source.relative_to)


def maps_of(step: Checked, group: Group) -> list[ModelRef | None]:
    """The importance map of each source of a group; none where the method has no use for it."""
    if not step.method.importance:
        return [None] * len(group.sources)
    is_base = step.method.base != "input"
    return [None if is_base and group.is_base(each) else each.importance for each in group.sources]


class Collected:
    """The tensors and operations found so far; models and operations are numbered as they come."""

    def __init__(
        self,
        step: Checked,
        facts: Mapping[ModelRef, Facts],
        models: Iterable[ModelRef],
        selection: Selection,
        parts: PartNames,
    ) -> None:
        self.step = step
        self.recipe = step.recipe
        self.method = step.method
        self.selection, self.parts = selection, parts
        self.models = {ref: number for number, ref in enumerate(models)}
        found = [facts[ref] for ref in self.models]
        self.configs = [each.config for each in found]
        # Plain dicts, for speed: every tensor is looked up in every model.
        self.names = [
            dict(each.names) if isinstance(each.names, Mapping) else {name: name for name in each.names}
            for each in found
        ]
        self.places = Places()
        self.tensors: list[ExpandedTensor] = []
        self.missing: list[tuple[str, tuple[int, ...]]] = []
        self.maps: dict[int, int] = {}
        self.unmapped: list[tuple[str, int]] = []
        self._operations: dict[str, int] = {}
        self._rests: dict[tuple[int, str], dict[int, list[str]]] = {}
        self._common: dict[frozenset[int], Collection[str]] = {}
        self._streams: dict[tuple[ModelRef, ModelRef | None], int] = {}

    @property
    def operations(self) -> tuple[dict[str, Any], ...]:
        """Every operation once."""
        return tuple(json.loads(text) for text in self._operations)

    def operation(self, value: Mapping[str, Any]) -> int:
        """The number of an operation."""
        return self._operations.setdefault(json.dumps(value), len(self._operations))

    def stream(self, source: Source) -> int:
        """Which random numbers a source draws: its position among the sources of the recipe, base aside."""
        return self._streams.setdefault((source.ref, source.relative_to), len(self._streams))

    def rests(self, model: int, stack: str) -> dict[int, list[str]]:
        """A model's tensors in each layer of a stack, without the names of stack and layer."""
        if (model, stack) not in self._rests:
            result: dict[int, list[str]] = {}
            for name in self.names[model]:
                place = self.places[name]
                if place is not None and place.stack == stack:
                    result.setdefault(place.layer, []).append(place.rest)
            self._rests[model, stack] = result
        return self._rests[model, stack]

    def common(self, models: frozenset[int]) -> Collection[str]:
        """Tensors that all of some models have."""
        if models not in self._common:
            first, *others = (self.names[number] for number in models)
            self._common[models] = set(first).intersection(*others)
        return self._common[models]

    def copy(self, name: str, model: int, stored: str) -> None:
        """Add a tensor that is another one's bytes."""
        at = model, self.names[model][stored]
        self.tensors.append(ExpandedTensor(name, self.operation(COPY), (at,), at))


class _Slot(NamedTuple):
    """An input: a model, and the source of the group whose tensor name it goes by."""

    model: int
    source: int


class _Compiled(NamedTuple):
    operation: int
    slots: tuple[_Slot, ...]
    unmapped: tuple[int, ...] = ()
    """Importance maps that lack the tensor, where nothing stands for them."""


class Merger:
    """Makes the tensors of one group; what is the same for many of them is found out once."""

    def __init__(self, collected: Collected, group: Group, config_from: int) -> None:
        self.collected = collected
        self.group = group
        self.method = method = collected.method
        self.config_from = config_from
        sources = group.sources
        is_base = [method.base != "input" and group.is_base(source) for source in sources]
        self.base = is_base.index(True) if True in is_base else None
        named = next((i for i, source in enumerate(sources) if source.ref == group.base), 0)
        self.template_index = self.base if self.base is not None else named
        self.template = sources[self.template_index]
        self.template_model = collected.models[self.template.ref]
        self.others = [index for index in range(len(sources)) if index != self.base]
        self.parts = [
            [collected.models[ref] for ref in read_from(collected.step, group, source)] for source in sources
        ]
        maps = maps_of(collected.step, group)
        self.maps = [None if ref is None else collected.models[ref] for ref in maps]
        for number, parts in zip(self.maps, self.parts, strict=True):
            if number is not None:
                collected.maps.setdefault(number, parts[0])
        self.shared = [scope.settings for scope in group.scopes]
        self.scopes = [[source.parameters, *self.shared] for source in sources]
        settings = list(_settings([*self.shared, *(source.parameters for source in sources)]))
        self.varies = any(setting.varies for setting in settings)
        self.filters = sorted({text for setting in settings for text in setting.filters})
        # Sources whose names are the same for every tensor of the group: the first one stands for them.
        starts = [source.layers and source.layers[0] for source in sources]
        self.alike = [starts.index(start) for start in starts]
        self.is_full = collected.selection.is_full
        self.involved = frozenset(number for parts in self.parts for number in parts)
        self.is_model = [ref.kind == "checkpoint" for ref in collected.models]
        self.streams = {index: collected.stream(sources[index]) for index in self.others}
        self.compiled: dict[Any, _Compiled] = {}
        self.inside: dict[str, tuple[str, str]] = {}
        """Filters that are found in a part of a stored tensor alone: the part's name and the tensor's."""

    def emit(self, name: str, own: Sequence[str] | None, position: float) -> None:
        """Add one output tensor.

        Parameters
        ----------
        name : str
        own : sequence of str, optional
            What it is called in each source, where that is not `name`.
        position : float
            For gradients.
        """
        collected = self.collected
        names = collected.names
        template = name if own is None else own[self.template_index]
        changes = self.is_full or collected.selection.matches(name)
        unchanged = self.unchanged(name, own) if changes else None
        if unchanged is None:
            has_it = template in names[self.template_model]
            collected.copy(name, self.template_model if has_it else self.config_from, template)
            return
        found: tuple[bool, ...] = ()
        if self.filters:
            self.look_inside(name)
            seen = (name,) if own is None else (name, *own)
            found = tuple([text in each for text in self.filters for each in seen])
        lacking = self.lacking(name, own)
        key = position if self.varies else None, found, (unchanged, lacking)
        compiled = self.compiled.get(key)
        if compiled is None:
            compiled = self.compiled[key] = self.compile(name, own, position, unchanged, lacking)
        operation, slots, unmapped = compiled
        collected.unmapped += [(name, number) for number in unmapped]
        if own is None:
            inputs = tuple([(model, names[model][name]) for model, _ in slots])
        else:
            inputs = tuple([(model, names[model][own[source]]) for model, source in slots])
        at = self.template_model, names[self.template_model][template]
        collected.tensors.append(ExpandedTensor(name, operation, inputs, at))

    def lacking(self, name: str, own: Sequence[str] | None) -> tuple[int, ...]:
        """Sources whose importance map does not have a tensor."""
        names = self.collected.names
        return tuple(
            index
            for index, number in enumerate(self.maps)
            if number is not None and (name if own is None else own[index]) not in names[number]
        )

    def look_inside(self, name: str) -> None:
        """Note the filters that are found in the name of a part of a stored tensor, and not in its own."""
        for part in self.collected.parts.of(name):
            inner = block_name(part.name)
            for text in self.filters:
                if text in inner and text not in name:
                    self.inside.setdefault(text, (inner, name))

    def matched(self, text: str, name: int) -> bool:
        """Whether a filter was found in a tensor's name: of the output (0), or of a source (from 1)."""
        at = self.filters.index(text)
        # Outside of layers a tensor has one name in all sources.
        widths = ((found, len(found) // len(self.filters)) for _, found, _ in self.compiled)
        return any(found[at * width + (name if width > 1 else 0)] for found, width in widths)

    def unchanged(self, name: str, own: Sequence[str] | None) -> tuple[int, ...] | None:
        """Sources that do not change a tensor (vectors, adapters); ``None`` where a model lacks it."""
        if own is None and name in self.collected.common(self.involved):
            return ()
        unchanged: list[int] = []
        lacking: list[int] = []
        for index, parts in enumerate(self.parts):
            each = name if own is None else own[index]
            for number in parts:
                if each in self.collected.names[number]:
                    continue
                if self.is_model[number]:
                    lacking.append(number)
                else:
                    unchanged.append(index)
        if lacking:
            self.collected.missing.append((name, tuple(dict.fromkeys(lacking))))
            return None
        return tuple(unchanged)

    def compile(
        self,
        name: str,
        own: Sequence[str] | None,
        position: float,
        unchanged: tuple[int, ...],
        lacking: tuple[int, ...],
    ) -> _Compiled:
        """The operation of a tensor, and which inputs it has."""
        slots: dict[_Slot, int] = {}
        base = None if self.base is None else self.slot(slots, self.template.ref, self.template_index)
        terms = []
        for index in self.others:
            values = self.values("model", self.scopes[index], name if own is None else own[index], position)
            model, reference = self.difference(slots, index, base, index in unchanged)
            given = self.maps[index] if index not in lacking else None
            importance = None if given is None else self.place(slots, given, index)
            terms.append(Term(model, reference, values, self.streams[index], importance))
        if base is not None and all(term.model == term.reference == base for term in terms):
            # Nothing differs from the base: every method adds nothing.
            slots = {_Slot(self.template_model, self.alike[self.template_index]): 0}
            return _Compiled(self.collected.operation(COPY), tuple(slots))
        shared = self.values("merge", self.shared, name, position)
        try:
            value = operation(self.method, terms, shared, base=base)
        except SettingError as error:
            message = f"{error.message} (in tensor `{shown(name)}`)"
            raise self.collected.recipe.error(self.group.path, message, error.hint) from None
        return _Compiled(self.collected.operation(value), tuple(slots), self.unmapped(terms, lacking))

    def unmapped(self, terms: Sequence[Term], lacking: Collection[int]) -> tuple[int, ...]:
        """Maps that lack a tensor for which there is no other importance either."""
        found = zip(self.others, terms, strict=True)
        numbers = [
            self.maps[index]
            for index, term in found
            if index in lacking and term.parameters.get(DEFAULT) is None
        ]
        return tuple(number for number in numbers if number is not None)

    def slot(self, slots: dict[_Slot, int], ref: ModelRef, source: int) -> int:
        """The position of an input; one that is there already is used again."""
        return self.place(slots, self.collected.models[ref], source)

    def place(self, slots: dict[_Slot, int], model: int, source: int) -> int:
        """The same of a model by its number."""
        return slots.setdefault(_Slot(model, self.alike[source]), len(slots))

    def difference(
        self, slots: dict[_Slot, int], index: int, base: int | None, is_unchanged: bool
    ) -> tuple[int, int | None]:
        """Positions of a source and of what is subtracted from it."""
        source = self.group.sources[index]
        if not self.method.step:
            is_difference = self.method.base == "optional"
            return self.slot(slots, source.ref, index), base if is_difference else None
        if is_unchanged:
            return base or 0, base
        part = read_from(self.collected.step, self.group, source)[0]
        model = self.slot(slots, part, index)
        if part.kind != "checkpoint":
            return model, None
        return model, base if source.relative_to is None else self.slot(slots, source.relative_to, index)

    def values(
        self, scope: str, settings: Sequence[Mapping[str, Setting]], name: str, position: float
    ) -> dict[str, Any]:
        """The values of all parameters of a scope for one tensor."""
        return {
            parameter.name: self.value(parameter, settings, name, position)
            for parameter in self.method.parameters
            if parameter.scope == scope
        }

    def value(
        self, parameter: Parameter, settings: Sequence[Mapping[str, Setting]], name: str, position: float
    ) -> Any:
        """The value of one parameter for one tensor."""
        recipe = self.collected.recipe
        try:
            value = lookup(parameter, settings, name, position)
        except SettingError as error:
            raise recipe.error(self.group.path, error.message, error.hint) from None
        if value is None and parameter.required:
            raise recipe.error(
                self.group.path,
                f"`{parameter.name}` has no value for `{shown(name)}`: no filter matches it",
                "end the filters with one for the rest: `- value: 0.5`",
            )
        return value


def _settings(scopes: Iterable[Mapping[str, Setting]]) -> Iterator[Setting]:
    for scope in scopes:
        yield from scope.values()
