"""The tensors of a GGUF file under transformers' names, with their rows in transformers' order.

llama.cpp turns the two halves of a rotated head into pairs for the architecture ``llama``, so the rows of
queries and keys are in another order there; for ``qwen2`` and ``qwen3`` they are as transformers has them.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from taskvec.resolve.gguf.contents import Contents, Stored
from taskvec.text import plural

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
# Computed from the settings of the rotation, and so a part of the config.
ROTATION = "rope_freqs.weight"
_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,6})\.(\w+)\.(weight|bias)")


class Architecture(NamedTuple):
    """An architecture of llama.cpp, and its class in transformers.

    ``layer`` are the weights of a layer; those of ``biased`` have biases always, and those of ``may_bias``
    where the model was made so. ``is_paired`` says that rows of queries and keys are in llama.cpp's order.
    """

    model_type: str
    class_name: str
    layer: dict[str, str]
    biased: tuple[str, ...] = ()
    may_bias: tuple[str, ...] = ()
    is_paired: bool = False


_QKV = ("attn_q", "attn_k", "attn_v")
ARCHITECTURES = {
    "llama": Architecture(
        "llama", "LlamaForCausalLM", _LAYER, (),
        (*_QKV, "attn_output", "ffn_gate", "ffn_up", "ffn_down"), is_paired=True,
    ),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _LAYER, _QKV),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _LAYER | _HEAD_NORMS, (), (*_QKV, "attn_output")),
}  # fmt: skip


def architecture(found: Contents) -> Architecture:
    """The row of a file's architecture.

    Raises
    ------
    FormatError
        It is not known.
    """
    name = found.architecture
    if name not in ARCHITECTURES:
        raise found.refuse(
            f"is of the architecture `{name}`, whose names are not known",
            f"known are {', '.join(ARCHITECTURES)}; others can be converted to safetensors by transformers",
        )
    return ARCHITECTURES[name]


def named(found: Contents, layers: int) -> dict[str, tuple[str, Stored]]:
    """The tensors by transformers' names, each with its name in GGUF, in the order of layers.

    Raises
    ------
    FormatError
        One is not known, or is missing.
    """
    known = architecture(found)
    if layers > len(found.tensors):
        raise found.refuse(
            f"says that it has {plural(layers, 'layer')}, and has {plural(len(found.tensors), 'tensor')}",
            "it is incomplete or damaged: copy it again",
        )
    tensors = {_translated(found, known, name): (name, row) for name, row in found.tensors.items()
               if name != ROTATION}  # fmt: skip
    missing = [name for name in _wanted(known, layers) if name not in tensors]
    if missing:
        raise found.refuse(
            f"lacks {plural(len(missing), 'tensor')} of its {plural(layers, 'layer')}, `{missing[0]}` first",
            "it is incomplete: copy it again",
        )
    beyond = next((name for name in tensors if _layer_of(name) >= layers), None)
    if beyond is not None:
        raise found.refuse(
            f"has `{beyond}`, and says that it has {plural(layers, 'layer')}", "it is damaged: copy it again"
        )
    return dict(sorted(tensors.items(), key=lambda item: (_place(item[0]), item[0])))


def _wanted(known: Architecture, layers: int) -> list[str]:
    names = [_TOP["token_embd.weight"], _TOP["output_norm.weight"]]
    for layer in range(layers):
        names += [f"model.layers.{layer}.{name}.weight" for name in known.layer.values()]
        names += [f"model.layers.{layer}.{known.layer[name]}.bias" for name in known.biased]
    return names


def _translated(found: Contents, known: Architecture, name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    match = _NAME.fullmatch(name)
    own = known.layer.get(match[2]) if match else None
    if match and own and (match[3] == "weight" or match[2] in (*known.biased, *known.may_bias)):
        return f"model.layers.{int(match[1])}.{own}.{match[3]}"
    raise found.refuse(
        f"has a tensor `{name}`, which is not known in the architecture `{found.architecture}`",
        "convert it to safetensors by transformers, if that knows it",
    )


def _layer_of(name: str) -> int:
    return int(name.split(".")[2]) if name.startswith("model.layers.") else -1


def _place(name: str) -> int:
    """Embeddings first, then the layers, then the norm and the head."""
    layer = _layer_of(name)
    return layer if layer >= 0 else -1 if name == _TOP["token_embd.weight"] else 1 << 30


def in_order(found: Contents, name: str, values: Any, heads: int, key_heads: int) -> Any:
    """A tensor with its rows in transformers' order.

    Parameters
    ----------
    name : str
        In GGUF.
    values : ndarray, (rows, ...)
    heads, key_heads : int
        Of queries, and of keys.
    """
    match = _NAME.fullmatch(name)
    kind = match[2] if match else ""
    if not architecture(found).is_paired or kind not in ("attn_q", "attn_k"):
        return values
    count = heads if kind == "attn_q" else key_heads
    half = values.shape[0] // count // 2
    return values.reshape(count, half, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
