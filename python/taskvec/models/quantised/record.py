"""What the recognition of packed weights gives, and the words of what it cannot read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from taskvec.models.model import TensorInfo
from taskvec.models.quantised.format import Packed


class Recognised(NamedTuple):
    """What the stored tensors of a checkpoint are.

    Attributes
    ----------
    tensors : mapping of str to TensorInfo
        The logical tensors in file order: a packed one has the type of plain output, its logical shape, the
        bytes of all its parts and the file of its codes.
    packed : mapping of str to Packed
        Those of them that are packed.
    problem : str or None
        Why the packed weights cannot be decoded: then ``tensors`` are the stored ones, and none is packed.
    marks : frozenset of str
        Stored tensors in which a tool says how it has packed a weight.
    """

    tensors: Mapping[str, TensorInfo]
    packed: Mapping[str, Packed]
    problem: str | None = None
    marks: frozenset[str] = frozenset()


class UnreadableError(Exception):
    """Packed weights that cannot be decoded; the message names the tensor."""


NARROW_FLOATS = frozenset({"F8_E4M3", "F8_E5M2"})
POWERS_OF_TWO = frozenset({"U8", "F8_E8M0"})
SCALES = frozenset({"F32", "BF16", "F16"})
# What stands between the name of a weight of bitsandbytes and that of its type, in the name of its state.
STATE = ".quant_state.bitsandbytes__"


def shown(info: TensorInfo) -> str:
    """A stored tensor in words: name, type and shape."""
    return f"`{info.name}` ({info.dtype} [{', '.join(map(str, info.shape))}])"


def up(count: int, size: int) -> int:
    """``count / size``, rounded up."""
    return -(-count // size)
