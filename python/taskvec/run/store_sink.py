"""Outputs in an object store: ``s3://bucket/prefix`` and the like, a :class:`taskvec.run.sink.Sink`.

Weight files go where they will stay. ``.taskvec/run.json`` is the unfinished run, put there where none is, so
that of several plans one has the place; ``.taskvec/done/FILE.json`` stands for a weight file that is whole.
At the end come the other files, then ``.taskvec/written.json`` with the store's own checksums, which
``taskvec verify`` compares, and the manifest where none is. Nothing is renamed or copied.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec.errors import Error, FormatError, OutputError
from taskvec.files import manifest as manifests_of
from taskvec.files.folder import INDEX_SUFFIX, is_weight
from taskvec.files.names import CARD, CONFIG, MANIFEST
from taskvec.models.model import Stored
from taskvec.resolve.store.reread import digest_at, files_at
from taskvec.resolve.store.unfinished import abort_uploads
from taskvec.resolve.store.write import StorePlace, place_at
from taskvec.resolve.store.written import DONE, PIECES, RUN, is_state, write_tags
from taskvec.resolve.threads import each, interruptible
from taskvec.run.sink import Head, Sent, Told, held

log = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818 - as KeyboardInterrupt, no error
    """An upload was told to stop."""


class StoreSink:
    """The files of a run at an address of an object store."""

    def __init__(self, place: StorePlace) -> None:
        self.place = place
        self._identity = ""
        self._outputs: Sequence[str] = ("",)
        self._stored: dict[str, Stored] = {}
        self._records: dict[str, tuple[str | None, Sent, str | None]] = {}
        self._stop = threading.Event()
        self._is_ended = self._was_begun = False
        self._sending: set[str] = set()

    @property
    def address(self) -> str:
        """As it is shown."""
        return self.place.address

    def sizes(self) -> Mapping[str, int]:
        """The bytes of every file that is there, those of the run's own state left out."""
        return {name: stored.size for name, stored in self._list().items() if not is_state(name)}

    def finished(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """Those of the manifests of these names that are there."""
        found = {name: interruptible(lambda name=name: self.place.get(name)) for name in names}
        there = {name: data for name, data in found.items() if data is not None}
        self._is_ended = len(there) == len(names)
        return there

    def head(self) -> Head | None:
        """That of the unfinished run that is there, if there is one."""
        data = interruptible(lambda: self.place.get(RUN))
        return None if data is None else self._parse_head(data)

    def begin(self, head: Head, *, overwrite: bool = False, resume: bool = True) -> Mapping[str, Sent]:
        """Take the place for a run, or go on with an unfinished one of the same plan."""
        self._identity, self._outputs = head.identity, head.outputs
        names = self._list()  # before the head: whatever it shows without one, no other part has put there
        there = self.head()
        self._was_begun = there is not None
        if there is not None and there.identity != head.identity and not overwrite:
            raise OutputError(
                f"`{self.address}` holds an unfinished run of a different plan",
                "go on with that one, choose another address, or use --overwrite to begin again here",
            )
        is_ours = there is not None and there.identity == head.identity and resume
        if not is_ours:
            if there is None:
                self._hold_free(names, overwrite)
            self._clear(names)
        self._take(head)
        if is_ours:
            return self._gone_on_with(names)
        return {}

    def _take(self, head: Head) -> None:
        """Note the run where none is noted; of several processes one does."""
        facts = {"identity": head.identity, "parts": head.parts, "outputs": list(head.outputs)}
        data = json.dumps(facts).encode() + b"\n" + head.plan
        if interruptible(lambda: self.place.put_absent(RUN, data)):
            return
        there = self.head()
        if there is not None and there.identity != head.identity:
            raise OutputError(
                f"another run has taken `{self.address}`, of a different plan", "choose another address"
            )

    def _gone_on_with(self, names: Mapping[str, Stored]) -> Mapping[str, Sent]:
        ends = [name for name in self._manifests() if name in names]
        if 0 < len(ends) < len(self._outputs):  # some were ended: they are so again, in their order
            interruptible(lambda: self.place.delete(ends))
        return self.sent()

    def _hold_free(self, names: Mapping[str, Stored], overwrite: bool) -> None:
        """Return if nothing is there, or something that may be replaced is asked to be.

        Raises
        ------
        OutputError
        """
        found = [name for name in names if not is_state(name)]
        if not found:
            return
        if not overwrite:
            what = "a finished output" if self._has_manifest(found) else f"files such as `{found[0]}`"
            raise OutputError(
                f"`{self.address}` holds {what}", "choose another address, or use --overwrite to replace it"
            )
        if not self._has_manifest(found) and not any(is_weight(name) for name in found):
            raise OutputError(
                f"`{self.address}` holds files such as `{found[0]}`, and no checkpoint to be replaced",
                "choose another address, or remove the files yourself",
            )

    def _has_manifest(self, names: Iterable[str]) -> bool:
        return any(name.rpartition("/")[2] == MANIFEST for name in names)

    def _clear(self, names: Mapping[str, Stored]) -> None:
        """Remove an earlier output: the manifests, what makes it look complete, then the rest."""
        ends = [name for name in names if name.rpartition("/")[2] == MANIFEST]
        listed = set(names) & {each for end in ends for each in self._listed(end)}
        marks = [name for name in names if name.endswith(INDEX_SUFFIX) and name.count("/") < 2]
        own = {
            name
            for name in names
            if is_state(name) or is_weight(name) or name.rpartition("/")[2] in (CONFIG, CARD)
        }
        for some in (ends, marks, (listed | own) - {*ends, *marks, RUN}, [RUN] if RUN in names else []):
            if some:
                interruptible(lambda some=some: self.place.delete(some))
        self._records.clear()

    def _listed(self, end: str) -> list[str]:
        """The files of a manifest, by their names here."""
        folder = end.rpartition("/")[0]
        try:
            data = interruptible(lambda: self.place.get(end))
            listed = manifests_of.files(manifests_of.parse(data or b"", Path(end)), Path(end))
        except FormatError:
            return []
        return [f"{folder}/{file.name}" if folder else file.name for file in listed]

    def sent(self) -> Mapping[str, Sent]:
        """The weight files of this plan that are there now, whoever has sent them."""
        stored = self._list()
        records = [
            name.removeprefix(f"{DONE}/").removesuffix(".json")
            for name in stored
            if name.startswith(f"{DONE}/") and name.endswith(".json")
        ]

        def mark(name: str) -> str | None:
            return stored[f"{DONE}/{name}.json"].tag

        unread = [
            name for name in records if name not in self._records or self._records[name][0] != mark(name)
        ]
        for name, record in each(self._read, unread):
            if record is not None:
                self._records[name] = (mark(name), *record)
        return {
            name: self._records[name][1]
            for name in records
            if name in self._records and self._is_there(self._records[name], stored.get(name))
        }

    def _is_there(self, record: tuple[str | None, Sent, str | None], stored: Stored | None) -> bool:
        _, sent, tag = record
        if stored is None or sent.identity != self._identity or stored.size != sent.size:
            return False
        return tag is None or stored.tag is None or stored.tag == tag

    def _read(self, name: str) -> tuple[Sent, str | None] | None:
        """The record of a weight file and its tag then; ``None`` where there is no whole one."""
        try:
            data = json.loads(self.place.get(f"{DONE}/{name}.json") or b"")
            tag = data.pop("tag")
            sent = Sent(**data)
            known = json.loads(sent.line)
            is_whole = sent.name == name and known["size"] == sent.size and known["digest"] == sent.digest
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return (sent, tag) if is_whole else None

    def reread(self, sent: Sent, folder: Path) -> bool:
        """Whether a weight file has the bytes that were sent: it is read, by way of a folder."""
        return digest_at(self.place, sent.name, folder) == sent.digest

    def bring(self, sents: Sequence[Sent], folder: Path) -> Mapping[str, Path]:
        """Fetch pieces into a folder."""
        place = files_at(self.place, [sent.name for sent in sents], folder)
        return held(self.address, sents, {sent.name: place / sent.name for sent in sents})

    def send(self, path: Path, sent: Sent, told: Told) -> None:
        """Send a weight file, then its record."""

        def tell(count: int) -> None:
            if self._stop.is_set():
                raise Stopped
            told(count)

        self._sending.add(sent.name)
        stored = self.place.write(sent.name, path, tell)
        self._sending.discard(sent.name)
        tell(sent.size)
        record = json.dumps({**sent._asdict(), "tag": stored.tag})
        self.place.put(f"{DONE}/{sent.name}.json", record.encode())

    def finish(self, files: Sequence[tuple[str, Path]], manifests: Mapping[str, bytes]) -> None:
        """Put all other files to their place, then the manifests where none are."""
        put = {name: interruptible(lambda name=name, path=path: self.place.write(name, path, self._tell))
               for name, path in files}  # fmt: skip
        sent = self.sent()
        for name in manifests:
            folder = name.rpartition("/")[0]
            self._write_checksums(folder, {**{each: self._tag(each) for each in sent if not is_state(each)},
                                           **{each: stored.tag for each, stored in put.items()}})  # fmt: skip
        self._hold_whole(manifests)
        for number, (name, data) in enumerate(manifests.items()):
            self._put_manifest(name, data, is_first=not number)
        self._forget()

    def _tell(self, _: int) -> None:
        if self._stop.is_set():
            raise Stopped

    def _tag(self, name: str) -> str | None:
        return self._records[name][2]

    def _write_checksums(self, folder: str, tags: Mapping[str, str | None]) -> None:
        below = f"{folder}/" if folder else ""
        own = {name.removeprefix(below): tag for name, tag in tags.items() if name.startswith(below)}
        interruptible(lambda: write_tags(self.place, below, own))

    def _hold_whole(self, manifests: Mapping[str, bytes]) -> None:
        """Return if every file of the manifests is there with its size.

        Raises
        ------
        OutputError
        """
        there = self._list()
        for end, data in manifests.items():
            folder = end.rpartition("/")[0]
            for file in manifests_of.files(manifests_of.parse(data, Path(end)), Path(end)):
                name = f"{folder}/{file.name}" if folder else file.name
                if name not in there or there[name].size != file.bytes:
                    found = "is missing" if name not in there else f"has {there[name].size} bytes"
                    raise OutputError(
                        f"`{name}` of `{self.address}` {found}: something else changed it during the run",
                        "run the same command again when nothing else writes to the address",
                    )

    def _put_manifest(self, name: str, data: bytes, *, is_first: bool) -> None:
        if interruptible(lambda: self.place.put_absent(name, data)):
            return
        there = interruptible(lambda: self.place.get(name)) or b"{}"
        if not is_first and _plan_of(there) == _plan_of(data):
            return
        raise OutputError(
            f"another run has ended in `{self.address}` first",
            "`taskvec verify` says whether its output is whole; choose another address for this one",
        )

    def _forget(self) -> None:
        """Remove the state of the run, and what killed processes had begun to send."""
        below = (f"{DONE}/", f"{PIECES}/")
        names = [name for name in self._list() if name == RUN or name.startswith(below)]
        try:
            interruptible(lambda: self.place.delete([name for name in names if name != RUN]))
            interruptible(lambda: self.place.delete([RUN] if RUN in names else []))
        except Error as error:
            log.info("the state of the run at `%s` stays: %s", self.address, error)
        if self._was_begun:
            interruptible(lambda: abort_uploads(self.place))

    def close(self, *, failed: bool = False) -> None:
        """Stop what is being sent: obstore aborts an upload whose file cannot be read on.

        One of which all has been read, and whose store does not answer, is aborted from here.
        """
        if failed:
            self._stop.set()
            if self._sending:
                abort_uploads(self.place, self._sending)
        elif self._is_ended and self.head() is not None:  # its process was killed before it tidied up
            self._forget()

    def _manifests(self) -> list[str]:
        return [f"{folder}/{MANIFEST}" if folder else MANIFEST for folder in self._outputs]

    def _list(self) -> dict[str, Stored]:
        return dict(interruptible(self.place.list))

    def _parse_head(self, data: bytes) -> Head:
        line, _, plan = data.partition(b"\n")
        try:
            facts: dict[str, Any] = json.loads(line)
            outputs = tuple(map(str, facts["outputs"]))
            return Head(str(facts["identity"]), int(facts["parts"]), plan, outputs)
        except (ValueError, KeyError, TypeError):
            raise OutputError(
                f"`{RUN}` of `{self.address}` is damaged", "remove what is there, and begin again"
            ) from None


def _plan_of(data: bytes) -> Any:
    try:
        return json.loads(data)["run"]["plan"]
    except (ValueError, KeyError, TypeError):
        return None


def store_sink(address: str) -> StoreSink:
    """The sink of an address; nothing is asked for yet."""
    return StoreSink(place_at(address))
