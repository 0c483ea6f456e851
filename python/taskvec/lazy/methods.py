"""``tv.ties([a, b], base=…, density=0.5)`` and its like: one function for each method of the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from taskvec.lazy.recipe import RecipeMerge, by_method


class Method(Protocol):
    """Merge ``models`` by a method; a list is one value per model, anything else serves all.

    The result is lazy: ``.plan()`` says what would happen, ``.save(out)`` does it.
    """

    def __call__(
        self, models: Sequence[Any], *, base: Any = None, dtype: str | None = None, **parameters: Any
    ) -> RecipeMerge: ...


def _method(name: str) -> Method:
    def merged(
        models: Sequence[Any], *, base: Any = None, dtype: str | None = None, **parameters: Any
    ) -> RecipeMerge:
        return by_method(name, models, base=base, dtype=dtype, parameters=parameters)

    merged.__name__ = merged.__qualname__ = name
    merged.__doc__ = Method.__doc__
    return merged


linear = _method("linear")
task_arithmetic = _method("task_arithmetic")
ties = _method("ties")
dare_linear = _method("dare_linear")
dare_ties = _method("dare_ties")
della = _method("della")
della_linear = _method("della_linear")
breadcrumbs = _method("breadcrumbs")
breadcrumbs_ties = _method("breadcrumbs_ties")
slerp = _method("slerp")
nuslerp = _method("nuslerp")
multislerp = _method("multislerp")
karcher = _method("karcher")
model_stock = _method("model_stock")
sce = _method("sce")
ram = _method("ram")
ramplus_tl = _method("ramplus_tl")
nearswap = _method("nearswap")
arcee_fusion = _method("arcee_fusion")
passthrough = _method("passthrough")
consensus = _method("consensus")
emr = _method("emr")
localize = _method("localize")
