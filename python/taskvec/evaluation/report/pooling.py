"""Several sweeps pooled: what the vector did against each other arm, over tasks and seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from taskvec.evaluation.analysis import statistics
from taskvec.evaluation.analysis.pooled import Effect, Pooled, interval_error, paired_error, pool
from taskvec.evaluation.arms import MATCHED
from taskvec.evaluation.record import finite
from taskvec.evaluation.report.several import Result, as_written
from taskvec.text import minus

SCHEMA = 1
GATE = "reference"  # what the donor is held against


@dataclass(frozen=True, slots=True)
class Row:
    """One difference of one result; more is better, whatever the metric's direction."""

    label: str
    task: str
    n: int
    verdict: statistics.Verdict
    effect: Effect
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A difference over all results that have it.

    Attributes
    ----------
    against : str
        What +v (of the gate: the donor) is held against, in words.
    unit : str
        ``points`` of right answers, or a metric.
    better, count : int
        How many results show it by themselves, of how many.
    pooled : Pooled
    p_holm : float
        Corrected over the pooled tests against all that +v is held against.
    verdict : str
    rows : tuple of Row
    """

    against: str
    unit: str
    better: int
    count: int
    pooled: Pooled
    p_holm: float
    verdict: statistics.Verdict
    rows: tuple[Row, ...]

    @property
    def scale(self) -> float:
        """The factor of its numbers as a reader sees them."""
        return 100.0 if self.unit == "points" else 1.0

    @property
    def in_words(self) -> str:
        """``is better than the baseline: +7.1 points, 95 % interval +5.0 to +9.2, 8 of 8 by themselves``."""
        low, size, high = (
            minus(f"{self.scale * value:{'+.1f' if self.scale == 100 else '+.3g'}}")
            for value in (self.pooled.low, self.pooled.difference, self.pooled.high)
        )
        unit = " points" if self.scale == 100 else f" {self.unit}"
        shown = self.verdict != "no difference shown"
        head = f"is {self.verdict} than " if shown else "is not shown to differ from "
        head += "the " if self.against in ("baseline", "reference") else ""
        return (
            f"{head}{self.against}: {size}{unit}, 95 % interval {low} to {high}, p = {self.p_holm:.2g}, "
            f"n = {sum(row.n for row in self.rows):,} documents; {self.better} of {self.count} by themselves"
        )


@dataclass(frozen=True, slots=True)
class Several:
    """Sweeps side by side.

    Attributes
    ----------
    results : tuple of Result
        One for each task of each sweep.
    gate : tuple of Verdict
        The donor against its reference.
    verdicts : tuple of Verdict
        +v at the chosen alpha against baseline, controls and rivals.
    """

    results: tuple[Result, ...]
    gate: tuple[Verdict, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> int:
        """How many donors beat their reference."""
        return sum(result.gate["passed"] for result in self.results)

    @property
    def transferred(self) -> int:
        """In how many results reasoning transferred."""
        return sum(result.conclusion["transferred"] for result in self.results)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return finite(
            {
                "schema": SCHEMA,
                "results": [
                    {
                        "label": result.label,
                        "task": result.task,
                        "alpha": result.alpha,
                        "gate": result.gate["passed"],
                        "conclusion": result.conclusion,
                    }
                    for result in self.results
                ],
                "gates_passed": self.passed,
                "transferred": self.transferred,
                "gate": [asdict(item) for item in self.gate],
                "pooled": [asdict(item) for item in self.verdicts],
            }
        )


def pool_results(results: Sequence[Result]) -> Several:
    """Pool the primary tests of several sweeps.

    Every result counts, whether its donor passed the gate or not: nothing is left out for what it shows.
    Tasks of one sweep share a vector, so that sweeps are what varies, and tasks are averaged before.
    Several random vectors of one result count as one, with the mean of their differences and of their
    variances, since all of them are held against the same arm.
    """
    primary: dict[tuple[str, str], list[Row]] = {}
    gates: dict[tuple[str, str], list[Row]] = {}
    for result in results:
        with as_written(result.label):
            for against, tests in _by_other(result):
                row = _row(result, tests)
                if row is not None:
                    primary.setdefault((against, _unit(tests[0])), []).append(row)
            test = result.gate["comparison"]
            row = _row(result, [test]) if test else None
            if row is not None:
                gates.setdefault((GATE, _unit(test)), []).append(row)
            Several((result,), (), ()).to_json()  # all that is counted
    return Several(tuple(results), tuple(_verdicts(gates)), tuple(_verdicts(primary)))


def _by_other(result: Result) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The primary tests of a result by what +v is held against, in words."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for test in result.primary:
        groups.setdefault(other_in_words(result.arm(test["against"])), []).append(test)
    yield from groups.items()


def other_in_words(arm: dict[str, Any]) -> str:
    """An arm as a kind that several results have: all random vectors are one."""
    kind, alpha = arm["kind"], arm["alpha"]
    if kind in ("random", "permuted"):
        return f"{kind} vectors"
    if kind not in ("sft", "rival"):
        return kind
    text = "the SFT vector" if kind == "sft" else arm.get("origin") or arm["name"]
    if MATCHED in arm["name"]:
        return f"{text} at v's norm"
    return text if alpha in (None, 1) else f"{text} × {alpha:g}"


def _unit(test: dict[str, Any]) -> str:
    return "points" if test["test"] == "mcnemar" else test["metric"]


def _row(result: Result, tests: Sequence[dict[str, Any]]) -> Row | None:
    """Tests of one result as one difference; None where it has no spread to weigh it by."""
    sign = 1.0 if result.higher_is_better else -1.0
    errors = [
        paired_error(t["gained"], t["lost"], t["n"])
        if t["test"] == "mcnemar"
        else interval_error(t["low"], t["high"])
        for t in tests
    ]
    error = math.sqrt(math.fsum(e * e for e in errors) / len(errors))
    if not error > 0:
        return None
    difference = sign * math.fsum(t["difference"] for t in tests) / len(tests)
    half = statistics.quantile(statistics.ALPHA) * error
    verdicts = {t["verdict"] for t in tests}
    own = verdicts.pop() if len(verdicts) == 1 else "no difference shown"
    return Row(
        result.label, result.task, tests[0]["n"], own, Effect(difference, error), difference - half,
        difference + half,
    )  # fmt: skip


def _independent(rows: Sequence[Row]) -> list[Effect]:
    """The differences of sweeps: tasks of one sweep share a vector, and are averaged first.

    Those of a single sweep are pooled as they are: there is nothing else to say how far they vary.
    """
    sweeps: dict[str, list[Effect]] = {}
    for row in rows:
        sweeps.setdefault(row.label, []).append(row.effect)
    if len(sweeps) == 1:
        return [row.effect for row in rows]
    return [
        Effect(
            math.fsum(e.difference for e in own) / len(own),
            math.sqrt(math.fsum(e.error**2 for e in own)) / len(own),
        )
        for own in sweeps.values()
    ]


def _verdicts(groups: dict[tuple[str, str], list[Row]]) -> Iterator[Verdict]:
    pooled = [pool(_independent(rows)) for rows in groups.values()]
    corrected = statistics.holm([found.p for found in pooled])
    for (names, rows), found, p_holm in zip(groups.items(), pooled, corrected, strict=True):
        yield Verdict(
            against=names[0],
            unit=names[1],
            better=sum(row.verdict == "better" for row in rows),
            count=len(rows),
            pooled=found,
            p_holm=p_holm,
            verdict=statistics.verdict(found.difference, p_holm),
            rows=tuple(rows),
        )
