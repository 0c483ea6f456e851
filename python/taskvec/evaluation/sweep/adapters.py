"""Models that are named with a LoRA adapter, ``base+adapter``: each is merged once, for all of its arms."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import taskvec as tv
from taskvec.errors import OutputError, RecipeError
from taskvec.evaluation.arms import arm_stem
from taskvec.evaluation.experiment import Experiment
from taskvec.files import look
from taskvec.recipe.model_ref import parse_model

FOLDER = "with-adapters"
_ROLES = ("target", "donor", "reference", "base")


def adapted(model: str) -> bool:
    """Whether a name is one of a model and of an adapter that is added to it.

    Raises
    ------
    RecipeError
        It has a ``+`` and is neither such a name nor a folder's.
    """
    if "+" not in model or look.exists(model):
        return False
    try:
        return parse_model(model).adapter is not None
    except ValueError as error:
        message, hint = (*error.args, None)[:2]
        raise RecipeError(str(message), hint) from None


def with_adapters(experiment: Experiment, out: Path, note: Callable[[str], None]) -> Experiment:
    """The experiment with folders in place of ``base+adapter``, merged under an output folder.

    They stay there, so that every command in the report can be repeated.

    Raises
    ------
    taskvec.Error
        An adapter does not fit its model, or there is no room.
    """
    named = [model for model in (experiment.target, *experiment.models) if adapted(model)]
    if not named:
        return experiment
    folders = {}
    for model in dict.fromkeys(named):
        digest = hashlib.blake2b(model.encode(), digest_size=6).hexdigest()
        folder = out / FOLDER / digest / arm_stem(model)
        note(f"`{model}` is merged into `{folder}`, and stays there")
        _merge(model, folder)
        folders[model] = str(folder)
    roles = {role: folders.get(getattr(experiment, role), getattr(experiment, role)) for role in _ROLES}
    rivals = tuple(folders.get(model, model) for model in experiment.rivals)
    return experiment.model_copy(update={**roles, "rivals": rivals})


def _merge(model: str, folder: Path) -> None:
    """The model with its adapter, as a folder; one that is there already is left as it is."""
    recipe = {"models": [{"model": model}], "merge_method": "passthrough"}
    try:
        tv.merge(recipe, folder, rehash=True)
    except OutputError:  # of an earlier run whose model or adapter was another one, or damaged since
        tv.merge(recipe, folder, overwrite=True)
