"""Recipes of mixtures of experts over tiny models: what several tests of them share."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from support.families import write_model
from support.models import edit_json, read_tensors

LAYERS = 3
# What tells the experts apart: words that the tests' tokenizer cuts into tokens that it has.
PROMPTS = {
    "a": (("AB C <|user|>", "QUX 12"), ("HI",)),
    "b": (("ZZ TOP",), ()),
    "c": (("[0-9]+ = ?",), ("ABC", "NO", "MORE")),
}


def recipe(mode: str = "cheap_embed", names: str = "ab", **more: Any) -> dict[str, Any]:
    """A recipe of a base and experts, by their folders."""
    experts = [expert(name, mode) for name in names]
    return {"base_model": "base", "gate_mode": mode, "experts": experts, **more}


def expert(name: str, mode: str = "cheap_embed", **more: Any) -> dict[str, Any]:
    """An entry of `experts`."""
    positive, negative = PROMPTS[name]
    prompts = {"positive_prompts": list(positive)}
    if negative:
        prompts["negative_prompts"] = list(negative)
    return {"source_model": name, **(prompts if mode != "random" else {}), **more}


def shared(mode: str = "cheap_embed", **more: Any) -> dict[str, Any]:
    """The `shared_experts` of a recipe."""
    return {"shared_experts": [expert("c", mode, **more)]}


def write_models(root: Path, family: str, layers: int = LAYERS, *, same: bool = False) -> Path:
    """The base and three experts; ``same``: the experts are the base."""
    for number, name in enumerate(("base", "a", "b", "c")):
        write_model(root / name, family, layers, seed=0 if same else number)
        edit_json(root / name / "config.json", bos_token_id=0, eos_token_id=1, pad_token_id=None)
    return root


def directions(folder: Path) -> dict[str, np.ndarray]:
    """The sum of the embeddings of each prompt's tokens, float64."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = read_tensors(folder)["model.embed_tokens.weight"].astype(np.float64)
    texts = {text for each in PROMPTS.values() for side in each for text in side}
    return {text: rows[tokenizer.encode(f"<s>{text}").ids].sum(0) for text in texts}


def gate(name: str, known: Mapping[str, np.ndarray], mode: str = "cheap_embed") -> np.ndarray:
    """The row of an expert, by the definition."""
    row = 0
    for sign, side in zip((1, -1), PROMPTS[name], strict=True):
        if side:
            mean = np.mean([known[text] for text in side], 0)
            row = row + sign * (mean / np.linalg.norm(mean) if mode == "cheap_embed" else mean)
    return row / np.linalg.norm(row)


def parts(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors by the names that the dense models have: `mlp`, `gate_proj`, `up_proj`, `down_proj`."""
    words = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    named = {name.replace("block_sparse_moe", "mlp"): value for name, value in tensors.items()}
    return {re.sub(r"\.(w[123])\.", lambda m: f".{words[m[1]]}.", name): each for name, each in named.items()}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())
