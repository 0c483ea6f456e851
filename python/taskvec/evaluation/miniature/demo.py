"""The paper in miniature, end to end: four models made here, every arm of the sweep, a report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from taskvec.evaluation.experiment import Evaluation, Experiment
from taskvec.evaluation.report.held import SweepReport
from taskvec.evaluation.sweep.sweep import run_sweep

if TYPE_CHECKING:
    from taskvec.evaluation.miniature.build import MiniatureModels
    from taskvec.evaluation.sweep.events import Event

ALPHAS = (-1.0, 0.0, 0.5, 1.0, 1.5)
PERTURBATIONS = ("typo", "distractor", "order")
SEED = 1


@dataclass(frozen=True, slots=True, repr=False)
class Miniature:
    """The outcome of a run of the paper in miniature.

    Attributes
    ----------
    report : SweepReport
        Whatever came out: nothing here expects the vector to help.
    models : MiniatureModels
        The checkpoints and the task.
    folder : Path
        Of the report.
    building_seconds, sweeping_seconds : float
        How long it took to have the models, and to evaluate and compare the arms.
    """

    report: SweepReport
    models: MiniatureModels
    folder: Path
    building_seconds: float
    sweeping_seconds: float

    def __repr__(self) -> str:
        return f"Miniature(seed={self.models.seed}, folder={str(self.folder)!r})"


def run(
    directory: str | os.PathLike[str],
    seed: int | None = None,
    pretrained: str | os.PathLike[str] | None = None,
    *,
    jobs: int = 1,
    building: Callable[[str, int, int], None] | None = None,
    sweeping: Callable[[Event], None] | None = None,
) -> Miniature:
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
        Processes that evaluate arms, of one torch thread each: their number does not change a result.
    building : callable, optional
        Called with a checkpoint's name, the steps done and the most there can be.
    sweeping : callable, optional
        Called with an `Event` of the sweep.

    Returns
    -------
    Miniature

    Raises
    ------
    taskvec.Error
        The extra ``eval`` is missing, the folder belongs to another seed, the archive cannot be read.
    """
    from taskvec.evaluation.backend.evaluate import require_extra

    require_extra()
    from taskvec.evaluation.miniature import build

    directory, begun = Path(directory), time.monotonic()
    if pretrained is not None:
        models = build.unpack(pretrained, directory / "models")
    else:
        models = build.build(directory / "models", SEED if seed is None else seed, building)
    built, folder = time.monotonic(), directory / "report"
    with build.one_thread():
        report = run_sweep(experiment(models), folder, jobs=jobs, threads=1, progress=sweeping)
    return Miniature(SweepReport.of(report), models, folder, built - begun, time.monotonic() - built)


def experiment(models: MiniatureModels) -> Experiment:
    """The sweep over the paper's arms and the controls it lacks."""
    from taskvec.evaluation.miniature import model, task

    return Experiment(
        target=str(models.target),
        donor=str(models.donor),
        reference=str(models.reference),
        base=str(models.base),
        rivals=(str(models.continued_sft),),
        alphas=ALPHAS,
        tasks=(models.task,),
        perturb=PERTURBATIONS,
        development=task.DEVELOPMENT,
        evaluation=Evaluation.model_validate(
            {
                "device": "cpu",
                "batch_size": 128,
                "max_gen_toks": model.LIMIT,
                "seed": models.seed,
                "include_path": str(models.tasks),
            }
        ),
    )
