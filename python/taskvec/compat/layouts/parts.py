"""Selections that name a part of a stored tensor: one projection of a fused one, one expert of a stack."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from taskvec.compat.layouts.table import views
from taskvec.errors import RecipeError

if TYPE_CHECKING:
    from taskvec.models.model import Model
    from taskvec.models.selection import Selection


def hold_whole(selection: Selection, model: Model) -> None:
    """Return if a selection takes or leaves every stored tensor of a model as a whole.

    Raises
    ------
    RecipeError
        A pattern is found in the name of a weight that is stored as one tensor with others, and the stored
        name says otherwise.
    """
    if not (selection.include or selection.exclude):
        return
    include = [re.compile(pattern) for pattern in selection.include]
    exclude = [re.compile(pattern) for pattern in selection.exclude]
    for name, parts in views(model):
        if len(parts) < 2:
            continue
        for option, patterns in (("include", include), ("exclude", exclude)):
            if any(pattern.search(name) for pattern in patterns):
                continue
            for pattern in patterns:
                part = next((view.name for view in parts if pattern.search(view.name)), None)
                if part is not None:
                    raise RecipeError(
                        f"{option} `{pattern.pattern}` is found in `{part}`, which `{model.spec}` stores "
                        f"as a part of `{name}`",
                        f"a stored tensor is taken or left as a whole: name it as `{_leaf(name)}`, or leave "
                        "the pattern out",
                    )


def _leaf(name: str) -> str:
    """The last part of a name that is that of a layer."""
    return name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
