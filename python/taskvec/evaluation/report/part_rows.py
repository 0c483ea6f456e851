"""The table of the parts of a vector, its numbers as text and as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskvec.evaluation.analysis.parts import PartFinding
from taskvec.evaluation.report.labels import difference, metric_unit, p_value, with_interval
from taskvec.text import size

if TYPE_CHECKING:
    from taskvec.evaluation.report.report import Report


def part_rows(report: Report) -> list[dict[str, Any]]:
    """One row per part and task; the sides of its two tests are ``first`` and ``second``."""
    named = {record.name: record for record in report.records}
    return [_row(report, found, named[found.arm]) for found in report.parts()]


def _row(report: Report, found: PartFinding, record: Any) -> dict[str, Any]:
    scale, _ = metric_unit(report, found.task)
    score = report.score(record, found.task)
    return {
        "arm": record.arm,
        "task": found.task,
        "family": found.family,
        "value": score.value if score else None,
        "score": with_interval(score, scale),
        "n": score.n if score else 0,
        "bytes": found.bytes,
        "size": size(found.bytes) if found.bytes is not None else "–",
        "share": found.share,
        "cosine": found.cosine,
        "tests": [
            {
                "against": item.against,
                "difference": difference(item, scale),
                "value": item.difference,
                "p_holm": p_value(item.p_holm),
                "p": item.p_holm,
                "verdict": item.verdict,
            }
            for item in found.against
        ],
    }
