"""Whether every vector of a sweep can be added to the target: from headers, before the first arm is run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import taskvec as tv
from taskvec.errors import CompatibilityError
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.experiment import Experiment
from taskvec.evaluation.sweep.merge import Merger
from taskvec.evaluation.sweep.part_arms import chosen_names, groups, part_arms
from taskvec.evaluation.sweep.part_vectors import hold_some, other_vector, sft_vector, vector_names
from taskvec.resolve.saved_vector import is_vector


def check_vectors(experiment: Experiment, merger: Merger, arms: Iterable[Arm], target: str) -> None:
    """Return if the vectors of `arms`, and of parts that are made of other models, are compatible.

    Raises
    ------
    CompatibilityError
        One is not; the message says which models its findings mean.
    EvaluationError, RecipeError
        A part has no tensor, or there are fewer layers than groups.
    taskvec.Error
        A model cannot be read.
    """
    for arm in {arm.weights: arm for arm in arms if arm.kind in ("vector", "sft", "whole", "rival")}.values():
        delta = merger.delta_of(arm)
        pair = f"donor − reference, here `{delta.donor}` − `{delta.reference}`"
        with _of(f"`{arm.name}` adds {pair}" if arm.kind != "vector" else ""):
            delta.plan(target)
    _check_groups(experiment)
    parts = experiment.parts
    if parts.also is not None:
        minus = f" − `{experiment.reference}`" if not is_vector(parts.also) else ""
        with _of(f"`other` adds `{parts.also}`{minus}"):
            tv.plan_apply(target, other_vector(experiment), force=tuple(experiment.merge.force))
    if parts.without_sft:
        with _of(f"`without-sft` needs `{experiment.reference}` − `{experiment.base}`"):
            sft_vector(experiment)


def _check_groups(experiment: Experiment) -> None:
    """Return if every group of tensors that is asked for, and all but it, has some."""
    names = vector_names(experiment)
    found = groups(experiment, names)
    for arm in part_arms(experiment, (1.0,), names):
        hold_some(arm, chosen_names(arm.part or "", found))


@contextlib.contextmanager
def _of(what: str) -> Iterator[None]:
    """Around what finds models incompatible: `what` is said before it."""
    try:
        yield
    except CompatibilityError as error:
        if not what:
            raise
        named = CompatibilityError(f"{what}: {error.message}", error.hint)
        named.findings = error.findings
        raise named from error
