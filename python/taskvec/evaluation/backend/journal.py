"""The journal of an unfinished arm: finished blocks of requests, from which a killed evaluation goes on.

lm-eval has a response cache of its own, which is not used: its keys do not name the model, and a run that
finds half of its requests cached batches the other half afresh, which changes results in the last digits and
now and then a sample. Here a line is one batch, of generated answers or of likelihoods. It is in the journal
whole, with each of its samples, or it is evaluated again as the same batch, so a resumed run ends in the
samples of an undisturbed one. With vLLM, whose batches follow from time in any run, each answer has a line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from taskvec.evaluation.record import write_whole, writing
from taskvec.files import look
from taskvec.files.flush import flush


class Journal:
    """An append-only file of finished blocks, one JSON line each with its own digest.

    Parameters
    ----------
    path : Path
        The file; it is made at the first block.
    identity : str
        Of the arm; a journal of another identity is begun again.
    hold : callable, optional
        Called before blocks are recorded; raises where they are not of this identity any more.
    """

    def __init__(self, path: Path, identity: str, hold: Callable[[], None] | None = None) -> None:
        self.path, self.identity, self._hold = path, identity, hold
        self._blocks: dict[str, list[Any]] = {}
        self._file: Any = None
        self.resumed = 0
        self._read()

    def get(self, key: str) -> list[Any] | None:
        """The responses of a block, or None if it is not finished."""
        found = self._blocks.get(key)
        self.resumed += found is not None
        return found

    def put(self, key: str, responses: list[Any]) -> None:
        """Record a block; it is on the disk when this returns."""
        self.put_all([(key, responses)])

    def put_all(self, blocks: Sequence[tuple[str, list[Any]]]) -> None:
        """Record blocks, each on a line of its own; they are on the disk when this returns."""
        if self._hold is not None:
            self._hold()
        file = self._file or self._begin()
        with writing(self.path):
            file.write(b"".join(_line(key, responses) for key, responses in blocks))
            file.flush()
            flush(file.fileno())

    def begin(self) -> None:
        """Write the file with its identity, before there is a block."""
        self._begin()

    def contents(self) -> list[list[Any]]:
        """The responses of every block, in the order of the file."""
        return list(self._blocks.values())

    @staticmethod
    def identity_of(path: Path) -> str | None:
        """The identity that a journal begins with; None if there is none, or it is cut short."""
        try:
            with path.open("rb") as file:
                found = _parsed(file.readline().rstrip(b"\n"))
        except OSError as error:
            look.hold_absent(path, error)
            return None
        return found[1] if found is not None and found[0] == "identity" else None

    def close(self) -> None:
        """Close the file and keep it."""
        file, self._file = self._file, None
        if file is not None:
            with writing(self.path):
                file.close()

    def remove(self) -> None:
        """The arm is recorded as a whole: the journal has done its work."""
        self.close()
        with writing(self.path):
            self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError as error:
            look.hold_absent(self.path, error)
            return
        if not lines or _parsed(lines[0]) != ("identity", self.identity):
            return
        for line in lines[1:]:
            found = _parsed(line)
            if found is None:  # a line cut short by the kill, and whatever might follow it
                break
            self._blocks[found[0]] = found[1]

    def _begin(self) -> Any:
        """Open for appending; a torn or foreign file is first replaced by its good blocks."""
        blocks = [_line(key, responses) for key, responses in self._blocks.items()]
        write_whole(self.path, b"".join([_line("identity", self.identity), *blocks]))
        with writing(self.path):
            self._file = self.path.open("ab")
        return self._file


def block_key(attribute: str, arguments: list[Any], repeat: int) -> str:
    """A digest of the requests of a block; `repeat` tells equal blocks of one run apart."""
    text = json.dumps([attribute, arguments, repeat], default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _line(key: str, content: Any) -> bytes:
    body = json.dumps([key, content], ensure_ascii=True)
    return f"{hashlib.blake2b(body.encode(), digest_size=8).hexdigest()} {body}\n".encode()


def _parsed(line: bytes) -> tuple[str, Any] | None:
    digest, _, body = line.partition(b" ")
    if not body or hashlib.blake2b(body, digest_size=8).hexdigest().encode() != digest:
        return None
    key, content = json.loads(body)
    return key, content
