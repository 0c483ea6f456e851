"""Documents that changed between two arms: right in one and wrong in the other, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.record import ArmRecord, Sample

MOST = 200  # per task and direction: a report stays a file that a phone opens
LONGEST = 6000


@dataclass(frozen=True, slots=True)
class Flip:
    """One document on which two arms differ."""

    task: str
    direction: Literal["gained", "lost"]
    before: str
    after: str
    doc_id: int
    question: str
    target: str
    output_before: str
    output_after: str
    tokens_before: float | None
    tokens_after: float | None


Direction = Literal["gained", "lost"]


def changed_samples(
    before: ArmRecord, after: ArmRecord, split: Split
) -> Iterator[tuple[str, Direction, Sample, Sample]]:
    """Task, direction and both samples of every document of the report part whose metric differs."""
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
            if one is None or other is None or one == other:
                continue
            yield task, "gained" if (other > one) == facts.higher_is_better else "lost", twin, sample


def flips(before: ArmRecord, after: ArmRecord, split: Split) -> list[Flip]:
    """Documents of the report part whose metric differs, gained ones first, at most `MOST` of each kind."""
    rows: dict[str, dict[Direction, list[Flip]]] = {}
    for task, direction, one, other in changed_samples(before, after, split):
        found = rows.setdefault(task, {"gained": [], "lost": []})[direction]
        if len(found) < MOST:
            found.append(_flip(task, direction, before.name, after.name, one, other))
    return [flip for found in rows.values() for flip in (*found["gained"], *found["lost"])]


def _flip(
    task: str, direction: Literal["gained", "lost"], before: str, after: str, one: Sample, other: Sample
) -> Flip:
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
