"""``tv.ties([a, b], base=…, density=0.5)`` and its like: one function for each method of the catalogue.

``methods.pyi`` lists them for type checkers; a test writes it from the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from taskvec.lazy.recipe import RecipeMerge, by_method
from taskvec.methods.catalogue import FUNCTIONS, METHODS


class Method(Protocol):
    """Merge ``models`` by a method.

    A list is one value per model for parameters that each model has, and a gradient over the layers for those
    of the whole merge. The result is lazy: ``.plan()`` says what would happen, ``.save(out)`` does it.
    """

    def __call__(
        self, models: Sequence[Any], *, base: Any = None, dtype: str | None = None, **parameters: Any
    ) -> RecipeMerge: ...


def __getattr__(name: str) -> Method:
    if name not in FUNCTIONS:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")

    def merged(
        models: Sequence[Any], *, base: Any = None, dtype: str | None = None, **parameters: Any
    ) -> RecipeMerge:
        return by_method(name, models, base=base, dtype=dtype, parameters=parameters)

    merged.__name__ = merged.__qualname__ = name
    merged.__doc__ = f"{METHODS[name].summary}\n\n{METHODS[name].formula}\n\n{Method.__doc__}"
    globals()[name] = merged
    return merged


def __dir__() -> list[str]:
    return [*globals(), *FUNCTIONS]
