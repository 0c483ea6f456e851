"""``config.json`` and ``generation_config.json`` from the metadata of a GGUF file."""

from __future__ import annotations

import math
from typing import Any

from taskvec.resolve.gguf.contents import Contents, decoded
from taskvec.resolve.gguf.names import ROTATION, architecture

_TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
# The rule of Llama 3.1 and later for longer texts; GGUF keeps its outcome alone, by which it is known again.
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192
_LARGEST = 3.4e38  # of float32
# Settings of the architecture that the config is made of.
_READ = frozenset(
    {
        "attention.head_count", "attention.head_count_kv", "attention.key_length",
        "attention.layer_norm_rms_epsilon", "attention.value_length", "block_count", "context_length",
        "embedding_length", "feed_forward_length", "rope.dimension_count", "rope.freq_base",
        "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.type",
    }
)  # fmt: skip
# Those that say of the tensors what is read off them, or how a file came about.
_TOLD_OTHERWISE = frozenset({"rope.scaling.finetuned", "tensor_data_layout", "vocab_size"})
# Those that transformers' class lacks, with the values under which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.sliding_window": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "logit_scale": (0.0, 1.0),
    "rope.scale_linear": (1.0,),
    "rope.scaling.attn_factor": (0.0, 1.0),
    "use_parallel_residual": (False,),
}


def config(found: Contents) -> dict[str, Any]:
    """The config of a model, as transformers writes it.

    Raises
    ------
    FormatError
        A member is missing or of the wrong sort, or says what transformers' class cannot compute.
    """
    known = architecture(found)
    _hold_settings(found)
    hidden, heads = _count(found, "{arch}.embedding_length"), _count(found, "{arch}.attention.head_count")
    key_heads = _count(found, "{arch}.attention.head_count_kv", heads)
    width = _head_width(found, hidden, heads)
    embedding = found.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise found.refuse("has no `token_embd.weight` of rows and columns", "it is damaged: copy it again")
    made: dict[str, Any] = {
        "architectures": [known.class_name],
        "model_type": known.model_type,
        "hidden_size": hidden,
        "intermediate_size": _count(found, "{arch}.feed_forward_length"),
        "num_hidden_layers": _count(found, "{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": width,
        "hidden_act": "silu",
        "rms_norm_eps": _short(_number(found, "{arch}.attention.layer_norm_rms_epsilon")),
        "rope_theta": _short(_number(found, "{arch}.rope.freq_base", 10_000.0)),
        "max_position_embeddings": _count(found, "{arch}.context_length"),
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in found.tensors,
        "torch_dtype": _TORCH[embedding.dtype],
        **_token_ids(found),
    }
    if known.model_type != "qwen2":
        made["attention_bias"] = "blk.0.attn_q.bias" in found.tensors
    if known.model_type == "llama":
        made["mlp_bias"] = "blk.0.ffn_gate.bias" in found.tensors
    scaling = _scaling(found, width)
    if scaling:
        made["rope_scaling"] = scaling
    return made


def _hold_settings(found: Contents) -> None:
    """Return if every setting of the architecture is read, or changes nothing."""
    prefix = f"{found.architecture}."
    for key, value in found.metadata.items():
        name = key.removeprefix(prefix)
        if name == key or name in _READ or name in _TOLD_OTHERWISE or value in _NEUTRAL.get(name, ()):
            continue
        if name == "attention.scale" and _is_usual_scale(found, value):
            continue
        shown = f"{value!r:.60}"
        raise found.refuse(
            f"says {shown} as its `{key}`, which is not read and may change what the model computes",
            "take the model in safetensors, or a file without it",
        )


def _is_usual_scale(found: Contents, value: Any) -> bool:
    """Whether scores are scaled by one over the root of a head's width, as transformers does."""
    hidden, heads = _count(found, "{arch}.embedding_length"), _count(found, "{arch}.attention.head_count")
    usual = 1 / math.sqrt(_head_width(found, hidden, heads))
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and (value == 0 or math.isclose(value, usual, rel_tol=1e-6))


def generation_config(found: Contents) -> dict[str, Any]:
    """What begins and ends a text; the end of a turn too, where it is another token."""
    made = _token_ids(found)
    ends = [token_id(found, name) for name in ("eos", "eot", "eom")]
    distinct = list(dict.fromkeys(end for end in ends if end is not None))
    if len(distinct) > 1:
        made["eos_token_id"] = distinct
    return made


def _token_ids(found: Contents) -> dict[str, Any]:
    return {key: token_id(found, name) for key, name in _TOKENS.items()}


def token_id(found: Contents, name: str) -> int | None:
    """The token of a role; ``None`` where there is none, or it has no row, which llama.cpp leaves out too.

    Raises
    ------
    FormatError
        It is not a number.
    """
    key = f"tokenizer.ggml.{name}_token_id"
    value = found.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise found.refuse(f"says {value!r} as its `{key}`", "it is damaged: copy it again")
    return value if 0 <= value < found.tensors["token_embd.weight"].shape[0] else None


def _count(found: Contents, key: str, default: int | None = None) -> int:
    value = found.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        name = key.format(arch=found.architecture)
        if isinstance(value, list):
            raise found.refuse(f"says `{name}` by layer, which is not read", "take a model of equal layers")
        raise found.refuse(f"says {value!r} as its `{name}`", "it is damaged: copy it again")
    return value


def _number(found: Contents, key: str, default: float | None = None) -> float:
    value = found.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < _LARGEST:
        name = key.format(arch=found.architecture)
        raise found.refuse(f"says {value!r} as its `{name}`", "it is damaged: copy it again")
    return float(value)


def _short(value: float) -> float:
    """The shortest number that float32 stores as this one: 1e-05 of 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))


def _head_width(found: Contents, hidden: int, heads: int) -> int:
    width = _count(found, "{arch}.attention.key_length", hidden // heads)
    for key in ("{arch}.attention.value_length", "{arch}.rope.dimension_count"):
        other = found.get(key, width)
        if other != width:
            name = key.format(arch=found.architecture)
            raise found.refuse(
                f"says {other} as its `{name}` and has heads of {width}",
                "transformers' class has one width for both: take another file",
            )
    if width % 2:
        raise found.refuse(
            f"has heads of {width}, which have no halves to rotate", "it is damaged: copy it again"
        )
    return width


def _scaling(found: Contents, width: int) -> dict[str, Any] | None:
    """How the rotation is stretched for longer texts."""
    kind = found.get("{arch}.rope.scaling.type", "none")
    if ROTATION in found.tensors:
        return _llama3(found, width)
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": _number(found, "{arch}.rope.scaling.factor")}
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": _number(found, "{arch}.rope.scaling.factor"),
            "original_max_position_embeddings": _count(found, "{arch}.rope.scaling.original_context_length"),
        }
    raise found.refuse(f"stretches its rotation by `{kind}`, which is not known", "take another file")


def _llama3(found: Contents, width: int) -> dict[str, Any]:
    import numpy as np

    factors = decoded(found.tensors[ROTATION]).astype(np.float64)
    factor = _short(float(factors.max(initial=1.0)))
    base = _number(found, "{arch}.rope.freq_base", 10_000.0)
    waves = 2 * math.pi * base ** (np.arange(0, width, 2) / width)
    smooth = np.clip((_ORIGINAL / waves - _LOW) / (_HIGH - _LOW), 0.0, 1.0)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise found.refuse(
            f"has factors in `{ROTATION}` that are not those of Llama 3's rule",
            "the settings of its rotation are not known: take the model in safetensors",
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _ORIGINAL,
    }
