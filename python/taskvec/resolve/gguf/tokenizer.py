"""The tokenizer of a GGUF file, as transformers reads it.

Byte-level BPE (``gpt2``) is written from the metadata, since how text is split before BPE is a part of the
metadata's ``pre`` alone. SentencePiece (``llama``) is written by transformers. Files of a tokenizer that lie
next to the GGUF file are taken in place of both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from taskvec.extras import install
from taskvec.files import look, reading
from taskvec.resolve.gguf.config import token_id
from taskvec.resolve.gguf.contents import Contents

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
_CONTROL, _OWN = 3, 4  # types of tokens: such as <|im_end|>, and those that a user has added
_ROLES = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Splitting(NamedTuple):
    """How text is split before BPE: by GPT-2's rule, or by an expression, and what comes before it."""

    expression: str | None = None
    digits: bool = False
    composes: bool = False
    whole_first: bool = False
    adds_first: bool = False


# By `tokenizer.ggml.pre`. With `whole_first`, a word that is a token is not merged together from its parts.
SPLITTINGS = {
    "gpt-2": Splitting(),
    "smollm": Splitting(digits=True),
    "llama-bpe": Splitting(_WORDS % r"\p{N}{1,3}", whole_first=True, adds_first=True),
    "qwen2": Splitting(_WORDS % r"\p{N}", composes=True),
}


def write_tokenizer(found: Contents, folder: Path) -> None:
    """Write the files of the tokenizer; none where the file has none.

    Raises
    ------
    FormatError
        It is of a kind that is not known, or the package that makes it is not installed.
    """
    beside = [name for name in FILES if look.is_file(found.path.parent / name)]
    if "tokenizer.json" in beside or "tokenizer.model" in beside:
        for name in beside:
            reading.copy(found.path.parent / name, folder / name)
        return
    model = found.get("tokenizer.ggml.model")
    if model is None:
        return
    if model == "gpt2":
        _write_bytes(found, folder)
    elif model == "llama":
        _write_pieces(found, folder)
    else:
        raise _unknown(found, f"a tokenizer of the kind `{model}`")


def _unknown(found: Contents, what: str) -> Exception:
    return found.refuse(
        f"has {what}, which is not known",
        "put the model's own `tokenizer.json` and `tokenizer_config.json` next to it",
    )


def _write_bytes(found: Contents, folder: Path) -> None:
    """Byte-level BPE."""
    pre = found.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in SPLITTINGS:
        raise _unknown(found, f"a tokenizer that splits text as `{pre}` does")
    how = SPLITTINGS[pre]
    tokens, merges = found.get("tokenizer.ggml.tokens"), found.get("tokenizer.ggml.merges")
    rows = found.tensors["token_embd.weight"].shape[0]
    if isinstance(tokens, list) and len(tokens) > rows:
        raise found.refuse(
            f"has a damaged tokenizer: {len(tokens)} tokens, and {rows} rows of embeddings",
            "it is damaged: copy it again",
        )
    try:
        built = _built(tokens, merges, found.get("tokenizer.ggml.token_type") or [1] * len(tokens), how)
    except ImportError as error:
        raise found.refuse(
            "has a tokenizer, and tokenizers, which writes it, is not installed",
            f"install it: `{install('gguf')}`",
        ) from error
    except Exception as error:  # of a damaged vocabulary
        raise found.refuse(
            f"has a damaged tokenizer: {error!r:.200}", "it is damaged: copy it again"
        ) from error
    content = _settings(found, tokens)
    first = content.get("bos_token")
    adds_first = found.get("tokenizer.ggml.add_bos_token", how.adds_first)
    if not isinstance(adds_first, bool):
        raise found.refuse(
            f"says {adds_first!r} as its `tokenizer.ggml.add_bos_token`", "it is damaged: copy it again"
        )
    if adds_first and first is not None:
        from tokenizers.processors import TemplateProcessing

        at = token_id(found, "bos")
        built.post_processor = TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A {first} $B", special_tokens=[(first, at)]
        )
    built.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _built(tokens: list[str], merges: list[str], types: list[int], how: Splitting) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {token: at for at, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or len(types) != len(tokens):
        raise ValueError("its tokens are not distinct, or have not one type each")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=how.whole_first)
    built = Tokenizer(model)
    split: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if how.digits else []
    if how.expression is not None:
        split.append(pre_tokenizers.Split(Regex(how.expression), "isolated"))
    split.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=how.expression is None))
    built.pre_tokenizer = pre_tokenizers.Sequence(split)
    built.decoder = decoders.ByteLevel()
    if how.composes:
        built.normalizer = normalizers.NFC()
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_CONTROL, _OWN)
    ]
    built.add_tokens(added)
    return built


def _settings(found: Contents, tokens: list[str]) -> dict[str, Any]:
    """``tokenizer_config.json``."""
    content: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, role in _ROLES.items():
        at = token_id(found, name)
        if at is not None and at < len(tokens):
            content[role] = tokens[at]
    content["clean_up_tokenization_spaces"] = False
    content["model_max_length"] = int(found.get("{arch}.context_length", 1 << 30))
    template = found.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise found.refuse("has a chat template that is not text", "it is damaged: copy it again")
    if template:
        content["chat_template"] = template
    return content


def _write_pieces(found: Contents, folder: Path) -> None:
    """SentencePiece, by transformers."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise found.refuse(
            "has a SentencePiece tokenizer, and transformers, which writes it, is not installed",
            f"install it: `{install('eval')}`, or put the model's own `tokenizer.json` next to it",
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(found.path.parent), gguf_file=found.path.name)
    except Exception as error:  # transformers raises several sorts
        raise found.refuse(
            f"has a tokenizer that transformers cannot write: {error!r:.200}",
            "put the model's own `tokenizer.json` and `tokenizer_config.json` next to it",
        ) from error
    tokenizer.save_pretrained(str(folder))
