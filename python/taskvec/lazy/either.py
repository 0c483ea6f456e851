"""A model or a saved vector, whichever a name stands for."""

from __future__ import annotations

import os

from taskvec.arguments import path
from taskvec.lazy.vector import TaskVector, load_vector
from taskvec.models.model import Model
from taskvec.resolve.open import open as open_model
from taskvec.resolve.saved_vector import is_stored_vector, is_vector

Named = str | os.PathLike[str] | Model | TaskVector


def opened(given: Named) -> Model | TaskVector:
    """A model, or a vector that was saved; what is open already as it is.

    Raises
    ------
    RecipeError
        It is neither of them, nor a text or path.
    taskvec.Error
        It cannot be opened.
    """
    if isinstance(given, (Model, TaskVector)):
        return given
    if is_vector(path(given, "model")):
        return load_vector(given)
    model = open_model(given)
    return load_vector(given) if is_stored_vector(model) else model
