"""``taskvec demo --paper``: the paper in miniature, on models trained on the spot or from an archive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskvec.cli.console import Console, Page
from taskvec.cli.eval_output import show_conclusions, show_warnings, watching
from taskvec.evaluation.miniature.call import FOLDER, MOST_JOBS
from taskvec.host import cores
from taskvec.text import duration, printable

if TYPE_CHECKING:
    from taskvec.evaluation.miniature.demo import Miniature
    from taskvec.evaluation.record import ArmRecord
    from taskvec.evaluation.report.report import Report

ORDER = ("reference", "donor", "baseline", "vector", "random", "permuted", "sft", "rival", "whole")


def run_paper(
    console: Console, folder: str | None, *, seed: int | None, pretrained: str | None, jobs: int | None
) -> int:
    """Train, sweep, print the table; the exit code, which does not depend on the outcome."""
    from taskvec.evaluation.miniature import demo

    with watching(console) as watch:
        made = demo.run(
            folder or FOLDER,
            seed,
            pretrained,
            jobs=jobs or min(cores(), MOST_JOBS),
            building=watch.training,
            sweeping=watch,
        )
    page = console.data()
    write_result(page, made)
    console.show(page)
    console.emit(
        {
            "paper": True,
            "seed": made.models.seed,
            "models": {role: str(getattr(made.models, role)) for role in _ROLES},
            "seconds": {"models": made.building_seconds, "sweep": made.sweeping_seconds},
            "out": str(made.folder),
            "report": made.report.to_json(),
        }
    )
    show_warnings(console, made.report)
    return 0


_ROLES = ("base", "target", "reference", "donor", "continued_sft")


def write_result(page: Page, made: Miniature) -> None:
    """The table in the paper's shape, the gate, the claims, and the place of the report."""
    report = made.report
    _table(page, report)
    show_conclusions(page, report)
    for gate in report.gates:
        if gate.comparison is not None:
            word = "passed" if gate.passed else "NOT PASSED"
            page.fact("gate", f"{word}: the donor is {gate.comparison.detail}, p = {gate.comparison.p:.1g}")
    page.fact("seed", str(made.models.seed))
    page.fact(
        "time",
        f"{duration(made.building_seconds)} for the models, {duration(made.sweeping_seconds)} for the sweep",
    )
    page.fact("report", printable(made.folder / "report.html"))


def _table(page: Page, report: Report) -> None:
    """Arms down, the plain and the perturbed problems across."""
    from taskvec.evaluation.report.labels import arm_label, difference, metric_unit, number, p_value

    (task,) = report.tasks
    scale, unit = metric_unit(report, task)
    plain = sorted((r for r in report.records if r.perturb is None), key=lambda r: ORDER.index(r.kind))
    perturbed = {(r.arm.weights, r.perturb): r for r in report.records if r.perturb}
    kinds = list(dict.fromkeys(r.perturb for r in perturbed.values() if r.perturb))

    def twin(record: ArmRecord, kind: str) -> str:
        found = perturbed.get((record.arm.weights, kind))
        score = report.score(found, task) if found is not None else None
        return number(score.value, scale) if score is not None else ""

    rows = []
    for record in plain:
        score, found = report.score(record, task), report.against_baseline(record, task)
        if record.kind == "baseline":
            found = None
        rows.append(
            [
                arm_label(record.arm),
                number(score.value if score else None, scale),
                difference(found, scale) if found is not None else "",
                p_value(found.p_holm) if found is not None else "",
                *(twin(record, kind) for kind in kinds),
            ]
        )
    page.table(["", unit, "against the baseline", "p (Holm)", *kinds], rows,
               right=range(1, 4 + len(kinds)))  # fmt: skip
