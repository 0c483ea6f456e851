"""Vocabularies that are padded to different numbers of rows: the rows that they have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from taskvec.compat.config_keys import INNER
from taskvec.models.assembled import Assembled, Piece
from taskvec.models.assembled_reader import AssembledReader
from taskvec.models.model import Model, TensorInfo
from taskvec.models.tensor_names import is_vocabulary


def common_rows(models: Sequence[Model], base: Model) -> list[Model]:
    """Models whose embeddings and heads have the base's number of rows.

    A difference of two of them is zero in rows that not all have, so that a step leaves the base's own there.
    Rows are common up to the smallest number of rows, and of the config's `vocab_size`.

    Parameters
    ----------
    models : sequence of Model
        The donor and the reference of a step, in the base's layout.
    base : Model
        The target.
    """
    rows = {name: count for name in base.tensors if (count := _rows(name, models, base)) is not None}
    return [_with_rows(model, base, rows) for model in models] if rows else list(models)


def _rows(name: str, models: Sequence[Model], base: Model) -> int | None:
    """The rows that all have in common; ``None`` where all have as many, or the tensors do not fit."""
    shape = base.tensors[name].shape
    if not is_vocabulary(name) or not shape:
        return None
    found = [model.tensors[name].shape for model in models if name in model.tensors]
    if len(found) < len(models) or any(each[1:] != shape[1:] for each in found):
        return None
    counts = {shape[0], *(each[0] for each in found)}
    if len(counts) == 1:
        return None
    return min(*counts, *(size for model in (base, *models) if (size := _vocabulary_size(model)) is not None))


def _vocabulary_size(model: Model) -> int | None:
    inner = next((model.config[key] for key in INNER if isinstance(model.config.get(key), dict)), {})
    size = inner.get("vocab_size", model.config.get("vocab_size"))
    return size if isinstance(size, int) and size > 0 else None


def _with_rows(model: Model, base: Model, rows: dict[str, int]) -> Model:
    tensors, assembled = dict(model.tensors), dict(model.assembled)
    for name, count in rows.items():
        shape = base.tensors[name].shape
        width, known = math.prod(shape[1:]), model.assembled.get(name)
        stored = name
        if known is not None:  # renamed alone: a table of rows has one layout
            (only,) = known.pieces
            stored = only.name
        pieces = (Piece(stored, (count * width,), 0, (1,), 0, (1,)),)
        if count < shape[0]:
            pieces += (Piece("", ((shape[0] - count) * width,), count * width, (1,), 0, (0,)),)
        own = model.tensors[name]
        shapes = known.shapes if known is not None else {}
        if known is None and name in model.packed:
            shapes = {name: model.tensors[name].shape}
        assembled[name] = Assembled(shape, pieces, shapes)
        nbytes = own.nbytes // max(1, own.shape[0]) * count
        tensors[name] = TensorInfo(name, own.dtype, shape, nbytes, own.file)
    weights = model.weights
    if weights is not None:
        inner = weights.under if isinstance(weights, AssembledReader) else weights
        infos = weights.stored if isinstance(weights, AssembledReader) else model.tensors
        weights = AssembledReader(inner, infos, assembled)
    return replace(model, tensors=tensors, assembled=assembled, weights=weights)


def missing_rows(model: Model) -> dict[str, int]:
    """Embeddings and heads of which a model gives fewer rows than the base has: how many it gives."""
    found = {}
    for name, (shape, pieces, _) in model.assembled.items():
        if not is_vocabulary(name):
            continue
        given = sum(piece.elements for piece in pieces if piece.name)
        if given < math.prod(shape):
            found[name] = given * shape[0] // math.prod(shape)
    return found
