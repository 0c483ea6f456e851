"""Texts cut by a tokenizer, through the tokenizers library: pieces of a token, texts there and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from taskvec.compat.token_text import Lookup, Meaning, Spelling, spelling_of, spelt
from taskvec.compat.tokenizer import TOKENIZER
from taskvec.compat.vocabulary import Vocabulary
from taskvec.errors import FormatError, RecipeError
from taskvec.extras import install

if TYPE_CHECKING:
    from taskvec.models.model import Model

# Words, code, numbers, and letters that few vocabularies have as tokens.
SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "def add(a, b):\n    return a + b  # 42\n",
    "x = 3.14159, y = -2; 1,000,000 + 7",
    "Größe, naïve, Ελλάδα, русский, 日本語, 中文, 한국어",
    "🙂 emoji, tabs\tand   spaces",
)


def tokenizer_of(model: Model) -> Any:
    """The tokenizer of a model, as the tokenizers library has it.

    Raises
    ------
    RecipeError
        That is not installed.
    FormatError
        It does not read the file.
    """
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise RecipeError(
            "the package `tokenizers` is not installed", f"install it: {install('tokens')}"
        ) from None
    try:
        return Tokenizer.from_str(model.read_file(TOKENIZER).decode("utf-8"))
    except Exception as error:
        raise FormatError(
            f"`{TOKENIZER}` of `{model.spec}` is not read by the package `tokenizers`: {error}",
            "save the tokenizer again with transformers",
        ) from None


class Splitter:
    """Cuts the text of another vocabulary's token into tokens of this one.

    Special tokens are found by :class:`Lookup` alone: a text that looks like one is cut as any other.

    Parameters
    ----------
    vocabulary : Vocabulary
    known : mapping of str to Meaning
        Its tokens.
    """

    def __init__(self, vocabulary: Vocabulary, known: Mapping[str, Meaning]) -> None:
        self._ids = vocabulary.ids
        self._find = Lookup(known)
        self._spelling: Spelling = spelling_of(vocabulary)
        self._tokenizer = tokenizer_of(vocabulary.model)
        inner = vocabulary.document["model"]
        unknown = inner.get("unk_token")
        self._unknown = inner.get("unk_id") if unknown is None else vocabulary.ids.get(unknown)

    def __call__(self, meaning: Meaning) -> tuple[int, ...]:
        """The ids of the pieces in their order; none where a part of the text has none."""
        try:
            text = meaning.value.decode("utf-8")
        except UnicodeDecodeError:
            return self._bytes(meaning.value)
        ids = [piece.id for part in self._parts(text) for piece in self._tokenizer.model.tokenize(part)]
        return () if self._unknown is not None and self._unknown in ids else tuple(ids)

    def _parts(self, text: str) -> list[str]:
        """The parts in which pieces are looked for: nothing is put before the text, or taken from it."""
        if self._spelling == "words":
            return [text.strip()]
        whole, cutter = spelt(text, self._spelling), self._tokenizer.pre_tokenizer
        if cutter is not None and self._spelling != "pieces":
            parts = [part for part, _ in cutter.pre_tokenize_str(text)]
            if "".join(parts) == whole:
                return parts
        return [whole]

    def _bytes(self, value: bytes) -> tuple[int, ...]:
        """The tokens of single bytes, of a part of a letter."""
        found = [self._find(Meaning("byte", bytes([byte]))) for byte in value]
        return tuple(self._ids[token] for token in found if token is not None) if all(found) else ()


def not_given_back(model: Model) -> list[str]:
    """The samples that the tokenizer of a model does not give back when it has cut them."""
    tokenizer = tokenizer_of(model)
    tokenizer.no_truncation()
    return [text for text in SAMPLES if _back(tokenizer, text).strip() != text.strip()]


def _back(tokenizer: Any, text: str) -> str:
    return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=True)
