"""State dicts: tensors that the calling process holds, used as a checkpoint where they lie."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from taskvec._core import blake3_hex
from taskvec.dtypes import TYPES
from taskvec.errors import FormatError
from taskvec.models.model import Model, TensorInfo
from taskvec.models.quantised.recognise import SAMPLE, recognise
from taskvec.models.storage import plain

if TYPE_CHECKING:
    import numpy as np

    Buffer = list[tuple[str, str, tuple[int, ...], np.ndarray]]

_NAMES = {kind.numpy: name for name, kind in TYPES.items()}
_NUMBER = itertools.count(1)
# The number of tensors that a run computes itself from its other inputs.
COMPUTED = 0
# The number of tensors whose bytes count to the fingerprint.
FIXED = -1


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Buffers:
    """The weights of a model that lie in this process.

    Attributes
    ----------
    arrays : mapping of str to ndarray
        The bytes of each tensor, where they lie.
    number : int
        Tells state dicts apart; the same for all that a plan knows.
    """

    arrays: Mapping[str, np.ndarray]
    number: int

    def __reduce__(self) -> Any:
        kept = self.number if self.number in (COMPUTED, FIXED) else None
        return _received, (dict(self.arrays), kept)

    @property
    def is_fixed(self) -> bool:
        """Whether a plan knows the bytes, and is the same wherever they are made."""
        return self.number == FIXED

    def read(self, name: str) -> np.ndarray:
        """The bytes of one tensor; shared, not copied."""
        return self.arrays[name]


def _received(arrays: dict[str, np.ndarray], number: int | None) -> Buffers:
    """Buffers that another process has sent: other tensors than any that this one holds."""
    return Buffers(MappingProxyType(arrays), next(_NUMBER) if number is None else number)


def state_dict(
    tensors: Mapping[str, Any], config: Mapping[str, Any] | None = None, name: str = "state dict"
) -> Model:
    """The record of tensors in memory; see :func:`taskvec.from_state_dict`, which adds the operators."""
    infos: dict[str, TensorInfo] = {}
    arrays: dict[str, np.ndarray] = {}
    for key, tensor in tensors.items():
        infos[key] = plain(key, dtype_of(key, tensor), tuple(tensor.shape))
        arrays[key] = bytes_of(key, tensor)
    return in_memory(infos, arrays, config, name)


def in_memory(
    infos: Mapping[str, TensorInfo],
    arrays: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None = None,
    name: str = "state dict",
    *,
    is_fixed: bool = False,
) -> Model:
    """The record of tensors whose types and bytes are known; small ones that are ``is_fixed`` never change,
    and their bytes count to the fingerprint."""
    header = "\n".join(f"{info.name}\0{info.dtype}\0{info.shape}" for info in infos.values())
    if is_fixed:
        header += "\n" + "\n".join(blake3_hex(bytes(arrays[each])) for each in infos)
    stored = MappingProxyType(dict(infos))
    found = recognise(
        stored,
        config or {},
        {},
        lambda names: {each: bytes(arrays[each][:SAMPLE]) for each in names if each in arrays},
    )
    return Model(
        spec=f"<{name}>",
        path=None,
        tensors=found.tensors,
        config=dict(config or {}),
        other_files=(),
        file_sizes={},
        fingerprint=blake3_hex(header.encode()),
        weights=Buffers(MappingProxyType(dict(arrays)), FIXED if is_fixed else next(_NUMBER)),
        kind="memory",
        stored=stored,
        packed=found.packed,
        unreadable=found.problem,
    )


def buffers_of(sources: Iterable[object]) -> list[Buffer]:
    """The tensors of those of a plan's sources that are in memory, as the engine takes them."""
    return [
        [
            (info.name, info.dtype, info.shape, source.weights.read(info.name))
            for info in source.stored.values()
        ]
        for source in sources
        if isinstance(source, Model) and source.kind == "memory"
    ]


def are_held(sources: Iterable[object]) -> bool:
    """Whether the caller holds tensors of any of these: they may have changed since a run began."""
    held = (each for each in sources if isinstance(each, Model) and each.kind == "memory")
    return not all(is_computed(each) or each.weights.is_fixed for each in held)


def is_computed(source: object) -> bool:
    """Whether a run computes the tensors of this source from its other inputs."""
    return isinstance(source, Model) and source.kind == "memory" and source.weights.number == COMPUTED


def is_fleeting(source: object) -> bool:
    """Whether the bytes of a source lie in this process, and no plan knows them."""
    return isinstance(source, Model) and source.kind == "memory" and not source.weights.is_fixed


def is_torch(tensor: object) -> bool:
    """Whether it is a tensor of torch, which is not imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)


def dtype_of(name: str, tensor: Any) -> str:
    """The safetensors name of a tensor's type.

    Raises
    ------
    FormatError
        It does not have one, or this is not a tensor.
    """
    word = str(getattr(tensor, "dtype", type(tensor).__name__)).removeprefix("torch.")
    if word not in _NAMES or not hasattr(tensor, "shape"):
        raise FormatError(
            f"`{name}` is {word}, expected an array or tensor of a type that safetensors has",
            "leave it out, or convert it to one of float32, float16, bfloat16 ...",
        )
    return _NAMES[word]


def bytes_of(name: str, tensor: Any) -> np.ndarray:
    """The bytes of an array or of a torch tensor on the CPU, in one dimension, where they lie.

    Raises
    ------
    FormatError
        They do not lie in one piece, in this process.
    """
    import numpy as np

    if is_torch(tensor):
        import torch

        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            raise FormatError(
                f"`{name}` is on `{tensor.device}` ({tensor.layout}), expected a dense tensor on the CPU",
                "bring it there with `.cpu()`",
            )
        if not tensor.is_contiguous():
            raise _scattered(name)
        return tensor.detach().reshape(-1).view(torch.uint8).numpy()
    if not isinstance(tensor, np.ndarray):
        raise FormatError(f"`{name}` is a {type(tensor).__name__}, expected an array or tensor")
    if not tensor.flags.c_contiguous:
        raise _scattered(name)
    return tensor.reshape(-1).view(np.uint8)


def _scattered(name: str) -> FormatError:
    return FormatError(
        f"`{name}` is not contiguous", "make a copy that is, with `.contiguous()` or `.copy()`"
    )


def address(array: np.ndarray) -> tuple[int, int]:
    """Where an array of bytes begins and ends."""
    start = array.__array_interface__["data"][0]
    return start, start + array.nbytes
