"""The arms that are compared: which of them is meant, and every pair that a report tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskvec.evaluation.arms import DRAWN, PARTS, RIVALS
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


def planned_tests(
    records: Sequence[ArmRecord], alphas: Mapping[str, float], think: str | None
) -> tuple[list[tuple[ArmRecord, ArmRecord, str]], set[tuple[str, str, str]]]:
    """Every test of a report, and the names of the primary ones, on which claims rest.

    Parameters
    ----------
    records : sequence of ArmRecord
    alphas : mapping of str to float
        The chosen alpha by task; empty where there is none.
    think : str, optional
        The request to reason that every arm carries.
    """
    tests: list[tuple[ArmRecord, ArmRecord, str]] = []
    primary: set[tuple[str, str, str]] = set()
    for task in records[0].tasks:
        alpha = alphas.get(task)
        pairs = planned_pairs(records, alpha, think)
        tests += [(arm, other, task) for arm, other in pairs if task in arm.tasks and task in other.tasks]
        primary |= {(*names, task) for names in primary_pairs(records, alpha, think)}
    return tests, primary


def planned_pairs(
    records: Sequence[ArmRecord], alpha: float | None, think: str | None
) -> list[tuple[ArmRecord, ArmRecord]]:
    """Every pair of arms that a report tests on a task.

    - each arm against the baseline under its own prompt; with a request to reason also against the baseline
      without one (the paper's comparison);
    - the vector of the chosen `alpha` against each control and rival, the donor against the reference;
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
        pairs += [(chosen, r) for r in (*controls(records, alpha, think), *wholes(records, think))]
    donor, reference = (plain_arm(records, kind, think) for kind in ("donor", "reference"))
    if donor is not None and reference is not None:
        pairs.append((donor, reference))
    return pairs


def primary_pairs(
    records: Sequence[ArmRecord], alpha: float | None, think: str | None
) -> set[tuple[str, str]]:
    """The names of the pairs on which a claim rests: the chosen vector against baseline, controls and rivals.

    They are fixed before anything is run, and corrected by themselves; all other tests are secondary.
    """
    chosen, baseline = vector_arm(records, alpha, think), plain_arm(records, "baseline", think)
    if chosen is None:
        return set()
    against = [*([baseline] if baseline is not None else []), *controls(records, alpha, think)]
    return {(chosen.name, record.name) for record in against}


def controls(records: Sequence[ArmRecord], alpha: float | None, think: str | None) -> list[ArmRecord]:
    """What the vector of one alpha has to beat: random and permuted vectors of its norm, and every rival."""
    plain = [r for r in records if r.arm.condition == (think, None)]
    drawn = [r for r in plain if r.kind in DRAWN and (r.alpha == alpha or "@" not in r.name)]
    return [*drawn, *(r for r in plain if r.kind in RIVALS)]


def wholes(records: Sequence[ArmRecord], think: str | None) -> list[ArmRecord]:
    """The whole difference of donor and base, which holds the vector itself: compared, and no control."""
    return [r for r in records if r.kind == "whole" and r.arm.condition == (think, None)]


def part_tests(
    records: Sequence[ArmRecord], alphas: Mapping[str, float], think: str | None
) -> list[tuple[ArmRecord, ArmRecord, str]]:
    """The tests of the arms that say what the vector is made of: a family of their own.

    On each task each part of the vector that was chosen for it against the baseline and against that whole
    vector; each point between reference and donor against both. Parameters as of `planned_tests`.
    """
    ends = [plain_arm(records, kind, think) for kind in ("reference", "donor")]
    baseline = plain_arm(records, "baseline", think)
    tests = []
    for task in records[0].tasks:
        alpha = alphas.get(task)
        others = {"part": [baseline, vector_arm(records, alpha, think)], "between": ends}
        tests += [
            (record, other, task)
            for record in parts_of(records, task, alpha)
            for other in others[record.kind]
            if other is not None and task in other.tasks and record.arm.condition == (think, None)
        ]
    return tests


def parts_of(records: Sequence[ArmRecord], task: str, alpha: float | None) -> list[ArmRecord]:
    """The parts of the vector of one alpha, and the points between, that were evaluated on a task."""
    own = [record for record in records if record.kind in PARTS and task in record.tasks]
    return [r for r in own if r.kind == "between" or alpha is None or r.alpha == alpha]


def _is_clean_twin(record: ArmRecord, perturbed: ArmRecord) -> bool:
    return record.arm.weights == perturbed.arm.weights and record.arm.condition == (perturbed.think, None)
