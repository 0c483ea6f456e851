"""The report's figures: as PNG files, and as SVG whose colours follow the page (light or dark)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskvec.evaluation.analysis.norms import NormMap
from taskvec.evaluation.analysis.pairs import baselines
from taskvec.evaluation.arms import MATCHED, RIVALS
from taskvec.evaluation.record import ArmRecord, Score
from taskvec.evaluation.report.labels import arm_label, metric_unit, task_file

if TYPE_CHECKING:
    from taskvec.evaluation.report.report import Report

DPI = 160
WIDTH = 4.7  # inches; small enough that 9 points stay readable where a phone shows the whole width


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: a title for the page and the reader of alternative text, and both forms."""

    title: str
    alt: str
    png: bytes
    svg: str


# the colours on paper; each is used for one thing alone, so that a page can replace it
PALETTE = {
    "ink": "#1c2430",
    "line": "#c9ced6",
    "baseline": "#5b6472",
    "vector": "#1f6feb",
    "random": "#d9730d",
    "permuted": "#b8870b",
    "sft": "#8250df",
    "rival": "#c2185b",
    "whole": "#0f766e",
    "donor": "#1a7f37",
    "reference": "#a0522d",
    "part": "#0f7f8c",
    "between": "#7d7f1a",
}

# what stands next to the vector in its curve: kind, marker, step to the side from one to the next, name
CONTROLS = (
    ("random", "^", 0.05, "random vectors"),
    ("permuted", "v", -0.05, "permuted vector"),
    ("sft", "D", 0.0, "SFT vector"),
    ("rival", "P", 0.0, "rivals"),
)

Paint = dict[str, str]


def draw(report: Report) -> dict[str, Figure]:
    """Every figure of a report by file name, in the order in which they are shown."""
    figures: dict[str, Figure] = {}
    for task in report.tasks:
        name = task_file(task)
        if any(record.kind == "vector" and _is_scored(report, record, task) for record in report.records):
            figures[f"alpha-{name}"] = drawn(
                f"Score by alpha: {task}",
                f"score of {task} over alpha, with 95 % intervals and controls",
                lambda paint, task=task: alpha_curve(report, task, paint),
            )
        if any(comparison.task == task for comparison in report.comparisons):
            figures[f"differences-{name}"] = drawn(
                f"Difference to the baseline: {task}",
                f"difference of each arm to the baseline on {task}, with 95 % intervals",
                lambda paint, task=task: differences(report, task, paint),
            )
        if any(task in record.output_tokens for record in report.whole_records):
            figures[f"lengths-{name}"] = drawn(
                f"Output lengths: {task}",
                f"mean output tokens of each arm on {task}, and the share that the limit cut",
                lambda paint, task=task: _lengths(report, task, paint),
            )
    norms = report.norms()
    if norms is not None and norms.layers:
        figures["norms"] = drawn(
            "Norm of the vector",
            "L2 norm of the vector by layer and module",
            lambda paint: _norms(norms, paint),
        )
    return figures


def _is_scored(report: Report, record: ArmRecord, task: str) -> bool:
    score = report.score(record, task)
    return score is not None and score.value is not None


def drawn(title: str, alt: str, paint: Callable[[Paint], Any]) -> Figure:
    import matplotlib as mpl
    from matplotlib import pyplot

    options: dict[str, Any] = {
        "font.family": "sans-serif",
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "figure.constrained_layout.use": True,
        "savefig.transparent": False,
    }

    ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), PALETTE["ink"])
    lines: dict[str, Any] = {"axes.edgecolor": PALETTE["line"], "grid.color": PALETTE["line"]}
    png, svg = io.BytesIO(), io.BytesIO()
    backend = mpl.get_backend()
    mpl.use("agg")
    try:
        with mpl.rc_context({**options, **ink, **lines}):  # type: ignore[arg-type]
            figure = paint(PALETTE)
            try:
                figure.savefig(png, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
                figure.set_layout_engine("none")  # where things stand is settled
                figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            finally:
                pyplot.close(figure)
    finally:
        mpl.use(backend)
    return Figure(title, alt, png.getvalue(), _themed(svg.getvalue().decode(), alt))


def _themed(svg: str, alt: str) -> str:
    """An SVG for the inside of a page: scaled by its container, its colours the page's."""
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for name, colour in PALETTE.items():
        text = text.replace(colour, "currentColor" if name == "ink" else f"var(--{name})")
    # matplotlib names fonts that a phone lacks; the page's own are meant
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{alt}" ', 1)


def alpha_curve(report: Report, task: str, paint: Paint) -> Any:
    """The scores of a task over alpha, with baseline, donor, reference, controls and rivals."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(WIDTH, 3.7))
    scale, unit = metric_unit(report, task)
    under = [r for r in report.records if r.perturb is None and task in r.tasks]
    prompts = list(dict.fromkeys(r.think for r in under if r.kind in ("baseline", "vector")))
    for number, think in enumerate(prompts):
        rows = _by_alpha(report, [r for r in under if r.think == think], task)
        reach = max((abs(x) for x, _ in rows), default=1.0)
        rows = [(x + 0.02 * reach * number, score) for x, score in rows]  # next to each other, not over
        label = "+v" if think is None or len(prompts) == 1 else "+v, think"
        line, marker = ("-", "o") if number == 0 else ("--", "s")
        _points(axes, rows, scale, paint["vector"], label, line, marker)
    baseline = baselines(report.records).get((report.think, None))
    score = report.score(baseline, task) if baseline is not None else None
    if score is not None and score.value is not None:
        axes.axhline(
            scale * score.value, color=paint["baseline"], linestyle=":", linewidth=1.2, label="baseline"
        )
    for kind in ("donor", "reference"):
        found = next((r for r in under if r.kind == kind), None)
        score = report.score(found, task) if found is not None else None
        if score is not None and score.value is not None:
            axes.axhline(scale * score.value, color=paint[kind], linestyle="-.", linewidth=1.0, label=kind)
    for kind, marker, shift, label in CONTROLS:
        rows = [
            (_length(report, r, task), score)
            for r in under
            if r.kind == kind and r.think == report.think and (score := report.score(r, task)) is not None
        ]
        if rows:
            span = max((abs(x) for x, _ in rows), default=1.0) or 1.0
            spread = [(x + span * shift * (1 + i), score) for i, (x, score) in enumerate(rows)]
            _points(axes, spread, scale, paint[kind], label, "none", marker)
    axes.set_xlabel("alpha; other vectors by their length, in units of v's")
    axes.set_ylabel(unit)
    axes.grid(axis="y", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _length(report: Report, record: ArmRecord, task: str) -> float:
    """The length of an arm's step in units of v's: of a rival's from its arm at the norm of the chosen v."""
    if record.kind not in RIVALS or report.choice is None:
        return record.arm.factor
    stem = record.arm.stem.partition("@")[0]
    twin = next((r for r in report.records if r.arm.stem.startswith(f"{stem}{MATCHED}")), None)
    return record.arm.factor * report.choice.of(task) / twin.arm.factor if twin else record.arm.factor


def _by_alpha(report: Report, records: list[ArmRecord], task: str) -> list[tuple[float, Score]]:
    """The vector's scores by alpha; the baseline stands at 0 where no arm does."""
    rows: dict[float, Score] = {}
    for record in records:
        score = report.score(record, task)
        if score is not None and record.kind == "vector":
            rows[record.arm.factor] = score
        elif score is not None and record.kind == "baseline":
            rows.setdefault(0.0, score)
    return sorted(rows.items())


def _points(
    axes: Any, rows: list[tuple[float, Score]], scale: float, colour: str, label: str, line: str, marker: str
) -> None:
    rows = [(x, score) for x, score in rows if score.value is not None]
    if not rows:
        return
    xs = [x for x, _ in rows]
    ys = [scale * (score.value or 0.0) for _, score in rows]
    reach = [
        [
            max(0.0, y - scale * s.low) if s.low is not None else 0.0
            for y, (_, s) in zip(ys, rows, strict=True)
        ],
        [
            max(0.0, scale * s.high - y) if s.high is not None else 0.0
            for y, (_, s) in zip(ys, rows, strict=True)
        ],
    ]
    axes.errorbar(
        xs, ys, yerr=reach, color=colour, linestyle=line, marker=marker, markersize=5, linewidth=1.6,
        elinewidth=1.1, capsize=3, label=label,
    )  # fmt: skip


def differences(report: Report, task: str, paint: Paint) -> Any:
    """The difference of every arm to the baseline on a task."""
    from matplotlib import pyplot

    rows = [
        (record, found)
        for record in report.records
        if record.kind != "baseline" and (found := report.against_baseline(record, task)) is not None
    ]
    scale, unit = metric_unit(report, task)
    figure, axes = pyplot.subplots(figsize=(WIDTH, 1.1 + 0.27 * max(1, len(rows))))
    for height, (record, found) in enumerate(reversed(rows)):
        axes.errorbar(
            [scale * found.difference],
            [height],
            xerr=[[scale * (found.difference - found.low)], [scale * (found.high - found.difference)]],
            color=paint[record.kind],
            marker="o" if found.verdict == "no difference shown" else "D",
            markerfacecolor="none" if found.verdict == "no difference shown" else paint[record.kind],
            markersize=5,
            capsize=3,
            linewidth=1.6,
        )
    axes.axvline(0.0, color=paint["baseline"], linewidth=1.0)
    axes.set_yticks(range(len(rows)), [arm_label(record.arm) for record, _ in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("difference to the baseline" + (", points" if scale == 100 else f", {unit}"))
    axes.grid(axis="x", linewidth=0.6)
    return figure


def _lengths(report: Report, task: str, paint: Paint) -> Any:
    from matplotlib import pyplot

    rows = [
        (record, lengths)
        for record in report.whole_records
        if (lengths := report.output_tokens(record).get(task)) is not None
    ]
    figure, axes = pyplot.subplots(figsize=(WIDTH, 0.9 + 0.25 * len(rows)))
    heights = list(range(len(rows)))[::-1]
    means = [lengths["mean"] for _, lengths in rows]
    axes.barh(heights, means, color=[paint[record.kind] for record, _ in rows], height=0.7)
    for height, (_, lengths) in zip(heights, rows, strict=True):
        text = f"{lengths['mean']:.0f}" + (f", {100 * lengths['cut']:.1f} % cut" if lengths["cut"] else "")
        at = (lengths["mean"], height)
        axes.annotate(text, at, xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(heights, [arm_label(record.arm) for record, _ in rows])
    axes.set_xlabel("mean output tokens")
    axes.set_xlim(0, 1.35 * max([*means, 1.0]))
    axes.spines["left"].set_visible(False)
    return figure


def _norms(norms: NormMap, paint: Paint) -> Any:
    import numpy as np
    from matplotlib import pyplot

    values = np.array([[np.nan if v is None else v for v in row] for row in norms.values])
    figure, axes = pyplot.subplots(figsize=(WIDTH, 1.3 + 0.26 * len(norms.modules)))
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap="viridis", vmin=0.0)
    axes.set_yticks(np.arange(len(norms.modules)) + 0.5, list(norms.modules))
    step = max(1, len(norms.layers) // 8)
    axes.set_xticks(np.arange(0, len(norms.layers), step) + 0.5, [str(n) for n in norms.layers[::step]])
    axes.set_xlabel("layer")
    axes.invert_yaxis()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02)
    bar.set_label("norm of v (L2)")
    bar.outline.set_edgecolor(paint["line"])
    return figure
