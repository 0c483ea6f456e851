"""The experiment in one call, for a notebook."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from taskvec.arguments import path
from taskvec.errors import RecipeError
from taskvec.evaluation.experiment import Experiment, experiment, load_experiment
from taskvec.evaluation.keywords import SweepOptions
from taskvec.evaluation.report.held import SweepReport
from taskvec.evaluation.sweep.events import Progress
from taskvec.evaluation.sweep.named import named
from taskvec.evaluation.sweep.sweep import run_sweep
from taskvec.models.model import Model
from taskvec.plan.delta import Delta
from taskvec.run.sinks import hold_folder
from taskvec.shown import watched


def sweep(
    file: str | os.PathLike[str] | Experiment | None = None,
    *,
    out: str | os.PathLike[str],
    scratch: str | os.PathLike[str] | None = None,
    budget: int | None = None,
    keep: bool = False,
    devices: Sequence[str] = (),
    jobs: int = 1,
    ray: str | None = None,
    progress: Progress | bool | None = None,
    **content: Unpack[SweepOptions],
) -> SweepReport:
    """Merge, evaluate and compare a vector with its controls and rivals.

    >>> report = tv.sweep(target="T", donor="D", reference="R", tasks=["gsm8k"], out="out")  # doctest: +SKIP
    >>> report.to_frame()  # doctest: +SKIP
    >>> report.plot("gsm8k")  # doctest: +SKIP

    Parameters
    ----------
    file : path, str or Experiment, optional
        A sweep file, the name of one that ships with taskvec, or an experiment.
    out : path
        Output folder. The same call goes on there after an interruption.
    scratch, budget, keep, devices, jobs, ray
        See `taskvec.evaluation.run_sweep`.
    progress : callable or bool, optional
        Called with an `Event`; ``True`` draws a bar.
    **content
        Keys of a sweep file, such as ``target``, ``donor``, ``reference``, ``rivals``, ``alphas``, ``tasks``,
        ``controls``, ``evaluation`` and ``merge``; they go before those of `file`.

    Returns
    -------
    SweepReport
        A `taskvec.evaluation.Report` with ``to_frame()`` and ``plot()``.

    Raises
    ------
    RecipeError, EvaluationError, taskvec.Error
        A key or value cannot be honoured; an arm could not be merged or evaluated.
    """
    hold_folder(os.fspath(path(out, "out")), "a sweep")
    below: dict[str, Any] = {}
    if isinstance(file, Experiment):
        below = file.model_dump(mode="json", exclude_unset=True)
    elif file is not None:
        below = load_experiment(file).model_dump(mode="json", exclude_unset=True)
    whole = experiment(
        {**below, **{key: _plain(value) for key, value in content.items()}}, source="the sweep"
    )
    with watched(progress) as tell:
        report = run_sweep(
            whole,
            Path(out),
            scratch=Path(path(scratch, "scratch")) if scratch is not None else None,
            budget=budget,
            keep=keep,
            devices=devices,
            jobs=jobs,
            ray=ray,
            progress=tell,
        )
    return SweepReport.of(report)


def _plain(value: Any) -> Any:
    """A value as a sweep file has it: paths and models are text, tuples lists."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Model):
        return named(value)
    if isinstance(value, Delta):
        raise RecipeError(
            f"a sweep takes a vector that is saved, found `{value}`",
            "give `donor` and `reference`, or the folder of `vector.save(...)`",
        )
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
