"""A whole experiment as one value, and as the YAML file that holds it."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from taskvec.errors import NotFoundError, RecipeError
from taskvec.evaluation.arms import arm_stem
from taskvec.evaluation.paper import PRESETS, Size
from taskvec.evaluation.settings import OPTIONS, PAPER_TASKS, THINK, Settings, key_of, parse_perturbation
from taskvec.files import look
from taskvec.recipe.document import Document
from taskvec.recipe.errors import EXPECTED, bound_words
from taskvec.recipe.parse import STANDARD_INPUT, Sort, read
from taskvec.settings import parse_alphas
from taskvec.text import kind_of, nearest

SUFFIXES = (".yaml", ".yml")
SWEEP = Sort(
    "sweep file",
    "start with `target:`, `donor:`, `reference:` and `tasks: [...]`",
    "write `target:`, `donor:`, `reference:` and `tasks: [...]`, a line each",
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Controls(_Strict):
    """The numbers of random and permuted vectors that the real one is compared with."""

    random: int = Field(3, ge=0, le=100)
    permuted: int = Field(1, ge=0, le=100)


class Parts(_Strict):
    """Arms that say what a vector is made of, at the chosen alpha; none by default.

    Attributes
    ----------
    groups : int, optional
        So many groups of layers, of which each is added alone and left out alone; what lies outside of the
        layers is a group more.
    modules : bool
        The same by kind of module: attention, feed-forward, norms, embeddings and head.
    top : tuple of float
        Only so many per cent of the elements, the largest of the whole vector.
    rank : tuple of int
        Every matrix by its best approximation of this rank.
    sign : bool
        Signs alone, with one scale per tensor.
    without_sft : bool
        The vector's part at right angles to reference - base.
    between : tuple of float
        reference + t (donor - reference) for these t, on the reference itself.
    also : str, optional
        A second donor, or a saved vector: it is added alone, and together with the vector.
    """

    groups: int | None = Field(default=None, ge=2, le=100)
    modules: bool = False
    top: tuple[float, ...] = ()
    rank: tuple[int, ...] = ()
    sign: bool = False
    without_sft: bool = False
    between: tuple[float, ...] = ()
    also: str | None = None

    @field_validator("top", "rank", "between", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        single = isinstance(value, (int, float)) and not isinstance(value, bool)
        return (value,) if single else tuple(value) if isinstance(value, list) else value

    @field_validator("top", "rank", "between")
    @classmethod
    def _once(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        repeated = next((each for each in value if value.count(each) > 1), None)
        if repeated is not None:
            raise ValueError(f"{repeated:g} is named twice")
        return value

    @field_validator("top")
    @classmethod
    def _per_cent(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < each <= 100 for each in value):
            raise ValueError(
                "the largest elements are given in per cent, above 0 and at most 100: [1, 5, 20]"
            )
        return value

    @field_validator("rank")
    @classmethod
    def _ranks(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(each >= 1 for each in value):
            raise ValueError("a rank is a whole number of at least 1")
        return value

    @field_validator("between")
    @classmethod
    def _finite(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return parse_alphas(list(value)) if value else value

    def __bool__(self) -> bool:
        return self != Parts()


def _entry(name: str) -> Any:
    """Type and default of a setting in a sweep file."""
    declared = OPTIONS[name]
    empty = list if declared.written == list[int] else dict
    default = Field(default_factory=empty) if declared.default == () else Field(declared.default)
    return declared.written or get_type_hints(Settings)[name], default


_ENTRIES = {key_of(name): _entry(name) for name in OPTIONS if name != "tasks"}


class Evaluation(create_model("Evaluation", __base__=_Strict, **_ENTRIES)):
    """How arms are evaluated: the fields of `Settings`, but for the tasks, under their keys in a file."""


class Merge(_Strict):
    """How arms are merged: options of ``taskvec transfer``."""

    include: list[str] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    preset: Literal["full", "no-embed", "no-embed-norm"] = "full"
    layers: str | None = None
    out_dtype: str | None = None
    rounding: Literal["nearest", "stochastic"] = "nearest"
    force: list[str] = Field(default_factory=list)


class Experiment(_Strict):
    """Target, vector, arms and settings, for `run_sweep`.

    Attributes
    ----------
    target : str
        The model that receives the vector.
    donor, reference : str, optional
        The models whose difference is the vector; evaluated as arms of their own, for the gate.
    vector : str, optional
        A saved task vector, in place of the difference; donor and reference may still be named for the gate.
    base : str, optional
        The model from which the reference was tuned, for the SFT vector (reference - base) and the whole
        difference (donor - base).
    rivals : tuple of str
        Models that were trained from the reference by another way than the donor, such as continued SFT.
        Their vectors (rival - reference) are arms, at a factor of 1 and at the norm of the chosen vector.
    sft_alphas : tuple of float
        Further factors of the SFT vector, besides 1 and the one that gives it the chosen vector's norm.
    alphas : tuple of float
        Factors of the vector.
    think : str, optional
        A request to reason; the baseline and the vector arms are run with it as well. ``true`` in a file
        stands for "Think step by step.".
    think_only : bool
        Run every arm with it, and none without.
    perturb : tuple of str
        Perturbations under which the baseline and the chosen vector are run as well; some may have a rate,
        ``typo=0.3``.
    arms : {"place", "merged"}
        Whether the weights of arms are made in the target, which is loaded once, where that surely gives the
        bytes of a merge; or each is merged into a folder and loaded. Either goes on where the other stopped.
    development : float
        Share of each task's documents on which alpha is chosen; the rest is reported on.
    choose : {"once", "task"}
        Whether one alpha is chosen for all tasks, or one for each.
    parts : Parts
        Further arms: what the vector is made of, at each alpha that was chosen.
    paper : {"1.5b", "7b"}, optional
        The paper's experiment with models of this size: its tasks, alphas, request to reason and settings go
        before the defaults, and what is named next to it goes before them; the report has its table.
    """

    target: str
    donor: str | None = None
    reference: str | None = None
    vector: str | None = None
    base: str | None = None
    rivals: tuple[str, ...] = ()
    sft_alphas: tuple[float, ...] = ()
    alphas: tuple[float, ...] = (-1.0, 0.0, 0.5, 1.0)
    tasks: tuple[str, ...] = PAPER_TASKS
    think: str | None = None
    think_only: bool = False
    perturb: tuple[str, ...] = ()
    arms: Literal["place", "merged"] = "place"
    development: float = Field(0.3, ge=0, lt=1)
    choose: Literal["once", "task"] = "once"
    controls: Controls = Controls(random=3, permuted=1)
    parts: Parts = Parts()
    paper: Size | None = None
    evaluation: Evaluation = Evaluation()
    merge: Merge = Merge()

    @model_validator(mode="before")
    @classmethod
    def _of_the_paper(cls, content: Any) -> Any:
        size = content.get("paper") if isinstance(content, dict) else None
        return _above(PRESETS[size].content(), content) if size in PRESETS else content

    @field_validator("alphas", "sft_alphas", mode="before")
    @classmethod
    def _alphas(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, (bool, dict)) or value is None:
            raise ValueError("alphas are numbers: [-1, 0, 0.5, 1]")
        if info.field_name == "sft_alphas" and value in ([], ()):
            return ()
        return parse_alphas(value)

    @field_validator("rivals")
    @classmethod
    def _rivals(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for model in value:
            if value.count(model) > 1:
                raise ValueError(f"`{model}` is named twice")
        return value

    @field_validator("tasks", "perturb", "rivals", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str) else value

    @field_validator("perturb")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for kind in value:
            try:
                parse_perturbation(kind)
            except RecipeError as error:
                raise ValueError(error.message) from None
        return value

    @field_validator("think", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return THINK if value is True else None if value is False else value

    @model_validator(mode="after")
    def _whole(self) -> Experiment:
        if self.vector is None and (self.donor is None or self.reference is None):
            raise ValueError("name `donor` and `reference`, or a saved `vector`")
        if self.think_only and self.think is None:
            raise ValueError("`think_only` needs `think`")
        if self.rivals and self.reference is None:
            raise ValueError("`rivals`: `reference` is needed: a rival's vector is what it has learned since")
        if self.sft_alphas and (self.reference is None or self.base is None):
            raise ValueError(
                "`sft_alphas`: `reference` and `base` are needed, whose difference is the SFT vector"
            )
        if self.parts.without_sft and (self.reference is None or self.base is None):
            raise ValueError(
                "`parts.without_sft` needs `reference` and `base`: the SFT vector is between them"
            )
        if self.parts.between and (self.donor is None or self.reference is None):
            raise ValueError("`parts.between` needs `donor` and `reference`")
        if self.parts and not any(alpha > 0 for alpha in self.alphas):
            raise ValueError(
                "parts of the vector are added at the chosen alpha: name a positive one in `alphas`"
            )
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """Every model and vector that is named, once."""
        single = (self.target, self.donor, self.reference, self.base, self.vector)
        named = (*single, *self.rivals, self.parts.also)
        return tuple(dict.fromkeys(model for model in named if model is not None))

    @property
    def rival_models(self) -> dict[str, str]:
        """The rivals by the names of their arms: the last part of a path or hub name, numbered if need be."""
        found: dict[str, str] = {}
        for model in self.rivals:
            name = stem = arm_stem(model)
            number = 1
            while name in found:
                number += 1
                name = f"{stem}-{number}"
            found[name] = model
        return found

    def settings(self) -> Settings:
        """The settings that all arms share."""
        return Settings.of({"tasks": self.tasks, **self.evaluation.model_dump()})

    def to_yaml(self) -> str:
        """The experiment as a sweep file, without values that are left at their defaults."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _above(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two layers of settings: what the upper one names goes before the lower one's."""
    found = dict(below)
    for key, value in above.items():
        under = found.get(key)
        found[key] = _above(under, value) if isinstance(value, dict) and isinstance(under, dict) else value
    return found


def load_experiment(path: str | os.PathLike[str]) -> Experiment:
    """Read a sweep file, or a shipped one by its name.

    Raises
    ------
    NotFoundError, RecipeError
        The file is not found, is not strict YAML, or has a key or value that cannot be honoured (named with
        its line).
    """
    name = os.fspath(path)
    found = Path(name)
    if name != STANDARD_INPUT and not look.exists(found) and not name.endswith(SUFFIXES):
        shipped = recipes()
        if name not in shipped:
            near = nearest(name, shipped)
            raise NotFoundError(
                f"`{name}` is neither a sweep file nor one that ships with taskvec",
                f"did you mean `{near}`?" if near else f"shipped: {', '.join(sorted(shipped))}",
            )
        with resources.as_file(shipped[name]) as file:
            return _validated(read(file, SWEEP)[1])
    if name != STANDARD_INPUT and not look.exists(found):
        raise NotFoundError(
            f"sweep file `{name}` is not found",
            f"give the path of a YAML file, or one that ships with taskvec: {', '.join(sorted(recipes()))}",
        )
    return _validated(read(found, SWEEP)[1])


def recipes() -> dict[str, Any]:
    """The sweep files that ship with the package, by name."""
    folder = resources.files("taskvec.evaluation") / "recipes"
    return {item.name.rsplit(".", 1)[0]: item for item in folder.iterdir() if item.name.endswith(SUFFIXES)}


def experiment(content: dict[str, Any], *, source: str = "the sweep") -> Experiment:
    """An experiment from plain data, as a file or the command line gives it."""
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        path, message, hint = _first_mistake(error)
        raise RecipeError(f"{source}: {_dotted(path)}{message}", hint) from None


def _validated(documents: list[Document]) -> Experiment:
    document = documents[0]
    if len(documents) > 1:
        raise documents[1].error((), "a sweep file holds one document")
    try:
        return Experiment.model_validate(document.plain())
    except ValidationError as error:
        path, message, hint = _first_mistake(error)
        raise document.error(path, f"{_dotted(path)}{message}", hint, key=True) from None


def _dotted(path: tuple[str | int, ...]) -> str:
    return f"`{'.'.join(map(str, path))}`: " if path else ""


def _first_mistake(error: ValidationError) -> tuple[tuple[str | int, ...], str, str | None]:
    """The first mistake: its place, its description and the way out."""
    first = error.errors(include_url=False)[0]
    path = tuple(part for part in first["loc"] if not _is_branch(part))
    if first["type"] == "extra_forbidden":
        model: Any = Experiment
        for part in path[:-1]:
            model = model.model_fields[part].annotation
        near = nearest(str(path[-1]), model.model_fields)
        known = ", ".join(model.model_fields)
        return path, "no such key", f"did you mean `{near}`?" if near else f"the keys are {known}"
    bound = bound_words(first)
    if bound is not None:
        return path, f"out of range: {kind_of(first['input'])}", bound
    if first["type"] == "missing":
        return path, "is needed, and not named", None
    expected = EXPECTED.get(first["type"])
    if expected is not None:
        return path, f"{expected} is expected, found {kind_of(first['input'])}", None
    message = first["msg"].removeprefix("Value error, ")
    return path, message[:1].lower() + message[1:], None


def _is_branch(part: str | int) -> bool:
    """Whether pydantic put the name of a union's branch into a path."""
    return isinstance(part, str) and (
        part in ("int", "float", "str") or part.startswith(("literal", "constrained"))
    )
