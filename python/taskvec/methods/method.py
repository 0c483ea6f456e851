"""A row of the catalogue of methods, and its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scope = Literal["model", "merge"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method.

    Parameters
    ----------
    name : str
    kind : {"float", "int", "bool", "choice"}
    scope : {"model", "merge"}
        Whether each model has a value of its own, or the merge has one.
    default : float, int, bool, str or None
    text : str
        One sentence on what it does.
    required : bool
        It has no default: a recipe has to give it.
    low, high : float, optional
        Bounds, both included unless `above` is set.
    above : bool
        The lower bound itself is not allowed.
    choices : tuple of str
    ignored : bool
        mergekit accepts it with this method and does nothing with it; so do we, with a note.
    engine : str, optional
        Its name in the operation, where that is another one.
    settled : bool
        It is settled before the run, and not part of the operation.
    """

    name: str
    kind: Literal["float", "int", "bool", "choice"]
    scope: Scope
    default: float | int | bool | str | None
    text: str
    required: bool = False
    low: float | None = None
    high: float | None = None
    above: bool = False
    choices: tuple[str, ...] = ()
    ignored: bool = False
    engine: str | None = None
    settled: bool = False

    @property
    def range(self) -> str:
        """The values allowed, in words."""
        if self.kind == "bool":
            return "true or false"
        if self.kind == "choice":
            return " or ".join(self.choices)
        word = "whole number" if self.kind == "int" else "number"
        if self.low is not None and self.high is not None:
            return f"{word} from {self.low:g} to {self.high:g}"
        if self.low is not None:
            return f"{word} {'above' if self.above else 'of at least'} {self.low:g}"
        return f"any finite {word}"


@dataclass(frozen=True, slots=True)
class Method:
    """One merge method.

    Parameters
    ----------
    name, title, formula, summary, paper, url : str
    base : {"required", "optional", "input"}
        Whether it needs a base; ``input`` means that a base model is one more input like the others.
    least, most : int
        Models besides the base.
    parameters : tuple of Parameter
    example : str
        A recipe to copy.
    notes : tuple of str
        Where the result differs from mergekit's, and why; what the paper has that a merge cannot.
    step : bool
        It adds a step to the base: `alpha`, `relative_to` and `vector` apply, survival is measured.
    random : bool
        It draws: `seed` matters.
    mergekit : bool
        mergekit 0.1.5 has it.
    divides_weights : bool
        To normalise is to divide the weights by their sum, once; otherwise the engine divides, by element.
    weighs_by_ratio : bool
        It has no switch to normalise: only the ratio of the weights counts, and their sum cannot be zero.
    is_control : bool
        Made to be compared with, not to be used: it has no function of its own in the package.
    importance : bool
        It weighs or chooses by what each element matters to its model: models have maps of that.
    hint : str, optional
        The way out where there are more models than it takes.
    """

    name: str
    title: str
    formula: str
    summary: str
    paper: str
    url: str
    base: Literal["required", "optional", "input"]
    least: int
    most: int | None
    parameters: tuple[Parameter, ...]
    example: str
    notes: tuple[str, ...] = ()
    step: bool = True
    random: bool = False
    mergekit: bool = True
    divides_weights: bool = False
    weighs_by_ratio: bool = False
    is_control: bool = False
    importance: bool = False
    hint: str | None = None

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name."""
        return next((p for p in self.parameters if p.name == name), None)

    @property
    def models(self) -> str:
        """How many models besides the base, in words."""
        if self.most == self.least:
            return f"{self.least}"
        return f"{self.least} or more" if self.most is None else f"{self.least} to {self.most}"
