"""What is added to a target: weighted differences of two models, and task vectors that were saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from taskvec.compat.counterparts import counterparts
from taskvec.compat.tied_heads import tie_decision
from taskvec.models.model import Checkpoint
from taskvec.models.selection import Selection, both

if TYPE_CHECKING:
    from taskvec.models.saved_vector import SavedVector


class Step(NamedTuple):
    """A weighted difference on the tensors that are selected; the reference of a saved vector is ``None``."""

    weight: float
    donor: Checkpoint | SavedVector
    reference: Checkpoint | None
    selection: Selection

    @property
    def base(self) -> Checkpoint:
        """The model in whose names the difference is, with its config and tokenizer."""
        return self.reference if self.reference is not None else self.vector.model

    @property
    def vector(self) -> SavedVector:
        """The saved vector that this step is."""
        assert not isinstance(self.donor, Checkpoint)
        return self.donor

    @property
    def models(self) -> list[tuple[str, Checkpoint]]:
        """The models, with their roles, that a target is compared with."""
        if self.reference is None:
            return [("vector", self.vector.model)]
        assert isinstance(self.donor, Checkpoint)
        return [("donor", self.donor), ("reference", self.reference)]

    @property
    def sources(self) -> list[tuple[str, Checkpoint | SavedVector]]:
        """What is read, with the role of each."""
        if self.reference is None:
            return [("vector", self.donor)]
        return [("donor", self.donor), ("reference", self.reference)]

    def stored(self, target: Checkpoint) -> dict[str, tuple[str, ...]]:
        """For each of the target's tensors that takes this step: the stored name in each of the sources.

        A tensor in which a saved vector is zero takes it too, with no stored name.
        """
        tie = tie_decision(target, self.models)
        found = counterparts(target, self.models, self.wanted.select(target), tie)
        if self.reference is not None:
            return found
        return {name: () if self._is_zero(names) else names for name, names in found.items()}

    @property
    def wanted(self) -> Selection:
        """What is selected here and, of a saved vector, was when it was extracted."""
        return self.selection if self.reference is not None else both(self.vector.selection, self.selection)

    def own(self) -> dict[str, tuple[str, ...]]:
        """The tensors of the difference in its own names: the stored name in each of the sources."""
        selected = [name for name in self.base.tensors if self.wanted.matches(name)]
        if self.reference is None:
            return {name: (name,) for name in selected}
        donor = self.models[:1]
        tie = tie_decision(self.reference, donor, "reference")
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
