"""Element types: from the name in a safetensors header to NumPy's, ml_dtypes filling in what NumPy lacks."""

from __future__ import annotations

import difflib
from functools import cache

import numpy as np

from taskvec.errors import RecipeError

_NUMPY = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
_ML_DTYPES = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


@cache
def numpy_dtype(name: str) -> np.dtype:
    """NumPy's dtype for one of the names of a safetensors header (``BF16``).

    Raises
    ------
    KeyError
        There is no such name.
    """
    if name in _ML_DTYPES:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, _ML_DTYPES[name]))
    return np.dtype(_NUMPY[name])


# Safetensors name -> the name that PyTorch, and so config.json, has for it.
TORCH_NAMES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
FLOAT_DTYPES = frozenset(TORCH_NAMES)
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_DTYPE_SYNONYMS = {
    "fp16": "F16", "half": "F16", "fp32": "F32", "float": "F32", "fp64": "F64", "double": "F64",
    "fp8_e4m3": "F8_E4M3", "float8_e4m3": "F8_E4M3", "fp8_e5m2": "F8_E5M2",
}  # fmt: skip
_DTYPE_WORDS = {
    **{name.lower(): name for name in TORCH_NAMES},
    **{torch: name for name, torch in TORCH_NAMES.items()},
    **_DTYPE_SYNONYMS,
}


def parse_dtype(text: str) -> str:
    """The safetensors name (``BF16``) of a float type written as PyTorch or safetensors write it.

    Raises
    ------
    RecipeError
        The word is no float type.
    """
    word = str(text).strip().lower().removeprefix("torch.")
    if word in _DTYPE_WORDS:
        return _DTYPE_WORDS[word]
    near = difflib.get_close_matches(word, _DTYPE_WORDS, n=1)
    raise RecipeError(
        f"`{text}` is no float type",
        f"did you mean `{near[0]}`?" if near else "choose one of bfloat16, float16, float32, float64",
    )
