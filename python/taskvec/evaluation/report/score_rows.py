"""The tables of what a score is made of, their numbers as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskvec.evaluation.record import Score
from taskvec.evaluation.report.labels import metric_unit, number, p_value, with_interval

if TYPE_CHECKING:
    from taskvec.evaluation.report.report import Report

VIEWS = {
    "length": "Answers of matched length",
    "format": "By filter of the task, strict against flexible",
    "kind": "By kind of task",
}


def _difference(value: float | None, low: float | None, high: float | None, scale: float) -> str:
    if value is None:
        return "–"
    middle, below, above = (number(each, scale, signed=True) for each in (value, low, high))
    return f"{middle} [{below}, {above}]"


def slice_rows(report: Report) -> list[dict[str, Any]]:
    """One row per slice, with the title of its view."""
    rows = []
    for row in report.slices():
        scale, _ = metric_unit(report, row.task)
        rows.append(
            {
                "view": row.view,
                "title": VIEWS[row.view],
                "task": row.task,
                "label": row.label,
                "n": row.n,
                "before": number(row.before, scale),
                "after": number(row.after, scale),
                "difference": _difference(row.difference, row.low, row.high, scale),
                "gained": row.gained,
                "lost": row.lost,
                "p": p_value(row.p),
                "p_holm": p_value(row.p_holm),
                "shown": row.p_holm < 0.05,
            }
        )
    return rows


def draw_rows(report: Report) -> list[dict[str, Any]]:
    """One row per arm, task, measure and k."""
    named = {record.name: record.arm for record in report.records}
    return [
        {
            "arm": named[row.arm],
            "task": row.task,
            "measure": f"{row.measure}@{row.k}",
            "score": with_interval(Score(row.value, row.low, row.high, row.n), 100),
            "difference": _difference(row.difference, row.difference_low, row.difference_high, 100),
            "p_holm": p_value(row.p_holm) if row.p_holm is not None else "–",
            "samples": row.samples,
            "n": row.n,
        }
        for row in report.draws()
    ]


def form_rows(report: Report) -> list[dict[str, Any]]:
    """One row per arm and task, shares in per cent."""
    named = {record.name: record.arm for record in report.records}
    return [
        {
            "arm": named[row.arm],
            "task": row.task,
            "n": row.n,
            **{
                key: f"{100 * getattr(row, key) / row.n:.1f} %"
                for key in ("right", "form_only", "not_found", "cut")
            },
        }
        for row in report.forms()
    ]
