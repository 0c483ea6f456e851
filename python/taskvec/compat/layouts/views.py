"""Views: where the elements of a weight, as a layer computes with it, lie in a stored tensor."""

from __future__ import annotations

from typing import NamedTuple

# A dimension taken apart into factors, the outermost first: (length, elements between neighbours).
Factors = tuple[tuple[int, int], ...]


class View(NamedTuple):
    """A part of a stored tensor that is one weight.

    Attributes
    ----------
    name : str
        The common name of the weight, the same in every layout.
    first : int
        Its first element in the stored tensor.
    axes : tuple of Factors
        Rows and columns of the weight (of a bias, its elements) and their strides in the stored tensor.
    own : str
        The name that the weight would have if the model stored it by itself.
    """

    name: str
    first: int
    axes: tuple[Factors, ...]
    own: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return tuple(_length(axis) for axis in self.axes)


def whole(name: str, shape: tuple[int, ...], own: str = "") -> View:
    """The view of a stored tensor that is a weight as it is."""
    axes, stride = [], 1
    for side in reversed(shape):
        axes.append(((side, stride),))
        stride *= side
    return View(name, 0, tuple(reversed(axes)), own)


def meet(one: View, other: View) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """The dimensions of a box that is both views, and its strides in each; ``None`` where there is no such.

    Returns
    -------
    tuple of (sizes, strides of the one, strides of the other)
    """
    axes = meet_axes(one, other)
    if axes is None:
        return None
    rows = [row for axis in axes for row in axis]
    return tuple(row[0] for row in rows), tuple(row[1] for row in rows), tuple(row[2] for row in rows)


def meet_axes(one: View, other: View) -> list[list[tuple[int, int, int]]] | None:
    """The same for each axis of the weight: (length, stride in the one, stride in the other)."""
    if len(one.axes) != len(other.axes):
        return None
    axes = []
    for first, second in zip(one.axes, other.axes, strict=True):
        rows = _refined(first, second)
        if rows is None:
            return None
        axes.append(rows)
    return axes


def _length(axis: Factors) -> int:
    length = 1
    for size, _ in axis:
        length *= size
    return length


def _refined(first: Factors, second: Factors) -> list[tuple[int, int, int]] | None:
    """Factors that both axes can be taken apart into: (length, stride of the one, stride of the other)."""
    rows: list[tuple[int, int, int]] = []
    one, other = list(first), list(second)
    while one and other:
        (n, step), (m, stride) = one.pop(), other.pop()
        inner = min(n, m)
        if max(n, m) % inner:
            return None
        if n > inner:
            one.append((n // inner, step * inner))
        if m > inner:
            other.append((m // inner, stride * inner))
        rows.append((inner, step, stride))
    is_whole = all(size == 1 for size, _ in (*one, *other))
    return rows[::-1] if is_whole else None
