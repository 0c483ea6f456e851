"""Small checkpoints for the tests: Qwen2-shaped, any dtype, one shard or many, written without the engine.

The writer here is deliberately plain (``struct`` and ``json``), so that a test never checks the engine
against itself; :func:`read_tensors` reads with NumPy alone for the same reason.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

Tensors = dict[str, np.ndarray]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def qwen2_config(
    *,
    layers: int = 2,
    hidden: int = 32,
    intermediate: int = 64,
    vocabulary: int = 96,
    heads: int = 4,
    kv_heads: int = 2,
    tied: bool = True,
    **more: Any,
) -> dict[str, Any]:
    """A config.json that transformers loads as Qwen2ForCausalLM."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "bfloat16",
        **more,
    }


def qwen2_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that such a model has, in file order."""
    hidden, inter, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        shapes[p + "input_layernorm.weight"] = (hidden,)
        shapes[p + "mlp.down_proj.weight"] = (hidden, inter)
        shapes[p + "mlp.gate_proj.weight"] = (inter, hidden)
        shapes[p + "mlp.up_proj.weight"] = (inter, hidden)
        shapes[p + "post_attention_layernorm.weight"] = (hidden,)
        for name, rows in (("q", hidden), ("k", kv), ("v", kv)):
            shapes[p + f"self_attn.{name}_proj.bias"] = (rows,)
            shapes[p + f"self_attn.{name}_proj.weight"] = (rows, hidden)
        shapes[p + "self_attn.o_proj.weight"] = (hidden, hidden)
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings", True):
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def random_tensors(shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0, dtype: str = "BF16") -> Tensors:
    """Random weights of a model just initialised: norms near one, everything else of scale 0.02."""
    rng = np.random.default_rng(seed)
    tensors: Tensors = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape) * 0.02 + (1.0 if "norm" in name else 0.0)
        tensors[name] = values.astype(np.float32).astype(DTYPES[dtype])
    return tensors


def tuned(tensors: Tensors, *, seed: int, step: float = 0.002, share: float = 1.0) -> Tensors:
    """A fine-tuned neighbour: a random step of the given scale on the given share of the elements."""
    rng = np.random.default_rng(seed)
    result: Tensors = {}
    for name, array in tensors.items():
        if DTYPE_NAMES[array.dtype] in {"F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"}:
            moved = rng.standard_normal(array.shape) * step * (rng.random(array.shape) < share)
            result[name] = (array.astype(np.float64) + moved).astype(np.float32).astype(array.dtype)
        else:
            result[name] = array.copy()
    return result


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """The eight length bytes and the JSON of a header, padded to eight."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def safetensors_bytes(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file in memory, its tensors in the order given."""
    header: dict[str, Any] = {"__metadata__": dict(metadata if metadata is not None else {"format": "pt"})}
    blobs, offset = [], 0
    for name, array in tensors.items():
        blob = stored_array(array).tobytes()
        header[name] = {
            "dtype": DTYPE_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    return header_bytes(header) + b"".join(blobs)


def stored_array(array: np.ndarray) -> np.ndarray:
    """An array as it is stored: of four-bit floats two share a byte, the low half first."""
    array = np.ascontiguousarray(array)
    if DTYPE_NAMES[array.dtype] != "F4":
        return array
    codes = np.append(array.view(np.uint8).reshape(-1), np.zeros(array.size % 2, np.uint8))
    return codes[::2] | codes[1::2] << 4


def read_safetensors(path: Path) -> Tensors:
    """Every tensor of one file, in the order of its data."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors: Tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = (8 + length + at for at in entry["data_offsets"])
        blob = data[start:end]
        if entry["dtype"] == "F4":
            blob = bytes(code for byte in blob for code in (byte & 15, byte >> 4))
        tensors[name] = np.frombuffer(blob, dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def read_tensors(folder: Path) -> Tensors:
    """Every tensor of a checkpoint folder, shard by shard."""
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(read_safetensors(path))
    return tensors


def split(tensors: Tensors, shards: int) -> list[Tensors]:
    """The tensors dealt into consecutive shards of about equal count."""
    names = list(tensors)
    bounds = [len(names) * i // shards for i in range(shards + 1)]
    return [{n: tensors[n] for n in names[a:b]} for a, b in itertools.pairwise(bounds)]


def write_weights(folder: Path, tensors: Tensors, *, shards: int = 1) -> None:
    """The weight files alone: one ``model.safetensors``, or shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return
    weight_map = {}
    for number, part in enumerate(split(tensors, shards), 1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        (folder / file).write_bytes(safetensors_bytes(part))
        weight_map.update(dict.fromkeys(part, file))
    total = sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


SPECIAL_TOKENS = ("<s>", "</s>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"


def tokenizer_json(*, extra_words: Iterable[str] = (), merges: Iterable[str] | None = None) -> dict[str, Any]:
    """A byte-pair tokenizer over printable ASCII that the tokenizers package loads."""
    alphabet = [chr(c) for c in range(33, 97)]
    pairs = list(merges) if merges is not None else ["A B", "AB C"]
    words = [*SPECIAL_TOKENS, *alphabet, *(pair.replace(" ", "") for pair in pairs), *extra_words]
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, token in enumerate(SPECIAL_TOKENS)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {word: i for i, word in enumerate(dict.fromkeys(words))},
            "merges": pairs,
        },
    }


def write_tokenizer(folder: Path, tokenizer: Mapping[str, Any] | None = None) -> None:
    """tokenizer.json, tokenizer_config.json and a generation config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer or tokenizer_json()))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    generation = {"bos_token_id": 0, "eos_token_id": [1], "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))


def write_checkpoint(
    folder: Path,
    tensors: Tensors,
    config: Mapping[str, Any] | None = None,
    *,
    shards: int = 1,
    tokenizer: bool = True,
) -> Path:
    """A whole checkpoint folder: weights, config, tokenizer and a model card."""
    write_weights(folder, tensors, shards=shards)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config, indent=2))
    if tokenizer:
        write_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A small model\n")
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; a value of ``None`` removes the key."""
    value = json.loads(path.read_text())
    value.update({k: v for k, v in changes.items() if v is not None})
    for key in (k for k, v in changes.items() if v is None):
        value.pop(key, None)
    path.write_text(json.dumps(value, indent=2))


@dataclass(frozen=True)
class Trio:
    """Three folders of one family: the target and, apart from it, donor and reference close to each other."""

    target: Path
    donor: Path
    reference: Path

    def __iter__(self):
        return iter((self.target, self.donor, self.reference))


def write_trio(
    root: Path,
    *,
    dtype: str = "BF16",
    dtypes: tuple[str, str, str] | None = None,
    shards: int | tuple[int, int, int] = 1,
    seed: int = 0,
    tied: bool = True,
    donor_tied: bool | None = None,
    tokenizer: bool = True,
    **config: Any,
) -> Trio:
    """Target, donor and reference as folders ``target``, ``donor`` and ``reference`` of ``root``.

    Target and reference are fine-tunes of one base; the donor is a small sparse step from the reference, as
    an RL run leaves it. ``dtypes`` gives the three dtypes apart; ``donor_tied`` ties donor and reference
    unlike the target.
    """
    donor_tied = tied if donor_tied is None else donor_tied
    target_config = qwen2_config(tied=tied, **config)
    donor_config = qwen2_config(tied=donor_tied, **config)
    every_shape = qwen2_shapes(qwen2_config(tied=False, **config))
    base = random_tensors(every_shape, seed=seed, dtype="F32")
    target = tuned(base, seed=seed + 1, step=0.003)
    reference = tuned(base, seed=seed + 2, step=0.003)
    donor = tuned(reference, seed=seed + 3, step=0.001, share=0.3)
    counts = shards if isinstance(shards, tuple) else (shards,) * 3
    kinds = dtypes or (dtype,) * 3
    folders = []
    for name, tensors, settings, kind, count in zip(
        ("target", "donor", "reference"),
        (target, donor, reference),
        (target_config, donor_config, donor_config),
        kinds,
        counts,
        strict=True,
    ):
        kept = {n: tensors[n].astype(DTYPES[kind]) for n in qwen2_shapes(settings)}
        folders.append(write_checkpoint(root / name, kept, settings, shards=count, tokenizer=tokenizer))
    return Trio(*folders)


def family(root: Path, share: float, dtype: str = "BF16") -> Trio:
    """A trio whose donor differs from the reference in the given share of the elements."""
    config = qwen2_config(hidden=128, intermediate=256)
    base = random_tensors(qwen2_shapes(config), dtype=dtype)
    reference = tuned(base, seed=1, step=0.003)
    kinds = {"target": tuned(base, seed=2, step=0.003), "reference": reference}
    kinds["donor"] = tuned(reference, seed=3, step=0.01, share=share)
    folders = {role: write_checkpoint(root / role, tensors, config) for role, tensors in kinds.items()}
    return Trio(folders["target"], folders["donor"], folders["reference"])
