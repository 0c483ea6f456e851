"""Files of an object store or a web server: found by their address, read by ranges, fetched into a folder.

obstore does the asking (extra ``cloud``). Every answer is compared with the identity that the file had when
it was listed: its ETag, or the time of its last change where a server has none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from taskvec.errors import HubError, NotFoundError, RecipeError
from taskvec.files import look
from taskvec.models.model import Identity, RemoteFile
from taskvec.progress import Callback
from taskvec.regex import regex
from taskvec.resolve import storage
from taskvec.resolve.store.address import Address, parse
from taskvec.resolve.store.client import connect
from taskvec.resolve.store.errors import changed, explained
from taskvec.resolve.store.fetch import PIECE, fetch_files
from taskvec.resolve.store.listing import State, listed, path_of
from taskvec.resolve.threads import each, interruptible

_MD5 = regex(r"[0-9a-f]{32}")
_md5 = partial(hashlib.md5, usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class Store:
    """The files at an address in the state in which they were listed, a ``Remote``.

    Attributes
    ----------
    address : Address
        Of a folder, or of a single file.
    client : object
        obstore's.
    states : mapping of str to State
        Of every file by its name below the address.
    cache : Path
        The folder that has a folder for each state of each address.
    foreign_tags : list of str
        ETags that are not the MD5 of their files, though they look so: then none here is.
    """

    address: Address
    client: Any = field(repr=False)
    states: Mapping[str, State] = field(repr=False)
    cache: Path = field(repr=False)
    foreign_tags: list[str] = field(default_factory=list, repr=False)

    def __reduce__(self) -> Any:
        return _found_again, (str(self.address), self.identity.revision)  # a client holds secrets

    @property
    def identity(self) -> Identity:
        """The address, and a digest of the files' names, sizes and ETags."""
        lines = "".join(f"{name}\0{self.states[name].mark}\n" for name in sorted(self.states))
        return Identity(str(self.address), _digest(lines)[:40], str(self.address))

    @property
    def folder(self) -> Path:
        """The folder for the files of this state."""
        last = self.address.folder.rpartition("/")[2] or self.address.place
        return self.cache / f"{last[:40]}-{_digest(str(self.address))[:12]}" / self.identity.revision[:16]

    def list(self) -> Mapping[str, RemoteFile]:
        """Every file by its name."""
        return {name: RemoteFile(name, state.size) for name, state in self.states.items()}

    def size(self, name: str) -> int:
        """The bytes of one file."""
        return self._state(name).size

    def read(self, name: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Parts of one file, several at a time, from the folder if it has the file."""
        self._state(name)
        local = self.folder / name
        if look.exists(local):
            with open(local, "rb") as file:
                return [_part(file, start, stop) for start, stop in ranges]
        parts = dict(each(lambda number: self._range(name, *ranges[number]), range(len(ranges))))
        return [bytes(parts[number]) for number in range(len(ranges))]

    def fetch(
        self, names: Collection[str], folder: Path | None = None, progress: Callback | None = None
    ) -> Path:
        """Fetch those of the files that the folder lacks, by ranges, several at a time.

        Raises
        ------
        HubError
            The address refuses, cannot be reached, or a file has changed.
        OutputError
            The folder cannot be written.
        """
        place = folder or self.folder
        missing = {name: self.size(name) for name in names if not look.exists(place / name)}
        with explained(self.address):
            fetch_files(self._range, missing, place, progress, self._hold)
        return place

    def _state(self, name: str) -> State:
        if name not in self.states:
            raise NotFoundError(f"`{self.address}` has no file `{name}`", "look at the list of its files")
        return self.states[name]

    def _hold(self, name: str, path: Path) -> None:
        """Compare a fetched file with its ETag, where that is the MD5 of the bytes.

        Whether it is shows only when it fits: some stores give an encrypted object a tag of the same form. So
        a file that does not fit is read once more, and is what it should be if it comes the same again.
        """
        tag = (self.states[name].tag or "").strip('"')
        if not _MD5.fullmatch(tag) or self.foreign_tags:
            return
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, _md5).hexdigest()
        if found == tag:
            return
        again = _md5()
        for start in range(0, self.size(name), PIECE):
            again.update(self._range(name, start, min(start + PIECE, self.size(name))))
        if again.hexdigest() != found:
            raise HubError(
                f"`{name}` of `{self.address}` arrived damaged: it came with other bytes a second time",
                "run the same command again; if it stays so, look for a faulty proxy, memory or disk",
            )
        self.foreign_tags.append(tag)

    def _range(self, name: str, start: int, stop: int) -> Any:
        """Bytes of a file, of the state in which it was listed, as obstore has them."""
        if start == stop:
            return b""
        state = self.states[name]
        options: dict[str, Any] = {"range": (start, stop)}
        if state.tag is not None and not state.tag.startswith("W/"):
            options["if_match"] = state.tag
        with explained(self.address, name):
            answer = self.client.get(path_of(self.address, name), options=options)
            found = State.of(answer.meta)  # some servers pass over `if_match`
            if found.mark != state.mark:
                raise changed(self.address, name, f"`{found.mark}` in place of `{state.mark}`")
            data = answer.bytes()
        if len(data) != stop - start:
            raise changed(self.address, name, f"{len(data)} bytes came of {stop - start}")
        return data


def find(text: str, revision: str | None = None) -> Store:
    """The files at an address, as they are now.

    Raises
    ------
    RecipeError
        The text is not an address that can be used, or a revision is given for it.
    NotFoundError
        There are no files.
    HubError
        The address refuses, or cannot be reached.
    """
    address = parse(text)
    if revision is not None:
        raise RecipeError(
            f"`{address}` has no revisions, and `{revision}` is given", "leave the revision out"
        )
    given = storage.current()
    with explained(address):
        client = connect(address, given.options)
        states = interruptible(lambda: listed(client, address))
    if not states:
        raise NotFoundError(
            f"there is nothing at `{address}`", "check the address: it is the folder that has config.json"
        )
    return Store(address, client, states, given.folder)


def _found_again(text: str, revision: str) -> Store:
    """The files of a pickled store, by the settings for addresses that hold where it is unpickled."""
    store = find(text)
    if store.identity.revision != revision:
        raise HubError(f"files at `{text}` have changed since the model was pickled", "open the model again")
    return store


def _part(file: Any, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
