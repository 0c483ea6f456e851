"""What recipes that are held lazily have in common: settings given late, and their result as a mapping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, Unpack

from taskvec.compat.findings import Finding, enforce_strictly
from taskvec.lazy.mapping import Tensors
from taskvec.models.model import no_tensor
from taskvec.settings import Options, Settings

if TYPE_CHECKING:
    import numpy as np

    from taskvec.lazy.plan import Plan


class Planned(Tensors):
    """The part of a recipe that follows from its plan."""

    __slots__ = ()

    settings: Settings
    cache: list[Plan]

    def plan(self, **settings: Unpack[Options]) -> Plan:
        """What would happen, from headers alone."""
        raise NotImplementedError

    def notes(self) -> list[Finding]:
        """What is known of the recipe without its models."""
        raise NotImplementedError

    def given(self, options: Options) -> Self:
        """The same with some settings replaced.

        Raises
        ------
        TypeError
            A keyword that no setting has; the message names the nearest one.
        RecipeError
            A value that cannot be honoured.
        CompatibilityError
            A word of the recipe has no effect, and the settings are strict.
        """
        if not options:
            return self
        parsed = Settings.of(options)
        settings = replace(self.settings, **{name: getattr(parsed, name) for name in options})
        if settings.strict and not self.settings.strict:
            enforce_strictly(self.notes(), settings.force)
        return replace(self, settings=settings)  # type: ignore[type-var]

    def items(self, **settings: Unpack[Options]) -> Iterator[tuple[str, np.ndarray]]:
        """The tensors of the result in file order, computed a few at a time, with the bytes of ``save``.

        Where several values of alpha are asked for, those of the first.

        Parameters
        ----------
        **settings
            ``out_dtype``, ``rounding``, ``seed``, ``threads`` and ``force`` matter here.
        """
        from taskvec.run.evaluate import of_plan

        given = self.given(settings)
        plan = given.plan() if settings else self._planned()
        allowed = "non-finite" in given.settings.force
        return of_plan(plan, threads=given.settings.threads, allow_non_finite=allowed)

    def _planned(self) -> Plan:
        """The plan, made once."""
        if not self.cache:
            self.cache.append(self.plan())
        return self.cache[0]

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor of the result, computed now, with the bytes that ``save`` would write.

        Raises
        ------
        TensorNotFoundError
            The result has no tensor of this name; a ``KeyError`` too.
        """
        from taskvec.run.evaluate import of_plan

        plan = self._planned()
        if name not in plan.weight_map:
            raise no_tensor("the result", name, plan.weight_map)
        allowed = "non-finite" in self.settings.force
        ((_, array),) = of_plan(plan, [name], allow_non_finite=allowed)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._planned().weight_map)

    def __len__(self) -> int:
        return len(self._planned().weight_map)

    def __bool__(self) -> bool:
        return True  # and no headers are read to know it

    def __contains__(self, name: object) -> bool:
        return name in self._planned().weight_map

    def __copy__(self) -> Self:
        return self  # it is never changed

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> Any:
        return type(self), (self.file, self.settings)  # type: ignore[attr-defined]
