"""Evaluation of a task vector against its controls: arms, paired tests, a report.

lm-eval does the evaluating (extra ``eval``); nothing here imports it, or torch, before an evaluation starts.

- :func:`evaluate` runs one model on benchmark tasks and gives an :class:`ArmRecord`;
- :func:`evaluate_model` keeps the record in a folder, and reports on all that the folder holds;
- :func:`run_sweep` runs a whole :class:`Experiment`: merges, arms, controls, comparisons;
- ``taskvec.search`` looks for the best values of a recipe: a :class:`Space`, which :func:`load_space` reads;
- ``taskvec.sweep`` is the same in one call, for a notebook: a :class:`SweepReport` has tables and figures;
- :func:`build_report` compares finished arms, :func:`write_report` writes the report files;
- :func:`read_results`, :func:`pool_results` and :func:`write_several` put finished sweeps side by side.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskvec.evaluation.arms import Arm
    from taskvec.evaluation.backend.evaluate import evaluate
    from taskvec.evaluation.experiment import Experiment, load_experiment
    from taskvec.evaluation.record import ArmRecord, read_record
    from taskvec.evaluation.report.held import SweepReport
    from taskvec.evaluation.report.pooling import Several, pool_results
    from taskvec.evaluation.report.report import Report, build_report
    from taskvec.evaluation.report.several import read_results
    from taskvec.evaluation.report.several_page import write_several
    from taskvec.evaluation.report.write import write_report
    from taskvec.evaluation.search.result import SearchResult
    from taskvec.evaluation.search.space import Space, load_space
    from taskvec.evaluation.settings import Settings, paper_settings
    from taskvec.evaluation.sweep.single import evaluate_model
    from taskvec.evaluation.sweep.sweep import run_sweep

_HOMES = {
    "Arm": "arms",
    "ArmRecord": "record",
    "Experiment": "experiment",
    "Report": "report.report",
    "SearchResult": "search.result",
    "Settings": "settings",
    "Several": "report.pooling",
    "Space": "search.space",
    "SweepReport": "report.held",
    "build_report": "report.report",
    "evaluate": "backend.evaluate",
    "evaluate_model": "sweep.single",
    "load_experiment": "experiment",
    "load_space": "search.space",
    "paper_settings": "settings",
    "pool_results": "report.pooling",
    "read_record": "record",
    "read_results": "report.several",
    "run_sweep": "sweep.sweep",
    "write_report": "report.write",
    "write_several": "report.several_page",
}

__all__ = [
    "Arm",
    "ArmRecord",
    "Experiment",
    "Report",
    "SearchResult",
    "Settings",
    "Several",
    "Space",
    "SweepReport",
    "build_report",
    "evaluate",
    "evaluate_model",
    "load_experiment",
    "load_space",
    "paper_settings",
    "pool_results",
    "read_record",
    "read_results",
    "run_sweep",
    "write_report",
    "write_several",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
