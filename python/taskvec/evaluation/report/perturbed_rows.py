"""The table of perturbations, its numbers as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskvec.evaluation.report.labels import difference, metric_unit, p_value, with_interval

if TYPE_CHECKING:
    from taskvec.evaluation.report.report import Report


def effect_rows(report: Report) -> list[dict[str, Any]]:
    """One row per perturbation and task; what was not measured is a dash."""
    named = {record.name: record for record in report.records}
    rows = []
    for effect in report.effects():
        scale, _ = metric_unit(report, effect.task)
        arms = {"baseline": named.get(effect.baseline or ""), "vector": named.get(effect.vector or "")}
        scores = {
            key: with_interval(report.score(record, effect.task), scale) if record is not None else "–"
            for key, record in arms.items()
        }
        test = effect.gain or effect.drop_baseline
        rows.append(
            {
                **scores,
                "perturb": effect.perturb,
                "task": effect.task,
                "drop_baseline": difference(effect.drop_baseline, scale),
                "drop_vector": difference(effect.drop_vector, scale),
                "gain": difference(effect.gain, scale),
                "verdict": effect.gain.verdict if effect.gain else "",
                "p_holm": p_value(effect.gain.p_holm) if effect.gain else "–",
                "n": test.n if test else 0,
                "left_out": effect.left_out,
            }
        )
    return rows
