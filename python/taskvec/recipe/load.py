"""A whole recipe: one document, or several that build on each other and are run in order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

import yaml

from taskvec.compat.findings import Finding, finding
from taskvec.errors import RecipeError
from taskvec.recipe.document import Document, from_python
from taskvec.recipe.known_words import in_our_words
from taskvec.recipe.model_ref import ModelRef, exists
from taskvec.recipe.overrides import apply_overrides
from taskvec.recipe.parse import MAXIMUM_BYTES, parse, read_text, source_of
from taskvec.recipe.published import recipe_in, without_header
from taskvec.recipe.schema import Recipe, from_document
from taskvec.recipe.validate import Checked, check
from taskvec.text import kind_of, nearest, shown


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """Documents in the order in which they are to be run; the last one makes the output.

    Attributes
    ----------
    steps : tuple of Checked
    source : str
        What the recipe is called: its file as the user wrote it, or ``recipe``.
    text : str
        YAML as it was written, or as the values given from Python are written.
    documents : tuple of dict
        The documents as plain data, overrides applied, in the order of the file: what a manifest keeps.
    remarks : tuple of Finding
        On documents that nothing uses.
    """

    steps: tuple[Checked, ...]
    source: str
    text: str
    documents: tuple[dict[str, Any], ...]
    remarks: tuple[Finding, ...] = ()

    @property
    def last(self) -> Checked:
        """The document that makes the output."""
        return self.steps[-1]

    @property
    def final(self) -> Recipe:
        """The recipe of the document that makes the output."""
        return self.last.recipe

    def step_of(self, ref: ModelRef) -> Checked | None:
        """The document that makes a model, if it is not on disk."""
        if ref.kind not in ("checkpoint", "importance"):
            return None
        names = (step.recipe.name for step in self.steps)
        return next((step for step, name in zip(self.steps, names, strict=True) if name == ref.path), None)


def load(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]],
    overrides: Iterable[str] = (),
) -> RecipeFile:
    """Read a recipe, and check all that can be checked without its models.

    Parameters
    ----------
    recipe : path, text or mapping
        A file; YAML text, which has a line break in it; a mapping; or a sequence of mappings, as several
        documents.
    overrides : iterable of str
        ``models.1.parameters.weight=0.3``: values to replace.

    Raises
    ------
    RecipeError
        The recipe is not one; the message names the file and the line, the hint the way out.
    NotFoundError
        There is no such file.
    """
    source, text, documents = read(recipe)
    return _loaded(apply_overrides(documents, overrides), text, source)


def load_document(document: Document) -> RecipeFile:
    """The recipe that one document is, which need not have been written by itself.

    Raises
    ------
    RecipeError
        It is not one; the message names the line of the document.
    """
    return _loaded([document], "", document.source)


def _loaded(changed: Sequence[Document], text: str, source: str) -> RecipeFile:
    """The recipe in documents whose values have all been put in."""
    ours = [in_our_words(document) for document in changed]
    # The form of all documents first: an unknown key explains what a check would find.
    recipes = [from_document(document) for document, _ in ours]
    steps = [_remarked(check(recipe), remarks) for recipe, (_, remarks) in zip(recipes, ours, strict=True)]
    ordered, remarks = _ordered(steps, source)
    plain = tuple(writable(document.plain()) for document in changed)
    if not text:
        text = yaml.safe_dump_all(plain, sort_keys=False, allow_unicode=True)
    return RecipeFile(ordered, source, text, plain, remarks)


def read(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]],
) -> tuple[str, str, list[Document]]:
    """What a recipe is called, its text (empty for values given from Python), and its documents.

    Raises
    ------
    RecipeError, NotFoundError
        As :func:`load`.
    """
    if isinstance(recipe, str) and "\n" in recipe:
        return "recipe", *_published(recipe, "recipe")
    if isinstance(recipe, str | os.PathLike):
        source = source_of(recipe)
        return source, *_published(read_text(recipe), source)
    return "recipe", "", _from_values(recipe)


def _published(text: str, source: str) -> tuple[str, list[Document]]:
    """The recipe in a text, and its documents."""
    found = recipe_in(text, source) if len(text) <= MAXIMUM_BYTES else text
    return found.lstrip("\n"), without_header(parse(found, source))


def _remarked(step: Checked, remarks: Sequence[Finding]) -> Checked:
    return replace(step, remarks=(*remarks, *step.remarks)) if remarks else step


def _from_values(recipe: Any) -> list[Document]:
    if isinstance(recipe, Mapping):
        return [from_python(recipe)]
    if not isinstance(recipe, list | tuple) or not recipe:
        raise RecipeError(
            f"a recipe is a path, a mapping or a list of mappings, found {kind_of(recipe)}",
            "start with {'merge_method': 'linear', 'models': [...]}",
        )
    if len(recipe) == 1:
        return [from_python(recipe[0])]
    return [from_python(each, f"recipe[{index}]") for index, each in enumerate(recipe)]


def writable(value: Any) -> Any:
    """Plain data with checkpoints that were given as objects written as what they were opened from."""
    if isinstance(value, dict):
        return {key: writable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [writable(item) for item in value]
    return value if isinstance(value, bool | int | float | str) or value is None else str(value.spec)


# --- order ------------------------------------------------------------------------------------------------
def _ordered(steps: Sequence[Checked], source: str) -> tuple[tuple[Checked, ...], tuple[Finding, ...]]:
    """The documents that the output needs, each after those it uses."""
    recipes = [step.recipe for step in steps]
    named = _named(recipes)
    seen: dict[str, str | None] = {}
    uses = {index: _uses(recipe, named, seen) for index, recipe in enumerate(recipes)}
    order = _sorted(recipes, uses)
    final = _final(recipes, uses, source)
    needed = {final}
    for index in reversed(order):
        if index in needed:
            needed.update(uses[index])
    unused = [
        finding(
            "recipe-unused",
            recipe.document.place(("name",)),
            "",
            f"document `{shown(str(recipe.name))}` is used by no other and not run",
            "remove it, or name it where its result belongs",
        )
        for index, recipe in enumerate(recipes)
        if index not in needed
    ]
    return tuple(steps[index] for index in order if index in needed), tuple(unused)


def _named(steps: Sequence[Recipe]) -> dict[str, int]:
    named: dict[str, int] = {}
    without: Recipe | None = None
    for index, step in enumerate(steps):
        if step.name is None:
            if without is not None:
                raise step.error(
                    (),
                    f"a second document without a name, the first is at {without.document.place()}",
                    "give all but the last one a `name:`",
                )
            without = step
        elif step.name in named:
            first = steps[named[step.name]].document.place(("name",))
            raise step.error(
                ("name",),
                f"a second document named `{shown(step.name)}`, the first is at {first}",
                "rename one",
            )
        else:
            named[step.name] = index
    return named


def _uses(step: Recipe, named: Mapping[str, int], seen: dict[str, str | None]) -> list[int]:
    """The documents that a document builds on; `seen` remembers which names are close to a document's."""
    found: dict[int, None] = {}
    for ref, path in step.models_named():
        if ref.kind not in ("checkpoint", "importance"):
            continue
        if ref.path in named:
            if ref.path == step.name:
                raise step.error(path, f"document `{shown(step.name)}` is made from itself", "name a model")
            found[named[ref.path]] = None
        elif named and "/" not in ref.path and ref.opened is None:
            if ref.path not in seen:
                seen[ref.path] = None if exists(ref.path) else nearest(ref.path, named)
            near = seen[ref.path]
            if near is not None:
                raise step.error(
                    path, f"there is no document or folder `{shown(ref.path)}`", f"did you mean `{near}`?"
                )
    return list(found)


def _sorted(recipes: Sequence[Recipe], uses: Mapping[int, Sequence[int]]) -> list[int]:
    """Positions of the documents, each after those it uses."""
    try:
        return list(TopologicalSorter(uses).static_order())
    except CycleError as error:
        circle = [recipes[index] for index in reversed(error.args[1])]
        names = " ← ".join(f"`{shown(str(recipe.name))}`" for recipe in circle[:6])
        raise circle[0].error(
            ("name",),
            f"documents are made from each other: {names}",
            "one of them has to start from models that are there",
        ) from None


def _final(recipes: Sequence[Recipe], uses: Mapping[int, Sequence[int]], source: str) -> int:
    """The document that makes the output: the one without a name, else the only one that no other uses."""
    for index, recipe in enumerate(recipes):
        if recipe.name is None:
            return index
    used = {index for each in uses.values() for index in each}
    ends = [index for index in range(len(recipes)) if index not in used]
    if len(ends) == 1:
        return ends[0]
    names = ", ".join(f"`{shown(str(recipes[index].name))}`" for index in ends[:6])
    raise RecipeError(
        f"{source}: which document makes the output? {names} are used by no other",
        "leave out the `name:` of the last one",
    )
