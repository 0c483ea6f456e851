"""An output made again from what it says of itself: its manifest, or its ``taskvec_recipe.yaml``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from taskvec import arguments
from taskvec.errors import Error, RecipeError
from taskvec.files import look, manifest
from taskvec.files.names import MANIFEST
from taskvec.files.reading import read_up_to
from taskvec.recipe.parse import STANDARD_INPUT, parse, read_text
from taskvec.regex import regex
from taskvec.report import reproduce
from taskvec.report.members import check_members
from taskvec.report.recipe_file import OWN, merge_documents
from taskvec.settings import Options, Settings

if TYPE_CHECKING:
    from taskvec.lazy.moe import MoeMerge
    from taskvec.lazy.plan import Plan
    from taskvec.lazy.recipe import RecipeMerge
    from taskvec.progress import Callback
    from taskvec.report.report import Report

_OWN = regex(r"\A(?:\s|#[^\n]*\n)*" + OWN + r"\s*:")
# Bytes within which the key that tells a recorded recipe stands; comments may precede it.
_HEAD = 1 << 16


def recorded(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The recipe that a file or folder of an output has recorded; ``None`` of any other recipe.

    Parameters
    ----------
    path : path
        A manifest, a folder with one, or a recipe with the key ``taskvec``.

    Returns
    -------
    dict or None
        With the member ``verb``, as :func:`taskvec.report.manifest.recipe_of` gives it.

    Raises
    ------
    FormatError
        The manifest is damaged.
    RecipeError
        The file has no recipe that can be run again.
    """
    name = os.fspath(path)
    if name == STANDARD_INPUT or "\n" in name:
        return None
    place = Path(name)
    if look.is_folder(place):
        return _checked(manifest.parse(manifest.read_text(place), place / MANIFEST)["recipe"], name)
    if not look.is_file(place):
        return None
    if place.suffix == ".json":
        return _of_json(place, name)
    if not _OWN.match(read_up_to(name, _HEAD).decode("utf-8-sig", "replace")):
        return None
    # strict, and bounded: it may be a stranger's
    found = [document.plain() for document in parse(read_text(name), name)]
    is_one = len(found) == 1 and isinstance(found[0], dict) and set(found[0]) == {OWN}
    return _checked(found[0][OWN] if is_one else None, name)


def _of_json(place: Path, name: str) -> dict[str, Any] | None:
    """The recipe of a manifest; none of another JSON file, which may be a recipe of its own."""
    with open(place, "rb") as file:
        data = file.read()
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None  # the reader of recipes says what is wrong with it
    if not isinstance(found, dict) or "recipe" not in found or "engine" not in found:
        return None
    return _checked(manifest.parse(data, place)["recipe"], name)


def _checked(recipe: Any, name: str) -> dict[str, Any]:
    if not isinstance(recipe, dict) or not isinstance(recipe.get("verb"), str):
        raise RecipeError(
            f"`{name}` does not say what was made",
            "use a taskvec.json or taskvec_recipe.yaml as it was written",
        )
    return recipe


def repeat(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    progress: Callback | bool | None = None,
    **settings: Unpack[Options],
) -> Report:
    """Make an output again, in another folder.

    Parameters
    ----------
    path : path
        ``taskvec.json`` or ``taskvec_recipe.yaml`` of the output, or its folder; or any recipe of
        :func:`taskvec.merge`.
    out : str or path
        The new output: a folder, or an address.
    progress : callable or bool, optional
        Called with a :class:`taskvec.Progress`; ``True`` draws a bar.
    **settings
        Those of :class:`taskvec.Settings`; they go before the recorded ones.

    Raises
    ------
    RecipeError
        The file records nothing that can be made again: tensors in memory, or an importance map.
    taskvec.Error
        As the call that made the output.
    """
    from taskvec.lazy.plan import Plan

    arguments.path(path, "path")
    arguments.path(out, "out")
    recipe = recorded(path)
    if recipe is None:
        from taskvec.lazy.recipe import merge

        return merge(path, out, progress=progress, **settings)
    made = opened(recipe, os.fspath(path), **settings)
    if not isinstance(made, Plan):
        return made.save(out, progress=progress)
    return made.run(out, settings=settings_of(recipe, settings), progress=progress)


def settings_of(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> Settings:
    """The settings of a repeated run: those that are given, then those that are recorded."""
    fields = Settings.__dataclass_fields__
    own = {name: value for name, value in recipe.items() if name in fields}
    return Settings.of({**own, **given})  # type: ignore[typeddict-item]


def opened(recipe: Mapping[str, Any], name: str, **settings: Any) -> Plan | RecipeMerge | MoeMerge:
    """What makes the output of a recorded recipe again, before anything is read but headers.

    Raises
    ------
    RecipeError
        Nothing can.
    """
    try:
        return _opened(recipe, name, settings)
    except Error:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RecipeError(
            f"`{name}` has a value in its recipe that its member cannot have",
            "use it as it was written, with the version of taskvec that wrote it",
        ) from error


def _opened(recipe: Mapping[str, Any], name: str, settings: Mapping[str, Any]) -> Any:
    verb = recipe["verb"]
    check_members(recipe, name)
    if reproduce.is_in_memory(recipe):
        raise RecipeError(
            f"`{name}` was made of tensors in memory, which have no name to open them by",
            "save that model, and run the call that made the output again",
        )
    chosen = settings_of(recipe, settings)
    options = {each: getattr(chosen, each) for each in Settings.__dataclass_fields__}
    if verb == "merge":
        from taskvec.lazy.recipe import open_recipe

        return open_recipe(merge_documents(recipe), **options)
    if verb == "moe":
        from taskvec.lazy.moe import open_moe

        return open_moe(recipe["recipe"][0], **options)
    own = {key: value for key, value in reproduce.keywords(recipe).items() if key not in options}
    plan = _plan(verb, recipe, {**own, **options})
    if verb == "average" and plan.recipe["weights"] != list(recipe["weights"]):
        raise RecipeError(
            f"`{name}` has other `weights` than those of its `schedule`",
            "take out `schedule` and `half_life` to use these weights",
        )
    return plan


def _plan(verb: str, recipe: Mapping[str, Any], keywords: dict[str, Any]) -> Any:
    from taskvec import api

    if verb == "transfer":
        return api.plan_transfer(recipe["target"], recipe["donor"], recipe["reference"], **keywords)
    if verb == "apply":
        return api.plan_apply(recipe["target"], *recipe["vectors"], **keywords)
    if verb == "convert":
        return api.plan_convert(recipe["model"], **keywords)
    if verb == "tokens":
        return api.plan_tokens(recipe["target"], recipe["model"], **keywords)
    if verb == "extract" and "rank" in recipe:
        from taskvec.lazy.lora import plan_extract_lora

        models = [recipe["vector"], None] if "vector" in recipe else [recipe["donor"], recipe["reference"]]
        return plan_extract_lora(*models, **keywords)
    if verb == "extract":
        return api.plan_extract(recipe["donor"], recipe["reference"], **keywords)
    if verb == "average":
        from taskvec.lazy.average import plan_average

        if "schedule" not in recipe:  # weights of a schedule follow from the steps
            keywords["weights"] = recipe["weights"]
        return plan_average(recipe["checkpoints"], **keywords)
    return _combined(recipe, keywords)


def _combined(recipe: Mapping[str, Any], keywords: Mapping[str, Any]) -> Plan:
    """The plan of a sum of vectors that was made from Python."""
    from taskvec.lazy.checkpoint import open as open_model
    from taskvec.lazy.vector import load_vector

    merged: Any = open_model(recipe["target"])
    for term in recipe["terms"]:
        if "vector" in term:
            vector: Any = load_vector(term["vector"])
        else:
            vector = open_model(term["donor"]) - open_model(term["reference"])
        selection = {key: value for key, value in term.items() if key in reproduce.SELECTION}
        merged = merged + term["weight"] * (vector.select(**selection) if selection else vector)
    given = dict(keywords)
    alpha = given.pop("alpha", 1.0)
    return merged.plan(alphas=alpha, **given)
