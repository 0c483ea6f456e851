"""How much of a vector its adapter keeps: the figures of a report, and the heat map of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from taskvec.compat.findings import Finding, finding
from taskvec.models.tensor_names import layer_of, module_of
from taskvec.report.energy_words import LOW_RANK, is_low_rank
from taskvec.report.manifest import rounded
from taskvec.text import percent, plural

Key = TypeVar("Key", bound=Hashable)


def figures(
    rows: Mapping[str, Mapping[str, Any]], squares: Mapping[str, float], document: Mapping[str, Any]
) -> dict[str, Any]:
    """The figures of an adapter, as its manifest and ``--json`` have them.

    Parameters
    ----------
    rows : mapping
        Of every module by the name of its weight: ``rank`` (0 where it has no factors, its difference being
        zero), ``shape`` [outputs, inputs], ``role``, ``square`` (the squared norm of its difference),
        ``kept`` (how much of that its factors have), ``curve`` (the same at smaller ranks) and ``exact``
        (whether all singular values were computed).
    squares : mapping
        The squared norms of the tensors without factors.
    document : mapping
        The plan's.

    Returns
    -------
    dict
        ``energy`` is the share of the vector's squared norm that the adapter has, ``factors_energy`` that of
        the modules with factors; norms that were not measured are ``None``.
    """
    square = math.fsum(row["square"] for row in rows.values())
    kept = math.fsum(row["kept"] for row in rows.values())
    whole = [name for name, _ in document["whole"]]
    held = math.fsum(squares.get(name, 0.0) for name in whole)
    lost = math.fsum(squares.get(name, 0.0) for name in document["left"])
    return {
        "rank": document["rank"],
        "wanted_energy": document["energy"],
        "dtype": document["dtype"],
        "square": rounded(square),
        "factors_energy": _share(kept, square),
        "energy": _share(kept + held, square + held + lost),
        "curve": [[rank, _share(part, square)] for rank, part in _curve(rows.values())],
        "whole": whole,
        "left": {
            name: {"reason": reason, "norm": rounded(math.sqrt(squares[name])) if name in squares else None}
            for name, reason in document["left"].items()
        },
        "modules": {name: _module(row) for name, row in rows.items()},
    }


def _module(row: Mapping[str, Any]) -> dict[str, Any]:
    square = row["square"]
    return {
        "rank": row["rank"],
        "shape": row["shape"],
        "role": row["role"],
        "norm": rounded(math.sqrt(square)),
        "energy": _share(row["kept"], square),
        "curve": [[int(rank), _share(part, square)] for rank, part in row["curve"]],
        "exact": row["exact"],
    }


def _share(part: float, whole: float) -> float:
    """A share of one; all of nothing is all."""
    return rounded(min(1.0, part / whole)) if whole else 1.0


def _curve(rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """What all modules together keep at the ranks that the largest one tells."""
    curves = [[(int(rank), part) for rank, part in row["curve"]] for row in rows]
    ranks = sorted({rank for curve in curves for rank, _ in curve if rank & (rank - 1) == 0})
    if curves:
        ranks = sorted({*ranks, max(curve[-1][0] for curve in curves)})
    at = [
        math.fsum(max((p for r, p in curve if r <= rank), default=0.0) for curve in curves) for rank in ranks
    ]
    return list(zip(ranks, at, strict=True))


def findings(adapter: Mapping[str, Any], folder: str) -> list[Finding]:
    """A warning where the factors are far from the vector, with the ways out."""
    modules = adapter["modules"].values()
    short = [row for row in modules if row["rank"] and row["energy"] < (adapter["wanted_energy"] or LOW_RANK)]
    if is_low_rank(adapter):
        return []
    is_one = adapter["wanted_energy"] is None
    at = f"rank {adapter['rank']} keeps" if is_one else f"ranks up to {adapter['rank']} keep"
    return [
        finding(
            "not-low-rank",
            folder,
            f"at least {LOW_RANK:.0%} of its squared norm kept",
            f"the vector is not low-rank: {at} {percent(adapter['factors_energy'])}, and "
            f"{plural(len(short), 'module')} of {len(modules):,} less than "
            f"{percent(adapter['wanted_energy'] or LOW_RANK)}",
            "save the vector itself (`taskvec extract` without `--lora`), or take a larger rank; what RL has "
            "learned is sparse and not low-rank as a rule",
        )
    ]


class Row(NamedTuple):
    """Squared norm, what is kept of it, and the largest rank: of one module, or of several."""

    square: float
    kept: float
    rank: int

    @property
    def energy(self) -> float | None:
        """The share that is kept; ``None`` where there is nothing to keep."""
        return self.kept / self.square if self.square else None

    @property
    def norm(self) -> float:
        """The norm of the difference."""
        return math.sqrt(self.square)

    @classmethod
    def total(cls, rows: Iterable[Row]) -> Row:
        """The figures of several modules as one."""
        rows = list(rows)
        square, kept = (math.fsum(row[at] for row in rows) for at in (0, 1))
        return cls(square, kept, max((row.rank for row in rows), default=0))


@dataclass(frozen=True, slots=True)
class EnergyMap:
    """The figures of an adapter as a heat map shows them, layers by kinds of module."""

    title: str
    summary: str
    tensors: Mapping[str, Row]

    kind = "adapter"

    @property
    def layers(self) -> dict[int | None, Row]:
        """Per layer; ``None`` is what lies outside of the layers."""
        return self._grouped(layer_of)

    @property
    def modules(self) -> dict[str, Row]:
        """Per kind of module."""
        return self._grouped(module_of)

    @property
    def grid(self) -> dict[tuple[int | None, str], Row]:
        """Per layer and kind of module."""
        return self._grouped(lambda name: (layer_of(name), module_of(name)))

    def _grouped(self, key: Callable[[str], Key]) -> dict[Key, Row]:
        groups: dict[Key, list[Row]] = defaultdict(list)
        for name, row in self.tensors.items():
            groups[key(name)].append(row)
        return {group: Row.total(rows) for group, rows in groups.items()}


def energy_map(adapter: Mapping[str, Any], title: str) -> EnergyMap:
    """The heat map of the figures of an adapter."""
    rows = {
        name: Row(row["norm"] ** 2, row["energy"] * row["norm"] ** 2, row["rank"])
        for name, row in adapter["modules"].items()
    }
    words = percent(adapter["factors_energy"])
    return EnergyMap(title, f"{plural(len(rows), 'module')}; {words} of their squared norm kept.", rows)
