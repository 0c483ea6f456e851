"""Qwen2-shaped bf16 checkpoints of random weights, made with NumPy alone: for the demo and the benchmark.

A family has four members. `instruct` and `sft` each differ from `base` in most elements; `grpo` differs from
`sft` in about 15 % of them, by one to three units in the last place, as a reinforcement-learning run leaves
it. The same arguments give the same bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Member = Literal["base", "instruct", "sft", "grpo"]

BLOCK = 1 << 21  # random elements in all; every tensor is a stretch of this block, read as a ring
STRIDE = 7919  # prime: tensors begin at different places of the ring
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Qwen2 model."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes in file order; the output head is tied to the embedding."""
        key_value = self.hidden // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            yield f"{prefix}.input_layernorm.weight", (self.hidden,)
            yield f"{prefix}.mlp.down_proj.weight", (self.hidden, self.intermediate)
            yield f"{prefix}.mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield f"{prefix}.mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield f"{prefix}.post_attention_layernorm.weight", (self.hidden,)
            for name, rows in (("k", key_value), ("q", self.hidden), ("v", key_value)):
                yield f"{prefix}.self_attn.{name}_proj.bias", (rows,)
                yield f"{prefix}.self_attn.{name}_proj.weight", (rows, self.hidden)
            yield f"{prefix}.self_attn.o_proj.weight", (self.hidden, self.hidden)
        yield "model.norm.weight", (self.hidden,)

    @property
    def parameters(self) -> int:
        """Elements in all tensors together."""
        return sum(math.prod(shape) for _, shape in self.tensors())

    @property
    def total_bytes(self) -> int:
        """Bytes of one checkpoint's weights."""
        return 2 * self.parameters


SHAPES = {
    "demo": Shape(layers=4, hidden=192, intermediate=512, vocabulary=320, heads=6, kv_heads=2),
    "0.1b": Shape(layers=12, hidden=512, intermediate=2048, vocabulary=151936, heads=8, kv_heads=2),
    "0.5b": Shape(layers=24, hidden=896, intermediate=4864, vocabulary=151936, heads=14, kv_heads=2),
    "1.5b": Shape(layers=28, hidden=1536, intermediate=8960, vocabulary=151936, heads=12, kv_heads=2),
}


def write_checkpoint(
    folder: Path, shape: Shape, member: Member, *, seed: int = 0, max_shard_size: int = 5_000_000_000
) -> None:
    """Write one member of a family as a Hugging Face checkpoint: weights, index, config and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    rings = {kind: np.concatenate([bits, bits]) for kind, bits in _rings(member, seed).items()}
    shards = _shards(shape, max_shard_size)
    weight_map: dict[str, str] = {}
    start = 0
    for number, tensors in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys((name for name, _ in tensors), file)
        with open(folder / file, "wb") as stream:
            stream.write(_header(tensors))
            for name, dimensions in tensors:
                ring = rings["norm" if "norm" in name else "weight"]
                remaining = math.prod(dimensions)
                while remaining:
                    at = start * STRIDE % BLOCK
                    count = min(remaining, BLOCK)
                    stream.write(ring[at : at + count].data)
                    remaining, start = remaining - count, start + count
    if len(shards) > 1:
        metadata = {"total_size": shape.total_bytes, "total_parameters": shape.parameters}
        _write_json(folder / "model.safetensors.index.json", {"metadata": metadata, "weight_map": weight_map})
    _write_config_and_tokenizer(folder, shape)


def _rings(member: Member, seed: int) -> dict[str, np.ndarray]:
    """The member's random bf16 bit patterns: of matrices (around 0) and of norms (around 1)."""
    random = np.random.default_rng(seed)
    normal = random.standard_normal(BLOCK, dtype=np.float32)
    base = {"weight": _to_bfloat16(normal * 0.02), "norm": _to_bfloat16(1 + normal * 0.05)}
    instruct = random.integers(-3, 4, BLOCK, dtype=np.int16)
    sft = random.integers(-3, 4, BLOCK, dtype=np.int16)
    moved = random.random(BLOCK, dtype=np.float32) < 0.15
    distance = random.integers(1, 4, BLOCK, dtype=np.int16)
    grpo = sft + np.where(
        moved, np.where(random.random(BLOCK, dtype=np.float32) < 0.5, distance, -distance), 0
    )
    steps = {"base": np.int16(0), "instruct": instruct, "sft": sft, "grpo": grpo.astype(np.int16)}[member]
    # one more on the bit pattern is one unit in the last place more in magnitude; stay clear of zero
    return {
        kind: np.where(bits & 0x7FFF > 8, bits.view(np.int16) + steps, bits.view(np.int16)).view(np.uint16)
        for kind, bits in base.items()
    }


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Finite float32 values as bf16 bit patterns, rounded to nearest, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _shards(shape: Shape, max_shard_size: int) -> list[list[tuple[str, tuple[int, ...]]]]:
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, dimensions in shape.tensors():
        size = 2 * math.prod(dimensions)
        if filled and filled + size > max_shard_size:
            shards.append([])
            filled = 0
        shards[-1].append((name, dimensions))
        filled += size
    return shards


def _header(tensors: list[tuple[str, tuple[int, ...]]]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dimensions in tensors:
        end = offset + 2 * math.prod(dimensions)
        entries[name] = {"dtype": "BF16", "shape": dimensions, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_config_and_tokenizer(folder: Path, shape: Shape) -> None:
    """The configuration and a byte-level tokenizer, so that transformers loads the folder."""
    vocabulary = {character: token for token, character in enumerate(_byte_alphabet())}
    special = {token: len(vocabulary) + number for number, token in enumerate(SPECIAL_TOKENS)}
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 2048,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": special["<|endoftext|>"],
        "eos_token_id": special["<|im_end|>"],
        "dtype": "bfloat16",
    }
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json", {"do_sample": False, "eos_token_id": [special["<|im_end|>"]]}
    )
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **flags} for token, number in special.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _byte_alphabet() -> list[str]:
    """The 256 characters that byte-level tokenizers write for the 256 bytes: printable ones as they are."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + number) for number in range(len(others))]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
