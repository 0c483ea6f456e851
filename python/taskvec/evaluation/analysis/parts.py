"""What the arms of parts of a vector show: which groups carry it, and how little of it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from taskvec.evaluation.analysis.compare import Comparison
from taskvec.evaluation.analysis.pairs import parts_of
from taskvec.evaluation.record import ArmRecord, Merged

Family = Literal["group", "amount", "direction", "between"]
ORDER: tuple[Family, ...] = ("group", "amount", "direction", "between")
_DIRECTIONS = ("without-sft", "other", "v-and-other")


@dataclass(frozen=True, slots=True)
class PartFinding:
    """One part of the vector on one task.

    Attributes
    ----------
    arm, task : str
    family : {"group", "amount", "direction", "between"}
        ``group``: only or all but some tensors; ``amount``: less of the vector; ``direction``: without the
        SFT vector, or with another donor's; ``between``: a point on the line of reference and donor.
    part : str or None
        ``only-layers-0-1``, ``top-5``; none of a point between.
    alpha : float or None
        The factor of the part, or the point's place: 0 is the reference, 1 the donor.
    bytes : int or None
        What the part takes, in values of four bytes; None where that means nothing.
    norm, share, cosine : float or None
        Its L2 norm, its square over that of the vector's, its cosine to the vector; None where not known.
    against : tuple of Comparison
        The baseline and the whole vector; of a point between, the reference and the donor. They are corrected
        together with those of all other parts, and apart from the tests of the claim.
    """

    arm: str
    task: str
    family: Family
    part: str | None
    alpha: float | None
    bytes: int | None
    norm: float | None
    share: float | None
    cosine: float | None
    against: tuple[Comparison, ...]


def family_of(record: ArmRecord) -> Family:
    """The family of a part."""
    if record.kind == "between":
        return "between"
    part = record.part or ""
    if part.startswith(("only-", "all-but-")):
        return "group"
    return "direction" if part in _DIRECTIONS else "amount"


def part_findings(
    records: Sequence[ArmRecord],
    comparisons: Sequence[Comparison],
    merges: Mapping[str, Merged],
    whole: Mapping[str, ArmRecord],
) -> list[PartFinding]:
    """What every part showed on every task: where alpha was chosen for each, the parts of the task's vector.

    Parameters
    ----------
    records : sequence of ArmRecord
        All arms.
    comparisons : sequence of Comparison
        The tests of the parts.
    merges : mapping of str to Merged
        By arm.
    whole : mapping of str to ArmRecord
        The arm of the whole chosen vector by task; empty where none was.
    """
    found = []
    for task in records[0].tasks if records else ():
        chosen = whole.get(task)
        norm = _norm(merges.get(chosen.name)) if chosen is not None else None
        for record in parts_of(records, task, chosen.alpha if chosen is not None else None):
            own = tuple(c for c in comparisons if c.arm == record.name and c.task == task)
            found.append(_finding(record, task, _facts(merges.get(record.name)), norm, own))
    return sorted(found, key=lambda row: ORDER.index(row.family))


def _finding(
    record: ArmRecord,
    task: str,
    known: Mapping[str, Any],
    whole: float | None,
    against: tuple[Comparison, ...],
) -> PartFinding:
    """A part on a task, from the figures of its merge and the norm of the whole vector."""
    norm = known.get("norm")
    share = None if norm is None or not whole or record.kind != "part" else (norm / whole) ** 2
    return PartFinding(
        arm=record.name,
        task=task,
        family=family_of(record),
        part=record.part,
        alpha=record.alpha,
        bytes=known.get("bytes"),
        norm=norm,
        share=share,
        cosine=known.get("cosine"),
        against=against,
    )


def _facts(merged: Merged | None) -> dict[str, Any]:
    return (merged.part or {}) if merged is not None else {}


def _norm(merged: Merged | None) -> float | None:
    if merged is None or not merged.norms:
        return None
    return sum(value * value for value in merged.norms.values()) ** 0.5
