"""Whether an output folder holds results of other models, which must not be lost unseen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from taskvec.errors import Error, EvaluationError
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.backend.identity import resolve
from taskvec.evaluation.experiment import Experiment, load_experiment
from taskvec.evaluation.record import ArmRecord, read_record, record_path
from taskvec.files import look

# The kind of arm that a model of an experiment is evaluated as.
_ROLES = {"target": "baseline", "donor": "donor", "reference": "reference"}


def hold_same_sweep(experiment: Experiment, out: Path, arms: Sequence[Arm]) -> None:
    """Return if a folder holds no results of a sweep of other models.

    A model that has the weights of the one that was named before is the same model at another place; one that
    has changed under its name is evaluated again.

    Raises
    ------
    EvaluationError
        It does.
    """
    given = out / "experiment.yaml"
    if not look.exists(given):
        return
    try:
        before = load_experiment(given)
    except Error as error:
        if isinstance(error.__context__, OSError):  # it may be whole
            raise
        return  # damaged, or of another version: it is replaced
    for role in (*_ROLES, "vector"):
        now, then = getattr(experiment, role), getattr(before, role)
        if now is None or then is None or same_place(now, then):
            continue
        kind = _ROLES.get(role, "vector")
        records = [arm for arm in arms if arm.kind == kind and look.exists(record_path(out, arm.name))]
        if records and (role == "vector" or _is_other(now, out, records)):
            raise EvaluationError(
                f"`{out}` holds the sweep of another {role}: `{then}`, not `{now}`",
                "name another folder with -o, or remove this one",
            )


def _is_other(model: str, out: Path, arms: Sequence[Arm]) -> bool:
    """Whether records are of other weights than a model's."""
    known = [record for arm in arms if (record := sound_record(out, arm.name)) is not None]
    if not known or "+" in model:
        return bool(known)
    weights = resolve(model)[1]
    return any(record.weights != weights for record in known)


def hold_same_model(model: str | os.PathLike[str], weights: str, out: Path, arms: Sequence[Arm]) -> None:
    """Return if the arms of an output folder that have these names are of this model.

    Raises
    ------
    EvaluationError
        One is of another model: it would be lost.
    """
    for arm in arms:
        record = sound_record(out, arm.name)
        if record is None or record.weights == weights or same_place(record.model, os.fspath(model)):
            continue
        raise EvaluationError(
            f"arm `{arm.name}` of `{out}` is of another model: `{record.model}`, not `{os.fspath(model)}`",
            "give this one a name of its own with --name, or another folder with -o",
        )


def sound_record(out: Path, name: str) -> ArmRecord | None:
    """The record of an arm; None if there is none, or it is damaged and will be replaced."""
    path = record_path(out, name)
    if not look.exists(path):
        return None
    try:
        return read_record(path)
    except EvaluationError as error:
        if isinstance(error.__cause__, OSError):  # it may be whole
            raise
        return None


def same_place(one: str, other: str) -> bool:
    """Whether two names are of one model: the same words, or the same folder."""
    return one == other or os.path.realpath(one) == os.path.realpath(other)
