"""Records of models that are sent to another process: their weights are opened there by their paths again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any, NamedTuple

from taskvec._core import Checkpoint as Reader
from taskvec.errors import FormatError

# A mapping that cannot be changed is sent as a dictionary, and is one that cannot be changed there too.
_FIXED = "fixed"


class Files(NamedTuple):
    """Weight files in place of their reader.

    Attributes
    ----------
    folder : str
    names : tuple of str
    fingerprint : str
        Of their headers; files that have another one by then are an error.
    """

    folder: str
    names: tuple[str, ...]
    fingerprint: str

    def reader(self) -> Reader:
        """The reader of the files."""
        reader = Reader(self.folder, list(self.names))
        if reader.fingerprint != self.fingerprint:
            raise FormatError(
                f"`{self.folder}` is not what it was when the model was pickled", "open the model again"
            )
        return reader


class Layer(NamedTuple):
    """A reader of another layout in place of itself: what lies under it is sent on its own.

    ``kind`` is its class, an :class:`taskvec.models.assembled_reader.AssembledReader`.
    """

    kind: Any
    stored: dict[str, Any]
    assembled: dict[str, Any]


def state_of(record: Any) -> dict[str, Any]:
    """The fields of a record, as plain data and other records."""
    state = {field.name: getattr(record, field.name) for field in fields(record)}
    state = {
        name: (_FIXED, dict(value)) if isinstance(value, MappingProxyType) else value
        for name, value in state.items()
    }
    if "weights" in state:
        state["weights"] = _sent(record)
    return state


def restored(kind: Any, state: Mapping[str, Any]) -> Any:
    """The record of a state.

    Raises
    ------
    FormatError, NotFoundError
        Its files have changed since, or are not found here.
    """
    given = {
        name: MappingProxyType(value[1])
        if isinstance(value, tuple) and len(value) == 2 and value[0] == _FIXED
        else value
        for name, value in state.items()
    }
    if given.get("weights") is not None:
        base, layers = given["weights"]
        weights: Any = base.reader() if isinstance(base, Files) else base
        for layer in reversed(layers):
            weights = layer.kind(weights, layer.stored, layer.assembled)
        given["weights"] = weights
    return kind(**given)


def _sent(model: Any) -> tuple[Any, list[Layer]] | None:
    """The weights of a model: its files or its buffers, and the layouts on top of them, the topmost first."""
    weights, layers = model.weights, []
    while "under" in getattr(weights, "__dict__", ()):
        layers.append(Layer(type(weights), dict(weights.stored), dict(weights.assembled)))
        weights = weights.under
    if isinstance(weights, Reader):
        weights = Files(str(model.path), tuple(model.file_sizes), weights.fingerprint)
    return None if weights is None else (weights, layers)
