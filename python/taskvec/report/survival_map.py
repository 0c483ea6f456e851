"""How much of an update is realised, by layer and kind of module: the heat map of a run's report."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple, TypeVar

from taskvec.models.tensor_names import layer_of, module_of
from taskvec.report.survival import Survival

Key = TypeVar("Key", bound=Hashable)


class Realised(NamedTuple):
    """Figures of the update of some tensors together; None where one does not exist."""

    relative_error: float | None
    rounded_away_share: float
    step_norm: float | None

    @classmethod
    def of(cls, rows: Iterable[Survival]) -> Realised:
        """From the figures of each tensor: squares of norms are added up."""
        taken = list(rows)
        changed = sum(row.changed for row in taken)
        lost = sum(row.rounded_away for row in taken)
        share = lost / changed if changed else 0.0
        if any(row.step_norm is None for row in taken):
            return cls(None, share, None)
        step = math.fsum((row.step_norm or 0.0) ** 2 for row in taken)
        if not step or any(row.step_norm and row.relative_error is None for row in taken):
            return cls(None, share, math.sqrt(step))
        error = math.fsum(((row.step_norm or 0.0) * (row.relative_error or 0.0)) ** 2 for row in taken)
        return cls(math.sqrt(error / step), share, math.sqrt(step))


class SurvivalMap(NamedTuple):
    """What :func:`taskvec.report.heatmap.page` draws of one output.

    Attributes
    ----------
    folder : str
        The output.
    tensors : mapping of str to Survival
        Of each tensor that takes an update.
    """

    folder: str
    tensors: Mapping[str, Survival]

    kind = "survival"

    @property
    def title(self) -> str:
        """The title of the page."""
        return f"Requested and realised update of {self.folder}"

    @property
    def summary(self) -> str:
        """What the figures are in all, in a sentence."""
        return f"{len(self.tensors):,} tensors with an update."

    @property
    def layers(self) -> Mapping[int | None, Realised]:
        """Per layer; ``None`` is what lies outside of the layers."""
        return self._grouped(layer_of)

    @property
    def modules(self) -> Mapping[str, Realised]:
        """Per kind of module."""
        return self._grouped(module_of)

    @property
    def grid(self) -> Mapping[tuple[int | None, str], Realised]:
        """Per layer and kind of module."""
        return self._grouped(lambda name: (layer_of(name), module_of(name)))

    def _grouped(self, key: Callable[[str], Key]) -> dict[Key, Realised]:
        groups: dict[Key, list[Survival]] = defaultdict(list)
        for name, row in self.tensors.items():
            groups[key(name)].append(row)
        return {group: Realised.of(rows) for group, rows in groups.items()}
