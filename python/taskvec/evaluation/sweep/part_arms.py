"""The arms that say what a vector is made of: which groups carry it, and how little of it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskvec.evaluation.arms import Arm
from taskvec.evaluation.experiment import Experiment
from taskvec.lazy.derived import Rule
from taskvec.models.tensor_groups import OUTSIDE, layer_groups, module_groups
from taskvec.settings import format_alpha


def groups(experiment: Experiment, names: Sequence[str]) -> dict[str, list[str]]:
    """The tensors of every group that is asked for, by its label.

    Parameters
    ----------
    experiment : Experiment
    names : sequence of str
        The tensors of the vector.
    """
    parts, found = experiment.parts, dict[str, list[str]]()
    if parts.groups is not None:
        found.update(layer_groups(names, parts.groups))
    if parts.modules:
        found.update(module_groups(names))
    return found


def rules(experiment: Experiment) -> dict[str, Rule]:
    """The vectors that are made of the vector's values, by the name of the part."""
    parts = experiment.parts
    found = {f"top-{amount:g}": Rule("top", amount) for amount in parts.top}
    found |= {f"rank-{rank}": Rule("rank", rank) for rank in parts.rank}
    if parts.sign:
        found["sign"] = Rule("sign")
    if parts.without_sft:
        found["without-sft"] = Rule("without")
    return found


def part_arms(experiment: Experiment, alphas: Sequence[float], names: Sequence[str]) -> list[Arm]:
    """Every arm of what a vector is made of, at each alpha that was chosen.

    Where several were, for a task each, names have alpha too. A point between has no alpha: it is one arm.

    Parameters
    ----------
    experiment : Experiment
    alphas : sequence of float
        The chosen factors of the vector, and of its parts.
    names : sequence of str
        The tensors of the vector.
    """
    parts = experiment.parts
    labels = [f"{which}-{label}" for label in groups(experiment, names) for which in ("only", "all-but")]
    labels += rules(experiment)
    if parts.also is not None:
        labels += ["other", "v-and-other"]
    think = experiment.think if experiment.think_only else None
    arms = [
        Arm(_stem(label, alpha, alphas), "part", alpha, part=label) for alpha in alphas for label in labels
    ]
    arms += [Arm(f"between={format_alpha(t)}", "between", t) for t in parts.between]
    return [arm.variant(think=think) for arm in arms]


def _stem(label: str, alpha: float, alphas: Sequence[float]) -> str:
    return label if len(alphas) == 1 else f"{label}@{format_alpha(alpha)}"


def chosen_names(part: str, found: Mapping[str, Sequence[str]]) -> list[str] | None:
    """The tensors that a group arm adds; None for a part of another kind."""
    for label, names in found.items():
        if part == f"only-{label}":
            return list(names)
        if part == f"all-but-{label}":
            return [name for other in _family(label, found) for name in found[other] if other != label]
    return None


def _family(label: str, found: Mapping[str, Sequence[str]]) -> list[str]:
    """The groups that make up the vector together with one of them: groups of layers, or kinds of module."""

    def is_of_layers(name: str) -> bool:
        return name == OUTSIDE or name.startswith("layer")

    return [name for name in found if is_of_layers(name) == is_of_layers(label)]
