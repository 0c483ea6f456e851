"""Deltas: weighted sums of differences of two models, and of task vectors that were saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from taskvec.compat.counterparts import counterparts
from taskvec.compat.layouts.fit import fitted
from taskvec.compat.layouts.parts import bound, only
from taskvec.compat.layouts.vocabulary import common_rows
from taskvec.compat.tied_heads import TieDecision, tie_decision
from taskvec.models.model import Model
from taskvec.models.selection import Selection, both
from taskvec.settings import format_alpha

if TYPE_CHECKING:
    from taskvec.models.saved_vector import SavedVector


class Step(NamedTuple):
    """A weighted difference on the tensors that are selected; the reference of a saved vector is ``None``."""

    weight: float
    donor: Model | SavedVector
    reference: Model | None
    selection: Selection

    @property
    def base(self) -> Model:
        """The model in whose names the difference is, with its config and tokenizer."""
        return self.reference if self.reference is not None else self.vector.model

    @property
    def vector(self) -> SavedVector:
        """The saved vector that this step is."""
        assert not isinstance(self.donor, Model)
        return self.donor

    @property
    def models(self) -> list[tuple[str, Model]]:
        """The models, with their roles, that a target is compared with."""
        if self.reference is None:
            return [("vector", self.vector.model)]
        assert isinstance(self.donor, Model)
        return [("donor", self.donor), ("reference", self.reference)]

    @property
    def sources(self) -> list[tuple[str, Model | SavedVector]]:
        """The models and vectors that are read, with the role of each."""
        if self.reference is None:
            return [("vector", self.donor)]
        return [("donor", self.donor), ("reference", self.reference)]

    def fitted(self, target: Model, *, is_limited: bool = False) -> Step:
        """The same step with its models in the target's layout.

        ``is_limited`` makes those weights zero that it does not take of the target's tensors.
        """
        selection = bound(self.wanted, target)
        models = [fitted(model, target, selection) for _, model in self.models]
        models = common_rows(models, target)
        return self._with(models, target if is_limited else None)

    def limited(self) -> Step:
        """The same difference in its own layout, zero where it does not take a weight of a tensor."""
        return self._with([model for _, model in self.models], self.base)

    def _with(self, models: list[Model], target: Model | None) -> Step:
        """The step with other models, limited to what it takes of a target's tensors, if there is one."""
        if target is not None:
            selection = bound(self.wanted, target)
            models = [only(model, selection) for model in models]
        if self.reference is None:
            return self._replace(donor=self.vector.in_layout(models[0]))
        return self._replace(donor=models[0], reference=models[1])

    def tie(self, target: Model) -> TieDecision:
        """Which stored tensors serve as embedding and head when a target takes this step."""
        return tie_decision(target, self.models)

    def stored(self, target: Model, tie: TieDecision) -> dict[str, tuple[str, ...]]:
        """For each of the target's tensors that takes this step: the stored name in each of the sources.

        A tensor in which a saved vector is zero takes it too, with no stored name.
        """
        selected = bound(self.wanted, target).select(target.tensors)
        found = counterparts(target, self.models, selected, tie)
        if self.reference is not None:
            return found
        return {name: () if self._is_zero(names) else names for name, names in found.items()}

    @property
    def wanted(self) -> Selection:
        """The selection here and, of a saved vector, the one that it was extracted with."""
        return self.selection if self.reference is not None else both(self.vector.selection, self.selection)

    def own(self, tie: TieDecision | None = None) -> dict[str, tuple[str, ...]]:
        """The tensors of the difference in its own names: the stored name in each of the sources.

        ``tie`` is what :func:`tie_decision` says of reference and donor, where it is known already.
        """
        wanted = bound(self.wanted, self.base)
        selected = [name for name in self.base.tensors if wanted.matches(name)]
        if self.reference is None:
            return {name: (name,) for name in selected}
        donor = self.models[:1]
        tie = tie or tie_decision(self.reference, donor, "reference")
        found = counterparts(self.reference, donor, selected, tie)
        return {name: (*names, name) for name, names in found.items()}

    def nonzero(self) -> dict[str, tuple[str, ...]]:
        """The same without tensors in which a saved vector is zero: nothing is stored of them."""
        return {name: names for name, names in self.own().items() if not self._is_zero(names)}

    def _is_zero(self, names: tuple[str, ...]) -> bool:
        return self.reference is None and names[0] in self.vector.zero

    def __str__(self) -> str:
        if self.reference is None:
            return self.donor.spec
        return f"({self.donor.spec} - {self.reference.spec})"


class Term(NamedTuple):
    """A part of a sum as the engine reads it: a weight times a source, or times the difference of two.

    ``stored`` has the stored name in each source for every tensor that the part has.
    """

    weight: float
    sources: tuple[Model | SavedVector, ...]
    stored: Mapping[str, tuple[str, ...]]


class Delta:
    """A weighted sum of steps; immutable, and nothing is computed.

    Attributes
    ----------
    steps : tuple of Step
        Weight, donor, reference and selection of each difference.
    force : tuple of str
        Findings that are warnings instead of errors, here and in what is made of this vector.
    tensors : mapping of str to tuple of int
        Names and shapes, in the first reference's file order.
    """

    __slots__ = ("force", "steps", "tensors")

    def __init__(self, steps: Iterable[Step], force: Iterable[str] = ()) -> None:
        self.steps = tuple(steps)
        self.force = tuple(force)
        shapes: dict[str, tuple[int, ...]] = {}
        for step in self.steps:
            for name in step.own():
                shapes.setdefault(name, step.base.tensors[name].shape)
        self.tensors: Mapping[str, tuple[int, ...]] = MappingProxyType(shapes)

    def terms(self) -> list[Term]:
        """The sum as the engine reads it."""
        return [
            Term(step.weight, tuple(source for _, source in step.sources), step.nonzero())
            for step in (step.limited() for step in self.steps)
        ]

    def __deepcopy__(self, memo: object) -> Any:
        return self  # immutable, and so is all that it holds

    def __reduce__(self) -> Any:
        return type(self), (self.steps, self.force)

    def __str__(self) -> str:
        words = ""
        for step in self.steps:
            is_minus, size = step.weight < 0, abs(step.weight)
            sign = (" - " if is_minus else " + ") if words else ("-" if is_minus else "")
            words += sign + (str(step) if size == 1.0 else f"{format_alpha(size)} * {step}")
        return words
