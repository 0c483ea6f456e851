"""What checkpoints, vectors and merges have in common with a dictionary of tensors."""

from __future__ import annotations

from collections.abc import Iterator, KeysView, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

if TYPE_CHECKING:
    import numpy as np

    Default = TypeVar("Default")


class Named(Protocol):
    """What has the names of its tensors, and reads or computes one."""

    def __getitem__(self, name: str) -> np.ndarray: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def __contains__(self, name: object) -> bool: ...


class Tensors:
    """The part of a mapping that follows from its names and one tensor at a time.

    Not a :class:`collections.abc.Mapping`: two of these are equal if they are the same, and are never
    compared by all of their weights.
    """

    __slots__ = ()

    def keys(self: Named) -> KeysView[str]:
        """The names of the tensors, in file order."""
        return KeysView(cast("Mapping[str, Any]", self))

    def values(self: Named) -> Iterator[np.ndarray]:
        """The tensors, one after the other; `items` gives their names with them."""
        return (array for _, array in self.items())  # type: ignore[attr-defined]

    @overload
    def get(self: Named, name: str) -> np.ndarray | None: ...
    @overload
    def get(self: Named, name: str, default: Default) -> np.ndarray | Default: ...
    def get(self: Named, name: str, default: Any = None) -> Any:
        """One tensor, or `default` where there is none of this name."""
        return self[name] if name in self else default  # noqa: SIM401

    def _ipython_key_completions_(self: Named) -> list[str]:
        """What a notebook completes between the brackets."""
        return list(self)
