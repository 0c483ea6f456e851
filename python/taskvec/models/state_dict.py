"""State dicts: tensors that the calling process holds, used as a checkpoint where they lie."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from taskvec import _core
from taskvec.dtypes import TORCH_NAMES
from taskvec.errors import FormatError
from taskvec.models.model import Checkpoint, TensorInfo

if TYPE_CHECKING:
    import numpy as np

if TYPE_CHECKING:
    import numpy as np

    Handed = list[tuple[str, str, tuple[int, ...], np.ndarray]]

_NAMES = {
    **{torch: name for name, torch in TORCH_NAMES.items()},
    "bool": "BOOL",
    **{f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "complex64": "C64",
}
_NUMBER = itertools.count(1)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class StateDict(Checkpoint):
    """Tensors that the calling process holds, as a checkpoint; made by :func:`from_state_dict`.

    Attributes
    ----------
    held : mapping of str to ndarray
        The bytes of each tensor, where they lie.
    number : int
        Tells state dicts apart.
    """

    held: Mapping[str, np.ndarray] = field(default_factory=dict)
    number: int = 0

    kind = "memory"

    @property
    def location(self) -> Path:
        """What messages call it."""
        return Path(f"{self.spec} #{self.number}")

    @property
    def reader(self) -> Any:
        """Itself: its weights are here."""
        return self

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor as an array that shares its memory."""
        if name not in self.tensors:
            return Checkpoint.__getitem__(self, name)
        from taskvec.dtypes import numpy_dtype

        info = self.tensors[name]
        array = self.held[name].view(numpy_dtype(info.dtype)).reshape(info.shape)
        array.flags.writeable = False
        return array


def from_state_dict(
    tensors: Mapping[str, Any], *, config: Mapping[str, Any] | None = None, name: str = "state dict"
) -> StateDict:
    """Use tensors that are in memory as a checkpoint; nothing is copied.

    Parameters
    ----------
    tensors : mapping of str to ndarray or Tensor
        NumPy arrays (bfloat16 and float8 through ml_dtypes) or torch tensors on the CPU, contiguous. They
        must not change while something is computed from them.
    config : mapping, optional
        What config.json would say; without it, only names and shapes are compared with other models.
    name : str
        What messages call it.

    Returns
    -------
    Checkpoint
        For ``donor - reference`` and ``target + vector``, beside checkpoints on disk.

    Raises
    ------
    FormatError
        A tensor is not on the CPU, not contiguous, or of a type that safetensors lacks.
    """
    infos: dict[str, TensorInfo] = {}
    held: dict[str, np.ndarray] = {}
    for key, tensor in tensors.items():
        dtype, shape = dtype_of(key, tensor), tuple(tensor.shape)
        held[key] = bytes_of(key, tensor)
        infos[key] = TensorInfo(key, dtype, shape, held[key].nbytes, "")
    return state_dict(infos, held, config, name)


def state_dict(
    infos: Mapping[str, TensorInfo],
    held: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None = None,
    name: str = "state dict",
) -> StateDict:
    """A state dict of known tensors."""
    header = "\n".join(f"{info.name}\0{info.dtype}\0{info.shape}" for info in infos.values())
    return StateDict(
        spec=f"<{name}>",
        path=None,
        tensors=MappingProxyType(dict(infos)),
        config=dict(config or {}),
        other_files=(),
        file_sizes={},
        fingerprint=_core.blake3_hex(header.encode()),
        held=MappingProxyType(dict(held)),
        number=next(_NUMBER),
    )


def memories(sources: Iterable[object]) -> list[Handed]:
    """What the engine is handed for those of a plan's sources that are state dicts."""
    return [
        [(info.name, info.dtype, info.shape, source.held[info.name]) for info in source.tensors.values()]
        for source in sources
        if isinstance(source, StateDict)
    ]


def is_torch(tensor: object) -> bool:
    """Whether it is a tensor of torch, which is not imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)


def dtype_of(name: str, tensor: Any) -> str:
    """The safetensors name of a tensor's type.

    Raises
    ------
    FormatError
        It has none, or this is no tensor.
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
