"""The arms that are compared: which of them is meant, and every pair that a report tests."""

from __future__ import annotations

from collections.abc import Sequence

from taskvec.evaluation.arms import PARTS
from taskvec.evaluation.record import ArmRecord


def baselines(records: Sequence[ArmRecord]) -> dict[tuple[str | None, str | None], ArmRecord]:
    """The baseline under each prompt."""
    return {record.arm.condition: record for record in records if record.kind == "baseline"}


def plain_arm(records: Sequence[ArmRecord], kind: str, think: str | None) -> ArmRecord | None:
    """The unperturbed arm of a kind of which there is one."""
    return next((r for r in records if r.kind == kind and r.arm.condition == (think, None)), None)


def vector_arm(records: Sequence[ArmRecord], alpha: float | None, think: str | None) -> ArmRecord | None:
    """The unperturbed vector arm of one alpha."""
    return next(
        (
            r
            for r in records
            if r.kind == "vector"
            and r.alpha == alpha
            and alpha is not None
            and r.arm.condition == (think, None)
        ),
        None,
    )


def planned_pairs(
    records: Sequence[ArmRecord], alpha: float | None, think: str | None
) -> list[tuple[ArmRecord, ArmRecord]]:
    """Every pair of arms that a report tests.

    - each arm against the baseline under its own prompt; with a request to reason also against the baseline
      without one (the paper's comparison);
    - the vector of the chosen `alpha` against each control, the donor against the reference;
    - each perturbed arm against its clean self.
    """
    base = baselines(records)
    plain = base.get((None, None))
    pairs: list[tuple[ArmRecord, ArmRecord]] = []
    for record in records:
        if record.kind in PARTS:  # a family of their own
            continue
        baseline = base.get(record.arm.condition)
        is_zero = record.kind == "vector" and record.alpha == 0  # not tested: checked sample for sample
        if record.kind != "baseline" and baseline is not None and not is_zero:
            pairs.append((record, baseline))
        if (
            record.think
            and not record.perturb
            and plain is not None
            and record.kind in ("baseline", "vector")
        ):
            pairs.append((record, plain))
        if record.perturb:
            pairs += [(record, clean) for clean in records if _is_clean_twin(clean, record)]
    chosen = vector_arm(records, alpha, think)
    if chosen is not None:
        pairs += [(chosen, r) for r in controls(records, think)]
    donor, reference = (plain_arm(records, kind, think) for kind in ("donor", "reference"))
    if donor is not None and reference is not None:
        pairs.append((donor, reference))
    return pairs


def controls(records: Sequence[ArmRecord], think: str | None) -> list[ArmRecord]:
    """Random and permuted vectors and the SFT vector."""
    kinds = ("random", "permuted", "sft")
    return [r for r in records if r.kind in kinds and r.arm.condition == (think, None)]


def part_pairs(
    records: Sequence[ArmRecord], alpha: float | None, think: str | None
) -> list[tuple[ArmRecord, ArmRecord]]:
    """The pairs of the arms that say what the vector is made of: a family of their own.

    Each part against the baseline, and against the whole vector of the chosen `alpha`; each point between
    reference and donor against both.
    """
    baseline = plain_arm(records, "baseline", think)
    others = {
        "part": (baseline, vector_arm(records, alpha, think)),
        "between": (plain_arm(records, "reference", think), plain_arm(records, "donor", think)),
    }
    return [
        (record, other)
        for record in records
        for other in others.get(record.kind, ())
        if other is not None and record.arm.condition == (think, None)
    ]


def _is_clean_twin(record: ArmRecord, perturbed: ArmRecord) -> bool:
    return record.arm.weights == perturbed.arm.weights and record.arm.condition == (perturbed.think, None)
