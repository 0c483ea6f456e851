"""The page of what a vector is made of: tables, maps of layers and modules, curves; no network."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec._core import write_atomic
from taskvec.errors import OutputError
from taskvec.files import look
from taskvec.report.composition import Composition, Figures
from taskvec.report.heatmap import maps
from taskvec.report.pages import templates

PAGE, DATA = "analysis.html", "analysis.json"


def write(composition: Composition, out: str | os.PathLike[str]) -> list[Path]:
    """Write ``analysis.json`` and ``analysis.html`` into a folder; the paths written.

    Raises
    ------
    OutputError
        They cannot be written.
    """
    out = Path(out)
    text = json.dumps(composition.to_dict(), indent=1, allow_nan=False) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in ((DATA, text), (PAGE, page(composition))):
            write_atomic(out / name, content.encode())
    except OSError as error:
        raise OutputError(
            f"cannot write into `{out}`: {error.strerror or error}", look.way_out(error)
        ) from error
    return [out / DATA, out / PAGE]


def page(composition: Composition) -> str:
    """The HTML."""
    return (
        templates("taskvec.report")
        .get_template("analysis.html.j2")
        .render(
            title=composition.title,
            summary=composition.summary,
            composition=composition,
            tables=tables(composition),
            held=_held(composition.total),
            ranks=_ranks(composition.total),
            cosines=_cosines(composition),
            layers=[(_layer(layer), row.alike) for layer, row in composition.layers.items()],
            **maps(composition),
        )
    )


Table = tuple[str, list[tuple[str, Figures]]]


def tables(composition: Composition) -> list[Table]:
    """The tables of a vector: title and rows."""
    rows = [
        ("kind of module", list(composition.kinds.items())),
        ("group of layers", list(composition.groups.items())),
        ("layer", [(_layer(layer), row) for layer, row in composition.layers.items()]),
        ("module", list(composition.modules.items())),
    ]
    return [(title, own) for title, own in rows if own]


def _layer(layer: int | None) -> str:
    return "outside" if layer is None else str(layer)


def _held(total: Figures) -> list[tuple[str, float]]:
    return [(f"{amount:g}%", share) for amount, share in (total.top or {}).items()]


def _ranks(total: Figures) -> list[tuple[str, float]]:
    return [(str(rank), share) for rank, share in total.spectrum.energy.items()] if total.spectrum else []


def _cosines(composition: Composition) -> tuple[Sequence[str], Mapping[str, Mapping[str, Any]]]:
    return list(composition.cosines), composition.cosines
