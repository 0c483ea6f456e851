"""Figures of tensors as a heat map, layers by kinds of module: one HTML file, or a picture (extra
``plot``)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from taskvec._core import write_atomic
from taskvec.errors import Error, OutputError
from taskvec.extras import install
from taskvec.files import look
from taskvec.report.pages import templates
from taskvec.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_FULL = 0.6  # opacity of the colour of the greatest figure: text on it stays readable, light and dark


class Mapped(Protocol):
    """What a map shows: figures per layer and kind of module, and of both together."""

    @property
    def kind(self) -> str:
        """Which of ``MEASURES`` it has."""
        ...

    @property
    def title(self) -> str:
        """The title of the page."""
        ...

    @property
    def summary(self) -> str:
        """What the figures are in all, in a sentence."""
        ...

    @property
    def layers(self) -> Mapping[int | None, Any]:
        """Per layer; ``None`` is what lies outside of the layers."""
        ...

    @property
    def modules(self) -> Mapping[str, Any]:
        """Per kind of module."""
        ...

    @property
    def grid(self) -> Mapping[tuple[int | None, str], Any]:
        """Per layer and kind of module."""
        ...


class Measure(NamedTuple):
    """A figure that a map shows."""

    title: str
    value: Callable[[Any], float | None]
    text: Callable[[float], str]
    logarithmic: bool


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _angle(pair: Any) -> float | None:
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
    "composition": (
        Measure("share of the squared norm", lambda row: row.share, _percent, False),
        Measure("norm", lambda row: row.norm, "{:.2e}".format, True),
        Measure("root mean square of an element", lambda row: row.mean_size, "{:.1e}".format, True),
        Measure("share of elements that are not zero", lambda row: row.changed_share, _percent, False),
    ),
    "survival": (
        Measure("error of the realised update", lambda row: row.relative_error, _percent, False),
        Measure("share rounded away", lambda row: row.rounded_away_share, _percent, False),
        Measure("norm of the requested update", lambda row: row.step_norm, "{:.1e}".format, True),
    ),
    "adapter": (
        Measure("share of the squared norm kept", lambda row: row.energy, _percent, False),
        Measure("rank", lambda row: row.rank, "{:.0f}".format, False),
        Measure("norm of the difference", lambda row: row.norm, "{:.1e}".format, True),
    ),
}


def write_html(figures: Mapped, path: str | os.PathLike[str]) -> None:
    """Write the maps and their figures as one HTML file that needs no network.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    _write(path, page(figures).encode())


def write_png(figures: Mapped, path: str | os.PathLike[str]) -> None:
    """Write the maps as a picture.

    Raises
    ------
    Error
        matplotlib is not installed.
    OutputError
        The file cannot be written.
    """
    try:
        figure(figures).savefig(path, format="png", dpi=120)
    except OSError as error:
        raise OutputError(f"`{path}` cannot be written: {error.strerror}", "name another file") from error


def figure(figures: Mapped, title: str | None = None, new: Callable[..., Figure] | None = None) -> Figure:
    """The maps as a figure of matplotlib, or the one of them that has a title.

    ``new`` makes the empty figure: pyplot's, which notebooks know how to show.

    Raises
    ------
    Error
        matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers, modules = _axes(figures)
    measures = [each for each in MEASURES[figures.kind] if title in (None, each.title)]
    width = max(6.0, 2.0 + 0.55 * len(modules))
    height = (0.8 + 0.24 * len(layers)) * len(measures) + 2.0
    drawn = (new or Figure)(figsize=(width, height), layout="constrained")
    if new is None:
        FigureCanvasAgg(drawn)
    drawn.suptitle(figures.title, parse_math=False)
    rows = drawn.subplots(len(measures), 1, squeeze=False, sharex=True)[:, 0]
    for axes, measure in zip(rows, measures, strict=True):
        values = _values(figures, measure, layers, modules)
        shown = [[_scaled(value, measure) for value in row] for row in values]
        image = axes.imshow([[math.nan if v is None else v for v in row] for row in shown], aspect="auto")
        axes.set_title(measure.title + (" (log10)" if measure.logarithmic else ""))
        axes.set_xticks(range(len(modules)), modules, rotation=60, ha="right", parse_math=False)
        axes.set_yticks(range(len(layers)), [_layer(layer) for layer in layers])
        drawn.colorbar(image, ax=axes)
    return drawn


def require_matplotlib() -> None:
    """Raise an error that says what to install where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise Error(
            "matplotlib is not installed", f"install the extra: {install('plot')}; --html needs none"
        ) from error


def page(figures: Mapped) -> str:
    """The HTML of :func:`write_html`."""
    return (
        templates("taskvec.report")
        .get_template("heatmap.html.j2")
        .render(title=printable(figures.title), summary=figures.summary, **maps(figures))
    )


def inline(figures: Mapped) -> str:
    """The maps for a notebook, in whose page styles cannot be declared: the first open, the others folded."""
    return templates("taskvec.report").get_template("heatmap_inline.html.j2").render(**maps(figures))


def maps(figures: Mapped) -> dict[str, Any]:
    """The ``modules`` and the ``maps`` of a page."""
    layers, modules = _axes(figures)
    shown = [_map(figures, measure, layers, modules) for measure in MEASURES[figures.kind]]
    return {"modules": [printable(module) for module in modules], "maps": shown}


def _axes(figures: Mapped) -> tuple[list[int | None], list[str]]:
    """The layers, what lies outside of them first, and the kinds of module."""
    layers = sorted(figures.layers, key=lambda layer: -1 if layer is None else layer)
    return layers, list(figures.modules)


def _values(
    figures: Mapped, measure: Measure, layers: Sequence[int | None], modules: Sequence[str]
) -> list[list[float | None]]:
    grid = figures.grid
    return [
        [measure.value(grid[layer, module]) if (layer, module) in grid else None for module in modules]
        for layer in layers
    ]


def _map(
    figures: Mapped, measure: Measure, layers: Sequence[int | None], modules: Sequence[str]
) -> dict[str, Any]:
    """One map as the template takes it: its title and, for each layer, the cells."""
    values = _values(figures, measure, layers, modules)
    scaled = [s for row in values for value in row if (s := _scaled(value, measure)) is not None]
    low, high = (min(scaled), max(scaled)) if scaled else (0.0, 0.0)
    rows = [
        (_layer(layer), [_cell(value, measure, low, high) for value in row])
        for layer, row in zip(layers, values, strict=True)
    ]
    return {"title": measure.title, "rows": rows, "legend": _legend(measure, low, high) if scaled else None}


def _legend(measure: Measure, low: float, high: float) -> dict[str, str]:
    """What the colours stand for: the least and the greatest figure, and how it goes between them."""
    ends = [measure.text(10**end if measure.logarithmic else end) for end in (low, high)]
    return {
        "low": ends[0],
        "high": ends[1],
        "full": f"{_FULL:.3f}" if high > low else "0.000",
        "scale": "logarithmic" if measure.logarithmic else "linear",
    }


def _cell(value: float | None, measure: Measure, low: float, high: float) -> dict[str, str] | None:
    """A figure as text, and the share of full colour behind it."""
    if value is None:
        return None
    scaled = _scaled(value, measure)
    share = 0.0 if scaled is None or high <= low else (scaled - low) / (high - low)
    return {"share": f"{_FULL * share:.3f}", "text": measure.text(value)}


def _scaled(value: float | None, measure: Measure) -> float | None:
    """The place of a value on its scale; a zero has none on a logarithmic one."""
    if value is None or not measure.logarithmic:
        return value
    return math.log10(value) if value > 0 else None


def _layer(layer: int | None) -> str:
    return "outside" if layer is None else str(layer)


def _write(path: str | os.PathLike[str], data: bytes) -> None:
    try:
        if look.exists(path) and not look.is_file(path):  # a pipe, a terminal
            Path(path).write_bytes(data)
        else:
            write_atomic(path, data)
    except OSError as error:
        words = f"`{path}` cannot be written: {error.strerror or error}"
        raise OutputError(words, "name another file") from error
