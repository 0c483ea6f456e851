import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from taskvec.lazy.recipe import RecipeMerge
from taskvec.models.model import Model

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

_Model: TypeAlias = str | os.PathLike[str] | Model
# Of the whole merge: one value, a gradient over the layers, or values by filters on tensor names.
_Filters: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any]]
_Float: TypeAlias = float | Sequence[float] | _Filters
_Int: TypeAlias = int | Sequence[int] | _Filters
_Bool: TypeAlias = bool | Sequence[bool] | _Filters
# Of each model: one value for all, or a list with one for each, each of them as above.
_Floats: TypeAlias = _Float | Sequence[_Float]
_Ints: TypeAlias = _Int | Sequence[_Int]
_Bools: TypeAlias = _Bool | Sequence[_Bool]

def arcee_fusion(
    models: Sequence[_Model],
    *,
    base: _Model,
    dtype: str | None = None,
) -> RecipeMerge: ...
def breadcrumbs(
    models: Sequence[_Model],
    *,
    base: _Model,
    weight: _Floats,
    density: _Floats = 1.0,
    gamma: _Floats = 0.01,
    normalize: _Bool = False,
    rescale: _Bool = False,
    lambda_: _Float = 1.0,
    int8_mask: _Bool = False,
    dtype: str | None = None,
) -> RecipeMerge: ...
def breadcrumbs_ties(
    models: Sequence[_Model],
    *,
    base: _Model,
    weight: _Floats,
    density: _Floats = 1.0,
    gamma: _Floats = 0.01,
    normalize: _Bool = False,
    rescale: _Bool = False,
    lambda_: _Float = 1.0,
    int8_mask: _Bool = False,
    dtype: str | None = None,
) -> RecipeMerge: ...
def consensus(
    models: Sequence[_Model],
    *,
    base: _Model,
    weight: _Floats = 1.0,
    tall_lambda: _Float = 0.6,
    k: _Int = 2,
    lambda_: _Float = 1.0,
    dtype: str | None = None,
) -> RecipeMerge: ...
def dare_linear(
    models: Sequence[_Model],
    *,
    base: _Model,
    weight: _Floats,
    density: _Floats = 1.0,
    normalize: _Bool = False,
    rescale: _Bool = True,
    rescale_norm: Literal["l1", "expectation"] = "l1",
    lambda_: _Float = 1.0,
    int8_mask: _Bool = False,
    dtype: str | None = None,
) -> RecipeMerge: ...
def dare_ties(
    models: Sequence[_Model],
    *,
    base: _Model,
    weight: _Floats,
    density: _Floats = 1.0,
    normalize: _Bool = False,
    rescale: _Bool = True,
    rescale_norm: Literal["l1", "expectation"] = "l1",
    lambda_: _Float = 1.0,
    int8_mask: _Bool = False,
    dtype: str | None = None,
) -> RecipeMerge: ...
def della(
    models: Sequence[_Model],
    *,
    base: _Model,
    weight: _Floats,
    density: _Floats = 1.0,
    epsilon: _Floats = 0.15,
    normalize: _Bool = True,
    rescale: _Bool = True,
    rescale_norm: Literal["l1", "expectation"] = "l1",
    lambda_: _Float = 1.0,
    int8_mask: _Bool = False,
    dtype: str | None = None,
) -> RecipeMerge: ...
def della_linear(
    models: Sequence[_Model],
    *,
    base: _Model,
    weight: _Floats,
    density: _Floats = 1.0,
    epsilon: _Floats = 0.15,
    normalize: _Bool = False,
    rescale: _Bool = True,
    rescale_norm: Literal["l1", "expectation"] = "l1",
    lambda_: _Float = 1.0,
    int8_mask: _Bool = False,
    dtype: str | None = None,
) -> RecipeMerge: ...
def emr(
    models: Sequence[_Model],
    *,
    base: _Model,
    lambda_: _Float = 1.0,
    dtype: str | None = None,
) -> RecipeMerge: ...
def fisher(
    models: Sequence[_Model],
    *,
    base: _Model | None = None,
    weight: _Floats = 1.0,
    default_importance: _Floats | None = None,
    importance: Sequence[_Model],
    dtype: str | None = None,
) -> RecipeMerge: ...
def karcher(
    models: Sequence[_Model],
    *,
    base: _Model | None = None,
    max_iter: _Int = 10,
    tol: _Float = 1e-05,
    dtype: str | None = None,
) -> RecipeMerge: ...
def linear(
    models: Sequence[_Model],
    *,
    base: _Model | None = None,
    weight: _Floats,
    normalize: _Bool = True,
    dtype: str | None = None,
) -> RecipeMerge: ...
def localize(
    models: Sequence[_Model],
    *,
    base: _Model,
    s: _Floats = 0.1,
    lambda_: _Float = 1.0,
    dtype: str | None = None,
) -> RecipeMerge: ...
def model_stock(
    models: Sequence[_Model],
    *,
    base: _Model,
    filter_wise: _Bool = False,
    dtype: str | None = None,
) -> RecipeMerge: ...
def multislerp(
    models: Sequence[_Model],
    *,
    base: _Model | None = None,
    weight: _Floats,
    normalize_weights: _Bool = True,
    eps: _Float = 1e-08,
    dtype: str | None = None,
) -> RecipeMerge: ...
def nearswap(
    models: Sequence[_Model],
    *,
    base: _Model,
    t: _Float,
    dtype: str | None = None,
) -> RecipeMerge: ...
def nuslerp(
    models: Sequence[_Model],
    *,
    base: _Model | None = None,
    weight: _Floats,
    nuslerp_flatten: _Bool = True,
    nuslerp_row_wise: _Bool = False,
    dtype: str | None = None,
) -> RecipeMerge: ...
def passthrough(
    models: Sequence[_Model],
    *,
    base: _Model | None = None,
    scale: _Floats | None = None,
    dtype: str | None = None,
) -> RecipeMerge: ...
def ram(
    models: Sequence[_Model],
    *,
    base: _Model,
    epsilon: _Float = 1e-05,
    dtype: str | None = None,
) -> RecipeMerge: ...
def ramplus_tl(
    models: Sequence[_Model],
    *,
    base: _Model,
    r: _Float = 0.1,
    alpha: _Float = 0.2,
    epsilon: _Float = 1e-05,
    dtype: str | None = None,
) -> RecipeMerge: ...
def sar(
    models: Sequence[_Model],
    *,
    base: _Model,
    weight: _Floats = 1.0,
    density: _Floats = 0.5,
    default_importance: _Floats | None = None,
    epsilon: _Float = 0.0,
    rescale: _Bool = True,
    rescale_norm: Literal["l1", "expectation"] = "l1",
    lambda_: _Float = 1.0,
    importance: Sequence[_Model],
    dtype: str | None = None,
) -> RecipeMerge: ...
def sce(
    models: Sequence[_Model],
    *,
    base: _Model,
    select_topk: _Float = 1.0,
    int8_mask: _Bool = False,
    dtype: str | None = None,
) -> RecipeMerge: ...
def slerp(
    models: Sequence[_Model],
    *,
    base: _Model,
    t: _Float,
    dtype: str | None = None,
) -> RecipeMerge: ...
def task_arithmetic(
    models: Sequence[_Model],
    *,
    base: _Model,
    weight: _Floats,
    normalize: _Bool = False,
    lambda_: _Float = 1.0,
    density: _Floats = 1.0,
    rescale: _Bool = False,
    int8_mask: _Bool = False,
    dtype: str | None = None,
) -> RecipeMerge: ...
def ties(
    models: Sequence[_Model],
    *,
    base: _Model,
    weight: _Floats,
    density: _Floats = 1.0,
    normalize: _Bool = True,
    lambda_: _Float = 1.0,
    rescale: _Bool = False,
    int8_mask: _Bool = False,
    dtype: str | None = None,
) -> RecipeMerge: ...
