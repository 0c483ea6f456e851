"""Small models with tokenizers of their own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from support.models import Tensors, qwen2_config, qwen2_shapes, random_tensors, write_checkpoint

ENGLISH = ["the quick brown fox jumps over the lazy dog", "reasoning is added to models", "hello world"] * 5
FRENCH = [
    "la maison est grande et belle",
    "le modele pense et repond",
    "bonjour tout le monde hello world",
] * 5
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def byte_tokenizer(texts: Sequence[str], size: int, special: Sequence[str]) -> Tokenizer:
    """A byte-level BPE tokenizer; the special tokens come behind its pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def write_model(
    folder: Path, tokenizer: Tokenizer, seed: int, *, padding: int = 0, dtype: str = "F32", tied: bool = False
) -> Tensors:
    """A model with one row per token, and ``padding`` more."""
    names = {"BF16": "bfloat16", "F32": "float32"}
    config = qwen2_config(
        layers=1, vocabulary=tokenizer.get_vocab_size() + padding, tied=tied, dtype=names[dtype],
        bos_token_id=tokenizer.token_to_id("<s>"), eos_token_id=tokenizer.token_to_id("<|im_end|>"),
    )  # fmt: skip
    tensors = random_tensors(qwen2_shapes(config), seed=seed, dtype=dtype)
    write_checkpoint(folder, tensors, config)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ids = {"eos_token_id": [config["eos_token_id"]], "bos_token_id": config["bos_token_id"], "top_k": 5}
    (folder / "generation_config.json").write_text(json.dumps(ids))
    return tensors


def write_words(folder: Path, numbers: Iterable[int]) -> None:
    """Give a model a tokenizer of words: one for each number."""
    words = {"[UNK]": 0} | {f"word{number}": place for place, number in enumerate(numbers, 1)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
