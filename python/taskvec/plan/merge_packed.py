"""The packed weights of a merge: what combining them means, and the form in which they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from taskvec.compat.findings import Finding
from taskvec.compat.quantised import Pair, check_difference, check_ranking
from taskvec.errors import RecipeError
from taskvec.methods.operation import COPY
from taskvec.models.model import Model
from taskvec.plan.packed_output import PLAIN, Computed, OutputForm, output_form
from taskvec.settings import TARGET, TOUCHED, Settings

if TYPE_CHECKING:
    from taskvec.models.adapter import Adapter
    from taskvec.models.quantised.format import Packed
    from taskvec.models.saved_vector import SavedVector
    from taskvec.models.selection import Selection
    from taskvec.recipe.expanded import ExpandedMerge, ExpandedTensor
    from taskvec.recipe.model_ref import ModelRef

    Opened = Mapping[ModelRef, Model | SavedVector | Adapter]


def packed_findings(merge: ExpandedMerge, opened: Opened) -> list[Finding]:
    """The findings of a merge in which weights are packed."""
    if not any(isinstance(model, Model) and model.packed for model in opened.values()):
        return []
    pairs = list(_pairs(merge, opened))
    return [*check_difference("the models", pairs), *check_ranking(merge.method.name, pairs)]


def _pairs(merge: ExpandedMerge, opened: Opened) -> Iterator[Pair]:
    """The differences that a merge takes, tensor by tensor."""
    for tensor in merge.tensors:
        for term in merge.operations[tensor.operation].get("terms", ()):
            if term.get("reference") is not None:
                sides = [
                    _packed(merge, opened, *tensor.inputs[term[side]]) for side in ("model", "reference")
                ]
                if any(side is not None for side in sides):
                    yield Pair(tensor.name, *sides)


def _packed(merge: ExpandedMerge, opened: Opened, number: int, name: str) -> Packed | None:
    """How an input is stored; an adapter on a packed model makes plain weights of it."""
    ref = merge.models[number]
    model = opened[ref]
    return model.packed.get(name) if isinstance(model, Model) and ref.adapter is None else None


def merge_form(
    merge: ExpandedMerge, opened: Opened, base: Model, selection: Selection, settings: Settings
) -> OutputForm:
    """The form of the packed weights of a merge's output; see :func:`output_form`.

    Raises
    ------
    RecipeError
        The base's own format is asked for, and cannot be written.
    """
    if settings.out_dtype == TOUCHED and any(
        tensor.template != (merge.config_from, tensor.name) for tensor in merge.tensors
    ):
        raise RecipeError(
            f"layers that are not where `{base.spec}` has them cannot be plain one by one, which its config "
            "says of names",
            "write `target`, or plain weights: `bfloat16`, `float16` or `float32`",
        )
    is_kept = base.packed and settings.out_dtype in (None, TARGET)
    if is_kept and any(tensor.name not in base.tensors for tensor in merge.tensors) and _has_more(base):
        if settings.out_dtype == TARGET:
            raise RecipeError(
                f"layers of `{base.spec}` cannot be put into a new order in its own format: scales of "
                "activations belong to their places",
                "write plain weights: `bfloat16`, `float16` or `float32`",
            )
        return PLAIN
    return output_form(base, _computed(merge, opened, selection), settings)


def _has_more(model: Model) -> bool:
    """Whether a model stores something that is neither a tensor nor part of one."""
    parts = sum(len(packed.parts) + len(packed.beside) for packed in model.packed.values())
    return len(model.stored) > len(model.tensors) - len(model.packed) + parts


def _computed(merge: ExpandedMerge, opened: Opened, selection: Selection) -> Iterator[Computed]:
    for tensor in merge.tensors:
        own = _template(merge, opened, tensor)
        if own is None or not selection.matches(tensor.name):
            continue
        is_copy = merge.operations[tensor.operation] == COPY and tensor.inputs == (tensor.template,)
        if is_copy and merge.models[tensor.template[0]].adapter is None:
            continue
        others = [_packed(merge, opened, *each) for each in tensor.inputs]
        yield Computed(tensor.name, own, others, is_first=tensor.inputs[0] == tensor.template)


def _template(merge: ExpandedMerge, opened: Opened, tensor: ExpandedTensor) -> Packed | None:
    number, name = tensor.template
    model = opened[merge.models[number]]
    return model.packed.get(name) if isinstance(model, Model) else None
