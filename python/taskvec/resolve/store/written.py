"""What an output at an address remembers of itself: the store's own checksums of its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from taskvec.files.names import STATE
from taskvec.models.model import Place

RUN = f"{STATE}/run.json"
DONE = f"{STATE}/done"
# Below it are the pieces of a vector that parts extract.
PIECES = f"{STATE}/pieces"
WRITTEN = f"{STATE}/written.json"


def is_state(name: str) -> bool:
    """Whether a file belongs to the state of a run, at the address or in the folder of an output."""
    return STATE in name.split("/")[:2]


def write_tags(place: Place, below: str, tags: Mapping[str, str | None]) -> None:
    """Note the tags of the files of an output; ``below`` is its folder with a slash, or empty."""
    place.put(below + WRITTEN, json.dumps({"tags": dict(tags)}).encode())


def read_tags(get: Callable[[str], bytes | None], below: str) -> dict[str, str]:
    """Those that were noted, by what reads a small file; none where there are none that can be read."""
    try:
        tags = json.loads(get(below + WRITTEN) or b"{}")["tags"]
        return {str(name): tag for name, tag in tags.items() if isinstance(tag, str)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def run_outputs(data: bytes | None) -> list[str]:
    """The folders of the outputs of an unfinished run, as it has noted them."""
    try:
        return [str(name) for name in json.loads((data or b"").partition(b"\n")[0])["outputs"]]
    except (ValueError, KeyError, TypeError):
        return []
