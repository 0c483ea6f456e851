"""The files of an output whose vocabulary is not its base's: tokenizer, config.json, generation settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from taskvec.compat.config_keys import INNER
from taskvec.compat.tokenizer import SETTINGS, SPECIAL, TEMPLATE, TOKENIZER, is_tokenizer_file
from taskvec.files.json import parse_object
from taskvec.models.model import Model
from taskvec.plan.vocabulary import Tokens
from taskvec.regex import regex

GENERATION = "generation_config.json"
_TOKEN_ID = regex(r"(?:^|_)token_(?:id|ids|index)$")


def config_changes(tokens: Tokens, config_from: Model, rows: int) -> dict[str, Any]:
    """The keys of config.json that a vocabulary changes: its size, and the ids of single tokens."""
    config = config_from.config
    changes: dict[str, Any] = {}
    for prefix, inner in (("", config), *((f"{key}.", config.get(key)) for key in INNER)):
        if isinstance(inner, dict) and isinstance(inner.get("vocab_size"), int):
            changes[f"{prefix}vocab_size"] = rows
    source = _of(tokens)
    for path, value in _token_ids(config):
        theirs = _at(source.config, path) if source is not None else None
        new = _id(tokens, config_from, path[-1], value, theirs)
        if new != value:
            changes[".".join(path)] = new
    return changes


def files_of(tokens: Tokens, config_from: Model) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The files that a vocabulary changes, and those of the base that would speak of another one."""
    files = dict(tokens.files)
    source = _of(tokens)
    if source is not None and source is not config_from:
        files = {name: source.read_file(name) for name in source.other_files if is_tokenizer_file(name)}
        left = [name for name in config_from.other_files if is_tokenizer_file(name) and name not in files]
    else:
        kept = {TOKENIZER, SETTINGS, SPECIAL, TEMPLATE}
        left = [name for name in config_from.other_files if is_tokenizer_file(name) and name not in kept]
        left = left if files else []
    if GENERATION in config_from.other_files and source is not None and source is not config_from:
        settings = parse_object(config_from.read_file(GENERATION), f"{config_from.spec}/{GENERATION}")
        theirs = (
            parse_object(source.read_file(GENERATION), f"{source.spec}/{GENERATION}")
            if GENERATION in source.other_files
            else {}
        )
        for path, value in _token_ids(settings):
            _set(settings, path, _id(tokens, config_from, path[-1], value, _at(theirs, path)))
        files[GENERATION] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    return files, tuple(left)


def _of(tokens: Tokens) -> Model | None:
    return tokens.models[tokens.chosen].model if tokens.chosen is not None else None


def _token_ids(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            is_id = isinstance(each, int) and not isinstance(each, bool)
            is_ids = isinstance(each, list) and each and all(type(number) is int for number in each)
            if _TOKEN_ID.search(key) and (is_id or is_ids):
                yield (*path, key), each
            elif isinstance(each, dict) and "." not in key:
                yield from _token_ids(each, (*path, key))


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _set(value: dict[str, Any], path: Sequence[str], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def _id(tokens: Tokens, config_from: Model, key: str, value: Any, theirs: Any) -> Any:
    """The ids of the same tokens in the output: as the chosen model has them, by text, or by role."""
    if theirs is not None:
        return theirs
    own = next(each for each in tokens.models.values() if each.model is config_from).ids
    texts = {number: token for token, number in own.items()}
    ids = [
        tokens.ids.get(texts.get(number, "")) for number in (value if isinstance(value, list) else [value])
    ]
    role = tokens.roles.get(key.partition("_token_")[0])
    if isinstance(value, list):
        known = [each for each in ids if each is not None]
        return known or (None if role is None else [role])
    return role if ids[0] is None else ids[0]
