"""The report of a search: a page and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from taskvec.evaluation.record import write_whole, writing
from taskvec.evaluation.report.figures import PALETTE
from taskvec.evaluation.report.labels import difference, number, p_value, with_interval
from taskvec.evaluation.search.figures import draw
from taskvec.evaluation.search.result import HeldOut, SearchResult
from taskvec.evaluation.search.trial import Trial
from taskvec.report.pages import templates
from taskvec.text import plural

ROLES = {
    "best": "best of the search",
    "baseline": "baseline",
    "random": "best of random search",
    "plain": "best plain recipe",
}
COLOURS = {"best": "vector", "baseline": "baseline", "random": "random", "plain": "sft", "search": "vector"}


def write_report(result: SearchResult, out: Path) -> None:
    """Write ``report.json`` and ``report.html``; an older report goes first."""
    texts = {
        "report.json": json.dumps(result.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.html": to_html(result),
    }
    for name in texts:
        with writing(out / name):
            (out / name).unlink(missing_ok=True)
    for name, text in texts.items():
        write_whole(out / name, text)


def to_html(result: SearchResult) -> str:
    """The page: one file, its style, script and figures inside."""
    environment = templates("taskvec.evaluation.search", "taskvec.evaluation.report")
    environment.filters.update(p=p_value, plural=plural, value=_value, plain=_plain)
    return environment.get_template("search.html.j2").render(_context(result))


def _context(result: SearchResult) -> dict[str, Any]:
    scale = 100 if result.is_share else 1
    return {
        "result": result,
        "free": result.space.free,
        "figures": draw(result),
        "palette": PALETTE,
        "roles": ROLES,
        "colours": COLOURS,
        "held_out": [_held_out_row(row, scale) for row in result.held_out],
        "verdicts": [
            {"item": each, "difference": difference(each, scale)}  # type: ignore[arg-type]
            for each in result.verdicts
        ],
        "comparisons": [{"item": each, "difference": difference(each, scale)} for each in result.comparisons],
        "trials": [
            _trial_row(trial, scale)
            for trial in (*result.trace, *result.random, *result.plain, result.baseline)
        ],
        "plains": [_trial_row(trial, scale) for trial in (result.baseline, *result.plain)],
        "unit": " (%)" if result.is_share else "",
        "several_tasks": len(result.metrics) > 1,
        "first": result.held_out[0].record,
        "score": number(result.best.score, scale),
    }


def _held_out_row(row: HeldOut, scale: int) -> dict[str, Any]:
    return {
        "role": row.role,
        "trial": row.trial,
        "score": number(row.score, scale),
        "value": row.score,
        "development": number(row.trial.score, scale),
        "tasks": {task: with_interval(score, scale) for task, score in row.scores.items()},
        "n": sum(score.n for score in row.scores.values()),
    }


def _trial_row(trial: Trial, scale: int) -> dict[str, Any]:
    return {"trial": trial, "score": number(trial.score, scale), "value": trial.score}


def _value(value: Any) -> str:
    """A free value as a reader writes it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> str:
    """A setting as a reader writes it."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return str(value)
