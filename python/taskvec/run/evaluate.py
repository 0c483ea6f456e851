"""Results in memory, tensor by tensor: the engine computes what a run would write, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from taskvec._core import evaluate, evaluate_measured
from taskvec.dtypes import array_of
from taskvec.models.model import Model
from taskvec.models.rows import Place, Table, rows_of
from taskvec.models.saved_vector import SavedVector
from taskvec.models.source import here, local_path, source_document
from taskvec.models.state_dict import buffers_of
from taskvec.models.storage import stored_bytes
from taskvec.plan.delta import Term
from taskvec.plan.plan import ARITHMETIC, FORMAT, PlanRecord
from taskvec.plan.rows import Operations, Row, encode_part
from taskvec.resolve.remote import materialised
from taskvec.run.compare import numbered

if TYPE_CHECKING:
    from taskvec.models.state_dict import Buffer

# Tensors that are computed in one call: enough to make the call worth it, few enough to hold.
BATCH = 64 << 20


def of_plan(
    plan: PlanRecord,
    names: Iterable[str] | None = None,
    *,
    threads: int | None = None,
    allow_non_finite: bool = False,
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a plan's first output, in file order, with the bytes that a run would write.

    Parameters
    ----------
    plan : PlanRecord
        Of a checkpoint.
    names : iterable of str, optional
        Only these.
    threads : int, optional
        All cores by default.
    allow_non_finite : bool
        Go on where a value is NaN or infinite.

    Raises
    ------
    HubError
        The weights of a source have not been downloaded.
    """
    document, rows = _asked(plan, names)
    yield from evaluated(document, rows, buffers_of(plan.checkpoints), threads, allow_non_finite)


def measured_of_plan(
    plan: PlanRecord,
    names: Iterable[str],
    *,
    threads: int | None = None,
    allow_non_finite: bool = False,
) -> Iterator[tuple[list[tuple[str, str, Sequence[int], np.ndarray]], dict[str, dict[str, Any]]]]:
    """The same in batches: name, element type, shape and bytes of tensors, and their sums.

    The sums are those that :meth:`taskvec.report.survival.Survival.of_sums` takes, by tensor; tensors that
    take no step have none. Parameters and errors are those of :func:`of_plan`.
    """
    document, rows = _asked(plan, names)
    buffers = buffers_of(plan.checkpoints)
    for batch in _batches(rows):
        data, figures = evaluate_measured(
            encode_part(document, batch),
            threads=threads or 0,
            allow_non_finite=allow_non_finite,
            memories=buffers,
        )
        tensors, at = [], 0
        for name, dtype, shape, *_ in batch:
            size = stored_bytes(dtype, tuple(shape))
            tensors.append((name, dtype, shape, _part(data, at, size)))
            at += size
        yield tensors, dict(json.loads(figures))


def _asked(plan: PlanRecord, names: Iterable[str] | None) -> tuple[dict[str, Any], list[Row]]:
    """The document and the rows of some tensors of a plan's first output; its sources are here then."""
    for checkpoint in plan.checkpoints:
        if isinstance(checkpoint, Model):
            _ = checkpoint.reader
        elif isinstance(checkpoint, SavedVector):
            materialised(checkpoint)
    wanted = None if names is None else set(names)
    rows = [row for row in plan.document["tensors"] if wanted is None or row[0] in wanted]
    document = {
        **here(plan.document, plan.checkpoints),
        "outputs": [{"folder": "", "alpha": plan.outputs[0].alpha}],
    }
    return document, rows


def decoded(model: Model, name: str) -> np.ndarray:
    """The exact values of a packed weight as float32, read-only.

    Raises
    ------
    HubError
        The weights have not been downloaded.
    """
    return stored(model, name, "F32")


def stored(
    model: Model, name: str, dtype: str | None = None, *, rows: Sequence[int] | None = None
) -> np.ndarray:
    """One tensor of a model as a run would copy it, in its own type or another one; raises as above.

    With ``rows`` these alone, in their order; of a tensor that is not packed nothing else is read.
    """
    _ = model.reader
    info = model.tensors[name]
    if rows is not None and name in model.packed:
        return stored(model, name, dtype)[list(rows)]
    source = {**source_document(model), "path": local_path(model)}
    shape = info.shape
    if rows is not None:
        shape = len(rows), *info.shape[1:]
        places = [(Place(0, row),) for row in rows]
        source["rows"] = {name: rows_of(shape, [Table(0, name, info.shape)], places)}
    row: Row = (name, dtype or info.dtype, shape, 0, 0, [(0, name)])
    document = {
        "format": FORMAT,
        "arithmetic": ARITHMETIC,
        "sources": [source],
        "outputs": [{"folder": "", "alpha": 1.0}],
        "operations": [{"kind": "copy"}],
        "rounding": "nearest",
        "seed": 0,
    }
    ((_, array),) = evaluated(document, [row], buffers_of([model]), allow_non_finite=True)
    return array


def of_terms(
    terms: Sequence[Term], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    """The sum of weighted differences, tensor by tensor: float32, float64 where something is stored so."""
    sources, inputs, buffers = numbered(terms)
    operations = Operations()
    rows: list[Row] = []
    for name, shape in shapes.items():
        present = [number for number, term in enumerate(terms) if name in term.stored]
        sides: list[dict[str, Any]] = []
        pairs: list[tuple[int, str]] = []
        types: set[str] = set()
        for number in present:
            term = terms[number]
            signs = (term.weight, -term.weight)
            for source, at, stored, weight in zip(
                term.sources, inputs[number], term.stored[name], signs, strict=False
            ):
                sides.append({"model": len(pairs), "reference": None, "weight": weight})
                pairs.append((at, stored))
                types.add(source.tensors[stored].dtype)
        if not pairs:
            yield name, np.zeros(shape, np.float32)
            continue
        operation = operations.number({"kind": "linear", "terms": sides})
        rows.append((name, "F64" if "F64" in types else "F32", shape, 0, operation, pairs))
    document = {
        "format": FORMAT,
        "arithmetic": ARITHMETIC,
        "sources": sources,
        "outputs": [{"folder": "", "alpha": 1.0}],
        "operations": operations.all,
        "rounding": "nearest",
        "seed": 0,
    }
    yield from evaluated(document, rows, buffers)


def evaluated(
    document: Mapping[str, Any],
    rows: Iterable[Row],
    buffers: list[Buffer],
    threads: int | None = None,
    allow_non_finite: bool = False,
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a plan's rows; ``buffers`` are those of its sources that lie in this process."""
    for batch in _batches(rows):
        data = evaluate(
            encode_part(document, batch),
            threads=threads or 0,
            allow_non_finite=allow_non_finite,
            memories=buffers,
        )
        at = 0
        for name, dtype, shape, *_ in batch:
            size = stored_bytes(dtype, tuple(shape))
            yield name, array_of(_part(data, at, size), dtype, shape)
            at += size


def _part(data: np.ndarray, at: int, size: int) -> np.ndarray:
    """Some of the bytes, read-only: nothing is copied."""
    part = np.frombuffer(data, np.uint8, size, at)
    part.flags.writeable = False
    return part


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    filled = 0
    for row in rows:
        size = stored_bytes(row[1], tuple(row[2]))
        if batch and filled + size > BATCH:
            yield batch
            batch, filled = [], 0
        batch.append(row)
        filled += size
    if batch:
        yield batch
