"""Tokenizers: row i of an embedding means the same token in every model, or the vector adds apples to
pears."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskvec.compat.findings import Finding, Level, finding
from taskvec.files.json import parse_object
from taskvec.files.lfs import is_pointer
from taskvec.models.tensor_names import is_vocabulary
from taskvec.text import roles

if TYPE_CHECKING:
    from taskvec.models.model import Model

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"
# What comes instead of tokenizer.json: can only be compared byte for byte.
_OPAQUE = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tekken.json")
_ADDED = "added_tokens.json"
# By these findings a row of the embedding may be another token, or a text other tokens.
_OF_TOKENS = (
    "tokenizer-vocabulary",
    "tokenizer-merges",
    "tokenizer-missing",
    "added-tokens",
    "added-tokens-extra",
)
_JOIN = (
    "join the vocabularies with `--tokenizer union` (in a recipe `tokenizer_source: union`), move a model to "
    "the other's tokenizer with `taskvec tokens`, or leave embedding and head out with `--preset no-embed`"
)
_PIPELINE = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_BOUNDS = ("bos_token", "eos_token")
_MINOR = (
    "pad_token",
    "unk_token",
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "clean_up_tokenization_spaces",
)


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of a checkpoint belongs to its tokenizer."""
    return name in (TOKENIZER, SETTINGS, SPECIAL, TEMPLATE, _ADDED, *_OPAQUE)


class _Tokenizer:
    """The parts of a tokenizer that are compared; ``raw`` are the bytes of its files."""

    def __init__(self, where: str, raw: Mapping[str, bytes]) -> None:
        self.where = where
        self.raw = raw
        self.parsed: dict[str, dict[str, Any]] = {}

    def json(self, name: str) -> dict[str, Any]:
        if name not in self.raw:
            return {}
        if name not in self.parsed:
            self.parsed[name] = parse_object(self.raw[name], f"{self.where}/{name}")
        return self.parsed[name]

    def setting(self, key: str) -> Any:
        for name in (SETTINGS, SPECIAL):
            value = self.json(name).get(key)
            if value is not None:
                return value.get("content") if isinstance(value, dict) else value
        return None

    @property
    def template(self) -> str | None:
        if TEMPLATE in self.raw:
            return self.raw[TEMPLATE].decode("utf-8", "replace").strip()
        template = self.json(SETTINGS).get("chat_template")
        return template.strip() if isinstance(template, str) else json.dumps(template) if template else None


def check_tokenizers(
    role: str,
    base: Model,
    others: Sequence[tuple[str, Model]],
    *,
    vocabulary_selected: bool = True,
    folder: str = "",
) -> list[Finding]:
    """Compare the tokenizers of `others` with the base's: at the top, or in a folder (with ``/`` behind).

    Where neither embedding nor head is selected, no row is combined, and errors are warnings.
    """
    # The text of a finding and its fix -> the roles it holds for.
    grouped: dict[Finding, list[str]] = {}
    own = _read(base, folder)
    takes_text = bool(own.raw) or _takes_text(base)
    for name, checkpoint in others:
        other = _read(checkpoint, folder)
        if not (takes_text or other.raw):
            continue
        for each in _compare(role, own, other):
            grouped.setdefault(each, []).append(name)
    findings = []
    for each, who in grouped.items():
        level: Level = "warning" if each.level == "error" and not vocabulary_selected else each.level
        subject = each.subject.replace("{who}", roles(who))
        findings.append(Finding(level, each.id, subject, each.expected, each.found, each.fix))
    return findings


def _takes_text(model: Model) -> bool:
    """Whether a model may have rows for tokens: by its tensors' names, or by what a config of it states."""
    return any(map(is_vocabulary, model.tensors)) or any(
        map(_states_vocabulary, (model.config, *model.configs.values()))
    )


def _states_vocabulary(config: object) -> bool:
    if not isinstance(config, dict):
        return False
    return any("vocab" in key or _states_vocabulary(value) for key, value in config.items())


def begin_token(model: Model) -> str | None:
    """The token that begins a text, where the tokenizer has one."""
    token = _read(model).setting("bos_token")
    return token if isinstance(token, str) else None


def vocabulary_difference(own: Model, other: Model) -> str | None:
    """Why the tokens of two models are not known to be the same with the same ids; ``None`` if they are."""
    mine, theirs = _read(own), _read(other)
    for each in _compare("base", mine, theirs):
        if each.id in _OF_TOKENS:
            return f"{each.subject.replace('{who}', f'`{other.spec}`')}: {each.found}"
    if TOKENIZER not in mine.raw and _apart(own, mine) != _apart(other, theirs):
        return f"added tokens of `{other.spec}`: others"
    return None


def setting_of(model: Model, key: str) -> Any:
    """A setting of a model's tokenizer, of a token its text; ``None`` where it has none."""
    return _read(model).setting(key)


def template_of(model: Model) -> str | None:
    """The chat template of a model."""
    return _read(model).template


def _apart(checkpoint: Model, tokenizer: _Tokenizer) -> tuple[Any, Any]:
    """Tokens that are added outside of the file of the vocabulary."""
    has_file = _ADDED in checkpoint.other_files
    added = parse_object(checkpoint.read_file(_ADDED), f"{checkpoint.spec}/{_ADDED}") if has_file else {}
    return added, tokenizer.json(SETTINGS).get("added_tokens_decoder")


def tokenizer_folders(checkpoint: Model) -> list[str]:
    """The folders that tokenizers lie in, each with ``/`` behind it: the top, unless no weights are there."""
    if not checkpoint.sub_models or "" in checkpoint.sub_models:
        return [""]
    files = (name.rpartition("/") for name in checkpoint.other_files)
    return sorted({f"{folder}/" for folder, slash, name in files if slash and is_tokenizer_file(name)})


def _read(checkpoint: Model, folder: str = "") -> _Tokenizer:
    raw = {}
    for name in (TOKENIZER, SETTINGS, SPECIAL, TEMPLATE, *_OPAQUE):
        if folder + name in checkpoint.other_files and not (name in _OPAQUE and TOKENIZER in raw):
            data = checkpoint.read_file(folder + name)
            if not is_pointer(data):
                raw[name] = data
    return _Tokenizer(checkpoint.spec, raw)


def _compare(role: str, own: _Tokenizer, other: _Tokenizer) -> Iterator[Finding]:
    if TOKENIZER in own.raw and TOKENIZER in other.raw:
        if own.raw[TOKENIZER] != other.raw[TOKENIZER]:
            yield from _compare_parsed(role, own.json(TOKENIZER), other.json(TOKENIZER))
    else:
        yield from _compare_opaque(role, own, other)
    yield from _compare_settings(role, own, other)


def _compare_opaque(role: str, own: _Tokenizer, other: _Tokenizer) -> Iterator[Finding]:
    shared = [name for name in _OPAQUE if name in own.raw and name in other.raw]
    for name in shared:
        if own.raw[name] != other.raw[name]:
            yield finding(
                "tokenizer-vocabulary",
                f"`{name}` of {{who}}",
                f"the {role}'s",
                "another file",
                "give models with one tokenizer, or leave embedding and head out with `--preset no-embed`",
            )
    if not shared:
        yield finding(
            "tokenizer-missing",
            f"tokenizer of {{who}} and {role}",
            "",
            "cannot be compared, as one of them has no tokenizer.json",
            "make sure that they share one vocabulary",
        )


def _compare_parsed(role: str, own: dict[str, Any], other: dict[str, Any]) -> Iterator[Finding]:
    mine, theirs = _part(own, "model"), _part(other, "model")
    kinds = (mine.get("type"), theirs.get("type"))
    vocabularies = _vocabulary(mine), _vocabulary(theirs)
    if vocabularies[0] != vocabularies[1]:
        yield finding(
            "tokenizer-vocabulary",
            "vocabulary of {who}",
            f"{len(vocabularies[0]):,} entries as in the {role}",
            f"{len(vocabularies[1]):,} entries, {_difference(*vocabularies)}",
            _JOIN,
        )
    merges = _merges(mine), _merges(theirs)
    if kinds[0] != kinds[1] or merges[0] != merges[1]:
        is_alike = kinds[0] == kinds[1] and len(merges[0]) == len(merges[1])
        yield finding(
            "tokenizer-merges",
            "merges of {who}",
            f"{len(merges[0]):,} of type {kinds[0]} as in the {role}",
            "others, or another order" if is_alike else f"{len(merges[1]):,} of type {kinds[1]}",
            "give models with one tokenizer, or move one to the other's with `taskvec tokens`",
        )
    yield from _compare_added(role, _added(own), _added(other), _JOIN)
    unlike = [key for key in _PIPELINE if own.get(key) != other.get(key)]
    if unlike:
        names = ", ".join(f"`{key}`" for key in unlike)
        yield finding(
            "tokenizer-pipeline", "tokenizer of {who}", "", f"differs in {names}", "the target's is kept"
        )


def _part(tokenizer: dict[str, Any], key: str) -> dict[str, Any]:
    value = tokenizer.get(key)
    return value if isinstance(value, dict) else {}


def _vocabulary(model: dict[str, Any]) -> dict[str, Any]:
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        return vocabulary
    if isinstance(vocabulary, list):  # Unigram: a list of [piece, score]
        return {
            str(entry[0] if isinstance(entry, list) and entry else entry): i
            for i, entry in enumerate(vocabulary)
        }
    return {}


def _merges(model: dict[str, Any]) -> list[str]:
    """Merges as ``a b``; newer files write pairs."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        return []
    return [" ".join(map(str, each)) if isinstance(each, list) else str(each) for each in merges]


def _difference(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    lacking = [token for token in mine if token not in theirs]
    beyond = [token for token in theirs if token not in mine]
    moved = [token for token, id in mine.items() if token in theirs and theirs[token] != id]  # noqa: A001
    parts = []
    if moved:
        token = moved[0]
        parts.append(f"{len(moved):,} with another id, {token!r} {theirs[token]} for {mine[token]}")
    if lacking:
        parts.append(f"{len(lacking):,} lacking, {lacking[0]!r} first")
    if beyond:
        parts.append(f"{len(beyond):,} more, {beyond[0]!r} first")
    return "; ".join(parts)


def _added(tokenizer: dict[str, Any]) -> dict[Any, str]:
    entries = tokenizer.get("added_tokens")
    if not isinstance(entries, list):
        return {}
    return {entry.get("id"): str(entry.get("content")) for entry in entries if isinstance(entry, dict)}


def _compare_added(role: str, mine: dict[Any, str], theirs: dict[Any, str], fix: str) -> Iterator[Finding]:
    clashes = [id for id in mine if id in theirs and mine[id] != theirs[id]]  # noqa: A001
    if clashes:
        first = clashes[0]
        more = f" (and {len(clashes) - 1:,} more)" if len(clashes) > 1 else ""
        yield finding(
            "added-tokens",
            f"added token {first} of {{who}}{more}",
            f"{mine[first]!r} as in the {role}",
            repr(theirs[first]),
            fix,
        )
    beyond = [theirs[id] for id in theirs if id not in mine]  # noqa: A001
    lacking = [mine[id] for id in mine if id not in theirs]  # noqa: A001
    for tokens, word in ((beyond, f"that the {role} does not have"), (lacking, f"of the {role} are lacking")):
        if tokens:
            yield finding(
                "added-tokens-extra",
                "added tokens of {who}",
                "",
                f"{len(tokens):,} {word}, {tokens[0]!r} first",
                "their rows may be untrained in the other model",
            )


def _compare_settings(role: str, own: _Tokenizer, other: _Tokenizer) -> Iterator[Finding]:
    has_both = all(SETTINGS in each.raw or SPECIAL in each.raw for each in (own, other))
    if has_both:
        for key in _BOUNDS:
            mine, theirs = own.setting(key), other.setting(key)
            if mine != theirs and (mine or theirs):
                yield finding(
                    "special-tokens",
                    f"`{key}` of {{who}}",
                    f"{mine!r} as in the {role}",
                    repr(theirs),
                    "the target's is kept; a donor trained to stop at another token may not stop",
                )
        unlike = [key for key in _MINOR if own.setting(key) != other.setting(key)]
        if unlike:
            names = ", ".join(f"`{key}`" for key in unlike)
            yield finding("tokenizer-settings", "tokenizer_config.json of {who}", "", f"differs in {names}")
    if own.template != other.template and (has_both or (own.template and other.template)):
        what = "another template" if other.template else "no template"
        yield finding(
            "chat-template", "chat template of {who}", f"the {role}'s", what, "the target's is kept"
        )
