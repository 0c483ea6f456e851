"""Files written to an object store: in equal parts, compared with what was sent, or only where none is.

A file is one upload in parts, which the store puts under its name when all have come: it is there whole, or
not at all. The tag that most stores give a file is a digest of its bytes, which is known here before: so what
has arrived is compared without reading it.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from taskvec.errors import Error, HubError, OutputError, RecipeError
from taskvec.host import cores
from taskvec.models.model import Stored
from taskvec.regex import regex
from taskvec.resolve import storage
from taskvec.resolve.store.address import Address, parse
from taskvec.resolve.store.client import connect
from taskvec.resolve.store.errors import explained
from taskvec.resolve.store.listing import State, path_of
from taskvec.resolve.threads import each

# A store takes ten thousand parts of a file at most, each of 5 MiB or more; all but the last are equal.
PART = 16 << 20
MOST_PARTS = 9000
# Parts of one file on their way at a time, of two files: 128 MiB of memory on a machine of few cores.
AT_ONCE = min(max(4, cores()), 16)
_STEP = 1 << 20
_TAG = regex(r'"[0-9a-f]{32}(-\d+)?"')
_PLAIN = regex(r'"[0-9a-f]{32}"')
_md5 = partial(hashlib.md5, usedforsecurity=False)


def part_size(size: int) -> int:
    """The bytes of each part of a file of so many bytes, but for the last one."""
    return max(PART, -(-size // MOST_PARTS))


@dataclass(frozen=True, slots=True)
class StorePlace:
    """A prefix of an object store, a ``Place``.

    Attributes
    ----------
    where : Address
    client : object
        obstore's.
    foreign_tags : list of str
        ETags that are not a digest of their file, though they look so: then none here is.
    reading : Lock
        Of the thread that reads a file to find that out.
    """

    where: Address
    client: Any = field(repr=False)
    foreign_tags: list[str] = field(default_factory=list, repr=False)
    reading: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def address(self) -> str:
        """As it is shown."""
        return str(self.where)

    def list(self, below: str = "") -> Mapping[str, Stored]:
        """Every file by its name, or those in a folder."""
        start = len(self.where.path) + 1 if self.where.path else 0
        prefix = self._path(below) if below else self.where.path or None
        found: dict[str, Stored] = {}
        with explained(self.where):
            for batch in self.client.list(prefix=prefix):
                found |= {
                    name: _stored(meta)
                    for meta in batch
                    if (name := meta["path"][start:]) and name[-1] != "/"
                }
        return found

    def head(self, name: str) -> Stored | None:
        """One file; ``None`` where there is none."""
        with explained(self.where, name):
            try:
                return _stored(self.client.head(self._path(name)))
            except FileNotFoundError:
                return None

    def get(self, name: str) -> bytes | None:
        """The bytes of a small file; ``None`` where there is none."""
        with explained(self.where, name):
            try:
                return bytes(self.client.get(self._path(name)).bytes())
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None

    def write(self, name: str, path: Path, told: Callable[[int], None]) -> Stored:
        """Send a local file, in equal parts if it is large; it is there when it is whole, or not at all."""
        size = path.stat().st_size
        if size <= PART:
            told(0)
            stored = self.put(name, path.read_bytes())
            told(size)
            return stored
        reading = _Reading(path, part_size(size), told)
        with explained(self.where, name, writing=True):
            try:
                answer = self.client.put(
                    self._path(name),
                    reading,
                    use_multipart=True,
                    chunk_size=reading.part,
                    max_concurrency=AT_ONCE,
                )
            except Exception as error:
                if isinstance(error, Error | OSError) or reading.is_stopped:
                    raise
                return self._arrived_after_all(name, reading, error)
        stored = Stored(size, _quoted(answer["e_tag"]))
        if stored.tag != reading.tag and not self.foreign_tags and _is_plain(stored.tag, path):
            return stored  # some servers give any file the digest of its bytes, however it was sent
        return self._held(name, stored, reading.tag, reading.part)

    def put(self, name: str, data: bytes) -> Stored:
        """Write a small file, whatever is there."""
        with explained(self.where, name, writing=True):
            answer = self.client.put(self._path(name), data, use_multipart=False)
        return self._held_small(name, data, answer)

    def put_absent(self, name: str, data: bytes) -> bool:
        """Write a small file where none is; whether it was this call."""
        try:
            with explained(self.where, name, writing=True):
                try:
                    answer = self.client.put(self._path(name), data, mode="create", use_multipart=False)
                except Exception as error:
                    if type(error).__name__ != "AlreadyExistsError":
                        raise
                    return self._has(name, data)
        except HubError:
            # the answer may have been lost after the store had the file
            if self._has(name, data):
                return True
            raise
        self._held_small(name, data, answer)
        return True

    def _has(self, name: str, data: bytes) -> bool:
        """Whether a small file has these bytes; if so, its tag says what tags are here."""
        if self.get(name) != data:
            return False
        stored = self.head(name)
        if stored is not None and stored.size == len(data):
            self._held(name, stored, _tag_of_bytes(data), len(data))
        return True

    def _held_small(self, name: str, data: bytes, answer: Mapping[str, Any]) -> Stored:
        return self._held(name, Stored(len(data), _quoted(answer["e_tag"])), _tag_of_bytes(data), len(data))

    def delete(self, names: Collection[str]) -> None:
        """Remove files; those that do not exist are left so."""
        for _ in each(self._delete, list(names)):
            pass

    def _delete(self, name: str) -> None:
        with explained(self.where, name, writing=True):
            try:
                self.client.delete(self._path(name))
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise

    def _path(self, name: str) -> str:
        return path_of(self.where, name)

    def _arrived_after_all(self, name: str, reading: _Reading, error: Exception) -> Stored:
        """The file, where the last answer alone was lost; raises `error` where it is not as it was sent."""
        if reading.is_read:
            with contextlib.suppress(Error):  # the first failure is the one to tell
                stored = self.head(name)
                if (
                    stored is not None
                    and stored.size == reading.size
                    and self._is_as_read(name, stored, reading)
                ):
                    return stored
        raise error

    def _is_as_read(self, name: str, stored: Stored, reading: _Reading) -> bool:
        """Whether a file of the same size is the one that was read here: by its tag, or by its bytes."""
        if stored.tag == reading.tag or _is_plain(stored.tag, reading.path):
            return True
        return self._tag_of(name, stored.size, reading.part) == reading.tag

    def _held(self, name: str, stored: Stored, tag: str, part: int) -> Stored:
        """Return what arrived, if it is what was sent.

        Whether a tag is a digest of the file shows only when it fits: some stores give an encrypted file one
        of the same form. So a file that does not fit is read once.

        Raises
        ------
        OutputError
            It is something else; it is removed.
        """
        if stored.tag is None or not _TAG.fullmatch(stored.tag) or stored.tag == tag:
            return stored
        with self.reading:
            if self.foreign_tags:
                return stored
            if self._tag_of(name, stored.size, part) == tag:
                self.foreign_tags.append(stored.tag)
                return stored
        self._delete(name)
        raise OutputError(
            f"`{name}` arrived damaged at `{self.where}`: its checksum is not that of what was sent",
            "run the same command again; if it stays so, look for a faulty proxy, memory or disk",
        )

    def _tag_of(self, name: str, size: int, part: int) -> str:
        digest = _Digest(part)
        with explained(self.where, name):
            for start in range(0, size, PART):
                stop = min(start + PART, size)
                digest.update(memoryview(self.client.get_range(self._path(name), start=start, end=stop)))
        return digest.tag


def _tag_of_bytes(data: bytes) -> str:
    return f'"{_md5(data).hexdigest()}"'


def _is_plain(tag: str | None, path: Path) -> bool:
    """Whether a tag is the digest of a file as a whole; read only where it looks like one."""
    if tag is None or not _PLAIN.fullmatch(tag):
        return False
    with open(path, "rb") as file:
        return tag == f'"{hashlib.file_digest(file, _md5).hexdigest()}"'


class _Digest:
    """The tag of a file that is sent in parts: of one part its MD5, of several that of their MD5s."""

    def __init__(self, part: int) -> None:
        self.part, self.filled, self.parts = max(part, 1), 0, [_md5()]

    def update(self, data: Any) -> None:
        view = memoryview(data)
        while len(view):
            if self.filled == self.part:
                self.parts.append(_md5())
                self.filled = 0
            taken = view[: self.part - self.filled]
            self.parts[-1].update(taken)
            self.filled += len(taken)
            view = view[len(taken) :]

    @property
    def tag(self) -> str:
        if len(self.parts) == 1:
            return f'"{self.parts[0].hexdigest()}"'
        return f'"{_md5(b"".join(part.digest() for part in self.parts)).hexdigest()}-{len(self.parts)}"'


class _Reading:
    """A file as it is read to be sent, with its tag and how far it has come."""

    def __init__(self, path: Path, part: int, told: Callable[[int], None]) -> None:
        self.path, self.part, self.told = path, part, told
        self.size = path.stat().st_size
        self.digest = _Digest(part)
        self.is_read = self.is_stopped = False

    @property
    def tag(self) -> str:
        return self.digest.tag

    def __iter__(self) -> Iterator[bytes]:
        sent = 0
        with open(self.path, "rb", buffering=0) as file:
            while data := file.read(_STEP):
                try:
                    self.told(sent)  # what it raises here makes obstore abort the upload
                except BaseException:
                    self.is_stopped = True
                    raise
                self.digest.update(data)
                sent += len(data)
                yield data
        self.is_read = True
        self.told(sent)


def place_at(text: str) -> StorePlace:
    """The place at an address; nothing is asked for yet.

    Raises
    ------
    RecipeError
        The text is not an address of a folder that can be used.
    HubError
        obstore is not installed, or is not set up for it.
    """
    address = parse(text)
    if address.file is not None:
        raise RecipeError(
            f"`{address}` is the name of a weight file, and an output is a folder",
            "leave out the file's name",
        )
    with explained(address, writing=True):
        return StorePlace(address, connect(address, storage.current().options))


def _stored(meta: Mapping[str, Any]) -> Stored:
    state = State.of(meta)
    return Stored(state.size, state.tag)


def _quoted(tag: str | None) -> str | None:
    return f'"{tag.strip(chr(34))}"' if tag else None
