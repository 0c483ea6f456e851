"""Batch sizes that are found by trying: grown until memory is full, and the same for all arms.

The first arm finds them, before its first batch, and leaves them in the output folder: a size decides which
requests are answered together, and so the last digits of every score. Nothing that is asked meanwhile counts.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from taskvec.evaluation.record import write_whole
from taskvec.files import look

FIRST = 16
MOST = 1024


class Sizes:
    """Batch sizes by what is asked for; in a file where there is one.

    Parameters
    ----------
    path : Path, optional
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._found: dict[str, int] = {}

    def get(self, key: str) -> int | None:
        """The size that was found before, here or by another worker."""
        self._read()
        return self._found.get(key)

    def put(self, key: str, size: int) -> int:
        """Keep a size; the one that counts: another worker may have been first."""
        self._read()
        size = self._found.setdefault(key, size)
        if self._path is not None:
            write_whole(self._path, json.dumps(self._found))
        return size

    def _read(self) -> None:
        if self._path is None:
            return
        try:
            content = json.loads(self._path.read_text())
        except OSError as error:
            look.hold_absent(self._path, error)
            return
        except ValueError:
            return
        if isinstance(content, dict):
            self._found |= {key: size for key, size in content.items() if isinstance(size, int) and size > 0}


def grown(ask: Callable[[int], Any], is_full: Callable[[Exception], bool], most: int) -> int:
    """The largest of the sizes 16, 32, 64 … that fits; smaller ones where 16 does not.

    Parameters
    ----------
    ask : callable
        Answers a batch of a size, or raises.
    is_full : callable
        Whether an error says that memory does not suffice; others are raised.
    most : int
        No size above the first that reaches this is tried.

    Returns
    -------
    int
        1 where nothing fits: the batch itself then says so.
    """
    size, good = FIRST, 0
    while size >= 1:
        try:
            ask(size)
        except Exception as error:
            if not is_full(error):
                raise
            if good:
                break
            size //= 2
            continue
        good = size
        if good < FIRST or good >= min(most, MOST):
            break
        size *= 2
    return max(good, 1)


def trial(inner: Any, attribute: str, requests: Sequence[Any], size: int) -> list[Any]:
    """Requests of a size that need at least the memory of the longest batch, and little time.

    A generating request becomes one new token after a prompt of the length of prompt and answer together.
    """
    some = [requests[index % len(requests)] for index in range(size)]
    if attribute != "generate_until":
        return some
    return [_whole(inner, request) for request in some]


def _whole(inner: Any, request: Any) -> Any:
    prompt, arguments = request.args[:2]
    tokens = list(inner.tokenizer.encode(prompt)) or [0]
    length = min(len(tokens) + int(arguments.get("max_gen_toks", 0)), max(2, int(inner.max_length)) - 1)
    text = inner.tokenizer.decode((tokens * math.ceil(length / len(tokens)))[:length])
    changed = copy.copy(request)
    changed.arguments = (text, {**arguments, "max_gen_toks": 1})
    return changed
