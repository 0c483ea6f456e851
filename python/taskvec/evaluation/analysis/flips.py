"""Documents that changed between two arms: right in one and wrong in the other, side by side."""

from __future__ import annotations

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


def flips(before: ArmRecord, after: ArmRecord, split: Split) -> list[Flip]:
    """Documents of the report part whose metric differs, gained ones first, at most `MOST` of each kind."""
    keep, found = split.keep("report"), []
    for task, facts in after.tasks.items():
        metric = facts.metric
        if metric is None or task not in before.samples:
            continue
        twins = {(s.subtask, s.doc_id): s for s in before.samples[task]}
        rows: dict[str, list[Flip]] = {"gained": [], "lost": []}
        for sample in after.samples[task]:
            twin = twins.get((sample.subtask, sample.doc_id))
            if twin is None or twin.doc_hash != sample.doc_hash or not keep(sample.doc_hash):
                continue
            one, other = twin.metrics.get(metric), sample.metrics.get(metric)
            if one is None or other is None or one == other:
                continue
            direction = "gained" if (other > one) == facts.higher_is_better else "lost"
            if len(rows[direction]) < MOST:
                rows[direction].append(_flip(task, direction, before.name, after.name, twin, sample))
        found += [*rows["gained"], *rows["lost"]]
    return found


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
