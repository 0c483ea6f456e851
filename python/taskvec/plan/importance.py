"""The importance maps of a merge: each has to fit the model that it is of."""

from __future__ import annotations

from taskvec.dtypes import FLOAT_DTYPES
from taskvec.errors import RecipeError
from taskvec.methods.operation import COPY, DEFAULT
from taskvec.models.model import Model
from taskvec.models.selection import Selection
from taskvec.plan.merge_models import Opened, checkpoint_of
from taskvec.recipe.expanded import ExpandedMerge, ExpandedTensor
from taskvec.text import listed, shown


def check_maps(
    merge: ExpandedMerge, opened: Opened, selection: Selection, *, has_tokens: bool = False
) -> None:
    """Return if every tensor that is computed has the importance that its method asks for.

    Parameters
    ----------
    merge : ExpandedMerge
    opened : mapping of ModelRef to Model
    selection : Selection
        Bound to the first model.
    has_tokens : bool
        The output has a vocabulary that is not that of all models.

    Raises
    ------
    RecipeError
        A map lacks a tensor, has another shape there, holds no plain numbers, or would need rows of another
        vocabulary.
    """
    if not merge.maps:
        return
    if has_tokens:
        raise RecipeError(
            f"`{merge.method.name}` weighs by importance maps, which have no rows for another vocabulary",
            "bring the models to one vocabulary first (`taskvec tokens`), and make the maps of those",
        )
    computed = {
        tensor.name: tensor
        for tensor in merge.tensors
        if merge.operations[tensor.operation] != COPY and selection.matches(tensor.name)
        if _template(merge, opened, tensor).tensors[tensor.template[1]].dtype in FLOAT_DTYPES
    }
    _refuse_unmapped(merge, [row for row in merge.unmapped if row[0] in computed])
    for tensor in computed.values():
        shape = _template(merge, opened, tensor).tensors[tensor.template[1]].shape
        for number, stored in tensor.inputs:
            if number in merge.maps:
                _check_tensor(merge, opened, number, stored, shape)


def _template(merge: ExpandedMerge, opened: Opened, tensor: ExpandedTensor) -> Model:
    return checkpoint_of(opened, merge.models[tensor.template[0]])


def _refuse_unmapped(merge: ExpandedMerge, rows: list[tuple[str, int]]) -> None:
    if not rows:
        return
    number = rows[0][1]
    names = [name for name, each in rows if each == number]
    raise RecipeError(
        f"the importance map `{merge.models[number]}` of "
        f"`{merge.models[merge.maps[number]]}` lacks {listed(names)}",
        "make the map of that very model (`taskvec importance`), leave the tensors out (`exclude`), or say "
        f"what they matter: `{DEFAULT}: 0.001` among the model's parameters",
    )


def _check_tensor(
    merge: ExpandedMerge, opened: Opened, number: int, stored: str, shape: tuple[int, ...]
) -> None:
    ref = merge.models[number]
    model = checkpoint_of(opened, ref)
    info = model.tensors[stored]
    if stored in model.packed or info.dtype not in FLOAT_DTYPES:
        form = "packed" if stored in model.packed else f"as {info.dtype}"
        raise RecipeError(
            f"`{shown(stored)}` of the importance map `{ref}` is stored {form}",
            "a map holds plain numbers: bfloat16, float16, float32 or float64",
        )
    if info.shape != shape:
        raise RecipeError(
            f"`{shown(stored)}` of the importance map `{ref}` has the shape {list(info.shape)}, and "
            f"the model's has {list(shape)}",
            "make the map of that very model (`taskvec importance`)",
        )
