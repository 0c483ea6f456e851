"""What is added to the target for an arm, as plain data: a worker makes the arm's weights of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import taskvec as tv


@dataclass(frozen=True, slots=True)
class Delta:
    """Alpha times a vector, or times a control that is made of it.

    Attributes
    ----------
    donor, reference : str, optional
        The models whose difference the vector is.
    vector : str, optional
        A saved vector, in place of the difference.
    alpha : float
        Its factor.
    control : {"random", "permute"}, optional
        What is made of the vector.
    seed : int
        Of a control.
    include, exclude, preset, layers, out_dtype, rounding, force
        As :func:`taskvec.transfer` takes them.
    """

    donor: str | None = None
    reference: str | None = None
    vector: str | None = None
    alpha: float = 1.0
    control: str | None = None
    seed: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    preset: str = "full"
    layers: str | None = None
    out_dtype: str | None = None
    rounding: str = "nearest"
    force: tuple[str, ...] = ()

    def options(self) -> dict[str, Any]:
        """The options of :func:`taskvec.transfer` and :func:`taskvec.apply`, alpha among them."""
        options: dict[str, Any] = {
            "alpha": self.alpha,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "preset": self.preset,
            "layers": self.layers,
            "out_dtype": self.out_dtype,
            "rounding": self.rounding,
            "force": self.force,
        }
        return options if self.control is None else {**options, "control": self.control, "seed": self.seed}

    def plan(self, target: str) -> Any:
        """The plan of target plus this, from headers alone.

        Raises
        ------
        taskvec.CompatibilityError, taskvec.RecipeError
            The models are incompatible, or an option cannot be honoured.
        """
        if self.vector is not None:
            return tv.plan_apply(target, self.vector, **self.options())
        assert self.donor is not None
        assert self.reference is not None
        return tv.plan_transfer(target, self.donor, self.reference, **self.options())

    def absolute(self) -> Delta:
        """The same with its folders by names that hold in any working directory."""
        given = {role: getattr(self, role) for role in ("donor", "reference", "vector")}
        return replace(
            self,
            **{
                role: os.path.abspath(path)
                for role, path in given.items()
                if path is not None and os.path.isdir(path)
            },
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """How the weights of an arm come into the target.

    Attributes
    ----------
    target : str
        The folder of the model that is held.
    delta : Delta, optional
        What is added to it; None where the arm is a model of its own.
    name, identity, command : str
        Of merged weights: `Arm.weights`, their identity, and the command that makes them.
    facts : Path, optional
        The file of their facts.
    """

    target: str
    delta: Delta | None = None
    name: str = ""
    identity: str = ""
    command: str = ""
    facts: Path | None = None

    def absolute(self) -> Placement:
        """The same with its folders by names that hold in any working directory."""
        delta = self.delta.absolute() if self.delta is not None else None
        facts = self.facts.absolute() if self.facts is not None else None
        return replace(self, target=os.path.abspath(self.target), delta=delta, facts=facts)


def vector_norms(tensors: Mapping[str, Any], alpha: float) -> dict[str, float]:
    """The norm of the vector itself per tensor, from the length of the step that was asked for."""
    if alpha == 0:
        return {}
    return {name: row.step_norm / abs(alpha) for name, row in tensors.items() if row.step_norm is not None}
