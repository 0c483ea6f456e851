"""Averages of the checkpoints of a training run, in one pass over any number of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from taskvec.arguments import number, path
from taskvec.compat.findings import finding
from taskvec.errors import FormatError, NotFoundError, RecipeError
from taskvec.files import look
from taskvec.lazy.plan import Plan
from taskvec.models.adapter_config import CONFIG as ADAPTER_CONFIG
from taskvec.models.model import Model
from taskvec.models.source import pinned
from taskvec.plan.merge import plan_recipe
from taskvec.recipe.load import load
from taskvec.recipe.training import metrics as figures
from taskvec.recipe.training.checkpoints import TrainingCheckpoint, chosen, find, unfinished
from taskvec.recipe.training.metrics import Best, Better, state_of
from taskvec.recipe.training.schedule import Schedule, own_weights
from taskvec.recipe.training.schedule import weights as scheduled
from taskvec.resolve.open import open as open_model
from taskvec.settings import Options, Settings
from taskvec.text import kind_of, listed, plural

if TYPE_CHECKING:
    from taskvec.progress import Callback
    from taskvec.report.report import Report

# Files of a trainer, which say nothing of an average.
_TRAINERS = frozenset({"latest", "trainer_state.json", "training_args.bin", "zero_to_fp32.py"})

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def plan_average(
    checkpoints: Paths,
    *,
    first: int | None = None,
    last: int | None = None,
    every: int | None = None,
    schedule: Schedule | None = None,
    half_life: float | None = None,
    weights: Sequence[float] | None = None,
    best: int | None = None,
    metrics: str | os.PathLike[str] | None = None,
    metric: str | None = None,
    better: Better | None = None,
    **settings: Unpack[Options],
) -> Plan:
    """Say what :func:`average` would do, from headers alone; takes its arguments but for ``out``."""
    given = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else _listed(checkpoints)
    for name, value in (("first", first), ("last", last), ("every", every), ("best", best)):
        number(value, name)
    if metrics is not None:
        path(metrics, "metrics")
    run = chosen(find(given), first=first, last=last, every=every)
    ranked = _best(run, best, metrics, metric, better)
    run = ranked.checkpoints if ranked is not None else run
    if len(run) < 2:
        raise RecipeError(
            f"an average of {plural(len(run), 'checkpoint')}: {', '.join(each.spec for each in run)}",
            "give two or more, or a wider range",
        )
    steps = [each.step for each in run]
    if weights is None:
        schedule = schedule or "uniform"
        shares = scheduled(steps, schedule, half_life)
    elif schedule is not None or half_life is not None:
        raise RecipeError(
            "weights and a schedule: both say how much each checkpoint counts", "give one of them"
        )
    else:
        shares = own_weights(weights, steps)
    models = [_opened(each, run) for each in run]
    record = _record(run, models, shares, schedule, half_life, ranked)
    return _planned(models, shares, record, unfinished(given), Settings.of(settings))


def _opened(each: TrainingCheckpoint, run: Sequence[TrainingCheckpoint]) -> Model:
    """A checkpoint of a run; what keeps it from being opened is told in the run's words."""
    try:
        return open_model(each.spec)
    except (FormatError, NotFoundError) as error:
        folder = Path(each.spec)
        if look.exists(folder / ADAPTER_CONFIG):
            raise FormatError(
                f"`{each.spec}` is a LoRA adapter: a mean of its factors is not the factors of a mean",
                "average what the adapters make of their model: a recipe of `merge_method: linear` with "
                f"`model: BASE+{each.spec}` for each",
            ) from error
        if not look.is_folder(folder) or each.step is None:
            raise
        before = [other.step for other in run if other.step is not None and other.step < each.step]
        out = f"`--to {max(before)}` leaves it out" if before and each is run[-1] else "name the others"
        message = f"{error.message}; the checkpoint of step {each.step} is damaged or still being written"
        raise type(error)(message, f"wait until it is saved, or {out}") from error


def _listed(checkpoints: Paths) -> list[str | os.PathLike[str]]:
    if not isinstance(checkpoints, Iterable) or isinstance(checkpoints, bytes):
        raise RecipeError(
            f"`checkpoints` are texts or paths, found {kind_of(checkpoints)}", "give 'run/checkpoint-*'"
        )
    return [path(each, "checkpoints") for each in checkpoints]


def average(
    checkpoints: Paths,
    out: str | os.PathLike[str],
    *,
    first: int | None = None,
    last: int | None = None,
    every: int | None = None,
    schedule: Schedule | None = None,
    half_life: float | None = None,
    weights: Sequence[float] | None = None,
    best: int | None = None,
    metrics: str | os.PathLike[str] | None = None,
    metric: str | None = None,
    better: Better | None = None,
    progress: Callback | bool | None = None,
    **settings: Unpack[Options],
) -> Report:
    """Write the weighted mean of checkpoints of one training run.

    Each is read once, a block at a time; config, tokenizer and order of the tensors are the newest one's.

    Parameters
    ----------
    checkpoints : str, path or sequence of them
        Folders, patterns (``run/checkpoint-*``), the folder of the run, or addresses. Their steps come from
        their names (``checkpoint-500``, ``global_step500``) or their ``trainer_state.json``.
    out : str or path
        The output folder.
    first, last : int, optional
        The range of training steps, both included.
    every : int, optional
        Distance in training steps, counted from the first of the range.
    schedule : {"uniform", "linear", "1-sqrt", "ema"}, optional
        How much each counts; see :func:`taskvec.recipe.training.schedule.weights`. ``uniform`` by default.
    half_life : float, optional
        Of ``ema``, in training steps.
    weights : sequence of float, optional
        In place of a schedule: what each checkpoint is multiplied by, in the order of their steps. They are
        taken as they are, may be below zero, and need not sum to one.
    best : int, optional
        Only so many checkpoints: those with the best values of a metric.
    metrics : path, optional
        Where the values are: a ``trainer_state.json`` (that of the newest checkpoint by default), JSON, JSON
        lines, CSV or TSV.
    metric : str, optional
        By default ``eval_loss``, or the only one in the file.
    better : {"lower", "higher"}, optional
        By default as the metric's name says.
    progress : callable or bool, optional
        Called with a :class:`taskvec.Progress`; ``True`` draws a bar.
    **settings
        The fields of :class:`taskvec.Settings`.

    Raises
    ------
    RecipeError
        Fewer than two checkpoints, or a value that cannot be honoured.
    CompatibilityError
        The checkpoints are incompatible.
    taskvec.Error
        Another of its subclasses says what is missing, damaged or could not be written.
    """
    plan = plan_average(
        checkpoints, first=first, last=last, every=every, schedule=schedule, half_life=half_life,
        weights=weights, best=best, metrics=metrics, metric=metric, better=better, **settings,
    )  # fmt: skip
    return plan.run(out, settings=Settings.of(settings), progress=progress)


def _best(
    run: Sequence[TrainingCheckpoint],
    count: int | None,
    metrics: str | os.PathLike[str] | None,
    metric: str | None,
    better: Better | None,
) -> Best | None:
    if count is None:
        if metrics is not None or metric is not None or better is not None:
            raise RecipeError("a metric chooses nothing by itself", "say how many are wanted: `--best 5`")
        return None
    path = metrics or (state_of(run[-1]) if run else None)
    if path is None:
        raise RecipeError(
            "the best checkpoints of which figures? The newest one has no trainer_state.json",
            "give a file with `--metrics`",
        )
    return figures.best(run, count, path, metric=metric, better=better)


def _record(
    run: Sequence[TrainingCheckpoint],
    models: Sequence[Model],
    shares: Sequence[float],
    schedule: str | None,
    half_life: float | None,
    ranked: Best | None,
) -> dict[str, Any]:
    """What the manifest keeps of an average: enough to make it again without the file of the metric."""
    record: dict[str, Any] = {
        "verb": "average",
        "checkpoints": [pinned(model) for model in models],
        "steps": [each.step for each in run],
        "weights": list(shares),
    }
    if schedule is not None:
        record["schedule"] = schedule
    if half_life is not None:
        record["half_life"] = half_life
    if ranked is not None:
        record["best"] = {"metric": ranked.metric, "better": ranked.better, "values": ranked.values}
    return record


def _planned(
    models: Sequence[Model],
    shares: Sequence[float],
    record: dict[str, Any],
    left: Sequence[str],
    settings: Settings,
) -> Plan:
    """The plan of a weighted mean; the newest model comes first: the output has its files."""
    inputs = [
        {"model": model, "parameters": {"weight": share}} for model, share in zip(models, shares, strict=True)
    ]
    document = {
        "merge_method": "linear",
        "base_model": models[-1],
        "models": inputs,
        "parameters": {"normalize": False},
    }
    plan = plan_recipe(load(document).last, settings=settings, record=record)
    files = [name for name in models[-1].other_files if name.rpartition("/")[2] in _TRAINERS]
    findings = list(plan.findings)
    if left:
        what = f"{listed(left)}: without weights, or called as a folder that is still being written to"
        findings.append(finding("checkpoints-left", plural(len(left), "checkpoint"), "", what))
    return Plan.of(replace(plan, left=(*plan.left, *files), findings=tuple(findings)))
