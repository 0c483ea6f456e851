"""The tensors of a model in memory: where their bytes are, and which names share them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from taskvec._core import digest_arrays
from taskvec.errors import FormatError, RecipeError
from taskvec.models.model import Model, TensorInfo
from taskvec.models.state_dict import address, bytes_of, dtype_of, is_torch
from taskvec.models.storage import plain
from taskvec.text import kind_of

if TYPE_CHECKING:
    import numpy as np


class Live(NamedTuple):
    """A tensor of the model: its bytes where they lie, or a copy of them that goes back when it changes."""

    tensor: Any
    info: TensorInfo
    data: np.ndarray | None
    is_copy: bool = False


def of_model(model: Any) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The tensors of a model or mapping, and its config where it has one."""
    if isinstance(model, Mapping):
        return model, {}
    if not hasattr(model, "state_dict"):
        raise RecipeError(
            f"a model in memory is expected, found {kind_of(model)}",
            "give a torch module, or a mapping of names to tensors or arrays",
        )
    to_dict = getattr(getattr(model, "config", None), "to_dict", dict)
    return model.state_dict(), to_dict()


def live_tensors(tensors: Mapping[str, Any], wanted: set[str]) -> dict[str, Live]:
    """The tensors that can be changed; of several names for one memory, the one that the vector has."""
    live: dict[str, Live] = {}
    known: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        try:
            dtype = dtype_of(name, tensor)
        except FormatError:
            continue
        each = live_tensor(name, tensor, plain(name, dtype, tuple(tensor.shape)))
        key = identity(tensor)
        first = known.setdefault(key, name) if each.info.nbytes else name
        if first != name and name in wanted and first not in wanted:
            del live[first]
            known[key] = first = name
        if first == name:
            live[name] = each
    return live


def live_tensor(name: str, tensor: Any, info: TensorInfo) -> Live:
    """One tensor, with its bytes where it is on the CPU.

    Raises
    ------
    FormatError
        It has no data yet, or cannot be written to.
    """
    if is_torch(tensor):
        if tensor.device.type == "meta":
            raise FormatError(f"`{name}` has no data yet", "load the weights first")
        if tensor.device.type != "cpu":
            return Live(tensor, info, None)
        if not tensor.is_contiguous():
            return Live(tensor, info, bytes_of(name, tensor.detach().contiguous()), True)
        return Live(tensor, info, bytes_of(name, tensor))
    if not tensor.flags.writeable:
        raise FormatError(f"`{name}` is read-only", "give a copy that can be changed")
    if not tensor.flags.c_contiguous:
        return Live(tensor, info, bytes_of(name, tensor.copy(order="C")), True)
    return Live(tensor, info, bytes_of(name, tensor))


def identity(tensor: Any) -> tuple[object, ...]:
    """Equal for two tensors that show the same memory in the same way."""
    if is_torch(tensor):
        return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
    return address(tensor)[0], tensor.shape, tensor.strides, tensor.dtype


def refuse_overlaps(live: Mapping[str, Live], sources: Iterable[object]) -> None:
    """Stops where a byte would be changed twice, or one be changed that the vector is computed from.

    Raises
    ------
    RecipeError
        Names the tensors.
    """
    changed = sorted(
        (*address(each.data), name)
        for name, each in live.items()
        if each.data is not None and each.data.nbytes
    )
    for (_, end, name), (start, _, other) in itertools.pairwise(changed):
        if start < end:
            raise RecipeError(f"`{name}` and `{other}` share part of their memory", "give each its own")
    read = [
        (*address(data), None)
        for source in sources
        if isinstance(source, Model) and source.kind == "memory"
        for data in source.weights.arrays.values()
        if data.nbytes
    ]
    spans = sorted([*changed, *read], key=lambda span: span[:2])
    end, last = -1, None
    for start, stop, name in spans:
        if start < end and (name is None) != (last is None):
            raise RecipeError(
                f"the vector is computed from `{name or last}`, which it would change",
                "make the vector from a copy of the tensors",
            )
        if stop > end:
            end, last = stop, name


def copied(each: Live) -> Any:
    """A copy of the values, on the device where they are."""
    return each.tensor.detach().clone() if each.data is None else each.data.copy()


def write_back(live: Iterable[Live]) -> None:
    """Put into the model those tensors that were changed in a copy, because they are not contiguous."""
    for each in live:
        if each.is_copy and each.data is not None:
            if is_torch(each.tensor):
                import torch

                same = torch.from_numpy(each.data).view(each.tensor.dtype).reshape(each.tensor.shape)
                each.tensor.detach().copy_(same)
            else:
                each.tensor[...] = each.data.view(each.tensor.dtype).reshape(each.tensor.shape)


def state(live: Mapping[str, Live], threads: int | None) -> dict[str, object]:
    """A digest of each tensor, or torch's own count of its changes: equal only if it has not changed."""
    data = {name: each.data for name, each in live.items() if each.data is not None}
    digests = digest_arrays(list(data.values()), threads=threads or 0)
    known: dict[str, object] = dict(zip(data, digests, strict=True))
    return known | {name: each.tensor._version for name, each in live.items() if each.data is None}


def is_same(
    here: Mapping[str, Any], live: Mapping[str, Live], known: Mapping[str, object], threads: int | None
) -> bool:
    """Whether tensors of a model are these live ones, in the state that :func:`state` told earlier."""
    for name, tensor in here.items():
        if tensor is None or identity(tensor) != identity(live[name].tensor):
            return False
    now = {name: live_tensor(name, tensor, live[name].info) for name, tensor in here.items()}
    return state(now, threads) == known
