"""The findings of a merge, from the headers, configurations and tokenizers of its models."""

from __future__ import annotations

from taskvec.compat.check import check_models
from taskvec.compat.companions import check_copied, check_files
from taskvec.compat.findings import Finding, finding
from taskvec.compat.formats import check_formats, check_vectors
from taskvec.compat.integers import check_integers
from taskvec.compat.quantised import check_basis
from taskvec.compat.tensors import unused_selection
from taskvec.dtypes import FLOAT_DTYPES
from taskvec.methods.operation import COPY, sees_whole
from taskvec.models.model import Model
from taskvec.models.selection import Selection
from taskvec.plan.merge_models import Opened, checkpoint_of, role_of
from taskvec.plan.vocabulary import SETTLED, Tokens
from taskvec.plan.vocabulary_rows import models_in, shaped
from taskvec.recipe.expanded import ExpandedMerge
from taskvec.recipe.schema import Recipe
from taskvec.text import listed


def _computed(merge: ExpandedMerge) -> list[str]:
    """Stored names of the tensors that are computed with and not only copied."""
    rows = (tensor for tensor in merge.tensors if merge.operations[tensor.operation] != COPY)
    return list(dict.fromkeys(name for tensor in rows for _, name in tensor.inputs))


def _copied(merge: ExpandedMerge, opened: Opened) -> set[str]:
    """Output tensors that are not floats: one model's bytes, whether or not the others have them."""
    dtypes = (
        {
            tensor.name: checkpoint_of(opened, merge.models[tensor.template[0]])
            .tensors[tensor.template[1]]
            .dtype
            for tensor in merge.tensors
        }
        if merge.missing
        else {}
    )
    return {name for name, dtype in dtypes.items() if dtype not in FLOAT_DTYPES}


def merge_findings(
    merge: ExpandedMerge, opened: Opened, config_from: Model, recipe: Recipe, tokens: Tokens | None
) -> list[Finding]:
    if tokens is not None:
        seen = {ref: shaped(model, tokens, models_in(opened)) for ref, model in models_in(opened).items()}
        opened = {ref: seen.get(ref.plain, model) for ref, model in opened.items()}
        config_from = seen[merge.models[merge.config_from].plain]
        found = merge_findings(merge, opened, config_from, recipe, None)
        return [*(each for each in found if each.id not in SETTLED), *tokens.findings]
    found = list(merge.remarks)
    others = [
        (str(ref), model)
        for ref, model in opened.items()
        if isinstance(model, Model) and model is not config_from and ref.kind != "importance"
    ]
    vectors = check_vectors([(role_of(merge.config_from, merge), config_from), *others])
    if vectors:
        return vectors
    has_slices = recipe.slices is not None or recipe.modules is not None
    if has_slices:
        found += unused_selection(recipe.selection, [tensor.name for tensor in merge.tensors])
        found += check_files(role_of(merge.config_from, merge), config_from)
        models = [(str(merge.models[merge.config_from]), config_from), *others]
        found += check_formats(models, _computed(merge))
        found += check_basis(models, _computed(merge))
    else:
        found += check_models(others, config_from, selection=recipe.selection)
        if not any(each.level == "error" for each in found):
            found += check_integers(role_of(merge.config_from, merge), config_from, others)
    tokenizer = checkpoint_of(opened, merge.models[merge.tokenizer_from])
    if tokenizer is not config_from:
        found += check_copied(str(merge.models[merge.tokenizer_from]), tokenizer, tokenizer_only=True)
    if any(each.id == "tensor-missing" for each in found):
        return found  # which names them by model
    copied = _copied(merge, opened)
    for name, models in merge.missing:
        if name in copied:
            continue
        missing = listed([str(merge.models[index]) for index in models])
        found.append(finding("tensor-missing", name, "in every model", f"not in {missing}"))
    return found


def whole_tensors(merge: ExpandedMerge, selection: Selection) -> list[str]:
    """Tensors that a method looks at as a whole, and of which a selection takes a part."""
    looks = [sees_whole(operation) for operation in merge.operations]
    return [
        tensor.name
        for tensor in merge.tensors
        if looks[tensor.operation] and selection.matches(tensor.name) and selection.taken(tensor.name)
    ]
