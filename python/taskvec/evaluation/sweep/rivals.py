"""The vectors that other ways of training gave, at the norm of the one that is tested."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from taskvec.errors import EvaluationError
from taskvec.evaluation.arms import MATCHED, RIVALS, Arm, at_norm
from taskvec.evaluation.experiment import Experiment
from taskvec.evaluation.record import ArmRecord
from taskvec.evaluation.sweep.scratch import read_facts

FIGURES = 4  # of a factor that gives a vector another's norm


def check_rivals(experiment: Experiment, digests: Mapping[str, str]) -> None:
    """See that every rival is a model of its own.

    A rival whose training came to nothing has the reference's weights under a name of its own: that is a
    result, with a vector of zero.

    Raises
    ------
    EvaluationError
        One is the reference, or has the weights of the donor.
    """
    for model in experiment.rivals:
        for role, other in (("reference", experiment.reference), ("donor", experiment.donor)):
            same = other is not None and digests[model] == digests[other]
            if same and (role == "donor" or model == other):
                raise EvaluationError(
                    f"the rival `{model}` is the {role} itself",
                    "name a model that was trained from the reference by another way than the donor",
                )


def matched_arms(
    records: Sequence[ArmRecord], alpha: float, facts: Path, *, several: bool = False
) -> tuple[list[Arm], list[str]]:
    """The vectors of rivals with the L2 norm that the chosen vector has at `alpha`.

    Parameters
    ----------
    records : sequence of ArmRecord
        The arms so far; a rival's vector at a factor of 1 is among them.
    alpha : float
        Of the chosen vector.
    facts : Path
        Folder of what was measured when the arms were merged.
    several : bool
        Whether other alphas were chosen too, so that names need it.

    Returns
    -------
    tuple of list of Arm and list of str
        The arms, and a sentence for each rival that cannot be scaled to that norm.
    """
    own = [r.arm for r in records if r.kind == "vector" and r.alpha == alpha]
    rivals = [r.arm for r in records if r.kind in RIVALS and r.alpha == 1 and MATCHED not in r.name]
    if not own or not rivals:
        return [], []
    length = alpha * _norm(facts, own[0])
    arms, notes = [], []
    for arm in rivals:
        norm = _norm(facts, arm)
        factor = float(f"{length / norm:.{FIGURES}g}") if norm else 0.0
        if factor:
            arms.append(at_norm(arm, factor, alpha if several else None))
        else:
            which = "its own vector" if not norm else "the tested vector"
            notes.append(f"`{arm.name}` is not compared at equal norm: {which} is zero")
    return arms, notes


def _norm(facts: Path, arm: Arm) -> float:
    """The norm of an arm's vector at a factor of 1, as it was measured when the arm was merged."""
    known = read_facts(facts / f"{arm.weights}.json")
    if known is None:
        raise EvaluationError(
            f"the norm of the vector of arm `{arm.name}` is not known: no `{facts / arm.weights}.json`",
            f"remove `{facts.parent / 'arms' / arm.name}.json`, and the arm is merged and measured again",
        )
    return math.sqrt(math.fsum(norm * norm for norm in known.norms.values()))
