"""A difference as a heat map, layers by kinds of module: one HTML file, or a picture (extra ``plot``)."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from taskvec.errors import Error, OutputError

if TYPE_CHECKING:
    from taskvec.report.difference import Difference, Pair


class Measure(NamedTuple):
    """A figure of two tensors that a map shows."""

    title: str
    value: Callable[[Pair], float | None]
    text: Callable[[float], str]
    logarithmic: bool


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _angle(pair: Pair) -> float | None:
    """1 − cosine: between two models of one lineage the cosine itself is a row of nines."""
    return None if pair.cosine is None else 1 - pair.cosine


MEASURES: dict[str, tuple[Measure, ...]] = {
    "checkpoints": (
        Measure("norm of the difference / norm", lambda pair: pair.relative_norm, "{:.1e}".format, True),
        Measure("share of elements that differ", lambda pair: pair.changed_share, _percent, False),
        Measure("1 - cosine", _angle, "{:.1e}".format, True),
    ),
    "vectors": (
        Measure("cosine", lambda pair: pair.cosine, "{:.3f}".format, False),
        Measure("overlap of the supports", lambda pair: pair.overlap, _percent, False),
        Measure("common elements whose signs agree", lambda pair: pair.sign_agreement, _percent, False),
    ),
}

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d0d7de; --heat: 214 100% 50%; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.8rem; }
th, td { border: 1px solid var(--line); padding: 0.2rem 0.45rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; } tbody th { position: sticky; left: 0; background: var(--paper); }
thead th { vertical-align: bottom; }
thead span { writing-mode: vertical-rl; transform: rotate(180deg); }
td { background: hsl(var(--heat) / var(--share)); }
@media print { .scroll { overflow: visible; } table { font-size: 0.6rem; } }
"""


def write_html(difference: Difference, path: str | os.PathLike[str]) -> None:
    """Write the maps and their figures as one HTML file that needs no network.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    _write(path, page(difference).encode())


def write_png(difference: Difference, path: str | os.PathLike[str]) -> None:
    """Write the maps as a picture.

    Raises
    ------
    Error
        matplotlib is not installed.
    OutputError
        The file cannot be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers, modules = _axes(difference)
    measures = MEASURES[difference.kind]
    width = max(6.0, 2.0 + 0.55 * len(modules))
    height = (0.8 + 0.24 * len(layers)) * len(measures) + 2.0
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{difference.left} and {difference.right}", parse_math=False)
    rows = figure.subplots(len(measures), 1, squeeze=False, sharex=True)[:, 0]
    for axes, measure in zip(rows, measures, strict=True):
        values = _values(difference, measure, layers, modules)
        shown = [[_scaled(value, measure) for value in row] for row in values]
        image = axes.imshow([[math.nan if v is None else v for v in row] for row in shown], aspect="auto")
        axes.set_title(measure.title + (" (log10)" if measure.logarithmic else ""))
        axes.set_xticks(range(len(modules)), modules, rotation=60, ha="right", parse_math=False)
        axes.set_yticks(range(len(layers)), [_layer(layer) for layer in layers])
        figure.colorbar(image, ax=axes)
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise OutputError(f"`{path}` cannot be written: {error.strerror}", "name another file") from error


def require_matplotlib() -> None:
    """Raise an error that says what to install where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise Error(
            "matplotlib is not installed", "install the extra: pip install 'taskvec[plot]'; --html needs none"
        ) from error


def page(difference: Difference) -> str:
    """The HTML of :func:`write_html`."""
    title = html.escape(f"{difference.left} and {difference.right}")
    layers, modules = _axes(difference)
    total = difference.total
    maps = "".join(
        f"<h2>{html.escape(measure.title)}</h2>\n{_table(difference, measure, layers, modules)}"
        for measure in MEASURES[difference.kind]
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"<p>{len(difference.tensors):,} tensors, {total.elements:,} elements; "
        f"{total.changed:,} differ ({total.changed_share:.2%}). "
        f"Rows are layers, columns kinds of module.</p>\n{maps}</body>\n</html>\n"
    )


def _axes(difference: Difference) -> tuple[list[int | None], list[str]]:
    """The layers, what lies outside of them first, and the kinds of module."""
    layers = sorted(difference.layers, key=lambda layer: -1 if layer is None else layer)
    return layers, list(difference.modules)


def _values(
    difference: Difference, measure: Measure, layers: Sequence[int | None], modules: Sequence[str]
) -> list[list[float | None]]:
    grid = difference.grid
    return [
        [measure.value(grid[layer, module]) if (layer, module) in grid else None for module in modules]
        for layer in layers
    ]


def _table(
    difference: Difference, measure: Measure, layers: Sequence[int | None], modules: Sequence[str]
) -> str:
    values = _values(difference, measure, layers, modules)
    scaled = [s for row in values for value in row if (s := _scaled(value, measure)) is not None]
    low, high = (min(scaled), max(scaled)) if scaled else (0.0, 0.0)
    head = "".join(f'<th scope="col"><span>{html.escape(module)}</span></th>' for module in modules)
    rows = []
    for layer, row in zip(layers, values, strict=True):
        cells = "".join(_cell(value, measure, low, high) for value in row)
        rows.append(f'<tr><th scope="row">{_layer(layer)}</th>{cells}</tr>\n')
    return (
        f'<div class="scroll"><table>\n<thead><tr><th scope="col">layer</th>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n</table></div>\n"
    )


def _cell(value: float | None, measure: Measure, low: float, high: float) -> str:
    if value is None:
        return "<td></td>"
    scaled = _scaled(value, measure)
    share = 0.0 if scaled is None or high <= low else (scaled - low) / (high - low)
    return f'<td style="--share: {0.6 * share:.3f}">{html.escape(measure.text(value))}</td>'


def _scaled(value: float | None, measure: Measure) -> float | None:
    """Where a value lies on its scale; a zero has no place on a logarithmic one."""
    if value is None or not measure.logarithmic:
        return value
    return math.log10(value) if value > 0 else None


def _layer(layer: int | None) -> str:
    return "outside" if layer is None else str(layer)


def _write(path: str | os.PathLike[str], data: bytes) -> None:
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise OutputError(f"`{path}` cannot be written: {error.strerror}", "name another file") from error
