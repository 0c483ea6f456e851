"""The findings of a plan: of the models, of what is converted, of the lineage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from taskvec.compat import models as compat
from taskvec.compat.findings import finding, forced, in_order
from taskvec.compat.lineage import lineage
from taskvec.errors import RecipeError
from taskvec.files.names import CARD, is_own
from taskvec.models.model import Model
from taskvec.plan.delta import Step
from taskvec.plan.plan import PlanRecord
from taskvec.settings import Settings
from taskvec.text import listed

if TYPE_CHECKING:
    from taskvec.compat.findings import Finding


def findings(target: Model, steps: Sequence[Step], *, force: Iterable[str] = ()) -> list[Finding]:
    """Everything that is to be said about adding steps to a target, errors first.

    The lineage is looked at (a sample of the weights) only where the headers give no error and the weights
    are here.
    """
    found: list[Finding] = []
    for step in steps:
        said = check_step(target, step, force)
        models = [target, *(model for _, model in step.models)]
        is_local = all(model.path is not None for model in models)
        if len(models) == 3 and is_local and not any(each.level == "error" for each in said):
            said = [*said, *lineage(*models)]
        found += [each for each in said if each not in found]
    own = [name for name in target.other_files if is_own(name) and name.lower() != CARD.lower()]
    if own:
        what = f"{listed(own)} of an earlier run of taskvec do not come along to the output"
        found.append(finding("files-left", "files of the target", "", what))
    return in_order(found)


def with_lineage(plan: PlanRecord, checkpoints: Sequence[object]) -> PlanRecord:
    """The plan with what a sample of the weights says; for one that was made when they were not here yet.

    Parameters
    ----------
    plan : PlanRecord
        Made from headers.
    checkpoints : sequence
        Its sources in their order, downloaded.
    """
    by_role = {
        role: checkpoint
        for source, checkpoint in zip(plan.sources, checkpoints, strict=True)
        for role in source.role.split(" and ")
    }
    found = list(plan.findings)
    for role in [role for role in by_role if role.startswith("donor")]:
        roles = ("target", role, role.replace("donor", "reference"))
        models = [model for model in map(by_role.get, roles) if isinstance(model, Model)]
        if len(models) == 3:
            found += [each for each in lineage(*models) if each not in found]
    return replace(plan, findings=tuple(in_order(found)))


def check_step(target: Model, step: Step, force: Iterable[str] = ()) -> list[Finding]:
    """What headers, config and tokenizer say about adding a step to a target."""
    if step.reference is None:
        said = compat.check_models(step.models, target, role="target", selection=step.wanted)
        return forced(said, force)
    (_, donor), (_, reference) = step.models
    return compat.check_transfer(target, donor, reference, selection=step.wanted, force=force)


def refuse_conversion(found: Iterable[Finding], settings: Settings) -> None:
    """A quantised tensor is no plain number: it can be copied, not converted.

    Raises
    ------
    RecipeError
        Both are asked for.
    """
    if settings.out_dtype and any(each.id.startswith("quantised") for each in found):
        raise RecipeError(
            "the target holds quantised tensors, which another output type would turn into other numbers",
            "leave the output type away",
        )
