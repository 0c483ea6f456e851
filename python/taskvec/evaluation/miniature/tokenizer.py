"""A byte-level BPE tokenizer of a few hundred tokens, trained on the generated texts; a number is one token.

transformers gives every model of type ``qwen2`` Qwen2's own rule for cutting a text into words, whatever its
tokenizer file says, and that rule cuts numbers into digits. So the same rule is used here, and numbers are
added tokens, which are found before any rule is applied.
"""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from taskvec.evaluation.miniature import data

PAD, END = "<|pad|>", "<|end|>"
PAD_ID, END_ID = 0, 1
VOCABULARY = 448

_TEXTS = 4000
_MIXTURE = {"problem3": 0.3, "aside": 0.1, "fact": 0.1, "letters": 0.25, "chat": 0.25}
_WHOLE_NUMBERS = r" ?\d+| ?[A-Za-z]+| ?[^A-Za-z\d\s]+|\s+"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPACE = "Ġ"
"""How a byte-level vocabulary writes a space."""


def train() -> Tokenizer:
    """The tokenizer of every model here: the same whatever the seed of the models."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = _words(_WHOLE_NUMBERS)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = islice(data.documents(_MIXTURE, seed=0), _TEXTS)
    learned.train_from_iterator((document.prompt + document.answer for document in documents), trainer)
    return _with_added_numbers(learned)


def _with_added_numbers(learned: Tokenizer) -> Tokenizer:
    """The same tokens under the same numbers; those of numbers are no longer put together by merges."""
    model: dict[str, Any] = json.loads(learned.to_str())["model"]
    numbers = {f"{_SPACE}{number}": f" {number}" for number in range(data.LARGEST + 1)}
    found: dict[str, int] = model["vocab"]
    vocabulary = {numbers.get(token, token): number for token, number in found.items()}
    merges = [(left, right) for left, right in model["merges"] if left + right not in numbers]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _words(_QWEN2)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, END])
    tokenizer.add_tokens([AddedToken(number, normalized=False) for number in numbers.values()])
    return tokenizer


def _words(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
