"""How arms, scores and tests are written for a reader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskvec.evaluation.analysis.statistics import is_binary
from taskvec.evaluation.arms import RIVALS, Arm, rival_in_words
from taskvec.evaluation.record import ArmRecord, Score, TaskFacts
from taskvec.settings import format_alpha
from taskvec.text import minus, roles

FEW = 3  # arms that are named where a warning is of several

if TYPE_CHECKING:
    from taskvec.evaluation.analysis.compare import Comparison
    from taskvec.evaluation.report.report import Report


def arm_label(arm: Arm) -> str:
    """An arm in words: ``+0.5 v, think``, ``random 2``."""
    if arm.kind == "vector":
        sign = "+" if arm.factor > 0 else "−" if arm.factor < 0 else ""
        text = f"{sign}{format_alpha(abs(arm.factor))} v"
        text = arm.stem if arm.alpha is None else text
    elif arm.kind in ("random", "permuted"):
        text = f"{arm.kind} {arm.seed}" if arm.seed is not None else arm.stem
        text += f" at {arm.stem.partition('@')[2]}" if "@" in arm.stem else ""
    elif arm.kind in RIVALS:
        text = rival_in_words(arm).removeprefix("the ")
    elif arm.kind == "whole":
        text = "donor − base"
    elif arm.kind == "part":
        text = part_label(arm.part or arm.stem)
        text += f" at {arm.stem.partition('@')[2]}" if "@" in arm.stem else ""
    elif arm.kind == "between":
        text = f"reference + {format_alpha(arm.factor)} (donor − reference)".replace("+ -", "− ")
    else:
        text = arm.kind
    notes = [note for note in ("think" if arm.think else None, arm.perturb) if note]
    return ", ".join([text, *notes])


def arms_label(names: Sequence[str], of: int) -> str:
    """Some of the arms of a report in words: ``all 12 arms``, ``a, b and 3 more``."""
    if len(names) == of and of > 1:
        return f"all {of} arms"
    few = names if len(names) <= FEW else names[: FEW - 1]
    more = len(names) - len(few)
    return f"{', '.join(few)} and {more} more" if more else roles(few)


_PARTS = {
    "sign": "signs alone",
    "without-sft": "v without the SFT direction",
    "other": "the other vector",
    "v-and-other": "v and the other vector",
}


def part_label(part: str) -> str:
    """A part of the vector in words: ``only layers 0-1``, ``largest 5 %``."""
    kind, _, amount = part.partition("-")
    if part in _PARTS:
        return _PARTS[part]
    if kind == "top":
        return f"largest {amount} %"
    if kind == "rank":
        return f"rank {amount}"
    which, group = ("all but ", part.removeprefix("all-but-")) if kind == "all" else ("only ", amount)
    return which + group_label(group)


def group_label(group: str) -> str:
    """A group of tensors in words: ``layers 0–1``, ``feed-forward``."""
    head, _, rest = group.partition("-")
    return f"{head} {rest.replace('-', '–')}" if head in ("layer", "layers") else group


def is_share(record: ArmRecord, task: str) -> bool:
    """Whether the metric of a task is a share of right answers, to be written in per cent."""
    facts: TaskFacts = record.tasks[task]
    return facts.metric is not None and is_binary(
        [s.metrics[facts.metric] for s in record.samples[task] if facts.metric in s.metrics]
    )


def metric_unit(report: Report, task: str) -> tuple[float, str]:
    """The factor and the name of a task's unit."""
    facts = report.records[0].tasks[task]
    if all(is_share(record, task) for record in report.records if task in record.tasks):
        return 100.0, f"{(facts.metric or '').split(',')[0]} (%)"
    return 1.0, (facts.metric or "").split(",")[0]


def number(value: float | None, scale: float, *, signed: bool = False) -> str:
    """A score or difference: one decimal for per cent, four figures otherwise."""
    if value is None:
        return "–"
    text = (
        f"{scale * value:{'+' if signed else ''}.1f}"
        if scale == 100
        else f"{value:{'+' if signed else ''}.4g}"
    )
    return minus(text)


def with_interval(score: Score | None, scale: float) -> str:
    """``61.3 [58.9, 63.6]``."""
    if score is None or score.value is None:
        return "–"
    if score.low is None or score.high is None:
        return number(score.value, scale)
    return f"{number(score.value, scale)} [{number(score.low, scale)}, {number(score.high, scale)}]"


def difference(comparison: Comparison | None, scale: float) -> str:
    """``+3.1 [+1.2, +5.0]``."""
    if comparison is None:
        return "–"
    low, high = (number(value, scale, signed=True) for value in (comparison.low, comparison.high))
    return f"{number(comparison.difference, scale, signed=True)} [{low}, {high}]"


def p_value(p: float) -> str:
    """``0.031``, ``< 0.001``, ``3e-08``."""
    if p < 1e-4:
        return f"{p:.0e}"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.4f}"


def task_file(task: str) -> str:
    """A task's name as part of a file name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in task)
