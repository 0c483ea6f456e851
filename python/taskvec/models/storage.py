"""Storage forms: the stored tensors that a logical tensor is made of, and the bytes that they take.

A logical tensor is what a model computes with, and what a plan has a row for; a form says how it lies in a
file. In the plain forms, one for each element type, it is one stored tensor of its own name. Whoever needs
the bytes of a tensor asks here, and never multiplies elements by the bytes of a type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

from taskvec.dtypes import TYPES
from taskvec.models.model import TensorInfo

Shape = tuple[int, ...]


class Form(NamedTuple):
    """One way to store a tensor: the element type of what is computed with, and how its parts are made.

    ``parts`` gives the stored tensors of a logical one by its name and shape.
    """

    dtype: str
    parts: Callable[[str, Shape], tuple[TensorInfo, ...]]


class LogicalTensor(NamedTuple):
    """A tensor that a model computes with: its name, element type and shape, and the stored tensors it is
    made of."""

    name: str
    dtype: str
    shape: Shape
    parts: tuple[TensorInfo, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts)


def plain(name: str, dtype: str, shape: Shape) -> TensorInfo:
    """The stored tensor of a plain form: its elements one after the other, in no file yet."""
    return TensorInfo(name, dtype, shape, TYPES[dtype].size(math.prod(shape)), "")


def _plain(dtype: str, name: str, shape: Shape) -> tuple[TensorInfo, ...]:
    return (plain(name, dtype, shape),)


# By the name that a plan's row has. A form of several stored tensors (codes and their scales) is one row.
FORMS = {dtype: Form(dtype, partial(_plain, dtype)) for dtype in TYPES}


def logical(name: str, form: str, shape: Shape) -> LogicalTensor:
    """A tensor as a form stores it.

    Raises
    ------
    KeyError
        There is no such form.
    """
    kind = FORMS[form]
    return LogicalTensor(name, kind.dtype, shape, kind.parts(name, shape))


@lru_cache(maxsize=4096)  # a hundred thousand tensors have some tens of shapes
def stored_bytes(form: str, shape: Shape) -> int:
    """The bytes of a tensor in a form, all its parts together."""
    return logical("", form, shape).nbytes
