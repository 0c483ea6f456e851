"""The paper in miniature, end to end: four models made here, every arm of the sweep, a report."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from taskvec.evaluation.experiment import Evaluation, Experiment
from taskvec.evaluation.sweep import run_sweep

if TYPE_CHECKING:
    from taskvec.evaluation.events import Event
    from taskvec.evaluation.miniature.build import MiniatureModels
    from taskvec.evaluation.report import Report

ALPHAS = (-1.0, 0.0, 0.5, 1.0, 1.5)
PERTURBATIONS = ("typo", "distractor", "order")
SEED = 1


def run(
    directory: str | os.PathLike[str],
    seed: int | None = None,
    pretrained: str | os.PathLike[str] | None = None,
    *,
    jobs: int = 1,
    building: Callable[[str, int, int], None] | None = None,
    sweeping: Callable[[Event], None] | None = None,
) -> Report:
    """Make the models, run the experiment of the paper on them with its controls, and write the report.

    Everything that is in the folder already is kept: a run that was stopped goes on.

    Parameters
    ----------
    directory : path
        Receives ``models/`` and ``report/``.
    seed : int, optional
        Of the models and their problems, by default `SEED`; an archive brings its own.
    pretrained : path, optional
        An archive of :func:`taskvec.evaluation.miniature.build.pack`, in place of training.
    jobs : int
        Processes that evaluate arms.
    building : callable, optional
        Called with a checkpoint's name, the steps done and the most there can be.
    sweeping : callable, optional
        Called with an `Event` of the sweep.

    Returns
    -------
    Report
        Whatever came out: nothing here expects the vector to help.

    Raises
    ------
    taskvec.Error
        The extra ``eval`` is missing, the folder belongs to another seed, the archive is none.
    """
    from taskvec.evaluation.harness import require_extra

    require_extra()
    from taskvec.evaluation.miniature import build

    directory = Path(directory)
    if pretrained is not None:
        models = build.unpack(pretrained, directory / "models")
    else:
        models = build.build(directory / "models", SEED if seed is None else seed, building)
    return run_sweep(experiment(models), directory / "report", jobs=jobs, progress=sweeping)


def experiment(models: MiniatureModels) -> Experiment:
    """The sweep over the paper's arms and the controls it lacks."""
    from taskvec.evaluation.miniature import build, model

    return Experiment(
        target=str(models.target),
        donor=str(models.donor),
        reference=str(models.reference),
        base=str(models.base),
        alphas=ALPHAS,
        tasks=(models.task,),
        perturb=PERTURBATIONS,
        development=build.DEVELOPMENT,
        evaluation=Evaluation(
            device="cpu",
            batch_size=128,
            max_gen_toks=model.LIMIT,
            seed=models.seed,
            include_path=str(models.tasks),
        ),
    )
