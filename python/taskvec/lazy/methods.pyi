from collections.abc import Sequence
from typing import Any, Protocol

from taskvec.lazy.recipe import RecipeMerge

__all__ = [
    "arcee_fusion",
    "breadcrumbs",
    "breadcrumbs_ties",
    "consensus",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "emr",
    "fisher",
    "karcher",
    "linear",
    "localize",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "passthrough",
    "ram",
    "ramplus_tl",
    "sar",
    "sce",
    "slerp",
    "task_arithmetic",
    "ties",
]

class Method(Protocol):
    def __call__(
        self, models: Sequence[Any], *, base: Any = None, dtype: str | None = None, **parameters: Any
    ) -> RecipeMerge: ...

arcee_fusion: Method
breadcrumbs: Method
breadcrumbs_ties: Method
consensus: Method
dare_linear: Method
dare_ties: Method
della: Method
della_linear: Method
emr: Method
fisher: Method
karcher: Method
linear: Method
localize: Method
model_stock: Method
multislerp: Method
nearswap: Method
nuslerp: Method
passthrough: Method
ram: Method
ramplus_tl: Method
sar: Method
sce: Method
slerp: Method
task_arithmetic: Method
ties: Method
