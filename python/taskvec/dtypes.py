"""Element types: one table of what safetensors, NumPy and PyTorch call them, and of their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from taskvec.errors import RecipeError
from taskvec.text import alike

if TYPE_CHECKING:
    import numpy as np


class ElementType(NamedTuple):
    """What is known of one element type.

    ``bytes`` are those of one element, or of two where ``is_half``; ``numpy`` is the name in NumPy, or in
    ml_dtypes where ``is_extension``; ``words`` are other names that a user may write for a float type.
    """

    bytes: int
    numpy: str
    is_float: bool = False
    is_extension: bool = False
    words: tuple[str, ...] = ()
    is_half: bool = False

    def size(self, elements: int) -> int:
        """The bytes of so many elements."""
        return elements // 2 if self.is_half else elements * self.bytes


TYPES = {
    "BOOL": ElementType(1, "bool"),
    "U8": ElementType(1, "uint8"),
    "I8": ElementType(1, "int8"),
    "U16": ElementType(2, "uint16"),
    "I16": ElementType(2, "int16"),
    "U32": ElementType(4, "uint32"),
    "I32": ElementType(4, "int32"),
    "U64": ElementType(8, "uint64"),
    "I64": ElementType(8, "int64"),
    "C64": ElementType(8, "complex64"),
    "F8_E4M3FNUZ": ElementType(1, "float8_e4m3fnuz", is_extension=True),
    "F8_E5M2FNUZ": ElementType(1, "float8_e5m2fnuz", is_extension=True),
    "BF16": ElementType(2, "bfloat16", is_float=True, is_extension=True),
    "F16": ElementType(2, "float16", is_float=True, words=("fp16", "half")),
    "F32": ElementType(4, "float32", is_float=True, words=("fp32", "float")),
    "F64": ElementType(8, "float64", is_float=True, words=("fp64", "double")),
    "F8_E4M3": ElementType(1, "float8_e4m3fn", True, True, ("fp8_e4m3", "float8_e4m3")),
    "F8_E5M2": ElementType(1, "float8_e5m2", True, True, ("fp8_e5m2",)),
    "F8_E8M0": ElementType(1, "float8_e8m0fnu", is_extension=True),  # powers of two: scales, no weights
    "F4": ElementType(1, "float4_e2m1fn", is_extension=True, is_half=True),  # codes of packed weights
}
# Safetensors name -> the name that PyTorch, and so config.json, has for it.
TORCH_NAMES = {name: kind.numpy for name, kind in TYPES.items() if kind.is_float}
FLOAT_DTYPES = frozenset(TORCH_NAMES)
_WORDS = {
    word: name
    for name, kind in TYPES.items()
    if kind.is_float
    for word in (name.lower(), kind.numpy, *kind.words)
}


@cache
def numpy_dtype(name: str) -> np.dtype:
    """NumPy's dtype for one of the names of a safetensors header (``BF16``).

    Raises
    ------
    KeyError
        There is no such name.
    """
    import numpy as np  # 100 ms, which a run over whole checkpoints never needs

    kind = TYPES[name]
    if kind.is_extension:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, kind.numpy))
    return np.dtype(kind.numpy)


def array_of(stored: np.ndarray, name: str, shape: Sequence[int]) -> np.ndarray:
    """Stored bytes as an array of a type; two elements of half a byte each are taken apart, the low first."""
    if TYPES[name].is_half:
        import numpy as np

        stored = np.stack([stored & 15, stored >> 4], -1).reshape(-1)
        stored.flags.writeable = False
    return stored.view(numpy_dtype(name)).reshape(shape)


def parse_dtype(text: str) -> str:
    """The safetensors name (``BF16``) of a float type written as PyTorch or safetensors write it.

    Raises
    ------
    RecipeError
        The word is not a float type.
    """
    word = str(text).strip().lower().removeprefix("torch.")
    if word in _WORDS:
        return _WORDS[word]
    near = [known for known in _WORDS if word and known.startswith(word)][:1] or alike(word, _WORDS, n=1)
    raise RecipeError(
        f"`{text}` is not a float type",
        f"did you mean `{near[0]}`?" if near else "choose one of bfloat16, float16, float32, float64",
    )
