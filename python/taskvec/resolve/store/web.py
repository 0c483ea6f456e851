"""The files of a model on a web server, which lists none: those of usual names, and those that they name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from taskvec.errors import FormatError
from taskvec.files.folder import INDEX, SINGLE, is_inside
from taskvec.files.json import parse_object
from taskvec.files.modules import MODULES
from taskvec.files.names import CARD, CONFIG, MANIFEST, listed_file
from taskvec.models.adapter import FILES as ADAPTER_FILES
from taskvec.models.saved_vector import COMPARED

State = TypeVar("State")

USUAL = tuple(
    dict.fromkeys(
        (
            *(CONFIG, INDEX, SINGLE, MANIFEST, CARD, *ADAPTER_FILES, *COMPARED, *MODULES),
            *("generation_config.json", "added_tokens.json", "chat_template.json", "LICENSE"),
            *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
            *("quantize_config.json", "hf_quant_config.json", "params.json", "sentencepiece.bpe.model"),
        )
    )
)


def web_files(
    look: Callable[[Iterable[str]], Mapping[str, State]], read: Callable[[str], bytes]
) -> dict[str, State]:
    """The states of the files that are there.

    Parameters
    ----------
    look : callable
        The states of those of some names that are there.
    read : callable
        The bytes of a small file.
    """
    found = dict(look(USUAL))
    named: list[Any] = []
    if INDEX in found:
        weight_map = _parsed(read, INDEX).get("weight_map")
        named += weight_map.values() if isinstance(weight_map, dict) else ()
    if MANIFEST in found:
        files = _parsed(read, MANIFEST).get("files")
        named += (
            [row.get("name") for row in files if isinstance(row, dict)] if isinstance(files, list) else ()
        )
    names = {listed_file(name) for name in named if isinstance(name, str)}
    wanted = {name for name in names if is_inside(name)}
    found |= look(sorted(wanted - {*USUAL}))
    return found


def _parsed(read: Callable[[str], bytes], name: str) -> Mapping[str, Any]:
    """The object in a file; a damaged one names no files, and is judged where it is opened."""
    try:
        return parse_object(read(name), name)
    except FormatError:
        return {}
