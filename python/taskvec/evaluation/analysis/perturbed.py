"""What perturbed questions do to the scores of baseline and vector, and how they read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from taskvec.evaluation.analysis.compare import Comparison, Split
from taskvec.evaluation.analysis.pairs import plain_arm
from taskvec.evaluation.record import ArmRecord

EXAMPLES = 3  # per perturbation and task
_WORD = re.compile(r"\s+|\S+")

Piece = tuple[Literal["same", "taken", "put"], str]


@dataclass(frozen=True, slots=True)
class Example:
    """One question before and after a perturbation.

    Attributes
    ----------
    task, perturb : str
    doc_id : int
    before, after : str
        Without worked examples.
    """

    task: str
    perturb: str
    doc_id: int
    before: str
    after: str

    @property
    def pieces(self) -> list[Piece]:
        """The text after it, with what was taken away and what was put in."""
        one, other = _WORD.findall(self.before), _WORD.findall(self.after)
        found: list[Piece] = []
        for kind, a, b, c, d in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
            if kind == "equal":
                found.append(("same", "".join(one[a:b])))
                continue
            if b > a:
                found.append(("taken", "".join(one[a:b])))
            if d > c:
                found.append(("put", "".join(other[c:d])))
        return found


@dataclass(frozen=True, slots=True)
class Effect:
    """One perturbation on one task.

    Attributes
    ----------
    baseline, vector : str or None
        The perturbed arms; None where there is none.
    drop_baseline, drop_vector : Comparison or None
        The perturbed arm against its clean self, on the documents that both have.
    gain : Comparison or None
        The vector against the baseline, both perturbed.
    left_out : int
        Documents to which it does not apply.
    """

    task: str
    perturb: str
    baseline: str | None
    vector: str | None
    drop_baseline: Comparison | None
    drop_vector: Comparison | None
    gain: Comparison | None
    left_out: int


def effects(
    records: Sequence[ArmRecord],
    comparisons: Sequence[Comparison],
    chosen: Mapping[str, ArmRecord],
    think: str | None,
) -> list[Effect]:
    """Every perturbation on every task that has it.

    Parameters
    ----------
    records : sequence of ArmRecord
    comparisons : sequence of Comparison
    chosen : mapping of str to ArmRecord
        The vector of which claims are made, by task.
    think : str, optional
        The request to reason that every arm carries.
    """
    tests = {(c.arm, c.against, c.task): c for c in comparisons}
    baseline = plain_arm(records, "baseline", think)
    found = []
    for perturb in dict.fromkeys(r.perturb for r in records if r.perturb):
        for task in records[0].tasks:
            clean = (baseline, chosen.get(task))
            one, other = (_twin(records, record, perturb) for record in clean)
            first = one or other
            if first is None or task not in first.tasks:
                continue
            names = [record.name if record is not None else None for record in (*clean, one, other)]
            found.append(
                Effect(
                    task=task,
                    perturb=perturb,
                    baseline=names[2],
                    vector=names[3],
                    drop_baseline=tests.get((names[2], names[0], task)),  # type: ignore[arg-type]
                    drop_vector=tests.get((names[3], names[1], task)),  # type: ignore[arg-type]
                    gain=tests.get((names[3], names[2], task)),  # type: ignore[arg-type]
                    left_out=first.tasks[task].left_out,
                )
            )
    return found


def _twin(records: Sequence[ArmRecord], clean: ArmRecord | None, perturb: str) -> ArmRecord | None:
    """The arm of the same weights under a perturbation."""
    if clean is None:
        return None
    return next(
        (
            r
            for r in records
            if r.arm.weights == clean.arm.weights and r.arm.condition == (clean.think, perturb)
        ),
        None,
    )


def examples(records: Sequence[ArmRecord], split: Split) -> list[Example]:
    """A few questions of the report part before and after each perturbation, the shortest that changed."""
    found = []
    for perturb in dict.fromkeys(r.perturb for r in records if r.perturb):
        changed = next(r for r in records if r.perturb == perturb)
        clean = next((r for r in records if r.arm.condition == (changed.think, None)), None)
        for task, samples in changed.samples.items():
            if clean is None or task not in clean.samples:
                continue
            before = {(s.subtask, s.doc_id): s.question for s in clean.samples[task]}
            rows = [
                Example(task, perturb, s.doc_id, before[(s.subtask, s.doc_id)], s.question)
                for s in samples
                if split.keep("report")(s.doc_hash) and (s.subtask, s.doc_id) in before
            ]
            rows = [row for row in rows if row.before != row.after]
            found += sorted(rows, key=lambda row: (len(row.after), row.doc_id))[:EXAMPLES]
    return found
