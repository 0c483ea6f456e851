"""The findings of a plan: of its models, of conversion, of the lineage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from taskvec.compat.check import check_models, check_transfer
from taskvec.compat.findings import finding, forced, in_order
from taskvec.compat.forecast import check_survival
from taskvec.compat.lineage import lineage
from taskvec.errors import RecipeError
from taskvec.files.names import CARD, is_own
from taskvec.models.model import Model
from taskvec.plan.delta import Step
from taskvec.plan.plan import PlanRecord
from taskvec.settings import FORMATS, Settings, float_dtype
from taskvec.text import listed

if TYPE_CHECKING:
    from taskvec.compat.findings import Finding
    from taskvec.compat.tied_heads import TieDecision


def findings(
    target: Model,
    steps: Sequence[Step],
    ties: Sequence[TieDecision] | None = None,
    *,
    force: Iterable[str] = (),
) -> list[Finding]:
    """Every finding about adding steps to a target, errors first.

    The lineage is looked at (a sample of the weights) only where the headers give no error and the weights
    are here. ``ties`` are :meth:`Step.tie` of each step, where they are known already.
    """
    found: list[Finding] = []
    steps = [step.fitted(target) for step in steps]
    for step, tie in zip(steps, ties or [step.tie(target) for step in steps], strict=True):
        of_step = check_step(target, step, force, tie)
        if not any(each.level == "error" for each in of_step):
            of_step += _lineage(target, step, tie)
        found += [each for each in of_step if each not in found]
    own = [name for name in target.other_files if is_own(name) and name.lower() != CARD.lower()]
    if own:
        what = f"{listed(own)} of an earlier run of taskvec do not come along to the output"
        found.append(finding("files-left", "files of the target", "", what))
    return in_order(found)


def _lineage(target: Model, step: Step, tie: TieDecision) -> list[Finding]:
    models = [model for _, model in step.models]
    if len(models) != 2 or any(model.path is None for model in (target, *models)):
        return []
    donor, reference = models
    return lineage(target, donor, reference, tie)


def with_lineage(plan: PlanRecord, checkpoints: Sequence[object]) -> PlanRecord:
    """The plan with the findings of a sample of the weights, for one made when they were not here yet.

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
            target, donor, reference = models
            more = [*lineage(target, donor, reference), *_survival(plan, target, donor, reference)]
            found += [each for each in more if each not in found]
    return replace(plan, findings=tuple(in_order(found)))


def _survival(plan: PlanRecord, target: Model, donor: Model, reference: Model) -> Iterator[Finding]:
    """What rounding to the target's own format takes of a difference of plain models."""
    if not plan.document.get("encodings") or plan.document["rounding"] != "nearest":
        return
    stored: dict[str, tuple[str, ...]] = {}
    for *_, inputs, (_, part, name, _) in (row for row in plan.document["tensors"] if len(row) == 7):
        names = tuple(each for _, each in inputs[1:])
        is_plain = len(names) == 2 and names[0] not in donor.packed and names[1] not in reference.packed
        if part == "codes" and is_plain:
            stored[name] = names
    yield from check_survival(target, donor, reference, stored, [output.alpha for output in plan.outputs])


def check_step(
    target: Model, step: Step, force: Iterable[str] = (), tie: TieDecision | None = None
) -> list[Finding]:
    """The findings of headers, config and tokenizer about adding a step to a target."""
    if step.reference is None:
        found = check_models(step.models, target, role="target", selection=step.wanted, tie=tie)
        return forced(found, force)
    (_, donor), (_, reference) = step.models
    return check_transfer(target, donor, reference, selection=step.wanted, force=force, tie=tie)


def refuse_conversion(found: Iterable[Finding], settings: Settings) -> None:
    """Stops where quantised tensors would be converted: they can be copied only.

    Raises
    ------
    RecipeError
        Both are asked for.
    """
    if settings.out_dtype in FORMATS:
        raise RecipeError(
            f"`{settings.out_dtype}` is a format that plain checkpoints are converted to",
            "write bfloat16 here and convert the result (`taskvec convert`); `target` is the target's format",
        )
    if float_dtype(settings) is not None and any(
        each.id in ("quantised", "quantised-copied") for each in found
    ):
        raise RecipeError(
            "the target holds quantised tensors, which another output type would turn into other numbers",
            "leave out the output type",
        )
