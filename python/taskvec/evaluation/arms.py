"""The arms of the experiment: which weights, under which prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from taskvec.settings import format_alpha

Kind = Literal[
    "baseline", "vector", "random", "permuted", "donor", "reference", "sft", "candidate", "part", "between"
]  # fmt: skip
PARTS: frozenset[str] = frozenset({"part", "between"})  # what a vector is made of: a family of their own
MERGED: frozenset[str] = frozenset({"vector", "random", "permuted", "sft"}) | PARTS


@dataclass(frozen=True, slots=True)
class Arm:
    """One model under one prompt.

    Attributes
    ----------
    name : str
        Unique in an experiment, and the stem of the record's file.
    kind : str
        The origin of the weights; see `Kind`.
    alpha : float, optional
        The factor of the vector, for merged weights.
    think : str, optional
        The request to reason that the prompt carries.
    perturb : str, optional
        The perturbation of the questions.
    seed : int, optional
        Of a random or permuted vector.
    part : str, optional
        What of the vector is added: ``only-layers-0-1``, ``top-5``.
    """

    name: str
    kind: Kind
    alpha: float | None = None
    think: str | None = None
    perturb: str | None = None
    seed: int | None = None
    part: str | None = None

    @property
    def weights(self) -> str:
        """A name for the weights alone; arms that share it need one merge."""
        if self.kind == "vector":
            return f"alpha={format_alpha(self.factor)}"
        if self.kind in ("random", "permuted"):
            return f"{self.kind}-{self.seed}@{format_alpha(self.factor)}"
        if self.kind == "part":
            return f"{self.part}@{format_alpha(self.factor)}"
        if self.kind == "between":
            return f"between={format_alpha(self.factor)}"
        return self.stem if self.kind == "candidate" else self.kind

    @property
    def factor(self) -> float:
        """The alpha of merged weights."""
        return 1.0 if self.alpha is None else self.alpha

    @property
    def condition(self) -> tuple[str | None, str | None]:
        """The prompt's additions to the questions; paired arms of one condition differ in weights alone."""
        return (self.think, self.perturb)

    def variant(self, *, think: str | None = None, perturb: str | None = None) -> Arm:
        """The same weights under another prompt."""
        return replace(self, name=arm_name(self.stem, think, perturb), think=think, perturb=perturb)

    @property
    def stem(self) -> str:
        """The name without the prompt's additions."""
        name = self.name.removesuffix(f"~{self.perturb}") if self.perturb else self.name
        return name.removesuffix("+think") if self.think else name


def arm_name(stem: str, think: str | None, perturb: str | None) -> str:
    """``alpha=0.5+think~typo``."""
    return f"{stem}{'+think' if think else ''}{f'~{perturb}' if perturb else ''}"


def plan_arms(
    *,
    alphas: tuple[float, ...],
    donor: bool,
    reference: bool,
    base: bool,
    think: str | None = None,
    think_only: bool = False,
    perturb: tuple[str, ...] = (),
) -> list[Arm]:
    """The arms that are known before any result: all but the random and permuted vectors.

    Parameters
    ----------
    alphas : tuple of float
        Factors of the vector.
    donor, reference, base : bool
        Whether these models are given; the SFT vector needs reference and base.
    think : str, optional
        A request to reason: the baseline and the vector arms are run with it as well.
    think_only : bool
        Run every arm with it, and none without.
    perturb : tuple of str
        Perturbations under which the baseline is run as well; the chosen vector follows in `control_arms`.
    """
    first = think if think_only else None
    baseline = Arm("baseline", "baseline")
    vectors = [Arm(f"alpha={format_alpha(alpha)}", "vector", alpha=alpha) for alpha in alphas]
    others: list[Arm] = []
    if donor:
        others.append(Arm("donor", "donor"))
    if reference:
        others.append(Arm("reference", "reference"))
    if reference and base:
        others.append(Arm("sft", "sft", alpha=1.0))
    arms = [arm.variant(think=first) for arm in (baseline, *vectors)]
    if think and not think_only:
        arms += [arm.variant(think=think) for arm in (baseline, *vectors)]
    arms += [arm.variant(think=first) for arm in others]
    return arms + [baseline.variant(think=first, perturb=kind) for kind in perturb]


def control_arms(
    *,
    alpha: float,
    random: int,
    permuted: int,
    think: str | None = None,
    think_only: bool = False,
    perturb: tuple[str, ...] = (),
) -> list[Arm]:
    """The arms that wait for the choice of alpha.

    Random and permuted vectors at the chosen alpha (a control has the norm of what it controls), numbered
    from seed 1, and the chosen vector under each perturbation.
    """
    first = think if think_only else None
    chosen = Arm(f"alpha={format_alpha(alpha)}", "vector", alpha=alpha)
    arms = [chosen.variant(think=first, perturb=kind) for kind in perturb]
    kinds: tuple[tuple[Kind, int], ...] = (("random", random), ("permuted", permuted))
    for kind, count in kinds:
        arms += [
            Arm(arm_name(f"{kind}-{seed}", first, None), kind, alpha, first, None, seed)
            for seed in range(1, count + 1)
        ]
    return arms
