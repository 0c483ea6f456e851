"""The gates of a mixture of experts: a row for each expert, of prompts or of random numbers.

A prompt's direction is a vector that the caller knows: the sum of the embeddings of its tokens
(``cheap_embed``), or the hidden state of its last token where a layer begins (``hidden``). An expert's gate
is the mean over its positive prompts less that of its negative ones, brought to length one; of embeddings
each of the two means is brought to length one first. So mergekit makes them, found by running it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from taskvec.compat.token_pieces import tokenizer_of
from taskvec.compat.tokenizer import TOKENIZER, begin_token
from taskvec.errors import RecipeError
from taskvec.models.model import Model
from taskvec.models.state_dict import bytes_of, in_memory
from taskvec.models.storage import plain
from taskvec.recipe.moe import Expert, GateMode, MoeRecipe
from taskvec.text import Key, shown

Directions = Mapping[str, np.ndarray]
# Cosine from which on two directions count as one: their difference is rounding.
_SAME = 1e-6


class Gates(NamedTuple):
    """The gates of a layer.

    Attributes
    ----------
    router : ndarray
        A row for each expert, float32.
    shared : ndarray or None
        The row of the shared expert, (1, hidden), where it has one.
    """

    router: np.ndarray
    shared: np.ndarray | None


def prompts_of(recipe: MoeRecipe) -> list[str]:
    """Every prompt, each once."""
    texts = (
        text
        for _, expert in recipe.everyone()
        for text in (*(expert.positive_prompts or ()), *(expert.negative_prompts or ()))
    )
    return list(dict.fromkeys(texts))


def token_ids(model: Model, prompts: Sequence[str], rows: int) -> dict[str, list[int]]:
    """The tokens of each prompt, behind the one that begins a text if there is one, as mergekit has them.

    Parameters
    ----------
    model : Model
        Whose ``tokenizer.json`` cuts them.
    prompts : sequence of str
    rows : int
        Of the embedding.

    Raises
    ------
    RecipeError
        There is no tokenizer.json or no package that reads it, a prompt has no tokens, or one that the
        embedding has no row for.
    """
    if TOKENIZER not in model.other_files:
        raise RecipeError(
            f"`{model.spec}` has no {TOKENIZER}, which cuts the prompts into tokens",
            "save one with transformers (`AutoTokenizer.from_pretrained(...).save_pretrained(...)`), or set "
            "`gate_mode: random`",
        )
    tokenizer = tokenizer_of(model)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    begin = begin_token(model) or ""
    found = {prompt: tokenizer.encode(begin + prompt, add_special_tokens=False).ids for prompt in prompts}
    for prompt, ids in found.items():
        if not ids or max(ids) >= rows:
            problem = "no tokens" if not ids else f"token {max(ids)}, and the embedding {rows} rows"
            raise RecipeError(f"the prompt `{shown(prompt)}` has {problem}", "change it")
    return found


def summed_embeddings(
    model: Model, embedding: str, ids: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """The sum of the embeddings of each prompt's tokens, float64; only their rows are read."""
    width = model.tensors[embedding].shape[1]
    rows = {
        number: np.frombuffer(model.sample(embedding, number * width, width), "<f4").astype(np.float64)
        for number in sorted({number for each in ids.values() for number in each})
    }
    return {prompt: np.sum([rows[number] for number in each], axis=0) for prompt, each in ids.items()}


def of_prompts(recipe: MoeRecipe, directions: Directions, *, with_shared: bool) -> Gates:
    """The gates of a layer.

    Parameters
    ----------
    recipe : MoeRecipe
    directions : mapping of str to ndarray
        Of each prompt, (hidden,).
    with_shared : bool
        Whether the shared expert has a gate.

    Raises
    ------
    RecipeError
        The prompts of an expert cancel each other.
    """
    rows = [_row(recipe, ("experts", n), expert, directions) for n, expert in enumerate(recipe.experts)]
    router = np.stack(rows).astype(np.float32)
    if not with_shared or recipe.shared is None:
        return Gates(router, None)
    shared = _row(recipe, ("shared_experts", 0), recipe.shared, directions)
    return Gates(router, shared[None].astype(np.float32))


def _row(recipe: MoeRecipe, path: Sequence[Key], expert: Expert, directions: Directions) -> np.ndarray:
    side = _unit if recipe.gate_mode == "cheap_embed" else np.asarray  # states are subtracted as they are
    row = side(_mean(expert.positive_prompts or (), directions))
    # what is left of two states is compared with their own length: less is rounding
    scale = 1.0 if recipe.gate_mode == "cheap_embed" else float(np.linalg.norm(row))
    if expert.negative_prompts:
        row = row - side(_mean(expert.negative_prompts, directions))
    length = float(np.linalg.norm(row))
    if not np.isfinite(length):
        raise recipe.error(
            ("base_model",),
            f"what the gate of `{shown(str(expert.source_model))}` is made of is not finite",
            "the base has weights that are NaN or infinite, or too large: give another one, or set "
            "`gate_mode: random`",
        )
    if not length > _SAME * scale:
        raise recipe.error(
            path,
            f"the prompts of `{shown(str(expert.source_model))}` give no direction: its gate would be zero",
            "give it other prompts",
        )
    return row / length


def _mean(prompts: Iterable[str], directions: Directions) -> np.ndarray:
    return np.mean([directions[prompt] for prompt in prompts], axis=0)


def _unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else vector


def drawn(
    layers: int, experts: int, width: int, seed: int, *, mode: GateMode = "random", with_shared: bool
) -> Iterator[Gates]:
    """Gates of random numbers, other ones in each layer: standard normal, or uniform on ±1/√width as torch
    begins a linear layer."""
    bound = 1 / np.sqrt(width)
    for layer in range(layers):
        key = np.array([seed, layer], np.uint64)  # of a list NumPy may make floats
        draws = np.random.Generator(np.random.Philox(key=key))
        shape = (experts + with_shared, width)
        if mode == "uniform_random":
            rows = (draws.random(shape) * (2 * bound) - bound).astype(np.float32)
        else:
            rows = draws.standard_normal(shape, dtype=np.float32)
        yield Gates(
            np.ascontiguousarray(rows[:experts]),
            np.ascontiguousarray(rows[experts:]) if with_shared else None,
        )


def as_model(layers: Sequence[Gates]) -> Model:
    """Gates as a source of a plan: ``N.router`` and ``N.shared`` of each layer, or of 0 for all of them."""
    arrays = {
        f"{number}.{part}": array
        for number, gates in enumerate(layers)
        for part, array in zip(Gates._fields, gates, strict=True)
        if array is not None
    }
    infos = {name: plain(name, "F32", array.shape) for name, array in arrays.items()}
    return in_memory(
        infos, {name: bytes_of(name, array) for name, array in arrays.items()}, name="gates", is_fixed=True
    )
