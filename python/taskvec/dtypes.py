"""Element types: from the name in a safetensors header to NumPy's, ml_dtypes filling in what NumPy lacks."""

from __future__ import annotations

from functools import cache

import numpy as np

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
