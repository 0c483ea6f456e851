"""What a recorded recipe consists of: the members of each verb, and their kinds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from taskvec.errors import RecipeError
from taskvec.option import options_of
from taskvec.report import reproduce
from taskvec.report.reproduce import SELECTION
from taskvec.settings import Settings
from taskvec.text import nearest, printable

# Those that change what is written. What is replaced or made public is for whoever makes it again to say.
_SETTINGS = frozenset(name for name, each in options_of(Settings).items() if each.recorded)
_STEP = frozenset({"alpha", "control", "layer_scale", "tokenizer"})
_LORA = frozenset({"rank", "energy", "max_rank", "embeddings", "others", "dtype"})

# Verb -> the members that it must have, and those that it may have besides settings.
_MEMBERS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "transfer": (frozenset({"target", "donor", "reference"}), _STEP | SELECTION.keys()),
    "apply": (frozenset({"target", "vectors"}), _STEP | {"weights"} | SELECTION.keys()),
    "combine": (frozenset({"target", "terms"}), _STEP),
    "extract": (frozenset(), _LORA | SELECTION.keys()),
    "convert": (frozenset({"model"}), frozenset({"keep"})),
    "tokens": (frozenset({"target", "model"}), frozenset({"method", "k"})),
    "average": (
        frozenset({"checkpoints", "weights"}),
        frozenset({"steps", "schedule", "half_life", "best", "alpha"}),
    ),
    "merge": (frozenset({"recipe"}), frozenset({"alpha"})),
    "moe": (frozenset({"recipe"}), frozenset({"layout"})),
}
_TERM = (frozenset({"weight"}), frozenset(SELECTION))

_TEXTS = frozenset({"target", "donor", "reference", "vector", "model", "tokenizer"})
_LISTS: dict[str, type | tuple[type, ...]] = {
    "vectors": str,
    "checkpoints": str,
    "weights": (int, float),
    "terms": dict,
    "recipe": dict,
}


def check_members(recipe: Mapping[str, Any], name: str) -> None:
    """Refuse a recipe whose members are not those of its verb.

    Parameters
    ----------
    recipe : mapping
        With ``verb`` and what was given to it.
    name : str
        Of the file, for messages.

    Raises
    ------
    RecipeError
        A member is unknown to the verb, missing, or of another kind; or the verb cannot be made again.
    """
    verb = recipe["verb"]
    if verb not in _MEMBERS:
        known = reproduce.command(recipe) if verb == "importance" else None
        raise RecipeError(
            f"`{name}` records `{printable(verb)}`, which cannot be made again from its recipe",
            f"run the command that its manifest has: {known}" if known else _near(verb, _MEMBERS),
        )
    needed, other = _MEMBERS[verb]
    if verb == "extract":
        # of a saved vector nothing but an adapter is extracted
        needed = _vector_of(recipe) | ({"rank"} if "vector" in recipe else set())
    _check(recipe, needed, other | _SETTINGS | {"verb"}, f"`{name}`", f"a recipe of `{verb}`")
    for number, term in enumerate(recipe.get("terms", ()), 1):
        _check(term, _TERM[0] | _vector_of(term), _TERM[1], f"term {number} of `{name}`", "a term")
    weighed = {"apply": "vectors", "average": "checkpoints"}.get(verb)
    if weighed and "weights" in recipe and len(recipe["weights"]) != len(recipe[weighed]):
        raise RecipeError(
            f"`{name}` has {len(recipe['weights'])} `weights` for {len(recipe[weighed])} `{weighed}`",
            "use the file as it was written",
        )
    for member in _LISTS.keys() & needed:
        if not recipe[member]:
            raise RecipeError(f"`{name}` has an empty `{member}`", "use the file as it was written")
    if verb == "moe" and len(recipe["recipe"]) > 1:
        raise RecipeError(f"`{name}` has a second recipe", "a mixture of experts is made of one")
    if verb == "average" and recipe.get("alpha", 1) != 1:
        raise RecipeError(f"`{name}` has another `alpha` than 1", "an average has none: change its `weights`")


def _vector_of(found: Mapping[str, Any]) -> frozenset[str]:
    """The members that say which vector: it is saved, or a difference, and not both."""
    return frozenset({"vector"} if "vector" in found else {"donor", "reference"})


def _check(
    found: Mapping[str, Any], needed: frozenset[str], other: frozenset[str], what: str, kind: str
) -> None:
    known = needed | other
    for member, value in found.items():
        if member not in known:
            raise RecipeError(
                f"{what} has the member `{printable(str(member))}`, which {kind} does not have",
                _near(str(member), known),
            )
        if member in _TEXTS and not isinstance(value, str):
            raise RecipeError(
                f"{what} has a `{member}` that is not a name", "write the path or name of a model"
            )
        if member == "best" and not isinstance(value, dict):
            raise RecipeError(
                f"{what} has a `best` that is not the metric of its checkpoints",
                "name the checkpoints: `taskvec average --best N` chooses them, and not a recipe",
            )
        if member in _LISTS and not _is_list(value, _LISTS[member]):
            raise RecipeError(
                f"{what} has a `{member}` that is not a list as {kind} has it",
                "use the file as it was written",
            )
    for member in sorted(needed - found.keys()):
        raise RecipeError(f"{what} has no `{member}`, which {kind} needs", "use the file as it was written")


def _is_list(value: object, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, kinds) and not isinstance(each, bool) for each in value
    )


def _near(word: str, known: Iterable[str]) -> str:
    near = nearest(word, sorted(known))
    return f"did you mean `{near}`?" if near else "take it out, or use the file as it was written"
