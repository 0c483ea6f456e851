"""Tiny GGUF files, written by the gguf package from models of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

HIDDEN, INNER, HEADS, KEY_HEADS, LAYERS = 64, 96, 4, 2, 2
CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def width(architecture: str) -> int:
    """Of a head; Qwen3's is not the hidden size by the number of heads."""
    return 128 if architecture == "qwen3" else HIDDEN // HEADS


def byte_tokens() -> list[str]:
    """The 256 bytes as byte-level BPE writes them, in the order of its own alphabet."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


MERGES = ["Ġ t", "h e", "Ġt he", "1 2"]
TOKENS = [*byte_tokens(), "Ġt", "he", "Ġthe", "12", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def model(architecture: str, *, tied: bool = False, seed: int = 0, **settings: Any) -> Any:
    """A tiny model of transformers with random weights, biases and norms too."""
    config, kind = (getattr(transformers, name) for name in CLASSES[architecture])
    torch.manual_seed(seed)
    made = kind(
        config(
            vocab_size=len(TOKENS), hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, head_dim=width(architecture),
            max_position_embeddings=256, tie_word_embeddings=tied, rms_norm_eps=1e-5,
            bos_token_id=None, eos_token_id=len(TOKENS) - 1, pad_token_id=None,
            **({"rope_theta": 50_000.0} | settings),
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0, 0.2)
            else:
                parameter.normal_(0.0, 0.15)
    return made


def paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as llama.cpp has them: the halves of a head taken in turns."""
    rows = weight.shape[0] // heads
    order = [h * rows + i // 2 + (i % 2) * rows // 2 for h in range(heads) for i in range(rows)]
    return weight[order]


def tensors_of(made: Any, architecture: str) -> dict[str, np.ndarray]:
    """Float32 tensors under llama.cpp's names and in its order of rows."""
    found = {}
    for name, value in made.state_dict().items():
        if name == "lm_head.weight" and made.config.tie_word_embeddings:
            continue
        stem, _, kind = name.rpartition(".")
        array = value.float().numpy()
        if stem.startswith("model.layers."):
            layer, own = stem.removeprefix("model.layers.").split(".", 1)
            if architecture == "llama" and own in ("self_attn.q_proj", "self_attn.k_proj"):
                array = paired(array, HEADS if "q_proj" in own else KEY_HEADS)
            found[f"blk.{layer}.{NAMES[own]}.{kind}"] = array
        else:
            found[f"{NAMES[stem]}.{kind}"] = array
    return found


def write(
    path: Path,
    architecture: str,
    tensors: dict[str, np.ndarray],
    kind: str = "F32",
    *,
    pre: str | None = "smollm",
    extra: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
    """Write a GGUF file; what gguf decodes of each tensor is given back.

    Matrices are stored as ``kind``; vectors as float32, as llama.cpp does. ``extra`` are further members of
    the metadata, ``without`` those that are left out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), architecture)
    a = architecture
    members: dict[str, Any] = {
        f"{a}.block_count": LAYERS, f"{a}.context_length": 256, f"{a}.embedding_length": HIDDEN,
        f"{a}.feed_forward_length": INNER, f"{a}.attention.head_count": HEADS,
        f"{a}.attention.head_count_kv": KEY_HEADS, f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{a}.attention.key_length": width(a), f"{a}.attention.value_length": width(a),
        f"{a}.rope.freq_base": 50_000.0,
    }  # fmt: skip
    if pre is not None:
        members |= {
            "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": TOKENS,
            "tokenizer.ggml.token_type": [1] * (len(TOKENS) - 3) + [3] * 3, "tokenizer.ggml.merges": MERGES,
            "tokenizer.ggml.eos_token_id": len(TOKENS) - 1,
            "tokenizer.ggml.padding_token_id": len(TOKENS) - 3,
            "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": TEMPLATE,
        }  # fmt: skip
    for name, value in (members | (extra or {})).items():
        if name not in without:
            _add(writer, name, value)
    decoded = {}
    for name, array in tensors.items():
        stored_as = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        data = (
            array.astype("<f4") if stored_as == gguf.GGMLQuantizationType.F32 else _stored(array, stored_as)
        )
        writer.add_tensor(name, data, raw_dtype=stored_as)
        decoded[name] = gguf.dequantize(data, stored_as).reshape(array.shape).astype(np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return decoded


def _stored(array: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    if kind == gguf.GGMLQuantizationType.F16:
        return array.astype("<f2")
    return gguf.quantize(array.astype(np.float32), kind)


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)
