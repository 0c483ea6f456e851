"""The forest plot of pooled differences: every result with its interval, and the mean below them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskvec.evaluation.report.figures import WIDTH, Figure, Paint, drawn

if TYPE_CHECKING:
    from taskvec.evaluation.report.pooling import Verdict


def forest(verdict: Verdict, what: str) -> Figure:
    """A figure of what `what` (+v, the donor) is more than."""
    title = f"{what} against {verdict.against}"
    return drawn(
        title,
        f"difference of {title}, by result, with 95 % intervals, and the pooled difference",
        lambda paint: _paint(verdict, what, paint),
    )


def _paint(verdict: Verdict, what: str, paint: Paint) -> Any:
    from matplotlib import pyplot

    rows, pooled, scale = verdict.rows, verdict.pooled, verdict.scale
    several = len({row.task for row in rows}) > 1
    figure, axes = pyplot.subplots(figsize=(WIDTH, 1.3 + 0.27 * (len(rows) + 1)))
    for height, row in enumerate(reversed(rows), start=1):
        middle = row.effect.difference
        axes.errorbar(
            [scale * middle],
            [height],
            xerr=[[scale * (middle - row.low)], [scale * (row.high - middle)]],
            color=paint["vector"], marker="s", capsize=3, linewidth=1.4,
            markersize=3 + 4 * min(1.0, min(r.effect.error for r in rows) / row.effect.error),
        )  # fmt: skip
    axes.fill(
        [scale * x for x in (pooled.low, pooled.difference, pooled.high, pooled.difference)],
        [0.0, 0.28, 0.0, -0.28],
        color=paint["donor"],
    )
    if pooled.expected_low is not None and pooled.expected_high is not None:
        ends = [scale * pooled.expected_low, scale * pooled.expected_high]
        axes.plot(ends, [-0.45, -0.45], color=paint["donor"], linewidth=1.0, linestyle=":")
    axes.axvline(0.0, color=paint["baseline"], linewidth=1.0)
    names = [f"{row.label}, {row.task}" if several else row.label for row in reversed(rows)]
    axes.set_yticks(range(len(rows) + 1), ["pooled", *names])
    axes.set_ylim(-0.8, len(rows) + 0.6)
    unit = "points" if scale == 100 else verdict.unit
    axes.set_xlabel(f"{what} minus {verdict.against}, {unit}")
    axes.grid(axis="x", linewidth=0.6)
    return figure
