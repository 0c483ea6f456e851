"""Weights besides those of the model: of the modules that a folder's other files name."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import PurePosixPath
from typing import Any

# sentence-transformers loads the folders that these list: poolings, dense layers, routes.
MODULES = ("modules.json", "router_config.json")
# Larger files are vocabularies, which name every word.
MAXIMUM_BYTES = 1 << 20
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")


def module_weights(
    weights: Collection[str], files: Collection[str], read: Callable[[str], bytes]
) -> frozenset[str]:
    """Those of the weight files not in use that belong to the modules of a sentence-transformers model.

    Parameters
    ----------
    weights : collection of str
        Weight files that are not in use, relative POSIX names.
    files : collection of str
        The other files.
    read : callable
        The bytes of one of these.

    Returns
    -------
    frozenset of str
        In each folder that is listed the safetensors files, or the others where there are none of these.
    """
    below = [name for name in weights if "/" in name]
    lists = [name for name in MODULES if name in files] if below else []
    named = {word for name in lists for word in strings(read(name))}
    found = set()
    for folder in {str(PurePosixPath(name).parent) for name in below}:
        if folder in named:
            here = [name for name in below if str(PurePosixPath(name).parent) == folder]
            found.update([name for name in here if name.endswith(".safetensors")] or here)
    return frozenset(found)


def naming(weights: Collection[str], files: Collection[str], read: Callable[[str], bytes]) -> dict[str, str]:
    """Weight files that a JSON file at the top names, by their own path or by that of a folder above.

    Takes what :func:`module_weights` does.

    Returns
    -------
    dict of str to str
        Weight file -> the file that names it.
    """
    found: dict[str, str] = {}
    tops = [
        name for name in files if "/" not in name and name.endswith(".json") and name not in _VOCABULARIES
    ]
    for top in tops if weights else ():
        named = set(strings(read(top)))
        for name in weights:
            path = PurePosixPath(name)
            if {str(path), *map(str, path.parents)} & named - {"."}:
                found.setdefault(name, top)
    return found


def strings(data: bytes) -> Iterator[str]:
    """Every key and every text of a JSON document, as a relative path; none of what is not JSON."""
    if len(data) > MAXIMUM_BYTES:
        return
    try:
        waiting: list[Any] = [json.loads(data)]
    except (ValueError, RecursionError):
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value.removeprefix("./").rstrip("/")
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value
