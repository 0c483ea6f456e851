"""Hidden states of prompts where each layer begins, one layer in memory at a time.

transformers computes; the engine reads the weights, of one layer after the other, so that adapters and packed
weights are what a run makes of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from taskvec.errors import RecipeError
from taskvec.extras import install
from taskvec.host import memory_available
from taskvec.models.model import Model
from taskvec.run.evaluate import stored
from taskvec.text import size

# Copies of a layer's weights that are there at once, and what torch takes besides.
_COPIES = 3
_OVERHEAD = 1 << 29


def states(model: Model, ids: Mapping[str, Sequence[int]]) -> Iterator[dict[str, np.ndarray]]:
    """For each layer the hidden state of each prompt's last token where it begins, (hidden,) float64.

    Parameters
    ----------
    model : Model
        A dense model of the family of Llama, whose weights are here.
    ids : mapping of str to sequence of int
        The tokens of each prompt.

    Raises
    ------
    RecipeError
        torch or transformers is not installed, or there is too little memory for one layer.
    """
    torch, transformers = _packages()
    layers = int(model.config["num_hidden_layers"])
    _hold_memory(model, ids)
    with torch.no_grad():
        kind = transformers.AutoConfig.for_model(**_config(model, 0))
        # the layer alone: of the embedding only the rows of the prompts are read
        network = transformers.AutoModelForCausalLM.from_config(kind, dtype=torch.float32).model.eval()
        hidden = {prompt: torch.from_numpy(_embedded(model, each))[None] for prompt, each in ids.items()}
        for layer in range(layers):
            yield {prompt: each[0, -1].double().numpy() for prompt, each in hidden.items()}
            if layer + 1 < layers:
                _load(torch, network, model, layer)
                hidden = {prompt: _through(network, each) for prompt, each in hidden.items()}


def _packages() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"`gate_mode: hidden` runs the base model, for which `{error.name}` is not installed",
            f"install it ({install('eval')}), or set `gate_mode: cheap_embed`",
        ) from None
    return torch, transformers


def _hold_memory(model: Model, ids: Mapping[str, Sequence[int]]) -> None:
    """Return if one layer and the states of all prompts fit into the memory that is free."""
    one = sum(
        math.prod(info.shape) for name, info in model.tensors.items() if name.startswith("model.layers.0.")
    )
    tokens = sum(len(each) for each in ids.values())
    longest = max(len(each) for each in ids.values())
    heads = int(model.config.get("num_attention_heads") or 1)
    states = tokens * int(model.config["hidden_size"]) * 8 + longest * longest * heads * 8
    need, free = 4 * one * _COPIES + states + _OVERHEAD, memory_available()
    if free is not None and need > free:
        raise RecipeError(
            f"`gate_mode: hidden` takes {size(need)} of memory for one layer of `{model.spec}` and the "
            f"prompts, and {size(free)} are free",
            "set `gate_mode: cheap_embed`, give fewer or shorter prompts, or run it where more is free",
        )


def _config(model: Model, layer: int) -> dict[str, Any]:
    """The config of the model with one layer, the one of that number, and an embedding of one row."""
    config = copy.deepcopy(dict(model.config))
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and layer < len(kinds):
        config["layer_types"] = [kinds[layer]]
    for key in ("auto_map", "quantization_config", "torch_dtype", "dtype", "architectures"):
        config.pop(key, None)
    return {
        **config,
        "num_hidden_layers": 1,
        "vocab_size": 1,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
        "attn_implementation": "eager",
    }


def _embedded(model: Model, ids: Sequence[int]) -> np.ndarray:
    width = model.tensors["model.embed_tokens.weight"].shape[1]
    rows = [model.sample("model.embed_tokens.weight", number * width, width) for number in ids]
    return np.frombuffer(b"".join(rows), "<f4").reshape(len(ids), width).copy()


def _load(torch: Any, network: Any, model: Model, layer: int) -> None:
    stem = f"model.layers.{layer}."
    module, own = network.layers[0], network.layers[0].state_dict()
    for name in own:
        own[name].copy_(torch.from_numpy(np.array(stored(model, stem + name, "F32"))))
    kinds = getattr(network.config, "layer_types", None)
    if kinds:
        kind = _config(model, layer).get("layer_types", kinds)[0]
        network.config.layer_types = [kind]
        for each in (module, module.self_attn):
            if hasattr(each, "attention_type"):
                each.attention_type = kind


def _through(network: Any, hidden: Any) -> Any:
    """Hidden states behind the layer, before the last norm."""
    kept: list[Any] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = network.layers[0].register_forward_hook(keep)
    try:
        network(inputs_embeds=hidden, use_cache=False)
    finally:
        handle.remove()
    return kept[0]
