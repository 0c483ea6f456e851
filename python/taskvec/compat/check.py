"""The check of models against each other: checkpoints in, findings out, before a weight is read.

Every check of this room is called from here; a new one is a module that yields findings, and a line in
:func:`check_models`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from taskvec.compat.companions import check_files
from taskvec.compat.config import check_configs
from taskvec.compat.findings import Finding, finding, forced, in_order
from taskvec.compat.formats import check_formats, check_vectors
from taskvec.compat.layouts.findings import check_layouts
from taskvec.compat.layouts.parts import bound
from taskvec.compat.lineage import same_files
from taskvec.compat.quantised import check_basis, check_difference, check_noise, pairs_of
from taskvec.compat.tensors import check_tensors
from taskvec.compat.tied_heads import TieDecision, tie_decision
from taskvec.compat.tokenizer import check_tokenizers, tokenizer_folders
from taskvec.models.selection import Selection
from taskvec.models.tensor_names import is_vocabulary

if TYPE_CHECKING:
    from taskvec.models.model import Model

_EVERYTHING = Selection()


def check_transfer(
    target: Model,
    donor: Model,
    reference: Model,
    *,
    selection: Selection = _EVERYTHING,
    force: Iterable[str] = (),
    tie: TieDecision | None = None,
) -> list[Finding]:
    """Compare donor and reference with the target, and say what a transfer between them would do.

    Parameters
    ----------
    target, donor, reference : Model
        Headers are enough.
    selection : Selection
        Only these tensors are compared.
    force : iterable of str
        Errors of these sorts become warnings that say what is done about them.
    tie : TieDecision, optional
        What :func:`tie_decision` says of these models, where it is known already.

    Returns
    -------
    list of Finding
        Errors first. :func:`enforce` raises for those that remain.

    Raises
    ------
    RecipeError
        The selection matches nothing, or `force` names no finding that can be forced.
    FormatError
        A tokenizer file is damaged.
    """
    others = [("donor", donor), ("reference", reference)]
    findings = check_models(others, target, role="target", selection=selection, tie=tie)
    # three models of one table, the usual case, are not compared name by name
    if not (donor.packed is reference.packed is target.packed):
        selection = bound(selection, target)
        pairs = pairs_of(donor, reference, lambda name: name in target.tensors and selection.matches(name))
        findings += check_difference("donor and reference", pairs)
        findings += check_noise(target, pairs)
    same = same_files(donor, reference)
    if same:
        findings.append(
            finding(
                "zero-vector",
                "donor and reference",
                "two models",
                f"both are {same}",
                "the result will be the target; give the model that the donor was trained from as reference",
            )
        )
    return forced(findings, force)


def check_vector(
    donor: Model,
    reference: Model,
    *,
    selection: Selection = _EVERYTHING,
    tie: TieDecision | None = None,
) -> list[Finding]:
    """The findings of the difference donor − reference, without a model that it is added to."""
    found = check_models([("donor", donor)], reference, role="reference", selection=selection, tie=tie)
    if any(each.id == "saved-vector" for each in found):
        return found
    pairs = pairs_of(donor, reference, bound(selection, reference).matches)
    return in_order([*found, *check_difference("donor and reference", pairs)])


def check_models(
    models: Sequence[tuple[str, Model]],
    base: Model,
    *,
    role: str = "base",
    selection: Selection = _EVERYTHING,
    tie: TieDecision | None = None,
) -> list[Finding]:
    """Compare the models of a merge with its base: formats, config, tensors, heads, tokenizers, in that
    order.

    Parameters
    ----------
    models : sequence of (role, Model)
        Role names appear in the findings.
    base : Model
        Whose names, shapes, config and tokenizer the output has.
    role : str
        What the base is called.
    tie : TieDecision, optional
        What :func:`tie_decision` says of these models, where it is known already.
    """
    vectors = check_vectors([(role, base), *models])
    if vectors:
        return vectors
    selection = bound(selection, base)
    selected = selection.select(base.tensors)
    tie = tie or tie_decision(base, models, role)
    findings = list(check_formats([(role, base), *models], selected))
    findings += check_basis([(role, base), *models], selected)
    findings += check_configs(role, base, models)
    findings += check_layouts(role, base, models)
    findings += check_tensors(role, base, models, selection, selected, tie)
    with_rows = selection.is_full or (selection.preset == "full" and any(map(is_vocabulary, selected)))
    for folder in tokenizer_folders(base):
        findings += check_tokenizers(
            f"{role}/{folder.rstrip('/')}" if folder else role,
            base,
            [(f"{name}/{folder.rstrip('/')}" if folder else name, model) for name, model in models],
            vocabulary_selected=with_rows,
            folder=folder,
        )
    findings += check_files(role, base, models)
    return in_order(findings)
