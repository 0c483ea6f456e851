"""The figures of the paper (arXiv 2509.01363), next to the same comparisons of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from taskvec.evaluation.analysis.compare import Comparison
from taskvec.evaluation.analysis.pairs import baselines
from taskvec.evaluation.record import ArmRecord

# Qwen2.5-1.5B-Instruct: points over the baseline
GAIN = {"gsm8k": 4.9, "humaneval": 4.3, "sciq": 1.7, "bbh": 12.3}
HARM = {"gsm8k": -11.8}

Find = Callable[[str, str, str], Comparison | None]


def paper_rows(records: Sequence[ArmRecord], find: Find) -> list[dict[str, Any]]:
    """The paper's figures and the same comparisons here, for the tasks that it has.

    Parameters
    ----------
    records : sequence of ArmRecord
    find : callable
        The comparison of two arms on a task, by their names.
    """
    baseline = baselines(records).get((None, None))
    if baseline is None:
        return []
    rows = []
    for task in records[0].tasks:
        for what, figures, alpha, think in (
            ("+vector+think over baseline", GAIN, 1.0, True),
            ("-vector over baseline", HARM, -1.0, False),
        ):
            figure = next((value for name, value in figures.items() if task.startswith(name)), None)
            arm = _vector(records, alpha, think)
            here = find(arm.name, baseline.name, task) if arm is not None else None
            if figure is not None and here is not None:
                rows.append({"task": task, "what": what, "paper": figure, "here": here})
    return rows


def _vector(records: Sequence[ArmRecord], alpha: float, think: bool) -> ArmRecord | None:
    """The unperturbed vector arm of an alpha, with or without a request to reason."""
    vectors = (record for record in records if record.kind == "vector" and not record.perturb)
    return next((r for r in vectors if (r.alpha, r.think is not None) == (alpha, think)), None)
