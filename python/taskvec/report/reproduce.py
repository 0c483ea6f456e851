"""The command line and the Python call that repeat a result, from the recipe in its manifest."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from taskvec.dtypes import TORCH_NAMES
from taskvec.files.names import RECIPE
from taskvec.models.selection import Selection
from taskvec.option import flag, no_flag, options_of
from taskvec.settings import Settings, format_alpha

SELECTION = options_of(Selection)

# Members of the recipe of an adapter that is made of a vector.
_LORA = ("rank", "energy", "max_rank", "embeddings", "others")

# Members of the recipe of an importance map.
_IMPORTANCE = ("labels", "limit", "chat_template", "include_path", "data", "model_arg")

# Members of a recipe -> the options of the command line that say the same; a list is given element by
# element.
OPTIONS = {
    name: "--lora" if name == "rank" else flag(name)
    for name in (
        *SELECTION,
        "layer_scale",
        "control",
        "tokenizer",
        "method",
        "k",
        "keep",
        "schedule",
        "half_life",
        "dtype",
        *_IMPORTANCE,
        *_LORA,
        *(name for name, option in options_of(Settings).items() if option.recorded),
    )
}
_MODELS = ("target", "donor", "reference")

# The recipe of a merge lies with the weights, and stands in the card.
_RECIPE = RECIPE


def command(recipe: Mapping[str, Any]) -> str | None:
    """The command line that writes the same to a folder OUT; ``None`` where no command can."""
    if is_in_memory(recipe):
        return None
    words = ["taskvec", recipe["verb"]]
    if recipe["verb"] in ("merge", "moe"):
        return None if "recipe" not in recipe else shlex.join(["taskvec", "merge", _RECIPE, "-o", "OUT"])
    if recipe["verb"] == "transfer":
        for model in _MODELS:
            words += [f"--{model}", recipe[model]]
    elif recipe["verb"] == "apply":
        words += [recipe["target"], *recipe["vectors"]]
    elif recipe["verb"] == "extract":
        words += _of_extract(recipe)
    elif recipe["verb"] == "convert":
        words.append(recipe["model"])
    elif recipe["verb"] == "tokens":
        words += [recipe["target"], "--from", recipe["model"]]
    elif recipe["verb"] == "average":
        words += recipe["checkpoints"]
        if "schedule" not in recipe:
            words.append(f"--weights={','.join(map(format_alpha, recipe['weights']))}")
    elif recipe["verb"] == "importance":
        words += [recipe["model"], "--tasks", ",".join(recipe["tasks"])]
    else:
        return None
    words += ["-o", "OUT"]
    alphas = _alphas(recipe)
    if alphas is not None:
        words.append(f"--alpha={','.join(map(format_alpha, alphas))}")
    return shlex.join([*words, *_options(recipe)])


def _options(recipe: Mapping[str, Any]) -> list[str]:
    words = []
    for member, option in OPTIONS.items():
        value = recipe.get(member)
        if value is None:
            continue
        if member == "layer_scale":
            words.append(f"{option}={','.join(map(format_alpha, value))}")
        elif member == "energy":
            words += [option, format_alpha(value)]
        elif isinstance(value, bool):
            words.append(option if value else no_flag(member))
        elif isinstance(value, (list, tuple)):
            words += [word for item in value for word in (option, item)]
        else:
            words += [option, TORCH_NAMES.get(value, str(value))]
    return words


def keywords(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by keyword of the call that writes the same, alpha and settings among them."""
    found = {member: recipe[member] for member in OPTIONS if recipe.get(member) is not None}
    alphas = _alphas(recipe)
    return found if alphas is None else {"alpha": alphas[0] if len(alphas) == 1 else alphas, **found}


def python(recipe: Mapping[str, Any]) -> str | None:
    """The Python lines that write the same to a folder OUT; ``None`` where none can."""
    if is_in_memory(recipe):
        return None
    settings = {member: recipe[member] for member in OPTIONS if recipe.get(member) is not None}
    if recipe["verb"] in ("merge", "moe") and "recipe" in recipe:
        return f"import taskvec as tv\n\ntv.repeat({_RECIPE!r}, 'OUT')"
    alphas = _alphas(recipe)
    keywords = [f"{member}={_value(value)}" for member, value in settings.items()]
    if alphas is not None:
        keywords.insert(0, f"alpha={_value(alphas[0] if len(alphas) == 1 else alphas)}")
    if recipe["verb"] == "transfer":
        arguments = [*(repr(recipe[model]) for model in _MODELS), "'OUT'"]
    elif recipe["verb"] == "apply":
        arguments = [repr(recipe["target"]), *map(repr, recipe["vectors"]), "out='OUT'"]
    elif recipe["verb"] == "extract" and "rank" in recipe:
        # positional: a vector alone has its reference in itself
        models = [*map(repr, _of_extract(recipe)), *(["None"] if "vector" in recipe else [])]
        return f"import taskvec as tv\n\ntv.extract_lora({', '.join([*models, repr('OUT'), *keywords])})"
    elif recipe["verb"] == "extract":
        arguments = [*map(repr, _of_extract(recipe)), "'OUT'"]
    elif recipe["verb"] == "convert":
        arguments = [repr(recipe["model"]), "'OUT'"]
    elif recipe["verb"] == "tokens":
        arguments = [repr(recipe["target"]), repr(recipe["model"]), "'OUT'"]
    elif recipe["verb"] == "average":
        arguments = [repr(recipe["checkpoints"]), "'OUT'"]
        if "schedule" not in recipe:
            keywords.insert(0, f"weights={_value(recipe['weights'])}")
    elif recipe["verb"] == "importance":
        arguments = [repr(recipe["model"]), "'OUT'", f"tasks={recipe['tasks']!r}"]
        keywords = [word for word in keywords if not word.startswith("model_arg")]
        if recipe.get("model_arg"):
            keywords.append(f"model_args={dict(each.split('=', 1) for each in recipe['model_arg'])!r}")
    elif recipe["verb"] == "combine":
        merged = " + ".join([f"tv.open({recipe['target']!r})", *map(_term, recipe["terms"])])
        keywords[0] = keywords[0].replace("alpha=", "alphas=")
        return f"import taskvec as tv\n\nmerged = {merged}\nmerged.save('OUT', {', '.join(keywords)})"
    else:
        return None
    return f"import taskvec as tv\n\ntv.{recipe['verb']}({', '.join([*arguments, *keywords])})"


def _of_extract(recipe: Mapping[str, Any]) -> list[str]:
    """The models, or the saved vector, whose difference is written."""
    return [recipe["vector"]] if "vector" in recipe else [recipe["donor"], recipe["reference"]]


def is_in_memory(recipe: Mapping[str, Any]) -> bool:
    """Whether a model was in memory, under a name like ``<state dict>``, and cannot be named again."""
    models = [part.get(role) for part in (recipe, *recipe.get("terms", ())) for role in _MODELS]
    return any(isinstance(model, str) and model.startswith("<") for model in models)


def _alphas(recipe: Mapping[str, Any]) -> list[float] | None:
    """The values of alpha: the factors of the outputs, or one for each of several vectors."""
    if "alpha" not in recipe or recipe["verb"] == "average":
        return None
    alpha = recipe["alpha"]
    alphas = [alpha] if isinstance(alpha, (int, float)) else list(alpha)
    weights = recipe.get("weights", [1.0])
    if len(weights) > 1:
        return [weight * alphas[0] for weight in weights]
    return [weights[0] * alpha for alpha in alphas]


def _term(term: Mapping[str, Any]) -> str:
    vector = (
        f"tv.load_vector({term['vector']!r})"
        if "vector" in term
        else f"(tv.open({term['donor']!r}) - tv.open({term['reference']!r}))"
    )
    selection = {key: value for key, value in term.items() if key in SELECTION}
    if selection:
        vector += f".select({', '.join(f'{key}={_value(value)}' for key, value in selection.items())})"
    return f"{format_alpha(term['weight'])} * {vector}"


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return format_alpha(value) if isinstance(value, float) else repr(value)
