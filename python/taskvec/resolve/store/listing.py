"""The files at an address, each with its state: those below a prefix, or of usual names on a web server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from taskvec.errors import Error, FormatError, HubError
from taskvec.files.folder import is_inside
from taskvec.files.json import MAXIMUM_BYTES
from taskvec.resolve.store.address import WEB, Address
from taskvec.resolve.store.errors import explain, explained
from taskvec.resolve.store.web import USUAL, web_files
from taskvec.resolve.threads import each

# A model's prefix has some hundred objects; more of them are those of a whole bucket.
MOST_FILES = 20_000


@dataclass(frozen=True, slots=True)
class State:
    """The state of one file when it was listed.

    Attributes
    ----------
    size : int
        In bytes.
    tag : str or None
        Its ETag, as a header has it: in quotation marks.
    time : str
        Of its last change, to the second.
    """

    size: int
    tag: str | None
    time: str

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> State:
        """That of obstore's record of an object.

        The list of a store may have no quotation marks around a tag, and parts of a second, where the answer
        to a request has the one and not the other.
        """
        tag = meta["e_tag"]
        if tag and not tag.endswith('"'):
            tag = f'"{tag}"'
        return cls(int(meta["size"]), tag or None, str(meta["last_modified"].replace(microsecond=0)))

    @property
    def mark(self) -> str:
        """The text that is another one for other bytes."""
        return f"{self.size} {self.tag or self.time}"


def path_of(address: Address, name: str) -> str:
    """The path of a file of an address, as the client has it."""
    return f"{address.folder}/{name}" if address.folder else name


def listed(client: Any, address: Address) -> dict[str, State]:
    """The state of every file by its name.

    Raises
    ------
    HubError
        The address refuses, cannot be reached, or has more files than a model.
    """
    if address.file is not None:
        return {address.file: State.of(client.head(address.path))}
    if address.scheme in WEB:
        return web_files(partial(_of_names, client, address), partial(_small, client, address))
    return _of_prefix(client, address)


def _of_prefix(client: Any, address: Address) -> dict[str, State]:
    states: dict[str, State] = {}
    start = len(address.folder) + 1 if address.folder else 0
    for batch in client.list(prefix=address.folder or None):
        for meta in batch:
            name = meta["path"][start:]
            if name and is_inside(name):  # an object `prefix/` stands for a folder
                states[name] = State.of(meta)
        if len(states) > MOST_FILES:
            raise HubError(
                f"`{address}` has more than {MOST_FILES:,} objects", "name the folder of the model alone"
            )
    return states


def _of_names(client: Any, address: Address, names: Iterable[str]) -> dict[str, State]:
    """Those that are there. Some servers refuse what they do not have: it counts unless all is refused."""
    found = dict(each(partial(_head, client, address), sorted(names)))
    states = {name: state for name, state in sorted(found.items()) if isinstance(state, State)}
    for name, refusal in found.items():
        if isinstance(refusal, Error) and (not states or name not in USUAL):
            raise refusal
    return states


def _head(client: Any, address: Address, name: str) -> State | Error | None:
    with explained(address, name):
        try:
            return State.of(client.head(path_of(address, name)))
        except FileNotFoundError:
            return None
        except Exception as error:
            if type(error).__name__ != "PermissionDeniedError":
                raise
            return explain(error, address, name)


def _small(client: Any, address: Address, name: str) -> bytes:
    with explained(address, name):
        answer = client.get(path_of(address, name))
        if answer.meta["size"] > MAXIMUM_BYTES:
            raise FormatError(
                f"`{name}` of `{address}` has {answer.meta['size']} bytes, expected at most {MAXIMUM_BYTES}"
            )
        return bytes(answer.bytes())
