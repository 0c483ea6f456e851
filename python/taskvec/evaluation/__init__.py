"""Does a task vector carry what its donor learned? Arms, paired tests, a report.

lm-eval does the evaluating (extra ``eval``); nothing here imports it, or torch, before an evaluation starts.

- :func:`evaluate` runs one model on benchmark tasks and gives an :class:`ArmRecord`;
- :func:`evaluate_model` keeps the record in a folder, and reports on all that the folder holds;
- :func:`run_sweep` runs a whole :class:`Experiment`: merges, arms, controls, comparisons;
- :func:`build_report` compares finished arms, :func:`write_report` writes the report files.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arms import Arm
    from .experiment import Experiment, load_experiment
    from .harness import evaluate
    from .record import ArmRecord, read_record
    from .report import Report, build_report, write_report
    from .settings import Settings, paper_settings
    from .solo import evaluate_model
    from .sweep import run_sweep

_HOMES = {
    "Arm": "arms",
    "ArmRecord": "record",
    "Experiment": "experiment",
    "Report": "report",
    "Settings": "settings",
    "build_report": "report",
    "evaluate": "harness",
    "evaluate_model": "solo",
    "load_experiment": "experiment",
    "paper_settings": "settings",
    "read_record": "record",
    "run_sweep": "sweep",
    "write_report": "report",
}

__all__ = [
    "Arm",
    "ArmRecord",
    "Experiment",
    "Report",
    "Settings",
    "build_report",
    "evaluate",
    "evaluate_model",
    "load_experiment",
    "paper_settings",
    "read_record",
    "run_sweep",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
