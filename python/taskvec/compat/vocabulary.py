"""Vocabularies: the tokens of a model with their ids, and one vocabulary of several models' tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskvec.compat.tokenizer import SETTINGS, TOKENIZER
from taskvec.errors import FormatError, RecipeError
from taskvec.files.json import parse_object
from taskvec.files.lfs import is_pointer
from taskvec.text import shown

if TYPE_CHECKING:
    from taskvec.models.model import Model

# What has to be equal for the pieces of two tokenizers to be cut from the same form of a text.
_PIPELINE = ("normalizer", "pre_tokenizer", "decoder")
# Nobody has as many; an id beyond is a typo, and rows up to it would fill the memory.
MAXIMUM_TOKENS = 1 << 24
# In lists of pieces with scores, the place of a token that is found before the pieces are.
_NEVER = -1e9


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer file and the ids of its tokens.

    Attributes
    ----------
    model : Model
    document : mapping
        Its ``tokenizer.json``.
    ids : mapping of str to int
        Added tokens and all others.
    """

    model: Model
    document: Mapping[str, Any]
    ids: Mapping[str, int]


def vocabulary_of(model: Model) -> Vocabulary | None:
    """The vocabulary of a model; ``None`` where it has no ``tokenizer.json``.

    Raises
    ------
    FormatError
        The file is damaged.
    """
    if TOKENIZER not in model.other_files:
        return None
    data = model.read_file(TOKENIZER)
    if is_pointer(data):
        return None
    document = parse_object(data, f"{model.spec}/{TOKENIZER}")
    ids = {**_pieces(model, document), **{entry["content"]: entry["id"] for entry in _added(model, document)}}
    return Vocabulary(model, document, ids)


def vocabulary_needed(model: Model) -> Vocabulary:
    """The vocabulary of a model.

    Raises
    ------
    RecipeError
        It has no ``tokenizer.json``.
    FormatError
        The file is damaged.
    """
    found = vocabulary_of(model)
    if found is None:
        raise RecipeError(*vocabulary_lacking(model))
    return found


def vocabulary_lacking(model: Model) -> tuple[str, str]:
    """What is wrong with a model that has no ``tokenizer.json``, and the way out."""
    if model.sub_models and "" not in model.sub_models:
        return (
            f"`{model.spec}` has models in sub-folders, each with its own tokens, so it has no vocabulary",
            "leave out the choice of a tokenizer, or name the sub-folder that has the text model",
        )
    return (
        f"`{model.spec}` has no `{TOKENIZER}`, so its tokens are not known",
        "load its tokenizer with transformers and save it, which writes that file",
    )


def _damaged(model: Model, what: str) -> FormatError:
    return FormatError(
        f"`{TOKENIZER}` of `{model.spec}` {what}", "save the tokenizer again with transformers"
    )


def _pieces(model: Model, document: Mapping[str, Any]) -> dict[str, int]:
    inner = document.get("model")
    pieces = inner.get("vocab") if isinstance(inner, dict) else None
    if isinstance(pieces, list):
        found = {each[0]: number for number, each in enumerate(pieces) if _is_piece(each)}
        if len(found) == len(pieces):
            return found
    elif isinstance(pieces, dict) and all(_is_id(number) for number in pieces.values()):
        return pieces
    raise _damaged(model, "has no vocabulary of tokens with their ids")


def _added(model: Model, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = document.get("added_tokens")
    if entries is None:
        return []
    is_list = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    if not is_list or not all(
        _is_id(entry.get("id")) and isinstance(entry.get("content"), str) for entry in entries
    ):
        raise _damaged(model, "has added tokens without text or id")
    return entries


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAXIMUM_TOKENS


def _is_piece(value: Any) -> bool:
    """Whether it is a piece with its score."""
    return isinstance(value, list) and [type(each) for each in value] in ([str, float], [str, int])


def _merges(model: Model, document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs that a tokenizer of kind BPE joins, in order; older files write them as ``a b``."""
    merges = document["model"].get("merges") or []
    found = [
        tuple(each.split(" ", 1) if isinstance(each, str) else each) for each in merges if _is_pair(each)
    ]
    if not isinstance(merges, list) or len(found) != len(merges):
        raise _damaged(model, "has merges that are not pairs of pieces")
    return found  # type: ignore[return-value]


def _is_pair(value: Any) -> bool:
    if isinstance(value, str):
        return " " in value
    return isinstance(value, list) and [type(each) for each in value] == [str, str]


@dataclass(frozen=True, slots=True)
class Union:
    """The vocabulary of all models together.

    Attributes
    ----------
    ids : mapping of str to int
        The first model's tokens have its ids; those of the others follow, model by model.
    files : mapping of str to bytes
        The tokenizer files that differ from the first model's.
    unreachable : mapping of str to int
        How many of a model's tokens no text is cut into, because it prepares texts in another way.
    """

    ids: Mapping[str, int]
    files: Mapping[str, bytes]
    unreachable: Mapping[str, int]


def united(base: Vocabulary, others: Sequence[Vocabulary]) -> Union:
    """One vocabulary of the tokens of all.

    Pieces of the others are added behind the base's, and the merges that make them behind its merges; added
    tokens stay added tokens. Texts are prepared as the base does it.

    Raises
    ------
    FormatError
        Tokenizers of different kinds (BPE, Unigram ...).
    """
    document = json.loads(json.dumps(base.document))
    ids, inner, unreachable = dict(base.ids), document["model"], {}
    added = document.setdefault("added_tokens", None) or []
    document["added_tokens"] = added
    known, new = {entry["content"] for entry in added}, []
    following = max(ids.values(), default=-1) + 1
    scores: dict[str, float] = {}
    for other in others:
        _check_kind(base, other)
        theirs = other.document["model"]
        before = following
        for token in sorted(other.ids, key=other.ids.__getitem__):
            if token not in ids:
                ids[token], following = following, following + 1
        for entry in _added(other.model, other.document):
            if entry["content"] not in known:
                known.add(entry["content"])
                new.append({**entry, "id": ids[entry["content"]]})
        if isinstance(theirs["vocab"], list):
            scores |= {piece: score for piece, score in theirs["vocab"] if piece not in scores}
        lacking = {token for token, number in ids.items() if number >= before and token not in known}
        if all(base.document.get(key) == other.document.get(key) for key in _PIPELINE):
            if inner.get("type") == "BPE":
                made = [pair for pair in _merges(other.model, other.document) if "".join(pair) in lacking]
                _add_merges(inner, made, _merges(base.model, base.document))
        elif lacking:
            unreachable[other.model.spec] = len(lacking)
    if following == max(base.ids.values(), default=-1) + 1 and not new:
        return Union(ids, {}, unreachable)
    added += new
    inner["vocab"] = _joined(inner["vocab"], ids, scores)
    files = {TOKENIZER: json.dumps(document, indent=2, ensure_ascii=False).encode()}
    if new and SETTINGS in base.model.other_files:
        files |= _settings(base.model, new)
    return Union(ids, files, unreachable)


def _check_kind(base: Vocabulary, other: Vocabulary) -> None:
    kinds = [each.document["model"].get("type") for each in (base, other)]
    if kinds[0] != kinds[1] or type(base.document["model"]["vocab"]) is not type(
        other.document["model"]["vocab"]
    ):
        raise FormatError(
            f"the tokenizers of `{base.model.spec}` ({shown(str(kinds[0]))}) and `{other.model.spec}` "
            f"({shown(str(kinds[1]))}) are of different kinds and have no union",
            "take one of them: `tokenizer_source: base`, or one of the models",
        )


def _joined(pieces: Any, ids: Mapping[str, int], scores: Mapping[str, float]) -> Any:
    """The pieces of a tokenizer with all tokens among them, so that each keeps its id."""
    if isinstance(pieces, dict):
        return dict(sorted(ids.items(), key=lambda item: item[1]))
    by_id = {number: token for token, number in ids.items()}
    more = range(len(pieces), max(by_id, default=-1) + 1)
    # Ids that nothing has are taken by names that no text contains.
    return [*pieces, *([by_id.get(i, f"\0{i}"), scores.get(by_id.get(i, ""), _NEVER)] for i in more)]


def _add_merges(
    inner: dict[str, Any], made: Sequence[tuple[str, str]], own: Sequence[tuple[str, str]]
) -> None:
    """Add merges behind a tokenizer's own, in the form that these have."""
    stored = inner.get("merges") or []
    as_text = bool(stored) and isinstance(stored[0], str)
    known = set(own)
    new = [pair for pair in made if pair not in known]
    known.update(new)
    inner["merges"] = [*stored, *(" ".join(pair) if as_text else list(pair) for pair in new)]


def _settings(model: Model, new: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The tokenizer's settings with added tokens, where they list those."""
    settings = parse_object(model.read_file(SETTINGS), f"{model.spec}/{SETTINGS}")
    listed = settings.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return {}
    for entry in new:
        listed[str(entry["id"])] = {key: value for key, value in entry.items() if key != "id"}
    return {SETTINGS: json.dumps(settings, indent=2, ensure_ascii=False).encode()}
