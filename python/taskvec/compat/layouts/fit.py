"""A model fitted to another one: the same weights under its names and in its shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from taskvec.compat.layouts.table import views
from taskvec.compat.layouts.views import View, meet
from taskvec.dtypes import FLOAT_DTYPES, TYPES
from taskvec.errors import CompatibilityError
from taskvec.models.assembled import Assembled, Piece
from taskvec.models.assembled_reader import AssembledReader
from taskvec.models.model import Model, TensorInfo
from taskvec.models.part_names import StoredPart
from taskvec.models.selection import Selection
from taskvec.text import listed

# Common name of a weight -> the stored tensor that has it, and its view there.
Weights = Mapping[str, tuple[str, View]]


def fitted(other: Model, base: Model, selection: Selection | None = None) -> Model:
    """A model with its tensors as the base stores them, where it stores the same weights in another layout.

    Parameters
    ----------
    other : Model
        Of the donor's or the reference's side.
    base : Model
        Whose names and shapes the result has.
    selection : Selection, optional
        Bound to the base: of a tensor that it takes in part, the rest need not be there, and is zero then.

    Returns
    -------
    Model
        ``other`` itself where nothing is to be done. Otherwise its ``assembled`` say of which stored tensors
        each of the new ones is made; what belongs to none of them keeps its name.

    Raises
    ------
    CompatibilityError
        Two of its stored tensors are the same weight.
    """
    if is_alike(other, base):
        return other
    weights = _weights(other)
    stored = dict.fromkeys(other.tensors)
    assembled: dict[str, Assembled] = {}
    infos: dict[str, TensorInfo] = {}
    for name, own in views(base):
        info = base.tensors[name]
        pieces = _pieces(own, weights, selection.taken(name) if selection is not None else ())
        if pieces is None or _is_itself(name, info, pieces, other):
            continue
        assembled[name] = Assembled(info.shape, pieces, _packed_shapes(pieces, other))
        infos[name] = _info(name, info.shape, pieces, other)
    if not assembled:
        return other
    used = {piece.name for made in assembled.values() for piece in made.pieces if piece.name}
    kept = {name: other.tensors[name] for name in stored if name not in used and name not in assembled}
    order = {
        name: infos.get(name) or kept.pop(name) for name in base.tensors if name in infos or name in kept
    }
    reader = other.weights and AssembledReader(other.weights, other.tensors, assembled)
    return replace(other, tensors={**order, **kept}, assembled=assembled, weights=reader)


def is_alike(other: Model, base: Model) -> bool:
    """Whether a model has all of the base's tensors, of the same shapes, under the same names."""
    if other is base or (other.fingerprint == base.fingerprint and not base.assembled):
        return True
    get = other.tensors.get
    return all(
        (found := get(name)) is not None and found.shape == info.shape for name, info in base.tensors.items()
    )


def _weights(model: Model) -> Weights:
    found: dict[str, tuple[str, View]] = {}
    twice: dict[str, list[str]] = {}
    for name, each in views(model):
        for view in each:
            known = found.setdefault(view.name, (name, view))
            if known[0] != name:
                twice.setdefault(view.name, [known[0]]).append(name)
    if twice:
        weight, names = next(iter(twice.items()))
        raise CompatibilityError(
            f"`{model.spec}` stores `{weight}` twice, as {listed(names)}",
            "save it again with one version of transformers",
        )
    return found


def _pieces(own: list[View], weights: Weights, taken: Sequence[StoredPart]) -> tuple[Piece, ...] | None:
    pieces = []
    firsts = {part.first for part in taken}
    for view in own:
        stored = weights.get(view.name)
        if stored is None and firsts and view.first not in firsts:
            pieces.append(_zero(view))
            continue
        box = stored and meet(view, stored[1])
        if not stored or not box:
            return None
        sizes, to_strides, strides = box
        pieces.append(Piece(stored[0], sizes, view.first, to_strides, stored[1].first, strides))
    return tuple(pieces) if any(piece.name for piece in pieces) else None


def _zero(view: View) -> Piece:
    sizes, strides = zip(*(factor for axis in view.axes for factor in axis), strict=True)
    return Piece("", sizes, view.first, strides, 0, (0,) * len(sizes))


def _packed_shapes(pieces: tuple[Piece, ...], other: Model) -> dict[str, tuple[int, ...]]:
    """Shapes of the packed weights among the stored tensors: headers do not have them."""
    return {piece.name: other.tensors[piece.name].shape for piece in pieces if piece.name in other.packed}


def _is_itself(name: str, info: TensorInfo, pieces: tuple[Piece, ...], other: Model) -> bool:
    """Whether these pieces are the tensor of that name as it is."""
    if other.tensors.get(name) is None or other.tensors[name].shape != info.shape:
        return False
    return all(
        piece.name == name and piece.to == piece.start and piece.to_strides == piece.strides
        for piece in pieces
    )


def _info(name: str, shape: tuple[int, ...], pieces: tuple[Piece, ...], other: Model) -> TensorInfo:
    pieces = tuple(piece for piece in pieces if piece.name)
    sources = {piece.name: other.tensors[piece.name] for piece in pieces}
    first = sources[pieces[0].name]
    dtypes = {info.dtype for info in sources.values()}
    dtype = max(dtypes & FLOAT_DTYPES, key=lambda each: TYPES[each].bytes) if len(dtypes) > 1 else first.dtype
    nbytes = 0
    for piece in pieces:
        info = sources[piece.name]
        count = 1
        for side in info.shape:
            count *= side
        nbytes += info.nbytes * piece.elements // count
    return TensorInfo(name, dtype, shape, nbytes, first.file)
