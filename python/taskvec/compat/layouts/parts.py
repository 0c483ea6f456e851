"""Selections that name a part of a stored tensor: one projection of a fused one, one expert of a stack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from taskvec.compat.findings import Finding, finding
from taskvec.compat.layouts.table import views
from taskvec.models.assembled import Assembled, Piece
from taskvec.models.assembled_reader import AssembledReader
from taskvec.models.part_names import PartNames, StoredPart
from taskvec.text import listed

if TYPE_CHECKING:
    from taskvec.compat.layouts.views import View
    from taskvec.models.model import Model
    from taskvec.models.selection import Selection


def seen_whole(method: str, names: Sequence[str]) -> Iterator[Finding]:
    """What it means that a method looks at all of stored tensors of which a selection takes parts."""
    if names:
        yield finding(
            "selection-whole",
            listed(names),
            "",
            f"`{method}` ranks or measures all of a stored tensor, of which the selection takes a part: what "
            "is not selected counts in its thresholds and norms too",
            "select the stored tensors as a whole, or use a method that takes every element by itself "
            "(`task_arithmetic`)",
        )


def bound(selection: Selection, model: Model) -> Selection:
    """A selection that knows which weights the tensors of a model hold."""
    if not (selection.include or selection.exclude):
        return selection
    return selection.with_parts(part_names(model))


def part_names(model: Model) -> PartNames:
    """The weights in those tensors of a model that hold several, or one in another order."""
    return PartNames(
        {
            name: tuple(_part(view) for view in found)
            for name, found in views(model)
            if len(found) > 1 or found[0].own != name
        }
    )


def _part(view: View) -> StoredPart:
    return StoredPart(view.own, view.first, tuple(factor for axis in view.axes for factor in axis))


def taken(selection: Selection, names: Iterable[str]) -> dict[str, tuple[StoredPart, ...]]:
    """Of tensors of which a selection that is :func:`bound` takes some weights and not all: those weights."""
    if not (selection.include or selection.exclude):
        return {}
    return {name: parts for name in names if selection.matches(name) and (parts := selection.taken(name))}


def only(model: Model, selection: Selection) -> Model:
    """A model in which those weights of partly selected tensors are zero that a selection leaves.

    Parameters
    ----------
    model : Model
        The donor or the reference of a difference, in the layout of the model that the selection is bound to.
    selection : Selection
        As :func:`bound` gives it.
    """
    made = {
        name: _only(model, name, selection.parts(name), parts)
        for name, parts in taken(selection, model.tensors).items()
    }
    if not made:
        return model
    assembled, weights = {**model.assembled, **made}, model.weights
    if weights is not None:
        is_made = isinstance(weights, AssembledReader)
        inner, stored = (weights.under, weights.stored) if is_made else (weights, model.tensors)
        weights = AssembledReader(inner, stored, assembled)
    return replace(model, assembled=assembled, weights=weights)


def _only(
    model: Model, name: str, all_parts: Sequence[StoredPart], wanted: Sequence[StoredPart]
) -> Assembled:
    known = model.assembled.get(name)
    if known is None:
        pieces = tuple(_piece(name, part) for part in all_parts)
        shapes = {name: model.tensors[name].shape} if name in model.packed else {}
        known = Assembled(model.tensors[name].shape, pieces, shapes)
    firsts = {part.first for part in wanted}
    pieces = tuple(piece if piece.to in firsts else _zero(piece) for piece in known.pieces)
    return known._replace(pieces=pieces)


def _piece(name: str, part: StoredPart) -> Piece:
    sizes, strides = (tuple(each) for each in zip(*part.axes, strict=True))
    return Piece(name, sizes, part.first, strides, part.first, strides)


def _zero(piece: Piece) -> Piece:
    """The same elements, all zero."""
    return piece._replace(name="", start=0, strides=(0,) * len(piece.sizes))
