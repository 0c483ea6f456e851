"""The figures of a search: its trace, and its candidates across the free values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from taskvec.evaluation.report.figures import WIDTH, Figure, Paint, drawn
from taskvec.evaluation.search.free import Free
from taskvec.evaluation.search.result import SearchResult
from taskvec.evaluation.search.trial import Trial, best

MOST_LINES = 150  # candidates that are drawn across the free values
TOP = 0.1  # of them, in colour


def draw(result: SearchResult) -> dict[str, Figure]:
    """Every figure by its name."""
    found = {
        "trace": drawn(
            "Score by candidate, and the best so far",
            "development score of each candidate in order, of the search and of random search",
            lambda paint: _trace(result, paint),
        )
    }
    if len(result.space.free) > 1:
        found["values"] = drawn(
            "Candidates across the free values",
            "a line for each candidate across its values, the best in colour",
            lambda paint: _values(result, paint),
        )
    return found


def _trace(result: SearchResult, paint: Paint) -> Any:
    from matplotlib import pyplot

    scale = 100 if result.is_share else 1
    figure, axes = pyplot.subplots(figsize=(WIDTH, 3.2))
    for trials, colour, label in (
        (result.random, paint["random"], "random search"),
        (result.trace, paint["vector"], "search"),
    ):
        scored = [trial for trial in trials if trial.score is not None]
        if not scored:
            continue
        numbers = [trial.number for trial in scored]
        axes.scatter(
            numbers, [scale * (t.score or 0) for t in scored], s=9, color=colour, alpha=0.45, linewidths=0
        )
        axes.step(
            numbers,
            [scale * each for each in _best_so_far(scored)],
            where="post",
            color=colour,
            label=f"best of {label}",
        )
    for trial, colour, label, style in (
        (result.baseline, paint["baseline"], "baseline", ":"),
        (best(list(result.plain)), paint["sft"], "best plain recipe", "--"),
    ):
        if trial is not None and trial.score is not None:
            axes.axhline(scale * trial.score, color=colour, linestyle=style, linewidth=1.2, label=label)
    axes.set_xlabel("candidate")
    axes.set_ylabel("development score" + (" (%)" if result.is_share else ""))
    axes.grid(axis="y", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _best_so_far(trials: Sequence[Trial]) -> list[float]:
    found, top = [], -math.inf
    for trial in trials:
        top = max(top, trial.score if trial.score is not None else -math.inf)
        found.append(top)
    return found


def _values(result: SearchResult, paint: Paint) -> Any:
    from matplotlib import pyplot

    free = result.space.free
    ordered = sorted(
        (trial for trial in result.trace if trial.score is not None), key=lambda trial: -(trial.score or 0)
    )[:MOST_LINES]
    figure, axes = pyplot.subplots(figsize=(WIDTH, 3.2))
    top = max(1, round(TOP * len(ordered)))
    for rank, trial in reversed(list(enumerate(ordered))):
        heights = [_height(each, trial.values[each.name]) for each in free]
        if trial.name == result.best.name:
            axes.plot(heights, color=paint["donor"], linewidth=2.2, label="best", zorder=4)
        elif rank < top:
            axes.plot(heights, color=paint["vector"], linewidth=1, alpha=0.7, zorder=3)
        else:
            axes.plot(heights, color=paint["baseline"], linewidth=0.6, alpha=0.25, zorder=2)
    axes.set_xticks(range(len(free)), [str(at + 1) for at in range(len(free))])
    axes.set_yticks([0, 1], ["low", "high"])
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("free value, by its number in the table")
    axes.grid(axis="x", linewidth=0.6)
    return figure


def _height(free: Free, value: Any) -> float:
    """Where a value stands between both ends of its range."""
    if free.kind == "choice":
        return [node.plain() for node in free.choices].index(value) / (len(free.choices) - 1)
    if free.log:
        return math.log(value / free.low) / math.log(free.high / free.low)
    return (value - free.low) / (free.high - free.low)
