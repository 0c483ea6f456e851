"""Packed weights that take a step: which they are, and what rounding to their codes does to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from taskvec.compat.findings import Finding, finding
from taskvec.compat.forecast import lost, predicted, predicted_of_vector
from taskvec.dtypes import TORCH_NAMES
from taskvec.models.model import Model
from taskvec.plan.delta import Step
from taskvec.plan.packed_output import Computed, OutputForm, output_form
from taskvec.settings import Settings, format_alpha


def rounding(
    target: Model,
    steps: Sequence[Step],
    stored: Sequence[Mapping[str, tuple[str, ...]]],
    form: OutputForm,
    settings: Settings,
    alphas: Sequence[float],
) -> Iterator[Finding]:
    """What rounding to the nearest code of the target's own format does to the vector."""
    if not form.is_packed or form.plain or settings.rounding != "nearest":
        return
    changed = {name for names in stored for name in names}
    first = next((packed.format for name, packed in target.packed.items() if name in changed), None)
    if first is None:
        return
    switched = [alpha for alpha in alphas if alpha not in (0.0, 1.0)]
    if switched and all(_is_alike(target, step, names) for step, names in zip(steps, stored, strict=True)):
        yield finding(
            "quantised-switch",
            f"alpha {format_alpha(switched[0])}",
            "0 or 1",
            f"the vector is of whole codes of {first.words}, of which the nearest is taken: a part of one is "
            "none of it or all of it",
            f"`--out-dtype {TORCH_NAMES[first.dtype]}` or `--rounding stochastic`",
        )
    elif len(steps) == 1:
        names = {name: stored[0][name] for name in target.packed if name in stored[0]}
        yield from lost(target, names, _predicted(target, steps, stored, alphas))


def _predicted(
    target: Model,
    steps: Sequence[Step],
    stored: Sequence[Mapping[str, tuple[str, ...]]],
    alphas: Sequence[float],
) -> float | None:
    """Which part of a step a sample says that rounding to the target's format would leave."""
    if len(steps) != 1:
        return None
    step, factors = steps[0], [alpha * steps[0].weight for alpha in alphas]
    names = {name: stored[0][name] for name in target.packed if name in stored[0]}
    if step.reference is None:
        return predicted_of_vector(target, step.vector, names, factors)
    (_, donor), (_, reference) = step.models
    return predicted(target, donor, reference, names, factors)


def form_of(
    target: Model,
    steps: Sequence[Step],
    stored: Sequence[Mapping[str, tuple[str, ...]]],
    settings: Settings,
    alphas: Sequence[float],
) -> OutputForm:
    """The form of the packed weights of a target that takes some steps; see :func:`output_form`."""

    return output_form(
        target,
        computed(target, steps, stored),
        settings,
        lambda: _predicted(target, steps, stored, alphas),
    )


def check_output(target: Model, steps: Sequence[Step]) -> tuple[Finding, ...]:
    """What is said of the form in which a target's packed weights are written where no type is asked for."""
    if not target.packed:
        return ()
    steps = [step.fitted(target) for step in steps]
    stored = [step.stored(target, step.tie(target)) for step in steps]
    return form_of(target, steps, stored, Settings(), (1.0,)).findings


def _is_alike(target: Model, step: Step, names: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether donor and reference have the target's packed weights in one packed format."""
    tables = [source.packed if isinstance(source, Model) else {} for _, source in step.sources]
    return all(
        place in table
        for name in target.packed
        for place, table in zip(names.get(name, ()), tables, strict=False)
    )


def computed(
    target: Model, steps: Sequence[Step], stored: Sequence[Mapping[str, tuple[str, ...]]]
) -> Iterator[Computed]:
    """The target's packed weights that take a step."""
    tables = [
        [source.packed if isinstance(source, Model) else {} for _, source in step.sources] for step in steps
    ]
    for name, own in target.packed.items():
        others = [
            table.get(place)
            for names, sources in zip(stored, tables, strict=True)
            for place, table in zip(names.get(name, ()), sources, strict=False)
        ]
        if others:
            yield Computed(name, own, others)
