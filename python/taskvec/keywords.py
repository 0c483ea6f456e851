"""The options that a hint names, as the keyword arguments of a call from Python.

Hints are written once, in the words of the command line (``--overwrite``, ```--out-dtype float32```).
What a traceback shows is the same in the words of Python (``overwrite=True``, ``out_dtype="float32"``).
Commands of a shell (```taskvec check A B --force ID```) stay as they are: they can be run.
"""

from __future__ import annotations

import re

# Options that may stand without a value.
SWITCHES = frozenset(
    {
        "chat-template", "confirm-run-unsafe-code", "overwrite", "paper", "public", "rehash", "strict",
        "stream", "think",
    }
)  # fmt: skip
# Options that are called otherwise in Python.
NAMES = {
    "as": "kind", "dir": "directory", "from": "first", "lora": "rank", "metric": "metrics", "rival": "rivals",
    "set": "overrides", "to": "last", "with": "others",
}  # fmt: skip
# Options whose values are lists in Python, and those whose values are mappings there.
LISTS = frozenset({"exclude", "force", "include", "set", "tasks"})
MAPPINGS = {"model-arg": "model_args", "metric": "metrics"}

_SPAN = re.compile(r"`([^`]*)`|(?<![\w-])--([a-z][a-z-]*)(?![\w-])")
_OPTION = re.compile(r"--([a-z][a-z-]*)(?:[= ]([^\s-][^\s]*))?(?=\s|$)")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def in_python(text: str) -> str:
    """A hint with keyword arguments in place of options.

    Parameters
    ----------
    text : str
        Where an option has a value, both stand between backticks.
    """
    return _SPAN.sub(_replaced, text) if "--" in text else text


def _replaced(found: re.Match[str]) -> str:
    span, bare = found.groups()
    if bare is not None:
        return f"`{_keyword(bare, None)}`"
    if not span.startswith("--"):  # a command, a name, a path
        return found[0]
    given: dict[str, list[str | None]] = {}
    for option in _OPTION.finditer(span):
        given.setdefault(option[1], []).append(option[2])
    if not given or _OPTION.sub("", span).strip():  # more than options and their values
        return found[0]
    return "`" + ", ".join(_argument(name, values) for name, values in given.items()) + "`"


def _argument(option: str, values: list[str | None]) -> str:
    """An option that is given once or several times."""
    several = [value for value in values if value is not None]
    if not several:
        return _keyword(option, None)
    if option in LISTS:
        items = [item for value in several for item in value.split(",")]
        return f"{NAMES.get(option, option).replace('-', '_')}=[{', '.join(map(_literal, items))}]"
    return ", ".join(_keyword(option, value) for value in several)


def _keyword(option: str, value: str | None) -> str:
    name = NAMES.get(option, option).replace("-", "_")
    if option == "storage-option":  # set around a call: `with taskvec.storage({...}):`
        return f"taskvec.storage({_mapping(value)})" if value else "taskvec.storage"
    if option in MAPPINGS and value and "=" in value:
        return f"{MAPPINGS[option]}={_mapping(value)}"
    if option in MAPPINGS:
        return MAPPINGS[option]
    if value is not None:
        return f"{name}={_literal(value)}"
    if option.startswith("no-"):
        return f"{name.removeprefix('no_')}=False"
    return f"{name}=True" if option in SWITCHES else name


def _mapping(value: str) -> str:
    key, _, item = value.partition("=")
    return f"{{{_literal(key)}: {_literal(item)}}}"


def _literal(value: str) -> str:
    if _NUMBER.fullmatch(value) or value in ("...", "…"):
        return value
    return value.title() if value in ("true", "false") else f'"{value}"'
