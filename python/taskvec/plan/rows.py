"""The tensors of a plan in the making, and a plan as JSON: small also for a hundred thousand of them."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

# Rows that are written at a time: enough for one call to be worth it, few enough to hold as lists.
BATCH = 1000


# Name, form of storage, shape, shard, operation, and inputs as pairs of source and stored name; of a part of
# a packed tensor also its encoding, which part it is, and name and shape of the tensor.
Row = tuple[Any, ...]


# Of a part of a packed tensor: the encoding, which part, and name and shape of the tensor.
Part = tuple[int, str, str, Sequence[int]]


class Operations:
    """Operations of a plan in the making; ``all`` has each once, at its number."""

    def __init__(self) -> None:
        self.all: list[Mapping[str, Any]] = []
        self._numbers: dict[str, int] = {}

    def number(self, operation: Mapping[str, Any]) -> int:
        """The number of an operation; equal ones are one."""
        number = self._numbers.setdefault(json.dumps(operation), len(self.all))
        if number == len(self.all):
            self.all.append(operation)
        return number


class Rows:
    """Tensors of a plan; goes over them as the plan has them.

    Each is kept in two tuples, which take half of what the lists would.

    Attributes
    ----------
    shards : sequence of int
        The shard of each; all 0 while there are none.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, Sequence[int], int, tuple[Any, ...], Part | None]] = []
        self.shards: Sequence[int] = ()

    def append(
        self,
        name: str,
        form: str,
        shape: Sequence[int],
        operation: int,
        inputs: Iterable[tuple[int, str]],
        part: Part | None = None,
    ) -> None:
        """Add a tensor: its inputs are pairs of source and stored name."""
        flat = tuple(itertools.chain.from_iterable(inputs))
        self._rows.append((name, form, shape, operation, flat, part))

    def sort(self, places: Mapping[str, int]) -> None:
        """Put the tensors into the order of their places; those that have none come last."""
        last = len(places)
        self._rows.sort(key=lambda row: places.get(row[0], last))

    def sort_by(self, number: Callable[[str], int]) -> None:
        """Put the tensors into the order of a number that follows from their names."""
        self._rows.sort(key=lambda row: number(row[0]))

    def stored(self) -> Iterator[tuple[str, str, Sequence[int]]]:
        """Name, form of storage and shape of each tensor."""
        return (row[:3] for row in self._rows)

    def inputs(self) -> Iterator[tuple[Any, ...]]:
        """The inputs of each tensor: source, stored name, source, stored name, and so on."""
        return (row[4] for row in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        shards = self.shards or itertools.repeat(0)
        for (name, form, shape, operation, flat, part), shard in zip(self._rows, shards, strict=False):
            row = name, form, shape, shard, operation, list(zip(flat[::2], flat[1::2], strict=True))
            yield row if part is None else (*row, part)


def encode(document: Mapping[str, Any]) -> bytes:
    """The bytes of the engine's part of a plan, compact; ``tensors`` may be any iterable."""
    out = io.BytesIO()
    for number, (key, value) in enumerate(document.items()):
        out.write(b"," if number else b"{")
        out.write(_compact(key) + b":")
        if key == "tensors":
            _write_rows(out, iter(value))
        else:
            out.write(_compact(value))
    out.write(b"}")
    return out.getvalue()


def encode_part(document: Mapping[str, Any], rows: Iterable[Row]) -> bytes:
    """The bytes of a plan for some of its rows, all of them in one weight file."""
    tensors = ((*row[:3], 0, *row[4:]) for row in rows)
    return encode({**document, "shards": ["part.safetensors"], "tensors": tensors})


def _write_rows(out: io.BytesIO, rows: Iterator[Any]) -> None:
    out.write(b"[")
    is_first = True
    while batch := list(itertools.islice(rows, BATCH)):
        out.write(b"" if is_first else b",")
        out.write(_compact(batch)[1:-1])
        is_first = False
    out.write(b"]")


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
