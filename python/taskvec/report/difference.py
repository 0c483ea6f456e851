"""The difference of two checkpoints or vectors, in figures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from taskvec.models.tensor_names import layer_of, module_of
from taskvec.report.drawn import Drawn
from taskvec.text import percent

if TYPE_CHECKING:
    from taskvec.compat.findings import Finding


class Pair(NamedTuple):
    """Figures of two tensors x and y, or of many together; sums are in float64.

    Squares, ``dot`` and ``largest`` are NaN where values are NaN or infinite, ``non_finite`` counts these;
    what follows from them is then ``None``.

    ``changed`` counts x ≠ y, ``both_nonzero`` the elements in which neither is zero, ``same_sign`` those of
    them in which the signs agree; ``largest`` is the largest |x − y|.
    """

    elements: int
    left_square: float
    right_square: float
    difference_square: float
    dot: float
    largest: float
    changed: int
    left_nonzero: int
    right_nonzero: int
    both_nonzero: int
    same_sign: int
    non_finite: int

    @property
    def left_norm(self) -> float:
        """‖x‖."""
        return math.sqrt(self.left_square)

    @property
    def right_norm(self) -> float:
        """‖y‖."""
        return math.sqrt(self.right_square)

    @property
    def difference_norm(self) -> float:
        """‖x − y‖."""
        return math.sqrt(self.difference_square)

    @property
    def relative_norm(self) -> float | None:
        """‖x − y‖ / ‖x‖; ``None`` where x is zero or a norm is not finite."""
        return _finite(self.difference_norm / self.left_norm) if self.left_square else None

    @property
    def cosine(self) -> float | None:
        """Cosine between x and y; ``None`` where one is zero or not finite."""
        norms = self.left_norm * self.right_norm
        if not norms or not math.isfinite(norms + self.dot + self.difference_square):
            return None
        if self.difference_square < norms:
            # the engine reports six digits: near one, the distance tells more than the dot product
            excess = self.difference_square - (self.left_norm - self.right_norm) ** 2
            return min(1.0, 1.0 - excess / (2 * norms))
        return max(-1.0, min(1.0, self.dot / norms))

    @property
    def changed_share(self) -> float:
        """Share of the elements in which x and y differ."""
        return self.changed / self.elements if self.elements else 0.0

    @property
    def overlap(self) -> float | None:
        """Elements in which neither is zero over those in which one is not; ``None`` where both are zero."""
        either = self.left_nonzero + self.right_nonzero - self.both_nonzero
        return self.both_nonzero / either if either else None

    @property
    def sign_agreement(self) -> float | None:
        """Share of the common elements in which the signs agree; ``None`` where there are none."""
        return self.same_sign / self.both_nonzero if self.both_nonzero else None

    @classmethod
    def total(cls, pairs: Iterable[Pair]) -> Pair:
        """The figures of several tensors as one."""
        rows = list(pairs)
        square = [math.fsum(row[at] for row in rows) for at in range(1, 5)]
        counts = [sum(row[at] for row in rows) for at in range(6, 12)]
        apart = [row.largest for row in rows]
        largest = math.nan if any(map(math.isnan, apart)) else max(apart, default=0.0)
        return cls(sum(row.elements for row in rows), *square, largest, *counts)  # type: ignore[arg-type]


SCHEMA = 1

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True, repr=False)
class Difference(Drawn):
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
        Other findings about the two.
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
    def title(self) -> str:
        """What was compared."""
        return f"{self.left} and {self.right}"

    @property
    def summary(self) -> str:
        """How much differs in all."""
        total = self.total
        return (
            f"{len(self.tensors):,} tensors, {total.elements:,} elements; {total.changed:,} differ "
            f"({total.changed_share:.2%})."
        )

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

    def _subject(self) -> str:
        return self.title

    def _facts(self) -> dict[str, str]:
        total = self.total
        facts = {"kind": self.kind, "tensors": f"{len(self.tensors):,}", "elements": f"{total.elements:,}"}
        if self.kind == "checkpoints":
            facts["relative norm"] = _figure(total.relative_norm)
            facts["differ"] = percent(total.changed_share)
        if total.non_finite:
            facts["not finite"] = f"{total.non_finite:,} elements"
        facts["cosine"] = "undefined" if total.cosine is None else f"{total.cosine:.6f}"
        if self.kind == "vectors":
            facts["overlap"] = "undefined" if total.overlap is None else percent(total.overlap)
        if self.unmatched:
            facts["not compared"] = f"{len(self.unmatched):,} tensors"
        return facts

    def _tables(self) -> Mapping[str, Any]:
        data = self.to_dict
        return {name: lambda name=name: data()[name] for name in ("tensors", "layers", "modules")}

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
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def __str__(self) -> str:
        total = self.total
        relative = "undefined" if total.relative_norm is None else f"{total.relative_norm:.4g}"
        return (
            f"{self.left} and {self.right}: relative norm {relative}, "
            f"{total.changed_share:.2%} of {total.elements:,} elements differ"
        )


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row(pair: Pair) -> dict[str, Any]:
    return {
        "elements": pair.elements,
        "left_norm": _finite(pair.left_norm),
        "right_norm": _finite(pair.right_norm),
        "difference_norm": _finite(pair.difference_norm),
        "relative_norm": pair.relative_norm,
        "cosine": pair.cosine,
        "changed": pair.changed,
        "changed_share": pair.changed_share,
        "largest": _finite(pair.largest),
        "overlap": pair.overlap,
        "sign_agreement": pair.sign_agreement,
        "non_finite": pair.non_finite,
    }
