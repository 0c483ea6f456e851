"""Embeddings and heads whose rows are in the order of another vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """A stored matrix with a row per token: the source of the plan, its name there, its shape."""

    source: int
    name: str
    shape: tuple[int, ...]


class Place(NamedTuple):
    """A row: the table's number, and the row's."""

    table: int
    row: int


class Rows(NamedTuple):
    """A matrix made of rows of others.

    Attributes
    ----------
    shape : tuple of int
        Its own; the tables have the same columns.
    tables : tuple of Table
    runs : tuple of (int, int, int, int)
        Rows that follow each other here and there: the first one here, how many, the table, the first one
        there.
    means : tuple of (int, tuple of Place)
        Rows that are the mean of several. A row in neither is zero.
    """

    shape: tuple[int, ...]
    tables: tuple[Table, ...]
    runs: tuple[tuple[int, int, int, int], ...]
    means: tuple[tuple[int, tuple[Place, ...]], ...]


def rows_of(shape: Sequence[int], tables: Iterable[Table], places: Sequence[Sequence[Place]]) -> Rows:
    """The matrix of which row ``i`` is the mean of the rows ``places[i]``: of none, of one, of several."""
    runs: list[tuple[int, int, int, int]] = []
    means: list[tuple[int, tuple[Place, ...]]] = []
    first, count, table, start = 0, 0, -1, 0
    for row, given in enumerate(places):
        if len(given) == 1 and count and given[0] == (table, start + count) and row == first + count:
            count += 1
            continue
        if count:
            runs.append((first, count, table, start))
            count = 0
        if len(given) == 1:
            first, count, (table, start) = row, 1, given[0]
        elif given:
            means.append((row, tuple(given)))
    if count:
        runs.append((first, count, table, start))
    return Rows(tuple(shape), tuple(tables), tuple(runs), tuple(means))
