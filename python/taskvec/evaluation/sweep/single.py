"""A single model evaluated into an output folder, and compared with the arms that are there already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from taskvec.errors import EvaluationError
from taskvec.evaluation.arms import Arm, Kind, arm_name, arm_stem
from taskvec.evaluation.backend.evaluate import evaluate_into, finished, require_extra
from taskvec.evaluation.backend.identity import (
    arm_identity,
    resolve,
    settings_identity,
    source,
    versions,
)
from taskvec.evaluation.paper import Size
from taskvec.evaluation.record import ArmRecord, read_record, record_path, write_record
from taskvec.evaluation.report.report import Report, build_report, hold_one_baseline
from taskvec.evaluation.report.write import write_report
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.sweep.events import Event, Progress
from taskvec.evaluation.sweep.other_models import hold_same_model, sound_record
from taskvec.evaluation.sweep.scratch import locked
from taskvec.evaluation.tasks.apart import keep_apart
from taskvec.files import look


def evaluate_model(
    model: str | os.PathLike[str],
    settings: Settings,
    out: Path,
    *,
    name: str | None = None,
    kind: Kind | None = None,
    alpha: float | None = None,
    think: str | None = None,
    perturb: Sequence[str] = (),
    size: Size | None = None,
    progress: Progress | None = None,
    command: str | None = None,
) -> Report:
    """Evaluate a model, and report on every arm of an output folder.

    The first model of a folder is its baseline; a second one is compared with it. Arms that are done under
    the same settings are not run again, and an interrupted one goes on where it stopped.

    Parameters
    ----------
    model : path or str
        A folder or a hub name.
    settings : Settings
    out : Path
        Output folder.
    name : str, optional
        Of the arm; by default the model's own.
    kind : str, optional
        The model's part in the experiment: ``baseline``, ``donor``, ``vector`` …; by default that of the
        first model of a folder is ``baseline``, and that of every other one ``vector``.
    alpha : float, optional
        The factor of a vector that is in the model.
    think : str, optional
        A request to reason, in every prompt.
    perturb : sequence of str
        Perturbations, each an arm of its own besides the clean one.
    size : {"1.5b", "7b"}, optional
        Of the paper's models, whose table the report then has.
    progress : callable, optional
        Called with an `Event`.
    command : str, optional
        The command that repeats it, for the report.

    Raises
    ------
    EvaluationError
        The arm could not be evaluated, or the folder holds arms of other settings (before anything is run).
    """
    require_extra()
    from taskvec.evaluation.tasks.datasets import loaded_once
    from taskvec.evaluation.tasks.find import find_tasks

    find_tasks(settings)
    keep_apart(settings, out)
    tell = progress or (lambda _event: None)
    folder, weights = resolve(model)  # a model that is not found leaves no folder
    with locked(out), loaded_once():
        stem = name or arm_stem(model)
        names = {perturbed: arm_name(stem, think, perturbed) for perturbed in (None, *perturb)}
        others = _others(out, set(names.values()))
        own = sound_record(out, names[None])
        if own is not None and own.weights == weights and kind in (None, own.kind):
            kind, alpha = own.kind, own.alpha if alpha is None else alpha  # what it was called before
        kind = kind or _kind(others, weights)
        arms = [Arm(own, kind, alpha, think, perturbed) for perturbed, own in names.items()]
        hold_same_model(model, weights, out, arms)
        _check(settings, others)
        hold_one_baseline([*(record.arm for record in others), *arms])
        records = []
        for number, arm in enumerate(arms):
            _relabel(out, settings, arm, weights)
            known = finished(out, settings, arm, weights)
            tell(Event("known" if known else "start", arm.name, "", number, len(arms)))

            def say(task: str, done: int, total: int, arm: str = arm.name) -> None:
                tell(Event("progress", arm, task, done, total))

            shown = os.fspath(model)
            records.append(
                evaluate_into(
                    out,
                    folder,
                    settings,
                    arm,
                    weights,
                    progress=say,
                    shown=shown,
                    sources=[source(folder, weights)],
                )
            )
            if known is None:
                tell(Event("done", arm.name, "", number + 1, len(arms)))
        everything = sorted([*others, *records], key=lambda record: record.kind != "baseline")
        conditions = {record.think for record in everything}
        report = build_report(
            everything,
            think=think if None not in conditions else None,
            commands=[command] if command else [],
            size=size,
            pass_at=settings.pass_at,
        )
        write_report(report, out)
        return report


def _kind(others: Sequence[ArmRecord], weights: str) -> Kind:
    """What a model is that nothing is said of: the baseline, unless another one is."""
    first = any(record.kind == "baseline" and record.weights != weights for record in others)
    return "vector" if first else "baseline"


def _relabel(out: Path, settings: Settings, arm: Arm, weights: str) -> None:
    """Give an arm that is done another part in the experiment: its answers are the same."""
    record = sound_record(out, arm.name)
    if record is None or record.arm == arm or record.identity != arm_identity(settings, weights, arm):
        return
    found = replace(record, kind=arm.kind, alpha=arm.alpha, seed=None, origin=None, part=None)
    write_record(record_path(out, arm.name), found)


def _others(out: Path, names: set[str]) -> list[ArmRecord]:
    """The arms of a folder that are not about to be evaluated."""
    found = [out / "arms" / name for name in look.listing(out / "arms") if name.endswith(".json")]
    again = "evaluate its model into this folder again, or delete the file to leave the arm out"
    return [
        read_record(path, again) for path in found if path.stem not in names and not path.name.startswith(".")
    ]


def _check(settings: Settings, others: Sequence[ArmRecord]) -> None:
    """Refuse, before hours are spent, what the report would refuse afterwards."""
    here, version = settings_identity(settings), versions(settings)
    for record in others:
        # a model's own habits of decoding are known once it is loaded
        known = {key: value for key, value in record.settings.items() if key != "generation_config"}
        for ours, theirs in ((here, known), (version, record.versions)):
            for key in sorted({*ours, *theirs}):
                if ours.get(key) != theirs.get(key):
                    raise EvaluationError(
                        f"arm `{record.name}` of the output folder was run under different settings: {key} "
                        f"is {theirs.get(key)} there, {ours.get(key)} here",
                        "use the same settings, or another folder with -o",
                    )
