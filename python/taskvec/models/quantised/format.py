"""Formats of packed weights: how codes, scales and the like make up one logical tensor."""

from __future__ import annotations

from typing import Any, NamedTuple

Shape = tuple[int, ...]


class Format(NamedTuple):
    """One way to store weights as codes with scales; equal ones are one record.

    Attributes
    ----------
    kind : str
        The engine's decoder: ``scaled``, ``e2m1``, ``packed_int``, ``gptq``, ``awq``, ``bnb4`` or ``mlx``.
    dtype : str
        The type of plain output, and of the arithmetic.
    strip : str
        The end of a logical name that its parts do not have.
    parts : tuple of (str, str)
        Each part, and what its stored name ends in.
    parameters : tuple of (str, value)
        Block, bits, group and the like, as the engine takes them.
    scale : str
        The type of the scales; empty where the words do not need it.
    words : str
        What its users call it, with block and type of the scales.
    is_symmetric : bool
        The lowest of its integers, which has no counterpart above zero, is not in use.
    """

    kind: str
    dtype: str
    strip: str
    parts: tuple[tuple[str, str], ...]
    parameters: tuple[tuple[str, Any], ...]
    scale: str
    words: str
    is_symmetric: bool = False

    def document(self) -> dict[str, Any]:
        """The format as the engine's part of a plan has it."""
        parameters = {
            key: list(value) if isinstance(value, tuple) else value for key, value in self.parameters
        }
        return {
            "kind": self.kind,
            "dtype": self.dtype,
            "strip": self.strip,
            "parts": dict(self.parts),
            **parameters,
        }

    @property
    def sort(self) -> tuple[str, tuple[tuple[str, Any], ...]]:
        """What two weights have in common whose rounding errors are of one kind."""
        return self.kind, self.parameters


class Packed(NamedTuple):
    """A logical tensor that is stored packed: its format and the stored names of its parts in order.

    ``beside`` are stored tensors whose content is in the format: the shape of a matrix, the state of a block.
    """

    format: Format
    parts: tuple[str, ...]
    beside: tuple[str, ...] = ()
