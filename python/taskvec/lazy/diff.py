"""How far two checkpoints, or two task vectors, lie apart: per tensor, per layer and per kind of module."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from taskvec.arguments import threads as hold_threads
from taskvec.compat.check import check_models
from taskvec.compat.layouts.fit import fitted
from taskvec.compat.layouts.parts import bound, only
from taskvec.dtypes import FLOAT_DTYPES
from taskvec.errors import CompatibilityError, RecipeError
from taskvec.lazy.either import Named, opened
from taskvec.lazy.vector import TaskVector
from taskvec.models.model import Model
from taskvec.models.selection import Selection
from taskvec.plan.delta import Term
from taskvec.report.difference import Difference
from taskvec.resolve.remote import materialised
from taskvec.run.compare import compare
from taskvec.shown import shown

if TYPE_CHECKING:
    from taskvec.progress import Callback

# Findings that keep two checkpoints from being compared as numbers; any other difference is to be seen.
_STOPPING = ("saved-vector", "quantised", "lora-adapter")


def diff(
    left: Named,
    right: Named,
    *,
    selection: Selection | None = None,
    threads: int | None = None,
    progress: Callback | bool | None = None,
) -> Difference:
    """Compare two checkpoints, or two vectors, in one streamed pass; see :func:`taskvec.diff`."""
    selection, threads = selection or Selection(), hold_threads(threads)
    sides = [opened(side) for side in (left, right)]
    one, other = sides
    if isinstance(one, TaskVector) and isinstance(other, TaskVector):
        one, other = (vector.select_by(selection) for vector in (one, other))
        shapes = {name: shape for name, shape in one.tensors.items() if other.tensors.get(name) == shape}
        with shown(progress) as tell:
            pairs = compare(one.terms(), other.terms(), shapes, threads=threads, progress=tell)
        unmatched = _unmatched(one.tensors, other.tensors, shapes)
        return Difference(_named(left, one), _named(right, other), "vectors", pairs, unmatched, ())
    if isinstance(one, TaskVector) or isinstance(other, TaskVector):
        raise RecipeError("a checkpoint and a task vector cannot be compared", "name two of one kind")
    with shown(progress) as tell:
        return _checkpoints(one, other, selection, threads, tell)


def _named(side: object, found: object) -> str:
    """The side as the user wrote it; one that was opened before, in words."""
    return os.fspath(side) if isinstance(side, (str, os.PathLike)) else str(found)


def _checkpoints(
    one: Model,
    other: Model,
    selection: Selection,
    threads: int | None,
    progress: Callback | None,
) -> Difference:
    other = fitted(other, one)
    found = check_models([("right", other)], one, role="left", selection=selection)
    stopping = [finding for finding in found if finding.level == "error" and finding.id in _STOPPING]
    if stopping:
        error = CompatibilityError(stopping[0].message, stopping[0].fix)
        error.findings = tuple(found)
        raise error
    selection = bound(selection, one)
    tables = [
        {name: info for name, info in side.tensors.items() if selection.matches(name)}
        for side in (one, other)
    ]
    shapes = {
        name: info.shape
        for name, info in tables[0].items()
        if name in tables[1]
        and tables[1][name].shape == info.shape
        and {info.dtype, tables[1][name].dtype} <= FLOAT_DTYPES
    }
    if not shapes:
        raise CompatibilityError(
            f"`{one.spec}` and `{other.spec}` have no float tensor of one name and shape",
            "give models of one architecture",
        )
    one = materialised(one, progress)
    other = only(fitted(materialised(other, progress), one), selection)
    one = only(one, selection)
    names = {name: (name,) for name in shapes}
    pairs = compare(
        [Term(1.0, (one,), names)], [Term(1.0, (other,), names)], shapes, threads=threads, progress=progress
    )
    mine, theirs = ({name: info[1:3] for name, info in table.items()} for table in tables)
    return Difference(
        one.spec, other.spec, "checkpoints", pairs, _unmatched(mine, theirs, shapes), tuple(found)
    )


def _unmatched(one: Mapping[str, Any], other: Mapping[str, Any], compared: Iterable[str]) -> dict[str, str]:
    """The tensors that were not compared, and why."""
    compared = set(compared)
    reasons = {}
    for name in dict.fromkeys((*one, *other)):
        if name in compared:
            continue
        if name not in other:
            reasons[name] = "only in the left"
        elif name not in one:
            reasons[name] = "only in the right"
        elif one[name] != other[name]:
            reasons[name] = "of another shape or type"
        else:
            reasons[name] = "not of a float type"
    return reasons
