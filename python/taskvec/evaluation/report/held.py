"""The report of a sweep as a user of a notebook holds it: as tables of pandas, and as figures."""

from __future__ import annotations

import html
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from taskvec.errors import EvaluationError
from taskvec.evaluation.report.figures import PALETTE, alpha_curve, differences
from taskvec.evaluation.report.labels import arm_label
from taskvec.evaluation.report.render import arm_rows
from taskvec.evaluation.report.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Table = Literal["arms", "tests"]
Kind = Literal["alpha", "differences"]


class SweepReport(Report):
    """A `Report` with tables and figures."""

    __slots__ = ()

    @classmethod
    def of(cls, report: Report) -> SweepReport:
        """The same report, as this class."""
        return cls(**{each.name: getattr(report, each.name) for each in fields(report)})

    def to_frame(self, table: Table = "arms") -> DataFrame:
        """The arms, or the tests, as a table of pandas.

        Parameters
        ----------
        table : {"arms", "tests"}
            One row per task and arm: score with its interval, difference to the baseline with its own, p,
            verdict, length; or one row per test.

        Raises
        ------
        EvaluationError
            pandas is not installed.
        """
        if table not in ("arms", "tests"):
            raise EvaluationError(f"there is no table `{table}`", "the tables are `arms` and `tests`")
        try:
            import pandas
        except ImportError:
            raise EvaluationError(
                "a table needs pandas, which is not installed", "pip install pandas"
            ) from None
        rows = self._arm_rows() if table == "arms" else self.to_json()["comparisons"]
        return pandas.DataFrame(rows)

    def plot(self, task: str | None = None, kind: Kind = "alpha") -> Figure:
        """The scores of a task over alpha, or the differences of all arms to the baseline.

        Parameters
        ----------
        task : str, optional
            The first by default.
        kind : {"alpha", "differences"}

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        EvaluationError
            matplotlib is not installed, or there is no such task or figure.
        """
        if kind not in ("alpha", "differences"):
            raise EvaluationError(f"there is no figure `{kind}`", "the figures are `alpha` and `differences`")
        chosen = self.tasks[0] if task is None else task
        if chosen not in self.tasks:
            raise EvaluationError(f"no arm has task `{chosen}`", f"the tasks are {', '.join(self.tasks)}")
        try:
            from matplotlib import pyplot
        except ImportError:
            raise EvaluationError(
                "a figure needs matplotlib, which is not installed", "pip install matplotlib"
            ) from None
        with pyplot.rc_context({"figure.constrained_layout.use": True, "font.size": 9}):
            figure = (alpha_curve if kind == "alpha" else differences)(self, chosen, PALETTE)
        pyplot.close(figure)  # a notebook shows what is returned, once
        return figure

    def __repr__(self) -> str:
        claims = "".join(f"\n  {item.text}" for item in self.conclusions)
        return f"SweepReport({len(self.records)} arms, tasks: {', '.join(self.tasks)}){claims}"

    def _repr_html_(self) -> str:
        claims = "".join(f"<li>{html.escape(item.text)}</li>" for item in self.conclusions)
        rows = "".join(
            f"<tr><th>{html.escape(arm_label(row['arm']))}</th><td>{html.escape(row['task'])}</td>"
            f"<td>{row['score']}</td><td>{row['difference']}</td><td>{row['verdict']}</td><td>{row['n']}</td></tr>"
            for row in arm_rows(self)
        )
        head = "<tr><th>arm</th><th>task</th><th>score</th><th>difference</th><th>verdict</th><th>n</th></tr>"
        return f"<ul>{claims}</ul><table><thead>{head}</thead><tbody>{rows}</tbody></table>"

    def _arm_rows(self) -> list[dict[str, Any]]:
        found = []
        for row in arm_rows(self):
            record = next(r for r in self.records if r.name == row["arm"].name)
            score, test = self.score(record, row["task"]), row["comparison"]
            if record.kind == "baseline":
                test = None
            found.append(
                {
                    "arm": record.name, "kind": record.kind, "alpha": record.alpha, "think": record.think,
                    "perturb": record.perturb, "task": row["task"],
                    "metric": record.tasks[row["task"]].metric,
                    "score": score.value if score else None, "low": score.low if score else None,
                    "high": score.high if score else None, "n": row["n"],
                    "difference": test.difference if test else None,
                    "difference_low": test.low if test else None,
                    "difference_high": test.high if test else None,
                    "p": test.p if test else None, "p_holm": test.p_holm if test else None,
                    "verdict": test.verdict if test else None, "family": test.family if test else None,
                    "tokens": row["tokens"], "cut": row["cut"],
                }
            )  # fmt: skip
        return found
