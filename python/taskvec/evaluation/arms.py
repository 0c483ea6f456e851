"""The arms of the experiment: which weights, under which prompt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from taskvec.files import look
from taskvec.settings import format_alpha

Kind = Literal[
    "baseline", "vector", "random", "permuted", "donor", "reference", "sft", "rival", "whole", "candidate",
    "part", "between",
]  # fmt: skip
PARTS: frozenset[str] = frozenset({"part", "between"})
"""What a vector is made of: arms that are tested in a family of their own."""
MERGED: frozenset[str] = frozenset({"vector", "random", "permuted", "sft", "rival", "whole"}) | PARTS
DRAWN: frozenset[str] = frozenset({"random", "permuted"})
RIVALS: frozenset[str] = frozenset({"sft", "rival"})
"""Vectors that another way of training gave: what +v has to beat before its gain is credited to the donor."""
MATCHED = "@norm"
"""In the name of a rival's vector that has the norm of the chosen one."""


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
    origin : str, optional
        The model that a rival vector is of, by its name in the experiment.
    part : str, optional
        What of the vector is added: ``only-layers-0-1``, ``top-5``.
    """

    name: str
    kind: Kind
    alpha: float | None = None
    think: str | None = None
    perturb: str | None = None
    seed: int | None = None
    origin: str | None = None
    part: str | None = None

    @property
    def weights(self) -> str:
        """A name for the weights alone; arms that share it need one merge."""
        if self.kind == "vector":
            return f"alpha={format_alpha(self.factor)}"
        if self.kind in DRAWN:
            return f"{self.kind}-{self.seed}@{format_alpha(self.factor)}"
        if self.kind == "part":
            return f"{self.part}@{format_alpha(self.factor)}"
        if self.kind == "between":
            return f"between={format_alpha(self.factor)}"
        return self.stem if self.kind in (*RIVALS, "candidate") else self.kind

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


def rival_in_words(arm: Arm) -> str:
    """``the SFT vector``, ``the SFT vector × 0.5``, ``more-sft at v's norm``."""
    text = "the SFT vector" if arm.kind == "sft" else arm.origin or arm.stem
    if MATCHED in arm.stem:
        return f"{text} at v's norm"
    return text if arm.factor == 1 else f"{text} × {format_alpha(arm.factor)}"


def arm_name(stem: str, think: str | None, perturb: str | None) -> str:
    """``alpha=0.5+think~typo``."""
    return f"{stem}{'+think' if think else ''}{f'~{perturb}' if perturb else ''}"


def arm_stem(model: str | os.PathLike[str]) -> str:
    """A name for a model that can be a file name."""
    name = Path(os.fspath(model)).resolve().name if look.exists(model) else os.fspath(model).split("/")[-1]
    return "".join(c if c.isalnum() or c in "-_.=+" else "-" for c in name).lstrip(".") or "model"


def plan_arms(
    *,
    alphas: tuple[float, ...],
    donor: bool,
    reference: bool,
    base: bool,
    rivals: Sequence[str] = (),
    sft_alphas: Sequence[float] = (),
    think: str | None = None,
    think_only: bool = False,
    perturb: tuple[str, ...] = (),
) -> list[Arm]:
    """The arms that are known before any result: all but those that wait for the choice of alpha.

    Parameters
    ----------
    alphas : tuple of float
        Factors of the vector.
    donor, reference, base : bool
        Whether these models are given; the SFT vector needs reference and base, the whole difference donor
        and base.
    rivals : sequence of str
        Names of models that were trained from the reference by another way.
    sft_alphas : sequence of float
        Further factors of the SFT vector, besides 1.
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
        others += [Arm(f"sft@{format_alpha(a)}", "sft", alpha=a) for a in sft_alphas if a != 1]
    if donor and base:
        others.append(Arm("whole", "whole", alpha=1.0))
    if reference:
        others += [Arm(f"rival-{name}", "rival", alpha=1.0, origin=name) for name in rivals]
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
    matched: Sequence[Arm] = (),
    numbered: bool = True,
    think: str | None = None,
    think_only: bool = False,
    perturb: tuple[str, ...] = (),
) -> list[Arm]:
    """The arms that wait for the choice of alpha.

    Random and permuted vectors at the chosen alpha (a control has the norm of what it controls), numbered
    from seed 1; the rivals' vectors at its norm (`matched`); and the chosen vector under each perturbation.
    Where several alphas were chosen, numbers are not enough (`numbered`), and names have alpha too.
    """
    first = think if think_only else None
    chosen = Arm(f"alpha={format_alpha(alpha)}", "vector", alpha=alpha)
    arms = [chosen.variant(think=first, perturb=kind) for kind in perturb]
    kinds: tuple[tuple[Kind, int], ...] = (("random", random), ("permuted", permuted))
    at = "" if numbered else f"@{format_alpha(alpha)}"
    for kind, count in kinds:
        arms += [
            Arm(arm_name(f"{kind}-{seed}{at}", first, None), kind, alpha, first, None, seed)
            for seed in range(1, count + 1)
        ]
    return arms + [arm.variant(think=first) for arm in matched]


def at_norm(arm: Arm, factor: float, alpha: float | None = None) -> Arm:
    """A rival's vector at the norm of the chosen one, which `factor` gives it.

    Parameters
    ----------
    arm : Arm
        The rival's vector at a factor of 1.
    factor : float
    alpha : float, optional
        Of the chosen vector, as a part of the name where several were chosen.
    """
    suffix = MATCHED if alpha is None else f"{MATCHED}-{format_alpha(alpha)}"
    return replace(arm, name=f"{arm.stem}{suffix}", alpha=factor, think=None, perturb=None)
