"""The headers of safetensors files at an address, by ranges, several files at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from taskvec.models.model import Remote
from taskvec.resolve.threads import each

# Holds the header of a model of about a thousand tensors: one request for most shards.
FIRST_REQUEST = 128 << 10
MAXIMUM_HEADER = 100_000_000


def headers(remote: Remote, names: Sequence[str]) -> dict[str, bytes]:
    """The first bytes of each file, at least up to the end of its header if that has a possible length."""
    found = dict(each(partial(_header, remote), names))
    return {name: found[name] for name in names}


def _header(remote: Remote, name: str) -> bytes:
    size = remote.size(name)
    if size == 0:
        return b""
    (data,) = remote.read(name, [(0, min(size, FIRST_REQUEST))])
    end = 8 + int.from_bytes(data[:8], "little")
    if len(data) < end <= min(size, MAXIMUM_HEADER + 8):
        (rest,) = remote.read(name, [(len(data), end)])
        data += rest
    return data
