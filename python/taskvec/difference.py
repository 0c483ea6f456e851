"""How far two checkpoints, or two task vectors, lie apart: per tensor, per layer and per kind of module."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from taskvec import compat
from taskvec.checkpoint import Checkpoint
from taskvec.checkpoint import open as open_checkpoint
from taskvec.comparison import Pair, Term, compare
from taskvec.errors import CompatibilityError, RecipeError
from taskvec.saved import is_vector
from taskvec.selection import Selection, layer_of
from taskvec.settings import FLOAT_DTYPES
from taskvec.vector import TaskVector, load_vector

if TYPE_CHECKING:
    from taskvec.findings import Finding
    from taskvec.progress import Callback

SCHEMA = 1
# What keeps two checkpoints from being compared as numbers; everything else that differs is what is to be
# seen.
_STOPPING = ("quantised", "lora-adapter")
_LAYER = re.compile(r"^.*?(?:layers?|h|blocks?)\.\d+\.")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Difference:
    """The outcome of :func:`taskvec.diff`.

    Attributes
    ----------
    left, right : str
        What was compared.
    kind : {"checkpoints", "vectors"}
        What they are.
    tensors : dict of str to Pair
        Figures of each tensor that both have, in the left's file order.
    unmatched : dict of str to str
        The other tensors, and why they were not compared.
    findings : tuple of Finding
        What else is to be said about the two.
    """

    left: str
    right: str
    kind: Literal["checkpoints", "vectors"]
    tensors: dict[str, Pair]
    unmatched: dict[str, str]
    findings: tuple[Finding, ...]

    @property
    def total(self) -> Pair:
        """All tensors together."""
        return Pair.total(self.tensors.values())

    @property
    def layers(self) -> dict[int | None, Pair]:
        """Per layer; ``None`` is what lies outside of the layers."""
        return self._grouped(layer_of)

    @property
    def modules(self) -> dict[str, Pair]:
        """Per kind of module: ``self_attn.q_proj``, ``mlp.experts.*.up_proj``, ``embed_tokens``."""
        return self._grouped(module_of)

    @property
    def grid(self) -> dict[tuple[int | None, str], Pair]:
        """Per layer and kind of module: the heat map."""
        return self._grouped(lambda name: (layer_of(name), module_of(name)))

    def _grouped(self, key: Callable[[str], Key]) -> dict[Key, Pair]:
        groups: dict[Key, list[Pair]] = defaultdict(list)
        for name, pair in self.tensors.items():
            groups[key(name)].append(pair)
        return {group: Pair.total(pairs) for group, pairs in groups.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "schema": SCHEMA,
            "left": self.left,
            "right": self.right,
            "kind": self.kind,
            "total": _row(self.total),
            "layers": [{"layer": layer, **_row(pair)} for layer, pair in self.layers.items()],
            "modules": [{"module": module, **_row(pair)} for module, pair in self.modules.items()],
            "tensors": [{"name": name, **_row(pair)} for name, pair in self.tensors.items()],
            "unmatched": self.unmatched,
            "findings": [{**asdict(finding), "message": finding.message} for finding in self.findings],
        }

    def __str__(self) -> str:
        total = self.total
        relative = "undefined" if total.relative_norm is None else f"{total.relative_norm:.4g}"
        return (
            f"{self.left} and {self.right}: relative norm {relative}, "
            f"{total.changed_share:.2%} of {total.elements:,} elements differ"
        )


def module_of(name: str) -> str:
    """The kind of module that a tensor belongs to: its name without layer, numbers and ``.weight``."""
    inner = _LAYER.sub("", name, count=1) if layer_of(name) is not None else name.removeprefix("model.")
    return _NUMBER.sub("*", inner).removesuffix(".weight")


def diff(
    left: str | os.PathLike[str] | Checkpoint | TaskVector,
    right: str | os.PathLike[str] | Checkpoint | TaskVector,
    *,
    selection: Selection | None = None,
    threads: int | None = None,
    progress: Callback | None = None,
) -> Difference:
    """Compare two checkpoints, or two vectors, in one streamed pass; see :func:`taskvec.diff`."""
    selection = selection or Selection()
    sides = [_opened(side) for side in (left, right)]
    one, other = sides
    if isinstance(one, TaskVector) and isinstance(other, TaskVector):
        one, other = (vector.select_by(selection) for vector in (one, other))
        shapes = {name: shape for name, shape in one.tensors.items() if other.tensors.get(name) == shape}
        pairs = compare(one.terms(), other.terms(), shapes, threads=threads, progress=progress)
        unmatched = _unmatched(one.tensors, other.tensors, shapes)
        return Difference(_named(left, one), _named(right, other), "vectors", pairs, unmatched, ())
    if isinstance(one, TaskVector) or isinstance(other, TaskVector):
        raise RecipeError("a checkpoint and a task vector cannot be compared", "name two of one kind")
    return _checkpoints(one, other, selection, threads, progress)


def _named(side: object, opened: object) -> str:
    """What the user wrote, or what was opened in words."""
    return os.fspath(side) if isinstance(side, (str, os.PathLike)) else str(opened)


def _opened(side: str | os.PathLike[str] | Checkpoint | TaskVector) -> Checkpoint | TaskVector:
    if isinstance(side, (Checkpoint, TaskVector)):
        return side
    return load_vector(side) if is_vector(side) else open_checkpoint(side)


def _checkpoints(
    one: Checkpoint,
    other: Checkpoint,
    selection: Selection,
    threads: int | None,
    progress: Callback | None,
) -> Difference:
    found = compat.check_models([("right", other)], one, role="left", selection=selection)
    stopping = [finding for finding in found if finding.level == "error" and finding.id in _STOPPING]
    if stopping:
        error = CompatibilityError(stopping[0].message, stopping[0].fix)
        error.findings = tuple(found)
        raise error
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
    one, other = one.materialise(progress), other.materialise(progress)
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


def _row(pair: Pair) -> dict[str, Any]:
    return {
        "elements": pair.elements,
        "left_norm": pair.left_norm,
        "right_norm": pair.right_norm,
        "difference_norm": pair.difference_norm,
        "relative_norm": pair.relative_norm,
        "cosine": pair.cosine,
        "changed": pair.changed,
        "changed_share": pair.changed_share,
        "largest": pair.largest,
        "overlap": pair.overlap,
        "sign_agreement": pair.sign_agreement,
        "non_finite": pair.non_finite,
    }
