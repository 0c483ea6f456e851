"""``taskvec_recipe.yaml``: what was asked for, as a recipe that ``taskvec merge`` runs again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from taskvec.dtypes import TORCH_NAMES
from taskvec.files.names import RECIPE

# The key under which a recipe stands that is not mergekit's: a verb and what it was given.
OWN = "taskvec"
# Settings that a document of a merge can say itself.
_SAID_BY_DOCUMENTS = ("out_dtype", "rounding", "seed")


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The recipe of an output as YAML.

    A merge is its own documents, as mergekit takes them, where no option says more. Anything else is a
    mapping below the key ``taskvec``: the verb, its models and its settings, as a manifest has them.
    """
    found = documents(recipe)
    if len(found) == 1 and found[0].keys() == {OWN} and all(map(_is_plain, found[0][OWN].values())):
        # Importing yaml takes a quarter of a small transfer's time. JSON of such values is YAML.
        lines = (f"  {key}: {json.dumps(value)}\n" for key, value in found[0][OWN].items())
        return f"{OWN}:\n{''.join(lines)}"
    return yaml_of(found)


def _is_plain(value: Any) -> bool:
    """Whether a value is written alike in JSON and in YAML 1.1: known kinds alone."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return value.isascii() and value.isprintable()
    if isinstance(value, float):
        return math.isfinite(value) and "e" not in repr(value)
    return value is None or isinstance(value, bool | int)


def yaml_of(values: Sequence[Mapping[str, Any]]) -> str:
    """Documents as YAML, short lists on one line."""
    import yaml  # 0.02 s, which only a run that comes to its end takes

    return str(
        yaml.safe_dump_all(values, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=None)
    )


def recipe_file(recipe: Mapping[str, Any]) -> bytes:
    """The bytes of ``taskvec_recipe.yaml``."""
    return f"# To make it again: taskvec merge {RECIPE} -o OUT\n{recipe_text(recipe)}".encode()


def documents(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The documents of that file."""
    if recipe["verb"] == "merge" and set(recipe) <= {"verb", "recipe", "alpha", *_SAID_BY_DOCUMENTS}:
        found = merge_documents(recipe)
        final = next((document for document in found if "name" not in document), found[-1])
        for key in _SAID_BY_DOCUMENTS:
            if key in recipe and key not in final and not (key == "seed" and "random_seed" in final):
                final[key] = TORCH_NAMES.get(recipe[key], recipe[key]) if key == "out_dtype" else recipe[key]
        return found
    return [{OWN: _plain(recipe)}]


def merge_documents(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The documents of a merge; of several values of alpha the one of this output."""
    found = [_plain(document) for document in recipe["recipe"]]
    alpha = recipe.get("alpha")
    if isinstance(alpha, int | float):
        for document in found:
            if isinstance(document.get("alpha"), list):
                document["alpha"] = alpha
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
