"""Models that a program has open, by the names that processes of an evaluation open them by."""

from __future__ import annotations

from collections.abc import Iterable

from taskvec.errors import RecipeError
from taskvec.files import look
from taskvec.models.model import Model
from taskvec.models.state_dict import Buffers


def named(model: Model) -> str:
    """The name by which processes of an evaluation open a model.

    Raises
    ------
    RecipeError
        It has none: its tensors are in memory.
    """
    if isinstance(model.weights, Buffers):
        raise RecipeError(
            f"`{model.spec}` is in memory, and an evaluation opens models by name",
            "save it, and give the folder",
        )
    return model.spec


def hold_found(models: Iterable[str]) -> None:
    """Return if every model can be opened, before a folder is made for what comes of them.

    Raises
    ------
    NotFoundError, HubError
        There is none of that name.
    """
    from taskvec.resolve.open import open as open_model

    for model in models:
        if "+" not in model and not look.exists(model):
            open_model(model)
