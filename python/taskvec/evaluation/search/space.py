"""The space of a search as a YAML file: a recipe with free values, and how candidates are judged."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from taskvec.arguments import path
from taskvec.errors import RecipeError
from taskvec.evaluation.experiment import Evaluation
from taskvec.evaluation.search.form import Optimiser, SpaceForm, Transfer
from taskvec.evaluation.search.free import WORD, Coordinate, Free, find, placed
from taskvec.evaluation.settings import Settings
from taskvec.methods.catalogue import METHODS
from taskvec.recipe.document import Document, Node, from_python
from taskvec.recipe.errors import first_error
from taskvec.recipe.load import RecipeFile, load_document
from taskvec.recipe.parse import Sort, read
from taskvec.text import Key, kind_of, nearest

BUDGET = 100
SPACE = Sort(
    "space",
    "start with `recipe:`, and `tasks: [...]`",
    "write a recipe under `recipe:`, `{search: {low: 0, high: 1}}` where a value is free, and `tasks: [...]`",
)
Point = tuple[Coordinate, ...]


@dataclass(frozen=True)
class Space:
    """Everything that a search is: what is free, and how candidates are judged.

    Attributes
    ----------
    form : SpaceForm
        The keys but for the recipe.
    document : Document
        The recipe, free values in their places.
    free : tuple of Free
    source : str
        What messages call the space.
    written : dict
        The recipe or the transfer as it was written, under its key.
    """

    form: SpaceForm
    document: Document
    free: tuple[Free, ...]
    source: str
    written: dict[str, Any]

    @property
    def optimiser(self) -> Optimiser:
        """What proposes candidates."""
        return self.form.optimiser

    @property
    def population(self) -> int:
        """Candidates of a generation; by default 4 + 3 log n, as CMA-ES has it."""
        return self.optimiser.population or 4 + math.floor(3 * math.log(len(self.free)))

    @property
    def budget(self) -> int:
        """Candidates in all."""
        given = self.optimiser
        if given.generations is not None:
            return given.generations * self.population
        return given.budget or BUDGET

    @property
    def random_budget(self) -> int:
        """Candidates of the random search that the best is held against."""
        return 0 if self.optimiser.name == "random" else round(self.form.compare.random * self.budget)

    def settings(self) -> Settings:
        """How every candidate is evaluated."""
        return Settings.of({"tasks": self.form.tasks, **self.form.evaluation.model_dump()})

    def to_json(self) -> dict[str, Any]:
        """Plain data: the recipe with its free values, and how candidates are judged."""
        form = self.form.model_dump(mode="json", exclude={"recipe", "transfer"}, exclude_none=True)
        return {**self.written, "free": [each.to_json() for each in self.free], **form}

    def start(self) -> Point:
        """The point to begin at."""
        return tuple(each.start for each in self.free)

    def values(self, point: Sequence[Coordinate]) -> dict[str, Any]:
        """The values at a point, by the names of the free values."""
        return {each.name: each.value(at) for each, at in zip(self.free, point, strict=True)}

    def recipe(self, point: Sequence[Coordinate], alpha: float | None = None) -> RecipeFile:
        """The recipe at a point, checked; with another alpha if one is given.

        Raises
        ------
        RecipeError
            It is not one there; the message names the line.
        """
        root = placed(self.document.root, self.free, point)
        if alpha is not None:
            root = replace(root, value={**root.value, "alpha": Node(alpha)})
        return load_document(Document(root, self.source))

    def choices(self) -> Iterator[RecipeFile]:
        """The recipe with every choice, all else where the search begins."""
        start = self.start()
        for position, each in enumerate(self.free):
            for number in range(len(each.choices)):
                yield self.recipe((*start[:position], number, *start[position + 1 :]))

    def plain_points(self) -> Iterator[tuple[str, float | None, Point]]:
        """The plain recipes that the best candidate is held against: name, alpha and point.

        Weights are 1 and everything else is where the search begins. Of a method that makes no step from a
        base there is one alone.
        """
        point = tuple(each.plain for each in self.free)
        method = self.recipe(point).final.merge_method
        if not METHODS[method].step:
            yield "plain", None, point
            return
        for alpha in self.form.compare.alphas:
            yield f"alpha={alpha:g}", alpha, point

    def _optimiser(self, asked: Mapping[str, Any]) -> Optimiser:
        """The optimiser with values that go before the space's."""
        if not asked:
            return self.optimiser
        given = {**self.optimiser.model_dump(), **asked}
        try:
            return Optimiser.model_validate(given)
        except ValidationError as error:
            raise first_error(from_python(given, "optimiser"), Optimiser, error) from None

    def with_options(
        self,
        *,
        budget: int | None = None,
        seed: int | None = None,
        tasks: Sequence[str] = (),
        force: Sequence[str] = (),
        evaluation: Mapping[str, Any] | None = None,
    ) -> Space:
        """The space with options that go before what its file says."""
        asked = {} if budget is None else {"budget": budget, "generations": None}
        asked |= {} if seed is None else {"seed": seed}
        optimiser = self._optimiser(asked)
        given = {key: value for key, value in (evaluation or {}).items() if value not in (None, (), [], {})}
        before = self.form.evaluation.model_dump(mode="json", exclude_unset=True)
        merged = {
            key: {**before.get(key, {}), **value} if isinstance(value, dict) else value
            for key, value in {**before, **given}.items()
        }
        try:
            changed = Evaluation.model_validate(merged)
        except ValidationError as error:
            raise RecipeError(f"{self.source}: {error.errors()[0]['msg']}") from None
        update: dict[str, Any] = {"optimiser": optimiser, "evaluation": changed}
        if tasks:
            update["tasks"] = tuple(tasks)
        if force:
            update["force"] = tuple(dict.fromkeys((*self.form.force, *force)))
        return replace(self, form=self.form.model_copy(update=update))


def load_space(space: str | os.PathLike[str] | Mapping[str, Any]) -> Space:
    """Read a space, and check all of it that can be checked without its models.

    Raises
    ------
    NotFoundError, RecipeError
        The file is not found, is not strict YAML, or has a key or value that cannot be honoured; the message
        names the line, the hint the way out.
    """
    if isinstance(space, Mapping):
        document = from_python(space, "space")
    else:
        documents = read(path(space, "space"), SPACE)[1]
        if len(documents) > 1:
            raise documents[1].error(
                (),
                "a space holds one document",
                "write each space into a file of its own, and search it by itself",
            )
        document = documents[0]
    return _checked(document)


def _checked(document: Document) -> Space:
    content = document.root.value
    if "genome" in content:
        raise document.error(
            ("genome",),
            "this is a space of `mergekit-evolve`",
            "write the recipe under `recipe`, and `{search: {low: 0, high: 1}}` where a value is free",
            key=True,
        )
    given = [key for key in ("recipe", "transfer") if key in content]
    if len(given) != 1:
        raise document.error(
            given[1:],
            "`recipe` and `transfer` together"
            if given
            else "nothing to search: neither `recipe` nor `transfer`",
            "a space has exactly one of them",
            key=True,
        )
    what = given[0]
    node = content[what]
    if not isinstance(node.value, dict):
        raise document.error(
            (what,),
            f"`{what}` is a mapping, found {kind_of(node.plain())}",
            "write the recipe itself there, one level deeper",
        )
    if node.value.keys() == {WORD}:
        raise document.error(
            (what, WORD),
            f"`{what}` as a whole cannot be searched",
            "write it out, and put `{search: ...}` where a value is free",
            key=True,
        )
    outside = find(Document(replace(document.root, value={**content, what: Node({})}), document.source))
    if outside:
        raise document.error(
            outside[0].path, f"`{outside[0].name}` cannot be searched", f"free values stand in `{what}`"
        )
    free = find(document, (what,))
    if not free:
        raise document.error(
            (what,),
            f"nothing is free in `{what}`",
            f"put `{{{WORD}: {{low: 0, high: 1}}}}` where a value is searched",
        )
    form = _form(document)
    root = node if what == "recipe" else _as_recipe(document, node, free)
    if what == "transfer":
        free = find(Document(root, document.source))
        free = [replace(each, name=_name_in_transfer(each)) for each in free]
    written = {what: node.plain()}
    found = Space(form, Document(root, document.source), tuple(free), document.source, written)
    _check_recipes(found)
    _hold_numbers_of_tasks(document, form)
    found.settings()
    return found


def _form(document: Document) -> SpaceForm:
    """The keys of a space; in the recipe nothing is looked at here."""
    plain = document.plain()
    plain.pop("recipe", None)
    if "transfer" in plain:
        names = Transfer.model_fields
        for key in ("target", "donor", "reference"):
            if isinstance(plain["transfer"].get(key), dict):
                plain["transfer"][key] = "searched"
        unknown = next((key for key in plain["transfer"] if key not in names), None)
        if unknown is not None:
            near = nearest(unknown, names)
            known = ", ".join(f"`{key}`" for key in names)
            hint = f"did you mean `{near}`?" if near else f"known here: {known}"
            raise document.error(
                ("transfer", unknown), f"unknown key `{unknown}` in `transfer`", hint, key=True
            )
    try:
        return SpaceForm.model_validate(plain)
    except ValidationError as error:
        raise first_error(document, SpaceForm, error) from None


def _as_recipe(document: Document, node: Node, free: Sequence[Free]) -> Node:
    """A transfer as the recipe that says the same; alpha by groups is a gradient of the weight."""
    given = dict(node.value)
    alpha = given.pop("alpha", None)
    grouped = any(each.path == ("alpha",) and each.group is not None for each in free)
    if alpha is not None and isinstance(alpha.value, list):
        raise document.error(
            ("transfer", "alpha"),
            "several values of alpha",
            "write `{search: [0.5, 1]}`, or `groups` for one by layers",
        )
    entry = {"model": given.pop("donor"), "relative_to": given.pop("reference")}
    weight = Node(1.0, node.origin)
    if alpha is not None and grouped:
        weight, alpha = alpha, None
    entry["parameters"] = Node({"weight": weight}, weight.origin)
    content = {
        "merge_method": Node("task_arithmetic", node.origin),
        "base_model": given.pop("target"),
        "models": Node([Node(entry, node.origin)], node.origin),
        **({} if alpha is None else {"alpha": alpha}),
        **{key: value for key, value in given.items() if value.value is not None},
    }
    return Node(content, node.origin, node.keys)


_IN_TRANSFER: dict[tuple[Key, ...], str] = {
    ("models", 0, "parameters", "weight"): "alpha",
    ("models", 0, "model"): "donor",
    ("models", 0, "relative_to"): "reference",
    ("base_model",): "target",
}


def _name_in_transfer(free: Free) -> str:
    """The name of a free value by the key under which a transfer has it."""
    name = _IN_TRANSFER.get(free.path)
    if name is None:
        return free.name
    return name if free.group is None else f"{name}[{free.group}]"


def _hold_numbers_of_tasks(document: Document, form: SpaceForm) -> None:
    """Weights are of tasks that are named, unless a group may stand for them."""
    for task in form.weights:
        if task not in form.tasks:
            near = nearest(task, form.tasks)
            hint = f"did you mean `{near}`?" if near else f"the tasks are {', '.join(form.tasks)}"
            raise document.error(("weights", task), f"`{task}` is not among the tasks", hint, key=True)


def _check_recipes(space: Space) -> None:
    """See that the recipe is one at the start, at both ends of every range and with every choice."""
    start = space.start()
    file = space.recipe(start)
    alphas = file.final.alpha
    if alphas is not None and len(alphas) > 1:
        raise space.document.error(
            ("alpha",), "several values of alpha", "a candidate is one model: give one"
        )
    for position, each in enumerate(space.free):
        ends: Sequence[Coordinate] = (
            range(len(each.choices))
            if each.kind == "choice"
            else (int(each.low), int(each.high))
            if each.kind == "integer"
            else (0.0, 1.0)
        )
        for end in ends:
            space.recipe((*start[:position], end, *start[position + 1 :]))
