"""What the score is made of: the same pairs of answers, cut by length, by form, and by kind of task."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from taskvec.evaluation.analysis import statistics
from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.analysis.mistakes import NOT_FOUND
from taskvec.evaluation.record import ArmRecord, Sample

View = Literal["length", "format", "kind"]
MATCHED = 0.1  # lengths that differ by less than this share of the longer one count as equal
MOST_STEPS = 8
_STEP = re.compile(r"<<[^<>]*>>|[\d)]\s*[-+*/×]\s*[\d($][^=\n]*=\s*\$?-?\d")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")

Pair = tuple[Sample, Sample]


@dataclass(frozen=True, slots=True)
class Slice:
    """Some of the pairs of answers of two arms on one task, or all of them under another metric.

    Attributes
    ----------
    view : {"length", "format", "kind"}
    label : str
        Which pairs, or which metric.
    metric : str
    n : int
        Pairs.
    before, after : float
        Mean scores.
    difference, low, high : float
        After minus before, with its 95 % interval.
    p, p_holm : float
        As tested, and corrected over all slices of the report: a family of their own.
    gained, lost : int
    """

    task: str
    view: View
    label: str
    metric: str
    n: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    test: statistics.Test
    gained: int
    lost: int


def slices(before: ArmRecord, after: Mapping[str, ArmRecord], split: Split) -> list[Slice]:
    """All slices of an arm and another on the report part, paired document by document.

    Parameters
    ----------
    before : ArmRecord
    after : mapping of str to ArmRecord
        The other arm by task.
    split : Split
    """
    found = [row for task, record in after.items() for row in _task(before, record, task, split)]
    corrected = statistics.holm([row.p for row in found])
    return [replace(row, p_holm=p) for row, p in zip(found, corrected, strict=True)]


def _task(before: ArmRecord, after: ArmRecord, task: str, split: Split) -> Iterator[Slice]:
    metric = after.tasks[task].metric
    if metric is None or task not in before.samples:
        return
    pairs = _pairs(before, after, task, metric, split)
    generated = after.tasks[task].output_type == "generate_until"
    if generated:
        for label, fits in _LENGTHS:
            yield from _slice(task, "length", label, metric, [pair for pair in pairs if fits(pair)], split)
        for other in _metrics(pairs, metric):
            yield from _slice(task, "format", _filter(other), other, pairs, split)
        whole = [pair for pair in pairs if all(_has_answer(sample, metric) for sample in pair)]
        if len(whole) < len(pairs):
            yield from _slice(task, "format", "an answer was found in both", metric, whole, split)
    kinds: dict[str, list[Pair]] = {}
    for pair in pairs:
        kinds.setdefault(task_kind(pair[0]), []).append(pair)
    if len(kinds) > 1:
        for kind in sorted(kinds, key=_in_order):
            yield from _slice(task, "kind", kind, metric, kinds[kind], split)


def _pairs(before: ArmRecord, after: ArmRecord, task: str, metric: str, split: Split) -> list[Pair]:
    keep = split.keep("report")
    twins = {(s.subtask, s.doc_id): s for s in before.samples[task]}
    found = []
    for sample in after.samples[task]:
        twin = twins.get((sample.subtask, sample.doc_id))
        if twin is None or twin.doc_hash != sample.doc_hash or not keep(sample.doc_hash):
            continue
        if metric in twin.metrics and metric in sample.metrics:
            found.append((twin, sample))
    return found


def _slice(
    task: str, view: View, label: str, metric: str, pairs: Sequence[Pair], split: Split
) -> Iterator[Slice]:
    if not pairs:
        return
    one = [before.metrics[metric] for before, _ in pairs]
    other = [after.metrics[metric] for _, after in pairs]
    test = statistics.paired(other, one, seed=split.seed)
    yield Slice(
        task=task,
        view=view,
        label=label,
        metric=metric,
        n=test.n,
        before=sum(one) / len(one),
        after=sum(other) / len(other),
        difference=test.difference,
        low=test.low,
        high=test.high,
        p=test.p,
        p_holm=test.p,
        test=test.test,
        gained=test.gained,
        lost=test.lost,
    )


# --- by length


def _ratio(pair: Pair) -> float | None:
    """The length of the second answer less the first one's, over the longer one; None if not known."""
    before, after = pair[0].tokens, pair[1].tokens
    if before is None or after is None:
        return None
    longer = max(before, after)
    return (after - before) / longer if longer else 0.0


def _within(low: float, high: float) -> Callable[[Pair], bool]:
    def fits(pair: Pair) -> bool:
        ratio = _ratio(pair)
        return ratio is not None and low <= ratio <= high

    return fits


_NEXT = 1e-12
_LENGTHS = (
    ("of the same length, within 10 %", _within(-MATCHED, MATCHED)),
    ("longer with the vector", _within(MATCHED + _NEXT, 1.0)),
    ("shorter with the vector", _within(-1.0, -MATCHED - _NEXT)),
)


# --- by form


def _metrics(pairs: Sequence[Pair], metric: str) -> list[str]:
    """A task's metric under each of its filters, where it has several that every pair knows."""
    name = metric.split(",")[0]
    every = [key for key in (pairs[0][0].metrics if pairs else ()) if key.split(",")[0] == name]
    shared = [key for key in every if all(key in sample.metrics for pair in pairs for sample in pair)]
    return shared if len(shared) > 1 else []


def _filter(metric: str) -> str:
    return f"by {metric.partition(',')[2]}"


def _has_answer(sample: Sample, metric: str) -> bool:
    return sample.extracted.get(metric.partition(",")[2]) != NOT_FOUND


@dataclass(frozen=True, slots=True)
class Form:
    """How well an arm's answers keep to the form that a task asks for.

    Attributes
    ----------
    arm, task : str
    n : int
    right : int
        By the metric that is compared.
    form_only : int
        Right by one filter of the task and wrong by another: the form failed, not the answer.
    not_found : int
        Answers in which the filter of the metric found nothing.
    cut : int
        Answers that the length limit ended.
    """

    arm: str
    task: str
    n: int
    right: int
    form_only: int
    not_found: int
    cut: int


def forms(records: Sequence[ArmRecord], split: Split) -> list[Form]:
    """The forms of every arm's generated answers with 0/1 metrics, on the report part."""
    keep, found = split.keep("report"), []
    for record in records:
        for task, facts in record.tasks.items():
            metric = facts.metric
            if metric is None or facts.output_type != "generate_until":
                continue
            rows = [s for s in record.samples[task] if keep(s.doc_hash) and metric in s.metrics]
            if not rows or not statistics.is_binary([row.metrics[metric] for row in rows]):
                continue
            found.append(
                Form(
                    record.name,
                    task,
                    len(rows),
                    sum(row.metrics[metric] == 1 for row in rows),
                    sum(_form_only(row, metric) for row in rows),
                    sum(not _has_answer(row, metric) for row in rows),
                    sum(bool(row.cut) for row in rows),
                )
            )
    return found


def _form_only(sample: Sample, metric: str) -> bool:
    name = metric.split(",")[0]
    values = {value for key, value in sample.metrics.items() if key.split(",")[0] == name}
    return values >= {0.0, 1.0}


# --- by kind of task


def task_kind(sample: Sample) -> str:
    """The kind of a question: the task of a group that it is of, else the steps that it asks for.

    Steps are counted in the worked answer, where the task has one, else the numbers in the question are.
    """
    if sample.subtask is not None:
        return sample.subtask
    notes = re.findall(r"<<[^<>]*>>", sample.target)
    steps = len(notes) or len(_STEP.findall(sample.target))
    if steps:
        return _counted(steps, "step")
    return _counted(len(_NUMBER.findall(sample.question.rpartition("\n\n")[2])), "number")


def _counted(count: int, word: str) -> str:
    if count >= MOST_STEPS:
        return f"{MOST_STEPS} {word}s or more"
    return f"{count} {word}{'' if count == 1 else 's'}"


def _in_order(kind: str) -> tuple[int, str]:
    head = kind.split(" ")[0]
    return (int(head), "") if head.isdigit() else (0, kind)
