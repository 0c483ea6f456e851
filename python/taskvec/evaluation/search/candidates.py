"""Candidates as models: a recipe's identity, its merge into a folder, and the folder that is evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.arms import Arm, arm_name
from taskvec.evaluation.backend.identity import Source, hold_unchanged, resolve, source, weights_digest
from taskvec.evaluation.record import Merged, digest_json, writing
from taskvec.evaluation.sweep.merge import UNFINISHED
from taskvec.files import look
from taskvec.lazy.recipe import RecipeMerge
from taskvec.recipe.load import RecipeFile, load
from taskvec.recipe.model_ref import ModelRef
from taskvec.settings import Settings


@dataclass(frozen=True)
class Candidate:
    """One set of weights.

    Attributes
    ----------
    name : str
    weights : str
        Their identity, known before they are merged.
    recipe : RecipeFile, optional
        What makes them.
    folder : str, optional
        Where they lie, if they are a model as it is.
    """

    name: str
    weights: str
    recipe: RecipeFile | None = None
    folder: str | None = None

    def arm(self, think: str | None) -> Arm:
        """The arm that evaluates it."""
        return Arm(arm_name(self.name, think, None), "candidate", think=think)


class Merges:
    """Merges candidates, and knows the identity of what they are merged from.

    Parameters
    ----------
    force : sequence of str
        Compatibility findings to go on in spite of.
    threads : int, optional
        Of a merge.
    """

    def __init__(self, force: Sequence[str] = (), threads: int | None = None) -> None:
        self._settings = Settings.of({"force": tuple(force), "overwrite": True, "threads": threads})
        self._force = sorted(force)
        self._digests: dict[ModelRef, str] = {}
        self._folders: dict[str, str] = {}
        self._sources: list[Source] = []
        self.recipes: dict[str, RecipeFile] = {}

    def candidate(self, name: str, recipe: RecipeFile) -> Candidate:
        """The candidate that a recipe makes."""
        content = {
            "recipe": list(recipe.documents),
            "models": [self._digest(ref) for ref in _read_by(recipe)],
            "force": self._force,
        }
        found = Candidate(name, f"merge:{digest_json(content)}", recipe)
        self.recipes[name] = recipe
        return found

    def hold(self) -> None:
        """Return if every model that was asked for is what it was then.

        Raises
        ------
        EvaluationError
            One is not.
        """
        hold_unchanged(self._sources)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The models that were asked for, with their adapters, and vectors."""
        return tuple(self._sources)

    def model(self, name: str, ref: ModelRef) -> Candidate:
        """A model as it is; with its adapter added if it has one."""
        if ref.adapter is not None or ref.kind != "checkpoint":
            document = {"merge_method": "passthrough", "models": [{"model": str(ref)}]}
            return self.candidate(name, load(document))
        self._digest(ref)
        return Candidate(name, self._digests[ref], folder=self._folders[ref.spec])

    def plan(self, recipe: RecipeFile) -> Any:
        """What a merge would do, from headers."""
        return RecipeMerge(recipe, self._settings).plan()

    def merge(self, arms: Sequence[Arm], folder: Path) -> dict[str, Merged]:
        """Merge the weights of arms into sub-folders of `folder`, as a scratch folder asks for them."""
        return {arm.weights: self._merge(self.recipes[arm.weights], folder / arm.weights) for arm in arms}

    def _merge(self, recipe: RecipeFile, out: Path) -> Merged:
        part = out.parent / UNFINISHED  # an unfinished merge is never taken for a candidate's weights
        RecipeMerge(recipe, self._settings).save(part)
        with writing(out):
            part.replace(out)
        return Merged(str(out), None, {}, [], "taskvec merge RECIPE")

    def _digest(self, ref: ModelRef) -> str:
        if ref not in self._digests:
            self._digests[ref] = self._state(ref)
        return self._digests[ref]

    def _state(self, ref: ModelRef) -> str:
        if ref.kind != "checkpoint":
            return self._state_of_files(ref.spec)
        folder, weights = resolve(ref.path if look.exists(ref.path) else ref.spec)
        self._folders[ref.spec] = folder
        self._sources.append(source(folder, weights))
        return weights if ref.adapter is None else f"{weights}+{self._state_of_files(ref.adapter)}"

    def _state_of_files(self, place: str) -> str:
        """The identity of a vector or an adapter: a digest of local files, or the name of others."""
        if not look.exists(place):
            return f"named:{place}"
        found = weights_digest(Path(place))
        self._sources.append(source(place, found))
        return found


def _read_by(recipe: RecipeFile) -> Iterable[ModelRef]:
    """Every model that a recipe names, once."""
    return dict.fromkeys(ref for ref, _ in recipe.final.models_named())


def baseline_of(recipe: RecipeFile, named: str | None) -> ModelRef:
    """The model that candidates are held against: the one that is named, the base, or the first."""
    if named is not None:
        from taskvec.recipe.model_ref import parse_model

        try:
            return parse_model(named)
        except ValueError as error:
            raise EvaluationError(f"`baseline`: {error.args[0]}", "name a model") from None
    base = recipe.final.base_model
    return base if base is not None else next(iter(_read_by(recipe)))


def as_yaml(recipe: RecipeFile, head: str) -> str:
    """A recipe as a file, with a comment before it."""
    import yaml

    text = yaml.safe_dump_all(recipe.documents, sort_keys=False, allow_unicode=True)
    comment = "".join(f"# {line}\n" for line in head.splitlines())
    return comment + text
