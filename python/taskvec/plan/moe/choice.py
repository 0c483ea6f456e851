"""Which layout a recipe's models are written in, and whether they suit it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from taskvec.compat.tied_heads import head_of
from taskvec.errors import RecipeError
from taskvec.models.model import Model
from taskvec.plan.merge_models import Opened, checkpoint_of
from taskvec.plan.moe.layouts import LAYOUTS, MATRICES, MLP, Layout
from taskvec.recipe.moe import MoeRecipe
from taskvec.regex import regex
from taskvec.text import listed, shown

# What a layer has besides its MLP; biases and norms of queries and keys are of some families.
_OF_LAYER = (
    "input_layernorm",
    "post_attention_layernorm",
    *(f"self_attn.{each}_proj" for each in "qkvo"),
)
_IN_MLP = regex(r"model\.layers\.\d+\.mlp\.")
_WAY_OUT = "dense models of the families of Llama, Mistral, Qwen2 and Qwen3 can be made into experts"


def layout_of(recipe: MoeRecipe, base: Model) -> Layout:
    """The layout that a recipe names, or the first that fits.

    Raises
    ------
    RecipeError
        None fits; the message says why.
    """
    kind = str(base.config.get("model_type"))
    fitting = [each for each in LAYOUTS if kind in each.dense]
    if not fitting:
        raise recipe.error(
            ("base_model",), f"`{shown(base.spec)}` is of the family `{shown(kind)}`", _WAY_OUT
        )
    if recipe.architecture is not None:
        chosen = next(each for each in LAYOUTS if each.name == recipe.architecture)
        if chosen not in fitting:
            raise recipe.error(
                ("architecture",),
                f"the layout `{chosen.name}` is for {listed(sorted(chosen.dense))}, and "
                f"`{shown(base.spec)}` is `{kind}`",
                f"write `architecture: {fitting[0].name}`, or remove it",
            )
        fitting = [chosen]
    count = len(recipe.shared_experts or ())
    found = next((each for each in fitting if each.shared in (None, count)), None)
    if found is None:
        raise _shared_error(recipe, fitting[0], count)
    _hold_prompts(recipe, found)
    return found


def _shared_error(recipe: MoeRecipe, layout: Layout, count: int) -> RecipeError:
    if count:
        return recipe.error(
            ("shared_experts",), f"the layout `{layout.name}` has no shared expert", "remove it", key=True
        )
    return recipe.error(
        ("experts",),
        f"the layout `{layout.name}` has a shared expert, which sees every token",
        "add `shared_experts:` with one model, such as the base, and a `residual_scale` of 0.1",
        key=True,
    )


def _hold_prompts(recipe: MoeRecipe, layout: Layout) -> None:
    shared = recipe.shared
    if shared is None or not layout.shared_gate or recipe.has_random_gates:
        return
    if shared.positive_prompts is None:
        raise recipe.error(
            ("shared_experts", 0),
            f"the shared expert of `{layout.name}` has a gate, and no `positive_prompts` of which it is made",
            "add one or more, or set `gate_mode: random`",
        )


def matrices(recipe: MoeRecipe, layout: Layout, base: Model) -> dict[str, tuple[int, str]]:
    """The matrices of the base's MLPs: layer and kind of each.

    Raises
    ------
    RecipeError
        A tensor of the base has no place in the layout, or a layer no MLP.
    """
    found = {name: match for name in base.tensors if (match := MLP.fullmatch(name))}
    odd = [name for name in base.tensors if name not in found and not layout.others.fullmatch(name)]
    if odd:
        raise recipe.error(
            ("base_model",),
            f"`{shown(base.spec)}` has tensors that `{layout.name}` has no place for: {listed(odd)}",
            _WAY_OUT,
        )
    _hold_window(recipe, layout, base)
    made = {name: (int(match["layer"]), match["matrix"]) for name, match in found.items()}
    count = base.config.get("num_hidden_layers")
    # counted first: a config.json may name more layers than fit into memory
    if (
        not made
        or not isinstance(count, int)
        or isinstance(count, bool)
        or len(made) != count * len(MATRICES)
        or set(made.values()) != set(product(range(count), MATRICES))
    ):
        raise recipe.error(
            ("base_model",),
            f"`{shown(base.spec)}` has {len(made)} matrices of MLPs, and by its config.json "
            f"{shown(str(count))} layers",
            "give a whole model",
        )
    _hold_whole(recipe, base, count)
    return made


def _hold_whole(recipe: MoeRecipe, base: Model, layers: int) -> None:
    """Return if the base has what every model of its family has, besides the MLPs."""
    needed = ["model.embed_tokens.weight", "model.norm.weight"]
    needed += [f"model.layers.{layer}.{name}.weight" for layer in range(layers) for name in _OF_LAYER]
    missing = [name for name in needed if name not in base.tensors]
    if not missing and head_of(base).state == "none":
        missing = ["lm_head.weight"]
    embedding = base.tensors.get(needed[0])
    if missing or embedding is None or len(embedding.shape) != 2:
        what = (
            f"has no {listed(missing)}"
            if missing
            else f"has an embedding of the shape {list(embedding.shape) if embedding else []}"
        )
        raise recipe.error(("base_model",), f"`{shown(base.spec)}` {what}", "give a whole model")


def hold_experts(recipe: MoeRecipe, opened: Opened, places: Mapping[str, object]) -> None:
    """Return if the MLPs of all experts have the tensors of the base's, and no others.

    Raises
    ------
    RecipeError
        One has a bias, or another tensor, that would be left out.
    """
    for path, expert in recipe.everyone():
        model = checkpoint_of(opened, expert.source_model)
        odd = [name for name in model.tensors if _IN_MLP.match(name) and name not in places]
        if odd:
            raise recipe.error(
                (*path, "source_model"),
                f"the MLPs of `{shown(model.spec)}` have tensors that the base's have not: {listed(odd)}",
                _WAY_OUT,
            )


def _hold_window(recipe: MoeRecipe, layout: Layout, base: Model) -> None:
    config: Mapping[str, object] = base.config
    is_windowed = config.get("model_type") == "mistral" and config.get("sliding_window") is not None
    if is_windowed and not layout.has_window:
        raise recipe.error(
            ("base_model",),
            f"attention of `{shown(base.spec)}` has a window, which `{layout.name}` has not in every layer",
            "write `architecture: mixtral`, without a shared expert",
        )
