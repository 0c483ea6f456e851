"""What a task vector is made of, in figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from taskvec.models.tensor_names import layer_of, module_of
from taskvec.report.drawn import Drawn
from taskvec.text import percent

SCHEMA = 1
TOP = (0.1, 1.0, 5.0, 10.0, 20.0, 50.0)  # per cent of the elements
HELD = (0.5, 0.9, 0.99)  # shares of the squared norm


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The singular values of a matrix, or of several together.

    Attributes
    ----------
    rank : float
        Effective rank: exp of the entropy of the singular values as shares of their sum (Roy and Vetterli,
        EUSIPCO 2007); of several matrices the mean, weighted by their squared norms.
    stable_rank : float
        Squared norm over the square of the largest singular value; a mean in the same way.
    full_rank : float
        The most that it could be: the smaller side.
    energy : dict of int to float
        Share of the squared norm at a rank.
    """

    rank: float
    stable_rank: float
    full_rank: float
    energy: dict[int, float]


@dataclass(frozen=True, slots=True)
class Alike:
    """A vector next to another one.

    Attributes
    ----------
    cosine : float or None
        None where one is zero.
    sign_agreement : float or None
        Share of the elements that neither has zero in which the signs agree; None where there are none.
    norm : float
        Of the other one.
    """

    cosine: float | None
    sign_agreement: float | None
    norm: float


@dataclass(frozen=True, slots=True)
class Figures:
    """A vector, or a part of it.

    Attributes
    ----------
    tensors, elements, changed : int
        Tensors, their elements, and those that are not zero.
    norm : float
        L2.
    share : float or None
        Of the squared norm of the whole vector; None of a vector that is zero.
    largest : float
        Largest magnitude.
    top : dict of float to float, or None
        Per cent of the elements, the largest ones: the share of the squared norm that they hold.
        None where that was not counted, or all is zero.
    needed : dict of float to float, or None
        Share of the squared norm: the smallest share of the elements that holds it.
    spectrum : Spectrum or None
        Of the matrices; None where there are none, all are zero, or it was not asked for.
    alike : dict of str to Alike
        By the name of another vector.
    """

    tensors: int
    elements: int
    changed: int
    norm: float
    share: float | None
    largest: float
    top: dict[float, float] | None
    needed: dict[float, float] | None
    spectrum: Spectrum | None
    alike: dict[str, Alike]

    @property
    def changed_share(self) -> float:
        """Share of the elements that are not zero."""
        return self.changed / self.elements if self.elements else 0.0

    @property
    def mean_size(self) -> float | None:
        """Root mean square of an element; None where there are none."""
        return self.norm / math.sqrt(self.elements) if self.elements else None


@dataclass(frozen=True, slots=True, repr=False)
class Composition(Drawn):
    """The outcome of :func:`taskvec.analyse`.

    Attributes
    ----------
    vector : str
        What it is of.
    total : Figures
    layers : dict of int or None to Figures
        None is what lies outside of the layers.
    modules : dict of str to Figures
        By kind of module: ``self_attn.q_proj``.
    kinds : dict of str to Figures
        Attention, feed-forward, norms, vocabulary, others.
    groups : dict of str to Figures
        Groups of neighbouring layers, where they are asked for.
    grid : dict of (int or None, str) to Figures
        Per layer and kind of module: the heat map.
    tensors : dict of str to Figures
    cosines : dict of str to dict of str to float or None
        Between all the vectors, by their names; ``v`` is the one that this is of.
    unmatched : dict of str to list of str
        By another vector: its tensors that this one lacks.
    """

    vector: str
    total: Figures
    layers: dict[int | None, Figures]
    modules: dict[str, Figures]
    kinds: dict[str, Figures]
    groups: dict[str, Figures]
    grid: dict[tuple[int | None, str], Figures]
    tensors: dict[str, Figures]
    cosines: dict[str, dict[str, float | None]]
    unmatched: dict[str, list[str]]

    kind = "composition"

    @property
    def title(self) -> str:
        """What it is of."""
        return f"What {self.vector} is made of"

    @property
    def summary(self) -> str:
        """The vector in a sentence."""
        total = self.total
        words = [
            f"{total.tensors:,} tensors, {total.elements:,} elements",
            f"{percent(total.changed_share)} of them not zero",
            f"norm {total.norm:.4g}",
        ]
        if total.top is not None:
            words.append(f"the largest 1% of the elements hold {percent(total.top[1.0])} of the squared norm")
        if total.spectrum is not None:
            words.append(
                f"effective rank of a matrix {total.spectrum.rank:.0f} of {total.spectrum.full_rank:.0f}"
            )
        return ", ".join(words) + "."

    @property
    def others(self) -> list[str]:
        """The names of the other vectors."""
        return list(self.total.alike)

    def _subject(self) -> str:
        return self.vector

    def _facts(self) -> dict[str, str]:
        total = self.total
        facts = {
            "tensors": f"{total.tensors:,}",
            "elements": f"{total.elements:,}",
            "not zero": percent(total.changed_share),
            "norm": f"{total.norm:.4g}",
        }
        if total.top is not None:
            facts["largest 1%"] = f"{percent(total.top[1.0])} of the squared norm"
        if total.spectrum is not None:
            facts["effective rank"] = f"{total.spectrum.rank:.0f} of {total.spectrum.full_rank:.0f}"
        for name, alike in total.alike.items():
            if alike.cosine is not None:
                facts[f"cosine with {name}"] = f"{alike.cosine:.4f}"
        return facts

    def _tables(self) -> Mapping[str, Any]:
        data, names = self.to_dict, ("tensors", "layers", "modules", "kinds", "groups")
        return {name: lambda name=name: data()[name] for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "schema": SCHEMA,
            "vector": self.vector,
            "total": _row(self.total),
            "layers": [{"layer": layer, **_row(row)} for layer, row in self.layers.items()],
            "modules": [{"module": name, **_row(row)} for name, row in self.modules.items()],
            "kinds": [{"kind": name, **_row(row)} for name, row in self.kinds.items()],
            "groups": [{"group": name, **_row(row)} for name, row in self.groups.items()],
            "tensors": [{"name": name, **_row(row)} for name, row in self.tensors.items()],
            "cosines": self.cosines,
            "unmatched": self.unmatched,
        }

    def __str__(self) -> str:
        return f"{self.vector}: {self.summary}"


def _row(figures: Figures) -> dict[str, Any]:
    spectrum = figures.spectrum
    return {
        "tensors": figures.tensors,
        "elements": figures.elements,
        "changed": figures.changed,
        "changed_share": figures.changed_share,
        "norm": figures.norm,
        "share": figures.share,
        "mean_size": figures.mean_size,
        "largest": figures.largest,
        "top": _keyed(figures.top),
        "needed": _keyed(figures.needed),
        "rank": spectrum.rank if spectrum else None,
        "stable_rank": spectrum.stable_rank if spectrum else None,
        "full_rank": spectrum.full_rank if spectrum else None,
        "energy": _keyed(spectrum.energy) if spectrum else None,
        "alike": {
            name: {"cosine": a.cosine, "sign_agreement": a.sign_agreement, "norm": a.norm}
            for name, a in figures.alike.items()
        },
    }


def _keyed(values: Mapping[Any, float] | None) -> dict[str, float] | None:
    return None if values is None else {f"{key:g}": value for key, value in values.items()}


def keys_of(name: str) -> tuple[int | None, str]:
    """The place of a tensor in the heat map."""
    return layer_of(name), module_of(name)


def pooled(spectra: Iterable[tuple[Spectrum, float]]) -> Spectrum | None:
    """The spectra of several matrices as one, weighted by their squared norms; None without any."""
    rows = list(spectra)
    total = math.fsum(square for _, square in rows)
    if not total:
        return None

    def mean(values: Iterable[float]) -> float:
        row = list(values)
        if len(row) == 1:
            return row[0]
        return math.fsum(v * square for v, (_, square) in zip(row, rows, strict=True)) / total

    ranks = rows[0][0].energy
    return Spectrum(
        rank=mean(row.rank for row, _ in rows),
        stable_rank=mean(row.stable_rank for row, _ in rows),
        full_rank=mean(row.full_rank for row, _ in rows),
        energy={rank: mean(row.energy[rank] for row, _ in rows) for rank in ranks},
    )
