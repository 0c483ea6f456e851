"""The seal of a manifest: its last member, the BLAKE3 digest of the bytes before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from taskvec._core import blake3_hex
from taskvec.files.manifest_schema import schema

SEAL = "seal"
Sealed = Literal["sealed", "not-sealed", "broken"]

_BEFORE = b',\n  "seal": "'
_BEHIND = b'"\n}\n'


def sealed(data: bytes) -> bytes:
    """The bytes of a manifest with its seal; one that it has already is made again.

    Parameters
    ----------
    data : bytes
        A JSON object over several lines, which ends in a line with its closing brace.
    """
    body = _parted(data)[0] if state_of(data) != "not-sealed" else data.rstrip().removesuffix(b"}").rstrip()
    return body + _BEFORE + blake3_hex(body).encode() + _BEHIND


def state_of(data: bytes) -> Sealed:
    """Whether the bytes of a manifest are those that were sealed; older manifests have no seal."""
    body, found, digest = _parted(data)
    if not found:
        return "broken" if b'"seal"' in data[-128:] else "not-sealed"
    return "sealed" if digest == blake3_hex(body).encode() + _BEHIND else "broken"


def seal_of(data: bytes, manifest: Mapping[str, Any]) -> Sealed:
    """The state of the seal of a manifest that has been read from these bytes.

    A member that no manifest has may be what a damaged seal is called now.
    """
    state = state_of(data)
    is_known = set(manifest) <= set(schema()["properties"])
    return state if is_known or state == "broken" else "broken"


def worst(states: Iterable[Sealed]) -> Sealed:
    """What several manifests are as one."""
    found = set(states)
    if "broken" in found:
        return "broken"
    return "not-sealed" if "not-sealed" in found else "sealed"


def _parted(data: bytes) -> tuple[bytes, bytes, bytes]:
    return data.rpartition(_BEFORE)
