"""The keys of a space: how candidates are proposed, judged and compared."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from taskvec.errors import RecipeError
from taskvec.evaluation.experiment import Evaluation
from taskvec.evaluation.settings import THINK
from taskvec.recipe.fields import Seed
from taskvec.recipe.schema import Form
from taskvec.settings import parse_alphas


class Optimiser(Form):
    """What proposes candidates, and how many."""

    name: Literal["cma", "random", "tpe"] = "cma"
    population: Annotated[int, Field(ge=4, le=10_000)] | None = None
    budget: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    generations: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    sigma: float = 0.25
    seed: Seed = 1

    @field_validator("sigma")
    @classmethod
    def _step(cls, value: float) -> float:
        if not 0 < value <= 1:
            raise RecipeError(
                f"`sigma` is a share of each range, found {value:g}", "above 0, at most 1: 0.25"
            )
        return value

    @model_validator(mode="after")
    def _one(self) -> Optimiser:
        if self.budget is not None and self.generations is not None:
            raise RecipeError("`budget` and `generations` together", "keep one of them")
        return self


class Compare(Form):
    """What the best candidate is held against."""

    random: float = 1.0
    alphas: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    margin: float = 0.01

    @field_validator("alphas", mode="before")
    @classmethod
    def _alphas(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and not value:
            return ()
        if isinstance(value, bool | dict) or value is None:
            raise RecipeError("alphas are numbers", "`alphas: [0.5, 1]`")
        return parse_alphas(value)

    @field_validator("random")
    @classmethod
    def _share(cls, value: float) -> float:
        if not 0 <= value <= 1:
            raise RecipeError(f"`random` is a share of the budget, found {value:g}", "from 0 to 1")
        return value

    @field_validator("margin")
    @classmethod
    def _margin(cls, value: float) -> float:
        if not 0 <= value < math.inf:
            raise RecipeError(f"`margin` is a difference of scores, found {value:g}", "0.01 is one point")
        return value


class Transfer(Form):
    """A transfer as a recipe says it: target + alpha * (donor - reference)."""

    target: str
    donor: str
    reference: str
    alpha: Any = 1.0
    include: Any = None
    exclude: Any = None
    preset: Any = None
    layers: Any = None
    out_dtype: Any = None
    rounding: Any = None
    seed: Any = None


class SpaceForm(Form):
    """The keys of a space."""

    recipe: Any = None
    transfer: Transfer | None = None
    tasks: Annotated[
        tuple[str, ...],
        Field(
            strict=False, min_length=1, description="what candidates are judged by: `tasks: [gsm8k, sciq]`"
        ),
    ]
    weights: dict[str, float] = Field(default_factory=dict)
    development: float = 0.5
    think: str | None = None
    baseline: str | None = None
    force: Annotated[tuple[str, ...], Field(strict=False)] = ()
    evaluation: Evaluation = Evaluation()
    optimiser: Optimiser = Optimiser()
    compare: Compare = Compare()

    @field_validator("tasks", "force", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("think", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return THINK if value is True else None if value is False else value

    @field_validator("development")
    @classmethod
    def _share(cls, value: float) -> float:
        if not 0 < value < 1:
            raise RecipeError(
                f"`development` is a share of the documents, found {value:g}",
                "above 0 and below 1: candidates are chosen on it, and the best is tested on the others",
            )
        return value

    @field_validator("weights")
    @classmethod
    def _positive(cls, value: dict[str, float]) -> dict[str, float]:
        for task, weight in value.items():
            if not 0 < weight < math.inf:
                raise RecipeError(
                    f"the weight of `{task}` is above 0, found {weight:g}", "leave out the task"
                )
        return value
