"""The table of several sweeps: one row for each, the arms across."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskvec.evaluation.report.labels import number, p_value
from taskvec.evaluation.report.pooling import other_in_words
from taskvec.evaluation.report.several import Result, as_written

UNKNOWN = "–"


def table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text: scores in per cent where they are shares of right answers.

    Raises
    ------
    EvaluationError
        The report of a sweep is damaged.
    """
    for result in results:
        with as_written(result.label):
            _table([result])
    return _table(results)


def _table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    vectors = [arm for result in results for arm in result.plain_arms if arm["kind"] == "vector"]
    alphas = sorted({arm["alpha"] for arm in vectors} - {0.0, None})  # at 0 it is the baseline
    others = _others(results)
    several = len({result.task for result in results}) > 1
    header = [
        "result", *(["task"] if several else []), "reference → donor", "gate", "baseline",
        *(_alpha(alpha) for alpha in alphas), "α", *others, "p", "verdict",
    ]  # fmt: skip
    return header, [_cells(result, alphas, others, several) for result in results]


def _others(results: Sequence[Result]) -> list[str]:
    """What the vector is held against besides the baseline, and the whole difference, in a fixed order."""
    found: dict[str, None] = {}
    for kinds in (("random",), ("permuted",), ("sft",), ("rival",), ("whole",)):
        for result in results:
            for arm in result.plain_arms:
                if arm["kind"] in kinds:
                    found[_column(arm)] = None
    return list(found)


def _column(arm: dict[str, Any]) -> str:
    if arm["kind"] == "whole":
        return "donor − base"
    return other_in_words(arm).removeprefix("the ")


def _alpha(alpha: float) -> str:
    sign = "+" if alpha > 0 else "−" if alpha < 0 else ""
    size = "" if abs(alpha) == 1 else f"{abs(alpha):g} "
    return f"{sign}{size}v"


def _cells(result: Result, alphas: Sequence[float], others: Sequence[str], several: bool) -> list[str]:
    arms = result.plain_arms
    scale = 100.0 if any(test["test"] == "mcnemar" for test in result.primary) else 1.0

    def of(**wanted: Any) -> str:
        found = [a for a in arms if all(a[key] == value for key, value in wanted.items())]
        return number(result.score(found[0]), scale) if found else UNKNOWN

    def other(column: str) -> str:
        values = [
            value
            for arm in arms
            if arm["kind"] in ("random", "permuted", "sft", "rival", "whole") and _column(arm) == column
            if (value := result.score(arm)) is not None
        ]
        ends = dict.fromkeys(number(value, scale) for value in (min(values), max(values))) if values else {}
        return "–".join(ends) or UNKNOWN

    first = next((t for t in result.primary if result.arm(t["against"])["kind"] == "baseline"), None)
    gate = result.gate
    return [
        result.label,
        *([result.task] if several else []),
        f"{of(kind='reference')} → {of(kind='donor')}",
        UNKNOWN if gate["comparison"] is None else "passed" if gate["passed"] else "not passed",
        of(kind="baseline"),
        *(of(kind="vector", alpha=alpha) for alpha in alphas),
        f"{result.alpha:g}",
        *(other(column) for column in others),
        p_value(first["p_holm"]) if first else UNKNOWN,
        _verdict(result, first),
    ]


def _verdict(result: Result, first: dict[str, Any] | None) -> str:
    """The claim in a few words, with the arms that were not beaten."""
    if result.conclusion["transferred"]:
        return "transferred"
    if not result.gate["passed"]:
        return "no claim: gate not passed" if result.gate["comparison"] else "no claim: no gate"
    if first is None or first["verdict"] != "better":
        return "no gain shown"
    unbeaten = dict.fromkeys(
        _column(result.arm(test["against"])) for test in result.primary if test["verdict"] != "better"
    )
    if unbeaten:
        return f"gain; not more than {', '.join(unbeaten)}"
    if result.content.get("recovery"):
        return "a recovery"
    return "gain; no rival was run" if "rival" not in {a["kind"] for a in result.plain_arms} else "gain"
