"""What was wrong with an answer: its arithmetic, its reading of the question, or its form alone."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.analysis.flips import changed_samples
from taskvec.evaluation.record import ArmRecord, Sample
from taskvec.evaluation.tasks.numbers import evaluate

Mistake = Literal["format", "cut", "arithmetic", "reading", "unknown"]
MISTAKES: tuple[Mistake, ...] = ("arithmetic", "reading", "format", "cut", "unknown")
NOT_FOUND = "[invalid]"  # lm-eval's word for an answer that a filter did not find

# An equation counts where it is whole: after a beginning of a line or of a clause, or a word of the kind that
# comes before a calculation. `twice 5 + 3 = 13` is right, though `5 + 3 = 13` is not.
_BEFORE = (
    r"(?:^|[\n.:;,!?(<=]|\b(?:is|are|was|were|be|has|have|had|get|gets|gives|makes|costs|equals|so|then|there|left|"
    r"total|that|of them))[ \t]*\$?"
)
_SIDE = r"[-+*/()\d. ]*"
_EQUATION = re.compile(
    rf"{_BEFORE}((?:\d|\(){_SIDE}[-+*/]{_SIDE}[\d)])[ \t]*=[ \t]*\$?(-?\d+(?:\.\d+)?)(?![\d/*]|\.\d)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Change:
    """What was wrong with the wrong answers of one task that another arm has right.

    Attributes
    ----------
    direction : {"gained", "lost"}
        ``gained``: wrong in `before`, right in `after`; ``lost``: the other way round.
    counts : dict of str to int
        By kind of mistake. ``arithmetic``: an equation of the answer does not hold. ``reading``: all its
        equations hold, and the result is another: a number or an operation was taken wrongly. ``format``: the
        answer is right by another filter of the task, or none could be found in it. ``cut``: the length limit
        ended it. ``unknown``: it shows no calculation that could be checked.
    """

    task: str
    direction: Literal["gained", "lost"]
    before: str
    after: str
    counts: dict[str, int]


def changes(before: ArmRecord, after: ArmRecord, split: Split) -> list[Change]:
    """The mistakes behind all documents of the report part that one arm has right and the other wrong.

    Tasks of which no answer is right or wrong (scores between 0 and 1) have none.
    """
    counts: dict[tuple[str, Literal["gained", "lost"]], Counter[str]] = {}
    for task, direction, one, other in changed_samples(before, after, split):
        metric = after.tasks[task].metric
        wrong = one if direction == "gained" else other
        if metric is None or after.tasks[task].output_type != "generate_until":
            continue
        counts.setdefault((task, direction), Counter())[mistake(wrong, metric)] += 1
    return [
        Change(task, direction, before.name, after.name, {kind: found[kind] for kind in MISTAKES})
        for (task, direction), found in counts.items()
    ]


def mistake(sample: Sample, metric: str) -> Mistake:
    """The mistake in an answer that `metric` counts as wrong."""
    name, _, own = metric.partition(",")
    others = [value for key, value in sample.metrics.items() if key != metric and key.split(",")[0] == name]
    if any(value == 1 for value in others):
        return "format"
    if sample.cut:
        return "cut"
    if sample.extracted.get(own) == NOT_FOUND:
        return "format"
    held = equations_hold(sample.output)
    if not held:
        return "unknown"
    return "reading" if all(held) else "arithmetic"


def equations_hold(text: str) -> list[bool]:
    """For each equation in a text whether it holds; a quotient may be rounded to its decimals."""
    found: list[bool] = []
    for expression, result in _EQUATION.findall(_plain(text)):
        try:
            value = evaluate(expression)
        except (ValueError, ZeroDivisionError):
            continue
        found.append(_equal(value, result, rounded="/" in expression or "." in expression))
    return found


def _equal(value: Fraction, result: str, *, rounded: bool) -> bool:
    decimals = len(result.partition(".")[2])
    slack = Fraction(1, 2 * 10**decimals) if rounded else Fraction(0)
    return abs(value - Fraction(result)) <= slack


def _plain(text: str) -> str:
    """A text with its calculations in the signs of a program."""
    text = re.sub(r"<<[^<>]*>>", "", text)  # a calculator's note, which repeats the equation that it is in
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=[\d)])[ \t]*[x×·][ \t]*(?=[\d($])", "*", text)
    text = text.replace("÷", "/").replace("−", "-").replace("–", "-")
    return re.sub(r"(?<=[-+*/ ])\$(?=\d)", "", text)
