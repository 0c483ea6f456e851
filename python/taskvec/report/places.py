"""What a card shows of a run: without the paths of the machine that it was made on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from taskvec.regex import regex

# A path from the root or from a home folder, or one of Windows.
_PATH = regex(r"(?<![\w.:/\\~<-])(?:~?/|[A-Za-z]:[\\/]|\\\\)(?:[^\s`'\"/\\,;)]+[/\\])*[^\s`'\"/\\,;)]+[/\\]?")
_ROOTS = ("/", "~", "\\")


def placeless(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of an output, with names in the place of paths; for its card."""
    recipe, sources = facts["recipe"], facts["sources"]
    named = [part for text in _texts(recipe) for part in text.split("+")]
    names = names_of([*(source["model"] for source in sources), *named])
    return {
        **facts,
        "recipe": _renamed(recipe, names),
        "sources": [{**source, "model": _known(source["model"], names)} for source in sources],
        "findings": [
            {key: without_places(text, names) for key, text in each.items()} for each in facts["findings"]
        ],
    }


def without_places(text: str, names: Mapping[str, str]) -> str:
    """A text with every path as the last of its parts; those of ``names`` as these say."""
    return str(_PATH.sub(_last, _known(text, names)))


def names_of(models: Iterable[str]) -> dict[str, str]:
    """The names that paths of models get: so many of their last parts that no two are alike."""
    paths = [model for model in dict.fromkeys(models) if is_place(model)]
    parts = {path: path.replace("\\", "/").rstrip("/").split("/") for path in paths}
    named: dict[str, str] = {}
    for path, own in parts.items():
        count = 1
        while count < len(own) - 1 and any(
            other[-count:] == own[-count:] for each, other in parts.items() if each != path
        ):
            count += 1
        named[path] = "/".join(own[-count:]) or path
    return named


def is_place(model: str) -> bool:
    """Whether a model is named by a path from the root, or from a home folder."""
    return model.startswith(_ROOTS) or model[1:3] in (":\\", ":/")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Plain data in which paths have their names; all else, such as patterns of tensors, is as it was."""
    if isinstance(value, str):
        return _known(value, names)
    if isinstance(value, Mapping):
        return {key: _renamed(each, names) for key, each in value.items()}
    return [_renamed(each, names) for each in value] if isinstance(value, list | tuple) else value


def _known(text: str, names: Mapping[str, str]) -> str:
    for path in sorted(names, key=len, reverse=True):
        text = text.replace(path, names[path])
    return text


def _last(found: Any) -> str:
    words = found[0].rstrip("/\\").replace("\\", "/")
    return words.rpartition("/")[2] or found[0]
