"""The licences of the models of an output, as their cards say them, and what follows for its own card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskvec.errors import Error
from taskvec.files.names import CARD
from taskvec.regex import regex

if TYPE_CHECKING:
    from taskvec.models.adapter import Adapter
    from taskvec.models.model import Model
    from taskvec.models.saved_vector import SavedVector

# A card's header is a few kilobytes.
_MAXIMUM = 256 << 10
# A licence of the hub's list, in a line of its own. Words that YAML reads as something else are left to it.
_PLAIN = regex(r"license: (?!(?:true|false|yes|no|on|off|null|none)\b)[a-z][a-z0-9.+-]*")
_KEYS = ("license", "license_name", "license_link")


def licence_of(source: Model | SavedVector | Adapter) -> dict[str, str]:
    """The members of a model's card that say its licence; empty where none says one.

    Returns
    -------
    dict
        ``license`` as the hub writes it (``apache-2.0``, or ``other`` with ``license_name`` and
        ``license_link``).

    Raises
    ------
    Error
        The card of a local model cannot be read.
    """
    if CARD not in getattr(source, "other_files", ()):
        return {}
    try:
        data = source.read_file(CARD)  # type: ignore[union-attr]
    except Error:
        if getattr(source, "remote", None) is None:
            raise  # a card that cannot be read is not a card that states none
        return {}  # a cache without the network may have all but the card
    head = header(data[:_MAXIMUM].decode("utf-8", "replace"))
    found = {key: head[key] for key in _KEYS if isinstance(head.get(key), str)}
    return found if "license" in found else {}


def header(text: str) -> dict[str, Any]:
    """The YAML front matter of a card; empty where there is none, or it cannot be read."""
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in (line.strip() for line in lines[1:]):
        return {}
    end = next(number for number, line in enumerate(lines[1:], 1) if line.strip() == "---")
    said = [line for line in lines[1:end] if "license" in line]
    if len(said) == 1 and _PLAIN.fullmatch(said[0]):
        return {"license": said[0].split()[1]}  # as nearly all cards have it, without an import of 0.02 s
    import yaml

    try:
        found = yaml.safe_load("\n".join(lines[1:end]))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def licence_lines(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a card's header on its licence.

    One that all models have is the output's; of different ones it is ``other``, which the card lists. Where
    a model does not say its own, none is stated.
    """
    found = [source.get("license") for source in sources]
    if not found or not all(found):
        return []
    # JSON strings are YAML strings, whatever they hold.
    if all(each == found[0] for each in found):
        return [f"{key}: {json.dumps(value)}" for key, value in found[0].items()]  # type: ignore[union-attr]
    names = list(dict.fromkeys(words(each) for each in found if each))
    return ['license: "other"', f"license_name: {json.dumps(' and '.join(names))}"]


def words(licence: Mapping[str, str] | None) -> str:
    """A licence in a table."""
    if not licence:
        return "not stated"
    return licence.get("license_name") or licence["license"]
