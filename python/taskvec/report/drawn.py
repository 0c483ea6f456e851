"""Results that have a heat map, layers by kinds of module: shown in a notebook, and drawn by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskvec.errors import Error
from taskvec.report.tables import Tabled
from taskvec.text import nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from taskvec.report.heatmap import Mapped


class Drawn(Tabled):
    """The part of a result that draws its heat map."""

    __slots__ = ()

    def _map(self, output: int = 0) -> Mapped | None:  # noqa: ARG002
        """What is drawn; of a result of several outputs, one of them."""
        return self  # type: ignore[return-value]

    def plot(self, measure: str | None = None, *, output: int = 0) -> Figure:
        """Heat maps of layers by kinds of module.

        Parameters
        ----------
        measure : str, optional
            One of the figures, by its title or its beginning; all of them by default.
        output : int
            Of a run that wrote several folders, which, counted from zero.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        taskvec.Error
            matplotlib is not installed, or there is nothing to draw.
        """
        from taskvec.report import heatmap

        try:
            figures = self._map(output)
        except IndexError:
            raise Error(f"there is no output {output}", "they are counted from zero") from None
        if figures is None:
            raise Error("there is nothing to draw: no tensor has an update that was measured")
        titles = [each.title for each in heatmap.MEASURES[figures.kind]]
        if measure is None:
            return _shown(figures, None)
        chosen = [title for title in titles if title.lower().startswith(measure.lower())]
        if not measure or not chosen:
            near = nearest(measure, titles, cutoff=0.3)
            known = ", ".join(f"`{title}`" for title in titles)
            hint = f"did you mean `{near}`?" if near else f"the figures are {known}"
            raise Error(f"there is no figure `{measure}`", hint)
        return _shown(figures, chosen[0])

    def _more_html(self) -> str:
        from taskvec.report import heatmap

        figures = self._map()
        return "" if figures is None else heatmap.inline(figures)


def _shown(figures: Mapped, title: str | None) -> Figure:
    """A figure that a notebook shows where it is returned, once."""
    from taskvec.report import heatmap

    heatmap.require_matplotlib()
    from matplotlib import pyplot

    figure = heatmap.figure(figures, title, pyplot.figure)
    pyplot.close(figure)
    return figure
