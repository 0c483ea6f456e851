"""A task without documents to choose or to report on is seen first, and takes no other task's report."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from support.evaluation_models import merge_with_torch, small, tiny
from support.evaluation_records import experiment as records_of
from taskvec.errors import EvaluationError
from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.backend.evaluate import document_hashes, evaluate
from taskvec.evaluation.record import ArmRecord
from taskvec.evaluation.report.report import build_report
from taskvec.evaluation.report.write import write_report
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.sweep.events import Event
from taskvec.evaluation.sweep.parts import check_parts
from taskvec.evaluation.sweep.sweep import run_sweep

SPLIT = Split(0.3, 7)
INSIDE = [f"document-{i}" for i in range(99) if SPLIT.is_development(f"document-{i}")]
OUTSIDE = [f"document-{i}" for i in range(99) if not SPLIT.is_development(f"document-{i}")]
BOTH = ("development", "report")


def test_what_a_division_leaves_without_a_claim():
    assert check_parts({"a": INSIDE + OUTSIDE}, SPLIT, BOTH) == []
    (said,) = check_parts({"a": INSIDE + OUTSIDE, "b": OUTSIDE[:3]}, SPLIT, BOTH)
    assert "task `b`: of its 3 documents none is in the development part" in said
    (said,) = check_parts({"a": INSIDE[:2], "b": INSIDE + OUTSIDE}, SPLIT, BOTH)
    assert "task `a`: of its 2 documents none is in the report part" in said
    with pytest.raises(
        EvaluationError, match="of the 3 documents of task `b` none is in the development part"
    ):
        check_parts({"b": OUTSIDE[:3]}, SPLIT, BOTH)
    assert check_parts({"b": OUTSIDE[:3]}, SPLIT, ("report",)) == []
    assert check_parts({"b": OUTSIDE[:3]}, Split(0.0, 7), BOTH) == []


def test_hashes_are_those_of_the_samples():
    settings = Settings(tasks=("tiny_gen", "tiny_choice"), device="cpu", limit=3, include_path=tiny().tasks)
    record = evaluate(tiny().target, settings)
    found = {task: [sample.doc_hash for sample in rows] for task, rows in record.samples.items()}
    assert document_hashes(settings) == found


def test_a_sweep_that_could_not_report_is_refused_before_its_first_arm(tmp_path):
    seen: list[Event] = []
    experiment = small(development=0.001, tasks=["tiny_choice"])

    def merge(*_: Any) -> Any:
        raise AssertionError("nothing is to be merged")

    with pytest.raises(
        EvaluationError, match="of task `tiny_choice` none is in the development part"
    ) as error:
        run_sweep(experiment, tmp_path, merge=merge, progress=seen.append)
    assert "--limit" in (error.value.hint or "")
    assert not list((tmp_path / "arms").glob("*"))
    assert [event.kind for event in seen] == ["plan"]


def test_a_perturbation_that_changes_nothing_is_refused_before_the_first_arm(tmp_path):
    seen: list[Event] = []
    experiment = small(perturb=["typo", "numbers"], tasks=["tiny_choice"])

    def merge(*_: Any) -> Any:
        raise AssertionError("nothing is to be merged")

    with pytest.raises(EvaluationError, match="`tiny_choice` has no answer text"):
        run_sweep(experiment, tmp_path, merge=merge, progress=seen.append)
    assert not list((tmp_path / "arms").glob("*"))
    assert [event.kind for event in seen] == ["plan"]


def emptied(records: list[ArmRecord], task: str, split: Split, part: Any) -> list[ArmRecord]:
    """`records` without the documents of a part of one task."""
    keep = split.keep(part)
    changed = []
    for record in records:
        rows = [sample for sample in record.samples[task] if not keep(sample.doc_hash)]
        facts = replace(record.tasks[task], documents=len(rows))
        changed.append(
            replace(record, samples={**record.samples, task: rows}, tasks={**record.tasks, task: facts})
        )
    return changed


@pytest.mark.parametrize("part", BOTH)
def test_one_task_takes_not_the_report_of_the_others(tmp_path, part):
    whole = build_report(records_of(tasks=("a", "b")), split=SPLIT)
    report = build_report(emptied(records_of(tasks=("a", "b")), "b", SPLIT, part), split=SPLIT)
    first, second = report.conclusions
    assert first.transferred
    assert (
        second.text == f"Nothing is claimed of the vector on b: none of its documents is in the {part} part."
    )
    rest = {(c.arm, c.against): c.difference for c in report.comparisons if c.task == "a"}
    assert rest == {(c.arm, c.against): c.difference for c in whole.comparisons if c.task == "a"}
    written = {path.name for path in write_report(report, tmp_path)}
    assert "alpha-a.png" in written
    assert ("alpha-b.png" in written) is (part == "development")
    content = json.loads((tmp_path / "report.json").read_text())
    scores = content["arms"][0]["scores"]
    if part == "report":  # not measured is not zero, and not the score of other documents
        assert scores["b"] == {
            metric: {"value": None, "low": None, "high": None, "n": 0} for metric in scores["b"]
        }
    assert all(score["n"] > 0 for score in scores["a"].values())


def test_a_target_that_donor_and_reference_come_from_gets_no_transfer(tmp_path):
    plain = build_report(records_of(), split=SPLIT)
    report = build_report(records_of(), split=SPLIT, recovery=True)
    assert plain.conclusions[0].text.startswith("Reasoning transferred on gsm8k")
    assert report.conclusions[0].text.startswith("A recovery on gsm8k, not a transfer: +v at alpha = 0.5")
    assert not report.conclusions[0].transferred
    write_report(report, tmp_path)
    for name in ("report.md", "report.html"):
        assert "Donor and reference were tuned from the baseline itself" in (tmp_path / name).read_text()
    assert json.loads((tmp_path / "report.json").read_text())["recovery"] is True


def test_a_sweep_knows_that_the_target_is_the_base(tmp_path):
    few = {"tasks": ["tiny_choice"], "alphas": [1], "perturb": [], "controls": {"random": 0, "permuted": 0}}
    own = small(**few)
    report = run_sweep(own, tmp_path / "own", merge=merge_with_torch(own))
    assert report.recovery
    other = small(**few, base=None)
    report = run_sweep(other, tmp_path / "other", merge=merge_with_torch(other))
    assert not report.recovery
