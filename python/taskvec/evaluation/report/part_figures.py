"""The figures of the parts of a vector: which groups carry it, how small it can be, what lies between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taskvec.evaluation.analysis.pairs import parts_of, plain_arm
from taskvec.evaluation.analysis.parts import PartFinding, family_of
from taskvec.evaluation.record import ArmRecord, Score
from taskvec.evaluation.report.figures import WIDTH, Figure, Paint, drawn
from taskvec.evaluation.report.labels import group_label, metric_unit, part_label, task_file
from taskvec.text import size

if TYPE_CHECKING:
    from taskvec.evaluation.report.report import Report


def draw_parts(report: Report, task: str) -> dict[str, Figure]:
    """The figures of one task by file name, those for which there are arms."""
    families = {family_of(record) for record in _own(report, task)}
    name, found = task_file(task), dict[str, Any]()
    if "group" in families:
        found[f"groups-{name}"] = drawn(
            f"Groups of the vector: {task}",
            f"score of {task} with only one group of the vector added, and with all but it",
            lambda paint: _groups(report, task, paint),
        )
    if "amount" in families:
        found[f"sizes-{name}"] = drawn(
            f"Score by size of the vector: {task}",
            f"score of {task} over the bytes that less and less of the vector takes",
            lambda paint: _sizes(report, task, paint),
        )
    if "between" in families:
        found[f"between-{name}"] = drawn(
            f"Between reference and donor: {task}",
            f"score of {task} on the line from the reference to the donor and beyond",
            lambda paint: _between(report, task, paint),
        )
    return found


def _own(report: Report, task: str) -> list[ArmRecord]:
    """The parts of the vector that was chosen for a task."""
    return parts_of(report.records, task, report.choice.of(task) if report.choice else None)


def _lines(axes: Any, report: Report, task: str, paint: Paint, *, vertical: bool) -> None:
    """Baseline and whole vector, as lines across."""
    scale, _ = metric_unit(report, task)
    draw = axes.axvline if vertical else axes.axhline
    for record, colour, label, style in (
        (plain_arm(report.records, "baseline", report.think), paint["baseline"], "baseline", ":"),
        (report.chosen.get(task), paint["vector"], "whole vector", "--"),
    ):
        score = report.score(record, task) if record is not None else None
        if score is not None and score.value is not None:
            draw(scale * score.value, color=colour, linestyle=style, linewidth=1.2, label=label)


def _reach(score: Score, scale: float) -> list[list[float]]:
    """What an interval reaches to below and above."""
    value = score.value or 0.0
    low = value if score.low is None else score.low
    high = value if score.high is None else score.high
    return [[max(0.0, scale * (value - low))], [max(0.0, scale * (high - value))]]


def _groups(report: Report, task: str, paint: Paint) -> Any:
    from matplotlib import pyplot

    scale, unit = metric_unit(report, task)
    records = {
        r.part: r for r in _own(report, task) if r.kind == "part" and r.arm.condition == (report.think, None)
    }
    labels = [part.removeprefix("only-") for part in records if part and part.startswith("only-")]
    figure, axes = pyplot.subplots(figsize=(WIDTH, 1.6 + 0.42 * len(labels)))
    _lines(axes, report, task, paint, vertical=True)
    marks = (
        ("only-", 0.13, "o", paint["part"], "only this group"),
        ("all-but-", -0.13, "s", "none", "all but it"),
    )
    for prefix, shift, marker, face, words in marks:
        first = True
        for height, label in enumerate(reversed(labels)):
            record = records.get(f"{prefix}{label}")
            score = report.score(record, task) if record is not None else None
            if score is None or score.value is None:
                continue
            axes.errorbar(
                [scale * score.value], [height + shift], xerr=_reach(score, scale), color=paint["part"],
                marker=marker, markerfacecolor=face, markersize=5, capsize=3, linestyle="none",
                label=words if first else None,
            )  # fmt: skip
            first = False
    axes.set_yticks(range(len(labels)), [group_label(label) for label in reversed(labels)])
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.set_xlabel(unit)
    axes.grid(axis="x", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


_CURVES = (
    ("top-", "largest elements", "-", "o"),
    ("rank-", "low rank", "--", "s"),
    ("sign", "signs alone", "", "D"),
)


def _sizes(report: Report, task: str, paint: Paint) -> Any:
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullFormatter

    scale, unit = metric_unit(report, task)
    figure, axes = pyplot.subplots(figsize=(WIDTH, 3.7))
    _lines(axes, report, task, paint, vertical=False)
    rows = [row for row in report.parts() if row.task == task and row.family == "amount" and row.bytes]
    named = {record.name: record for record in report.records}
    for prefix, words, line, marker in _CURVES:
        own = sorted(
            (row for row in rows if (row.part or "").startswith(prefix)), key=lambda row: row.bytes or 0
        )
        points = [(row, score) for row in own if (score := report.score(named[row.arm], task)) is not None]
        points = [(row, score) for row, score in points if score.value is not None]
        if points:
            _curve(axes, points, scale, paint["part"], words, line or "none", marker)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(int(value))))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12)
    axes.set_xlabel("bytes of such a vector")
    axes.set_ylabel(unit)
    axes.grid(axis="y", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _curve(
    axes: Any,
    points: Sequence[tuple[PartFinding, Score]],
    scale: float,
    colour: str,
    words: str,
    line: str,
    marker: str,
) -> None:
    xs = [row.bytes or 0 for row, _ in points]
    ys = [scale * (score.value or 0.0) for _, score in points]
    reach = [[_reach(score, scale)[side][0] for _, score in points] for side in (0, 1)]
    axes.errorbar(
        xs, ys, yerr=reach, color=colour, linestyle=line, marker=marker, markersize=5, linewidth=1.4,
        capsize=3, markerfacecolor=colour if marker == "o" else "none", label=words,
    )  # fmt: skip
    for (row, _), x, y in zip(points, xs, ys, strict=True):
        text = (
            part_label(row.part or "").removeprefix("largest ").removeprefix("rank ").removesuffix(" alone")
        )
        axes.annotate(text, (x, y), xytext=(4, 5), textcoords="offset points", fontsize=7.5)


def _between(report: Report, task: str, paint: Paint) -> Any:
    from matplotlib import pyplot

    scale, unit = metric_unit(report, task)
    figure, axes = pyplot.subplots(figsize=(WIDTH, 3.4))
    points: list[tuple[float, ArmRecord]] = []
    for kind, place in (("reference", 0.0), ("donor", 1.0)):
        record = plain_arm(report.records, kind, report.think)
        if record is not None:
            points.append((place, record))
    points += [(r.arm.factor, r) for r in _own(report, task) if r.kind == "between"]
    scored = [(x, r, score) for x, r in points if (score := report.score(r, task)) is not None]
    scored = sorted(((x, r, s) for x, r, s in scored if s.value is not None), key=lambda each: each[0])
    axes.plot([x for x, *_ in scored], [scale * (s.value or 0.0) for *_, s in scored], color=paint["between"])
    shown: set[str] = set()
    for x, record, score in scored:
        words = {"reference": "reference", "donor": "donor"}.get(record.kind, "between and beyond")
        axes.errorbar(
            [x], [scale * (score.value or 0.0)], yerr=_reach(score, scale), color=paint[record.kind],
            marker="o", markersize=5, capsize=3, linestyle="none", label=None if words in shown else words,
        )  # fmt: skip
        shown.add(words)
    axes.set_xlabel("t of reference + t (donor − reference)")
    axes.set_ylabel(unit)
    axes.grid(axis="y", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure
