"""The headers of safetensors files at an address, by ranges, several files at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from taskvec.models.model import Remote

# Holds the header of a model of about a thousand tensors: one request for most shards.
FIRST_REQUEST = 128 << 10
MAXIMUM_HEADER = 100_000_000
THREADS = 8


def headers(remote: Remote, names: Sequence[str]) -> dict[str, bytes]:
    """The first bytes of each file, at least up to the end of its header if that has a possible length."""
    waiting, results = list(names), dict[str, bytes]()
    finished: queue.SimpleQueue[tuple[str, bytes | Exception]] = queue.SimpleQueue()

    def work() -> None:
        while waiting:
            try:
                name = waiting.pop()
            except IndexError:
                return
            try:
                finished.put((name, _header(remote, name)))
            except Exception as error:
                finished.put((name, error))

    _start(work, min(THREADS, len(names)))
    for _ in names:
        name, found = finished.get()
        if isinstance(found, Exception):
            waiting.clear()
            raise found
        results[name] = found
    return {name: results[name] for name in names}


def _start(work: Callable[[], None], threads: int) -> None:
    """Run `work` on so many threads, or on as many as start; here, where none does.

    They are daemons, where a pool's threads would be waited for: a stalled server must not hold up Ctrl-C.
    """
    for number in range(threads):
        try:
            threading.Thread(target=work, daemon=True).start()
        except RuntimeError:  # the system has no more
            if number == 0:
                work()
            return


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
