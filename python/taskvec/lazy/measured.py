"""Figures and tensors of a weighted sum of differences, computed only when asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from taskvec.errors import CompatibilityError
from taskvec.lazy.mapping import Tensors
from taskvec.models.model import no_tensor
from taskvec.plan.delta import Delta
from taskvec.report.difference import Pair
from taskvec.report.tables import Tabled, table_html
from taskvec.run.compare import compare
from taskvec.shown import shown
from taskvec.text import percent

if TYPE_CHECKING:
    import numpy as np

    from taskvec.progress import Callback


class TensorStats(NamedTuple):
    """Figures of a vector, or of one of its tensors."""

    elements: int
    changed: int
    norm: float
    largest: float

    @property
    def changed_share(self) -> float:
        """Share of the elements that are not zero."""
        return self.changed / self.elements if self.elements else 0.0


@dataclass(frozen=True, slots=True, repr=False)
class Stats(Tabled):
    """Figures of a whole vector, and of each of its tensors.

    Attributes
    ----------
    total : TensorStats
    tensors : dict of str to TensorStats
    """

    total: TensorStats
    tensors: dict[str, TensorStats]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.total, self.tensors))

    def _facts(self) -> dict[str, str]:
        total = self.total
        return {
            "tensors": f"{len(self.tensors):,}",
            "elements": f"{total.elements:,}",
            "not zero": percent(total.changed_share),
            "norm": f"{total.norm:.4g}",
            "largest": f"{total.largest:.4g}",
        }

    def _tables(self) -> Mapping[str, Any]:
        def tensors() -> list[dict[str, Any]]:
            return [
                {"name": name, **row._asdict(), "changed_share": row.changed_share}
                for name, row in self.tensors.items()
            ]

        return {"tensors": tensors}

    def _more_html(self) -> str:
        rows = [{"tensor": name, **row._asdict()} for name, row in self.tensors.items()]
        return table_html(rows)


class Measured(Tensors, Delta):
    """The part of a task vector that reads: its norm, its figures, and its tensors as a mapping."""

    __slots__ = ()

    def norm(self) -> float:
        """The L2 norm; reads the weights once, in bounded memory."""
        return self.stats().total.norm

    def stats(self, *, progress: Callback | bool | None = None) -> Stats:
        """Elements, elements that are not zero, norm and largest magnitude, per tensor and in all.

        Reads the weights once, in bounded memory.
        """
        with shown(progress) as tell:
            pairs = compare(self.terms(), (), self.tensors, progress=tell)
        tensors = {name: _stats(pair) for name, pair in pairs.items()}
        return Stats(_stats(Pair.total(pairs.values())), tensors)

    def cosine(self, other: Delta) -> float:
        """The cosine between two vectors; ``nan`` where one of them is zero. Reads the weights once.

        Raises
        ------
        CompatibilityError
            The vectors have tensors of one name and different shapes.
        """
        cosine = Pair.total(self.compare(other).values()).cosine
        return math.nan if cosine is None else cosine

    def compare(self, other: Delta, *, progress: Callback | bool | None = None) -> dict[str, Pair]:
        """Norms, dot product, supports and signs of two vectors, per tensor. Reads the weights once.

        A tensor that only one of them has is zero in the other.

        Raises
        ------
        CompatibilityError
            The vectors have tensors of one name and different shapes.
        """
        for name, shape in self.tensors.items():
            theirs = other.tensors.get(name, shape)
            if theirs != shape:
                raise CompatibilityError(
                    f"`{name}` has shape {list(shape)}, and {list(theirs)} in the other vector",
                    "compare vectors of one architecture",
                )
        shapes = {**self.tensors, **other.tensors}
        with shown(progress) as tell:
            return compare(self.terms(), other.terms(), shapes, progress=tell)

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor of the vector, computed now: float32, or float64 where something is stored so.

        Raises
        ------
        TensorNotFoundError
            The vector has no tensor of this name; a ``KeyError`` too.
        """
        from taskvec.run.evaluate import of_terms

        if name not in self.tensors:
            raise no_tensor("the vector", name, self.tensors)
        ((_, array),) = of_terms(self.terms(), {name: self.tensors[name]})
        return array

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Computes the tensors, a few at a time."""
        from taskvec.run.evaluate import of_terms

        return of_terms(self.terms(), self.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors


def _stats(pair: Pair) -> TensorStats:
    return TensorStats(pair.elements, pair.left_nonzero, pair.left_norm, pair.largest)
