"""The report as a page and as Markdown, from the templates in this folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from taskvec.evaluation.analysis.compare import Comparison
from taskvec.evaluation.analysis.flips import Outcome
from taskvec.evaluation.analysis.mistakes import MISTAKES
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.paper import NOT_STATED
from taskvec.evaluation.record import ArmRecord
from taskvec.evaluation.report.figures import PALETTE, Figure
from taskvec.evaluation.report.labels import (
    arm_label,
    arms_label,
    difference,
    metric_unit,
    number,
    p_value,
    task_file,
    with_interval,
)
from taskvec.evaluation.report.part_rows import part_rows
from taskvec.evaluation.report.perturbed_rows import effect_rows
from taskvec.evaluation.report.score_rows import VIEWS, draw_rows, form_rows, slice_rows
from taskvec.report.pages import templates
from taskvec.text import minus, plural

if TYPE_CHECKING:
    from taskvec.evaluation.report.report import Report


def to_html(report: Report, figures: Mapping[str, Figure]) -> str:
    """``report.html``: one file, its style, script and figures inside."""
    return environment(html=True).get_template("report.html.j2").render(_context(report, figures))


def to_markdown(report: Report, figures: Mapping[str, Figure]) -> str:
    """``report.md``; its figures are the files in ``figures/``."""
    return environment(html=False).get_template("report.md.j2").render(_context(report, figures))


def environment(*, html: bool) -> Any:
    environment = templates("taskvec.evaluation.report", html=html)
    environment.filters.update(
        label=arm_label, plain=_plain, p=p_value, number=number, file=task_file, visible=_visible, cell=_cell,
        plural=plural, together=_together, thousands=_thousands,
        quoted=lambda text: json.dumps(text, ensure_ascii=False),
    )  # fmt: skip
    return environment


def _visible(text: str) -> str:
    """Model output with its control characters made visible."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def _together(text: str) -> str:
    """A text whose figures stay on one line with their units and names."""
    return text.replace(" %", "\u00a0%").replace(" = ", "\u00a0=\u00a0").replace(" points", "\u00a0points")


def _plain(value: Any) -> str:
    """A setting as a reader writes it."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "none"
    return str(value)


def _thousands(value: Any) -> str:
    """A count with its thousands apart; what is not one as it is."""
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cell(text: Any) -> str:
    """A value inside a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def _context(report: Report, figures: Mapping[str, Figure]) -> dict[str, Any]:
    names = {record.name: record.arm for record in report.records}
    return {
        "report": report,
        "families": _families(report),
        "figures": figures,
        "palette": PALETTE,
        "arms": arm_rows(report),
        "comparisons": [_comparison_row(report, item, names) for item in report.comparisons],
        "views": VIEWS,
        "parts": part_rows(report),
        "slices": slice_rows(report),
        "forms": form_rows(report),
        "draws": draw_rows(report),
        "effects": effect_rows(report),
        "examples": report.examples(),
        "gates": [(gate, _scaled(report, gate.comparison)) for gate in report.gates],
        "flips": [*report.flips(), *report.unchanged()],
        "outcomes": get_args(Outcome),
        "changes": report.changes(),
        "mistakes": MISTAKES,
        "survival": [
            (names[name], merged.survival) for name, merged in report.merges.items()
            if merged.survival and names[name].alpha and names[name].condition == (report.think, None)
        ],
        "norms": report.norms(),
        "paper": report.paper(),
        "paper_rows": _paper_rows(report),
        "not_stated": NOT_STATED,
        "findings": report.findings(),
        "warnings": [
            (arms_label([arm_label(record.arm) for record in records], len(report.records)), text)
            for records, text in report.warnings()
        ],
        "several_tasks": len(report.tasks) > 1,
        "first": report.records[0],
    }  # fmt: skip


def _paper_rows(report: Report) -> list[dict[str, Any]]:
    """The paper's table, its figures and those here as text."""
    page = report.paper()
    return [
        {
            "row": row,
            "paper": minus(f"{row.paper.points:+.1f}") if row.paper else "not stated",
            "here": difference(row.here, metric_unit(report, row.task)[0])
            if row.here and row.task
            else "not measured",
        }
        for row in (page.rows if page is not None else ())
    ]


def _families(report: Report) -> str:
    """What tests are corrected over, in words."""
    primary, whole = len(report.primary), len(report.comparisons)
    if not primary:
        return f" over {plural(whole, 'test')}" if whole > 1 else ""
    if primary == whole:
        return f" over {plural(primary, 'primary test')}"
    return f" over {plural(primary, 'primary test')} and, apart, {plural(whole - primary, 'secondary test')}"


def arm_rows(report: Report) -> list[dict[str, Any]]:
    """The table of arms: one row per task and arm, its numbers as text and as they are."""
    return [
        _arm_row(report, record, task)
        for task in report.tasks
        for record in report.whole_records
        if task in record.tasks
    ]


def _arm_row(report: Report, record: ArmRecord, task: str) -> dict[str, Any]:
    scale, unit = metric_unit(report, task)
    score, found = report.score(record, task), report.against_baseline(record, task)
    lengths = report.output_tokens(record).get(task)
    return {
        "arm": record.arm,
        "task": task,
        "unit": unit,
        "n": score.n if score else 0,
        "value": score.value if score else None,
        "score": with_interval(score, scale),
        "comparison": found,
        "difference": difference(found, scale) if record.kind != "baseline" else "",
        "p_holm": p_value(found.p_holm) if found and record.kind != "baseline" else "",
        "verdict": found.verdict if found and record.kind != "baseline" else "",
        "tokens": lengths["mean"] if lengths else None,
        "cut": lengths["cut"] if lengths else None,
    }


def _comparison_row(report: Report, item: Comparison, names: Mapping[str, Arm]) -> dict[str, Any]:
    scale, _ = metric_unit(report, item.task)
    return {
        "item": item,
        "arm": names[item.arm],
        "against": names[item.against],
        "difference": difference(item, scale),
        "detectable": number(item.detectable, scale),
    }


def _scaled(report: Report, item: Comparison | None) -> str:
    return difference(item, metric_unit(report, item.task)[0]) if item is not None else "–"
