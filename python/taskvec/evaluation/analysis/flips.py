"""Documents that changed between two arms: right in one and wrong in the other, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.record import ArmRecord, Sample

MOST = 200  # per task and direction: a report stays a file that a phone opens
UNCHANGED = 100  # per task, of those that both arms have right, and both have wrong
LONGEST = 6000

Direction = Literal["gained", "lost"]
Outcome = Literal["gained", "lost", "wrong in both", "right in both", "equal in both"]


@dataclass(frozen=True, slots=True)
class Flip:
    """One document under two arms: one on which they differ, or one that neither changes."""

    task: str
    direction: Outcome
    before: str
    after: str
    doc_id: int
    question: str
    target: str
    output_before: str
    output_after: str
    tokens_before: float | None
    tokens_after: float | None


def changed_samples(
    before: ArmRecord, after: ArmRecord, split: Split
) -> Iterator[tuple[str, Direction, Sample, Sample]]:
    """Task, direction and both samples of every document of the report part whose metric differs."""
    for task, one, other, twin, sample in _paired_samples(before, after, split):
        if one != other:
            up = (other > one) == after.tasks[task].higher_is_better
            yield task, "gained" if up else "lost", twin, sample


def _paired_samples(
    before: ArmRecord, after: ArmRecord, split: Split
) -> Iterator[tuple[str, float, float, Sample, Sample]]:
    """Task, both values of its metric and both samples of every document of the report part."""
    keep = split.keep("report")
    for task, facts in after.tasks.items():
        metric = facts.metric
        if metric is None or task not in before.samples:
            continue
        twins = {(s.subtask, s.doc_id): s for s in before.samples[task]}
        for sample in after.samples[task]:
            twin = twins.get((sample.subtask, sample.doc_id))
            if twin is None or twin.doc_hash != sample.doc_hash or not keep(sample.doc_hash):
                continue
            one, other = twin.metrics.get(metric), sample.metrics.get(metric)
            if one is not None and other is not None:
                yield task, one, other, twin, sample


def unchanged(before: ArmRecord, after: ArmRecord, split: Split) -> list[Flip]:
    """Documents of the report part whose metric is the same, at most `UNCHANGED` of each outcome."""
    found: dict[tuple[str, Outcome], list[Flip]] = {}
    for task, one, other, twin, sample in _paired_samples(before, after, split):
        if one != other:
            continue
        best = 1.0 if after.tasks[task].higher_is_better else 0.0
        outcome: Outcome = "equal in both"
        if one in (0.0, 1.0):
            outcome = "right in both" if one == best else "wrong in both"
        rows = found.setdefault((task, outcome), [])
        if len(rows) < UNCHANGED:
            rows.append(_flip(task, outcome, before.name, after.name, twin, sample))
    return [flip for rows in found.values() for flip in rows]


def flips(before: ArmRecord, after: ArmRecord, split: Split) -> list[Flip]:
    """Documents of the report part whose metric differs, gained ones first, at most `MOST` of each kind."""
    rows: dict[str, dict[Direction, list[Flip]]] = {}
    for task, direction, one, other in changed_samples(before, after, split):
        found = rows.setdefault(task, {"gained": [], "lost": []})[direction]
        if len(found) < MOST:
            found.append(_flip(task, direction, before.name, after.name, one, other))
    return [flip for found in rows.values() for flip in (*found["gained"], *found["lost"])]


def _flip(task: str, direction: Outcome, before: str, after: str, one: Sample, other: Sample) -> Flip:
    return Flip(
        task=task,
        direction=direction,
        before=before,
        after=after,
        doc_id=other.doc_id,
        question=other.question[-LONGEST:],
        target=other.target[:LONGEST],
        output_before=one.output[:LONGEST],
        output_after=other.output[:LONGEST],
        tokens_before=one.tokens,
        tokens_after=other.tokens,
    )
