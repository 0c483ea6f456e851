"""How the checkpoints of the paper in miniature come about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from taskvec.evaluation.miniature import grpo
from taskvec.evaluation.miniature.training import Stage

Role = Literal["base", "target", "reference", "donor", "continued_sft"]

PARENT: dict[Role, Role | None] = {
    "base": None,
    "target": "base",
    "reference": "base",
    "donor": "reference",
    "continued_sft": "reference",
}
"""The checkpoint that each one is trained from."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the models come about; continued SFT follows the donor's."""

    base: Stage
    target: Stage
    reference: Stage
    donor: grpo.Recipe


RECIPE = Recipe(
    base=Stage(
        "base",
        {
            "problem1": 0.1,
            "problem2": 0.05,
            "problem3": 0.1,
            "aside": 0.4,
            "fact": 0.25,
            "letters": 0.05,
            "chat": 0.05,
        },
        rate=3e-3,
        muon=5e-3,
        warmup=10,
        # Stopped by its accuracy, a base knows enough to draw right answers and leaves something to learn;
        # a fixed number of steps gave too little and too much.
        steps=700,
        until=0.4,
        decay=40,
        prompt_weight=0.2,
    ),
    target=Stage(
        "target",
        {"letters": 0.45, "chat": 0.45, "problem3": 0.05, "fact": 0.05},
        rate=2e-4,
        steps=20,
        decay=10,
    ),
    reference=Stage("reference", {"problem3": 1.0}, rate=1e-4, steps=8, decay=4, warmup=2),
    donor=grpo.Recipe(),
)
