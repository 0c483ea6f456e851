"""What tokens stand for: the same text under the spellings of byte-level and sentencepiece vocabularies."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from taskvec.compat.tokenizer import setting_of
from taskvec.compat.vocabulary import Vocabulary
from taskvec.regex import regex

if TYPE_CHECKING:
    from taskvec.models.model import Model

Spelling = Literal["bytes", "pieces", "words", "plain"]
# In the order in which a token that has several is known by one.
ROLES = ("eos", "bos", "pad", "unk", "sep", "cls", "mask")
_SPACE = "\u2581"
_BYTE = regex(r"<0x([0-9A-Fa-f]{2})>")


class Meaning(NamedTuple):
    """What a token stands for: a text in bytes, one byte of a text, or a mark that no text contains."""

    kind: Literal["text", "byte", "mark"]
    value: bytes


@functools.cache
def byte_letters() -> Mapping[str, int]:
    """The letters by which a byte-level vocabulary writes bytes: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + number): byte for number, byte in enumerate(others)}


def spelling_of(vocabulary: Vocabulary) -> Spelling:
    """How a vocabulary writes bytes and spaces, by what its tokenizer does with a text and with tokens."""
    document = vocabulary.document
    steps = [*_steps(document.get("pre_tokenizer")), *_steps(document.get("decoder"))]
    types = {str(step.get("type")) for step in steps}
    if "ByteLevel" in types:
        return "bytes"
    normalised = [*steps, *_steps(document.get("normalizer"))]
    if "Metaspace" in types or any(_SPACE in str(step) for step in normalised):
        return "pieces"
    return "words" if "WordPiece" in types or document["model"].get("type") == "WordPiece" else "plain"


def _steps(value: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a part of a tokenizer, those of sequences one by one."""
    if isinstance(value, dict):
        lists = ("pretokenizers", "decoders", "normalizers")
        inner = [each for key in lists if isinstance(value.get(key), list) for each in value[key]]
        yield value
        for each in inner:
            yield from _steps(each)


def meanings(vocabulary: Vocabulary) -> dict[str, Meaning]:
    """What every token of a vocabulary stands for."""
    spelling = spelling_of(vocabulary)
    added = vocabulary.document.get("added_tokens") or ()
    is_mark = {entry["content"]: bool(entry.get("special")) for entry in added}
    return {
        token: Meaning("mark" if is_mark[token] else "text", token.encode("utf-8", "surrogatepass"))
        if token in is_mark
        else _meaning(token, spelling)
        for token in vocabulary.ids
    }


def _meaning(token: str, spelling: Spelling) -> Meaning:
    letters, text = byte_letters(), token
    if spelling == "bytes" and all(letter in letters for letter in token):
        return Meaning("text", bytes(letters[letter] for letter in token))
    if spelling == "pieces":
        byte = _BYTE.fullmatch(token)
        if byte is not None:
            return Meaning("byte", bytes([int(byte[1], 16)]))
        text = token.replace(_SPACE, " ")
    if spelling == "words":
        text = token[2:] if token.startswith("##") else f" {token}"
    return Meaning("text", text.encode("utf-8", "surrogatepass"))


def spelt(text: str, spelling: Spelling) -> str:
    """A text as the pieces of a vocabulary have it."""
    if spelling == "bytes":
        by_byte = {byte: letter for letter, byte in byte_letters().items()}
        return "".join(by_byte[byte] for byte in text.encode())
    return text.replace(" ", _SPACE) if spelling == "pieces" else text


class Lookup:
    """Finds the token of a vocabulary that stands for the same.

    Parameters
    ----------
    known : mapping of str to Meaning
    """

    def __init__(self, known: Mapping[str, Meaning]) -> None:
        self._tokens: dict[Meaning, str] = {}
        for token, meaning in known.items():
            self._tokens.setdefault(meaning, token)

    def __call__(self, meaning: Meaning) -> str | None:
        """The token; ``None`` where there is none."""
        value = meaning.value
        others: list[Meaning] = []
        if meaning.kind == "byte" or (meaning.kind == "text" and len(value) == 1):
            others = [Meaning("text", value), Meaning("byte", value)]
        elif meaning.kind == "text":
            others = [Meaning("mark", value)]
        else:
            others = [Meaning("text", value)]
        return next((self._tokens[each] for each in (meaning, *others) if each in self._tokens), None)


def roles_of(model: Model, ids: Mapping[str, int]) -> dict[str, str]:
    """The tokens that begin and end texts, fill them up and so on, by their roles."""
    texts = {number: token for token, number in ids.items()}
    found: dict[str, str] = {}
    for role in ROLES:
        token = setting_of(model, f"{role}_token")
        if not isinstance(token, str) or token not in ids:
            number = model.config.get(f"{role}_token_id")
            number = number[0] if isinstance(number, list) and number else number
            token = texts.get(number) if isinstance(number, int) else None
        if token is not None:
            found[role] = token
    return found
