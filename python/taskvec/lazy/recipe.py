"""Recipes run: one document, or several in order, their results in a scratch folder next to the output."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from taskvec._core import blake3_hex
from taskvec.compat.findings import enforce_strictly
from taskvec.errors import OutputError, RecipeError
from taskvec.files import look
from taskvec.files.json import read_bytes
from taskvec.files.names import MANIFEST, PLAN, STATE
from taskvec.lazy.plan import Plan
from taskvec.lazy.planned import Planned
from taskvec.models.model import Model
from taskvec.models.saved_vector import SavedVector
from taskvec.plan.merge import plan_recipe
from taskvec.plan.plan import Request
from taskvec.recipe.expand import sources
from taskvec.recipe.load import RecipeFile, load
from taskvec.report.tables import escaped, facts_html, findings_html
from taskvec.resolve.adapter import open_adapter
from taskvec.resolve.open import open as open_model
from taskvec.resolve.saved_vector import open_vector
from taskvec.resolve.storage import current
from taskvec.run.finished import finished_report, finished_run, manifests_of_request
from taskvec.run.inputs import input_rows
from taskvec.run.sinks import is_address
from taskvec.settings import Options, Settings, format_alpha, written
from taskvec.text import kind_of

if TYPE_CHECKING:
    from taskvec.compat.findings import Finding
    from taskvec.progress import Callback
    from taskvec.recipe.model_ref import ModelRef
    from taskvec.recipe.validate import Checked
    from taskvec.report.report import Report

    Recipes = str | os.PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class RecipeMerge(Planned):
    """A recipe, lazy: nothing is read but the recipe itself until it is planned or saved.

    It is a mapping of the tensors of its result too, which are computed when they are read.

    Attributes
    ----------
    file : RecipeFile
        Its documents, the one that makes the output last.
    settings : Settings
    """

    file: RecipeFile
    settings: Settings
    cache: list[Plan] = field(default_factory=list, init=False)

    def plan(self, **settings: Unpack[Options]) -> Plan:
        """What would happen, from headers alone.

        Parameters
        ----------
        **settings
            The fields of :class:`taskvec.Settings`, in place of those that the recipe was opened with.

        Raises
        ------
        RecipeError
            The recipe has several documents: what a later one reads does not exist yet.
        """
        if settings:
            return self.given(settings).plan()
        if len(self.file.steps) > 1:
            raise RecipeError(
                f"`{self.file.source}` has {len(self.file.steps)} documents that build on each other: the "
                "models of a later one do not exist yet",
                "plan the first document alone, or run the recipe",
            )
        return self._plan(self.file.last, Path())

    def save(
        self,
        out: str | os.PathLike[str],
        *,
        progress: Callback | bool | None = None,
        **settings: Unpack[Options],
    ) -> Report:
        """Run every document; results of all but the last are removed when the last is done.

        Parameters
        ----------
        out : str or path
            The output folder.
        progress : callable or bool, optional
            Called with a :class:`taskvec.Progress`; ``True`` draws a bar.
        **settings
            As those of :meth:`plan`.

        Raises
        ------
        RecipeError, CompatibilityError, OutputError, FormatError, NonFiniteError
            As :func:`taskvec.transfer`; the same call goes on where it was.
        """
        if settings:
            return self.given(settings).save(out, progress=progress)
        report = self.finished(out)
        for plan, place in () if report is not None else self.plans(out):
            report = self.run_document(plan, place, out, progress)
        assert report is not None
        self.clear(out)
        return report

    def finished(self, out: str | os.PathLike[str]) -> Report | None:
        """The report of this recipe of several documents where an earlier run has finished it.

        Of a recipe of one document ``None``: its plan tells by itself.

        Raises
        ------
        OutputError
            It has finished, but an input or a file of the output is not what it was then.
        """
        if len(self.file.steps) == 1 or not self.settings.resume or self.settings.overwrite:
            return None
        if is_address(out):
            from taskvec.run.deliver import finished_request  # which local runs do without

            asked = self._request(self._digest())
            return finished_request(str(out), self._alphas(), asked, self.settings)
        digest, folders = self._digest(), self._folders(Path(out))
        manifests = manifests_of_request(digest, folders)
        if manifests:
            self.clear(out)  # a power cut may have brought them back, and no later document needs them
        rows = self._request(digest).inputs if manifests else None
        if rows is None:
            return None
        alphas = [data["recipe"].get("alpha") for data in manifests]
        return finished_report(folders, manifests, rows, self.settings, alphas)

    def run_document(
        self,
        plan: Plan,
        place: Path | str,
        out: str | os.PathLike[str],
        progress: Callback | bool | None = None,
    ) -> Report:
        """Run one of :meth:`plans`; a result of an earlier document that is no longer right is made again."""
        settings = self.settings_of(plan, place, out)
        if place == out_of(out):
            return plan.run(place, settings=settings, progress=progress)
        try:
            done = finished_run(plan, [Path(place)], input_rows(plan.checkpoints), self.settings)
        except OutputError:
            done = None  # its inputs have changed, or it cannot be looked at: then the run says so
        if done is not None:
            return done
        return plan.run(place, settings=replace(settings, overwrite=True), progress=progress)

    def settings_of(self, plan: Plan, place: Path | str, out: str | os.PathLike[str]) -> Settings:
        """The settings of one of :meth:`plans`: a run begins again if what it read was made again since."""
        if isinstance(place, Path) and self._is_stale(plan, place, out):
            return replace(self.settings, overwrite=True, resume=False)
        return self.settings

    def _is_stale(self, plan: Plan, place: Path, out: str | os.PathLike[str]) -> bool:
        """Whether a place holds an unfinished run of this plan that read results made again since."""
        begun = look.stamp(place / STATE / PLAN)
        if begun is None or begun.size != len(plan.json) or read_bytes(place / STATE / PLAN) != plan.json:
            return False
        scratch = scratch_of(out)
        earlier = [model.location for model in plan.checkpoints if scratch in model.location.parents]
        made = [stamp for folder in earlier if (stamp := look.stamp(folder / MANIFEST)) is not None]
        return any(stamp.modified > begun.modified for stamp in made)

    def plans(self, out: str | os.PathLike[str]) -> Iterator[tuple[Plan, Path | str]]:
        """The plan of each document and where its result goes, the output last.

        Each is made when it is asked for: by then those before it have to be run.
        """
        scratch = scratch_of(out)
        request = self._request(self._digest()) if len(self.file.steps) > 1 else None
        for step in self.file.steps[:-1]:
            yield self._plan(step, scratch), scratch / str(step.recipe.name)
        yield replace(self._plan(self.file.last, scratch), request=request), out_of(out)

    def clear(self, out: str | os.PathLike[str]) -> None:
        """Remove the results of earlier documents."""
        scratch = scratch_of(out)
        if len(self.file.steps) == 1 or not look.exists(scratch):
            return
        try:
            shutil.rmtree(scratch)
        except OSError as error:
            raise OutputError(
                f"`{scratch}`, which held the results of earlier documents, cannot be removed: "
                f"{error.strerror or error}",
                "the output is complete; remove that folder, or run the same command again",
            ) from error

    def notes(self) -> list[Finding]:
        """What is known of the recipe without its models."""
        return [*self.file.remarks, *(remark for step in self.file.steps for remark in step.remarks)]

    def _digest(self) -> str:
        """What is asked for, apart from the state of the models."""
        asked = [list(self.file.documents), written(self.settings), list(self.settings.force)]
        return blake3_hex(json.dumps(asked, sort_keys=True, default=str).encode())

    def _request(self, digest: str) -> Request:
        """The same with the states of the files of all models that no document makes."""
        read = [ref for step in self.file.steps for ref in sources(step)]
        outside = [ref for ref in dict.fromkeys(read) if self.file.step_of(ref) is None]
        models: list[Any] = [self._open(ref) for ref in outside]
        models += [open_adapter(ref.adapter) for ref in dict.fromkeys(read) if ref.adapter is not None]
        each = [input_rows([model]) for model in models]
        rows = [row for found in each if found is not None for row in found]
        return Request(digest, rows if None not in each else None)

    def _open(self, ref: ModelRef) -> Any:
        if isinstance(ref.opened, Model | SavedVector):
            return ref.opened
        openers = {"vector": open_vector, "adapter": open_adapter}
        return openers.get(ref.kind, open_model)(ref.spec)

    def _alphas(self) -> list[float] | None:
        """The factors, where the output has a folder for each."""
        alpha = self.file.final.alpha
        return list(alpha) if isinstance(alpha, list | tuple) and len(alpha) > 1 else None

    def _folders(self, out: Path) -> list[Path]:
        alphas = self._alphas()
        return [out] if alphas is None else [out / f"alpha={format_alpha(value)}" for value in alphas]

    def _plan(self, step: Checked, scratch: Path) -> Plan:
        def opening(ref: ModelRef) -> Model:
            if self.file.step_of(ref) is not None:
                return open_model(scratch / ref.path)
            return ref.opened if isinstance(ref.opened, Model) else open_model(ref.spec)

        record = {"verb": "merge", "recipe": list(self.file.documents)}
        return Plan.of(plan_recipe(step, settings=self.settings, opening=opening, record=record))

    def __repr__(self) -> str:
        final = self.file.final
        models = [str(ref.spec) for ref in sources(self.file.last)]
        return f"RecipeMerge({self.file.source!r}, method: {final.merge_method}, models: {', '.join(models)})"

    def _repr_html_(self) -> str:
        facts = {"method": str(self.file.final.merge_method)}
        if len(self.file.steps) > 1:
            facts["documents"] = str(len(self.file.steps))
        notes = self.notes()
        recipe = f"<pre>{escaped(self.file.text.strip())}</pre>" if self.file.text else ""
        return facts_html("RecipeMerge", self.file.source, facts) + recipe + findings_html(notes)


def out_of(out: str | os.PathLike[str]) -> Path | str:
    """An output as a run takes it: a path, or an address as it is."""
    return str(out) if is_address(out) else Path(out)


def scratch_of(out: str | os.PathLike[str]) -> Path:
    """Where results of earlier documents go: next to the output, hidden, on the same file system.

    Those of an output at an address go into the folder for fetched files.
    """
    if is_address(out):
        return current().folder / "steps" / blake3_hex(str(out).encode())[:24]
    place = Path(out).absolute()
    return place.parent / f".{place.name}.steps"


def open_recipe(
    recipe: Recipes, *, overrides: Iterable[str] = (), **settings: Unpack[Options]
) -> RecipeMerge:
    """Read a recipe in mergekit's format and check what can be checked without its models.

    Parameters
    ----------
    recipe : path, YAML text, mapping or list of mappings
    overrides : iterable of str
        ``models.1.parameters.weight=0.3``: values to replace.
    **settings
        Those of :class:`taskvec.Settings`; what the recipe says itself goes before them.

    Raises
    ------
    RecipeError
        It names the file, the line, the key, and the nearest valid word.
    CompatibilityError
        A word of it has no effect, and the settings are strict.
    """
    given, made = Settings.of(settings), load(recipe, overrides)
    merge = RecipeMerge(made, given)
    if given.strict:
        enforce_strictly(merge.notes(), given.force)
    return merge


def merge(
    recipe: Recipes,
    out: str | os.PathLike[str],
    *,
    overrides: Iterable[str] = (),
    progress: Callback | bool | None = None,
    **settings: Unpack[Options],
) -> Report:
    """Run a recipe into a folder; see :func:`open_recipe` and :meth:`RecipeMerge.save`."""
    return open_recipe(recipe, overrides=overrides, **settings).save(out, progress=progress)


def by_method(
    name: str,
    models: Sequence[Any],
    *,
    base: Any = None,
    dtype: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
) -> RecipeMerge:
    """A merge by a method of the catalogue, as the recipe that says the same.

    Parameters
    ----------
    name : str
        The method.
    models : sequence of str, path or Model
    base : str, path or Model, optional
    dtype : str, optional
        Type of the output.
    parameters : mapping
        A list is one value per model, for parameters that each model has; anything else serves all.
        ``importance``, for methods that ask for it, is the map of each model.
    """
    from taskvec.methods.catalogue import get

    method = get(name)
    if isinstance(models, str | bytes | Mapping) or not isinstance(models, Iterable):
        raise RecipeError(
            f"`models` is a list of models, found {kind_of(models)}", "give two or more in a list"
        )
    inputs: list[dict[str, Any]] = [{"model": _named(model)} for model in models]
    shared: dict[str, Any] = {}
    for key, value in (parameters or {}).items():
        known = method.parameter(key)
        if key == "importance" and method.importance:
            for entry, own in zip(inputs, _maps(value, len(inputs)), strict=True):
                entry[key] = own
            continue
        is_own = known is not None and known.scope == "model"
        if is_own and isinstance(value, list | tuple):
            if len(value) != len(inputs):
                raise RecipeError(
                    f"`{key}` has {len(value)} values for {len(inputs)} models", "give one per model, or one"
                )
            for entry, own in zip(inputs, value, strict=True):
                entry.setdefault("parameters", {})[key] = own
        else:
            shared[key] = value
    document: dict[str, Any] = {"merge_method": name, "models": inputs}
    if base is not None:
        document["base_model"] = _named(base)
    if shared:
        document["parameters"] = shared
    if dtype is not None:
        document["dtype"] = dtype
    return RecipeMerge(load(document), settings or Settings())


def _maps(value: Any, count: int) -> list[Any]:
    """The importance map of each model."""
    if not isinstance(value, list | tuple) or len(value) != count:
        found = f"{len(value)} maps" if isinstance(value, list | tuple) else kind_of(value)
        raise RecipeError(f"`importance` is {found} for {count} models", "give a list with one per model")
    return [_named(each) for each in value]


def _named(model: Any) -> Any:
    return os.fspath(model) if isinstance(model, os.PathLike) else model
