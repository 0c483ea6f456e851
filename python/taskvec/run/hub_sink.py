"""Outputs on the hub: ``hf://org/name[@branch]``, a :class:`taskvec.run.sink.Sink`.

Weight files are sent one after the other, out of sight; one commit at the end has them and all other files.
The hub does not list what lies out of sight, so that the records of it are kept here, in the cache of
huggingface_hub: a run that was killed goes on where they are seen. Before that the hub is asked for each.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec._core import blake3_hex, digest_file, write_atomic
from taskvec.errors import FormatError, OutputError
from taskvec.files import look
from taskvec.files import manifest as manifests_of
from taskvec.files.folder import INDEX_SUFFIX, is_weight
from taskvec.files.json import read_bytes
from taskvec.files.names import CARD, CONFIG, MANIFEST
from taskvec.resolve.hub_refusals import LostAnswerError, MovedError, RefusedError
from taskvec.resolve.hub_write import Branch, HubPlace, Sending, place_at
from taskvec.resolve.store.written import PIECES, WRITTEN, is_state
from taskvec.resolve.threads import interruptible
from taskvec.run.sink import Head, Sent, Told, held

_RUN = "run.json"
_DONE = "done"
_TITLE = "Written by taskvec"
_TRIES = 4
_WAIT_SECONDS = 1.0
log = logging.getLogger("taskvec.hub")


class Stopped(Exception):  # noqa: N818 - as KeyboardInterrupt, no error
    """An upload was told to stop."""


class HubSink:
    """The files of a run at a branch of a repository."""

    def __init__(self, place: HubPlace, *, public: bool = False) -> None:
        self.place, self.public = place, public
        self._identity = ""
        self._parent = ""
        self._replaced: list[str] = []
        self._before: dict[str, bytes] = {}
        self._is_stopped = False

    @property
    def address(self) -> str:
        """As it is shown."""
        return self.place.address

    def sizes(self) -> Mapping[str, int]:
        """The bytes of every file that is there."""
        return {name: size for name, size in self._look().files.items() if not is_state(name)}

    def finished(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """Those of the manifests of these names that are there."""
        found = {name: interruptible(lambda name=name: self.place.get(name)) for name in names}
        return {name: data for name, data in found.items() if data is not None}

    def head(self) -> Head | None:
        """That of the unfinished run that this machine knows of, if there is one."""
        path = self._state / _RUN
        if not look.exists(path):
            return None
        line, _, plan = read_bytes(path).partition(b"\n")
        try:
            facts: dict[str, Any] = json.loads(line)
            outputs = tuple(map(str, facts["outputs"]))
            return Head(str(facts["identity"]), int(facts["parts"]), plan, outputs)
        except (ValueError, KeyError, TypeError):
            raise OutputError(f"`{path}` is damaged", "remove its folder, and begin again") from None

    def begin(self, head: Head, *, overwrite: bool = False, resume: bool = True) -> Mapping[str, Sent]:
        """Take the branch for a run, or go on with an unfinished one of the same plan."""
        there = self.head()
        if there is not None and there.identity != head.identity and not overwrite:
            raise OutputError(
                f"this machine holds an unfinished run for `{self.address}`, of a different plan",
                "go on with that one, choose another address, or use --overwrite to begin again",
            )
        is_ours = there is not None and there.identity == head.identity and resume
        branch = self._look()
        if not (is_ours and branch.commit and branch.commit == self._noted_commit()):
            self._hold_free(branch.files, overwrite)
        if not branch.commit:
            interruptible(lambda: self.place.make(public=self.public))
            branch = self._look()
        # a new branch has the files of the main one
        self._identity, self._parent = head.identity, branch.commit
        self._replaced = self._going(branch.files)
        if not is_ours:
            shutil.rmtree(self._state, ignore_errors=True)
        self._note(head)
        return self.sent()

    def _note(self, head: Head) -> None:
        (self._state / _DONE).mkdir(parents=True, exist_ok=True)
        facts = {"identity": head.identity, "parts": head.parts, "outputs": list(head.outputs)}
        line = json.dumps({**facts, "commit": self._parent}).encode()
        write_atomic(self._state / _RUN, line + b"\n" + head.plan)

    def _noted_commit(self) -> Any:
        """The commit that the unfinished run began on."""
        return json.loads(read_bytes(self._state / _RUN).partition(b"\n")[0]).get("commit")

    @property
    def _state(self) -> Path:
        """Where the records of what was sent are kept."""
        from huggingface_hub import constants

        name = blake3_hex(f"{constants.ENDPOINT}/{self.address}".encode())[:32]
        return Path(constants.HF_HOME) / "taskvec" / name

    def _look(self) -> Branch:
        return interruptible(self.place.look) or Branch("", {})

    def _hold_free(self, files: Mapping[str, int], overwrite: bool) -> None:
        """Return if nothing is there, or something that may be replaced is asked to be.

        Raises
        ------
        OutputError
        """
        if not files or overwrite:
            return
        is_output = any(name.rpartition("/")[2] == MANIFEST for name in files)
        what = "a finished output" if is_output else f"files such as `{next(iter(files))}`"
        raise OutputError(
            f"`{self.address}` holds {what}",
            "choose another repository or branch, or use --overwrite to replace it in one commit",
        )

    def _going(self, files: Mapping[str, int]) -> list[str]:
        """The files of an earlier output, which go with the commit unless it has new ones of these names."""
        ends = [name for name in files if name.rpartition("/")[2] == MANIFEST]
        self._before = dict(self.finished(ends))
        listed = {each for end, data in self._before.items() for each in _listed(end, data)}
        return [
            name
            for name in files
            if name in listed
            or is_weight(name)
            or name.endswith(INDEX_SUFFIX)
            or is_state(name)
            or name.rpartition("/")[2] in (MANIFEST, CONFIG, CARD)
        ]

    def sent(self) -> Mapping[str, Sent]:
        """The weight files of this plan that the hub has now."""
        records = self._records()
        large = {name: found for name, (_, found) in records.items() if isinstance(found, Sending)}
        lost = interruptible(lambda: self.place.lost(list(large.values()))) if large else set()
        gone = {name for name, sending in large.items() if sending.sha256 in lost}
        if gone:
            log.warning("the hub has no more %d files that were sent to `%s`: they are computed again",
                        len(gone), self.address)  # fmt: skip
        for name in gone:
            self._record(name).unlink(missing_ok=True)
        return {name: sent for name, (sent, _) in records.items() if name not in gone}

    def reread(self, sent: Sent, folder: Path) -> bool:  # noqa: ARG002
        """Whether the bytes are those that were sent: the hub knows what is out of sight by its SHA-256."""
        if sent.name.startswith(PIECES):
            return digest_file(self._kept(sent.name))[1] == sent.digest
        return sent.name in self.sent()

    def _records(self) -> dict[str, tuple[Sent, Sending | bytes | None]]:
        """What was sent of this plan; small files, which only a commit takes, with their bytes.

        Pieces are kept here, and have neither.
        """
        found = (
            self._read(Path(name)) for name in look.listing(self._state / _DONE) if name.endswith(".json")
        )
        return {each[0].name: each for each in found if each is not None}

    def _read(self, name: Path) -> tuple[Sent, Sending | bytes | None] | None:
        try:
            data = json.loads(read_bytes(self._state / _DONE / name))
            sending = data.pop("sending")
            sent = Sent(**data)
            known = json.loads(sent.line)
            is_whole = known["size"] == sent.size and known["digest"] == sent.digest
            if not is_whole or sent.identity != self._identity:
                return None
            if sending is not None:
                return sent, Sending(**sending)
            if sent.name.startswith(PIECES):
                return (sent, None) if self._kept(sent.name).stat().st_size == sent.size else None
            content = read_bytes(self._record(sent.name).with_suffix(".data"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return (sent, content) if blake3_hex(content) == sent.digest else None

    def _record(self, name: str) -> Path:
        return self._state / _DONE / f"{name.replace('/', '%')}.json"

    def send(self, path: Path, sent: Sent, told: Told) -> None:
        """Send a weight file, then keep its record here."""

        def tell(count: int) -> None:
            if self._is_stopped:
                raise Stopped
            told(count)

        tell(0)
        if sent.name.startswith(PIECES):
            self._keep(path, sent)
            told(sent.size)
            return
        found = self.place.send(sent.name, path, tell)
        record = self._record(sent.name)
        if isinstance(found, bytes):
            write_atomic(record.with_suffix(".data"), found)
        sending = None if isinstance(found, bytes) else found._asdict()
        write_atomic(record, json.dumps({**sent._asdict(), "sending": sending}).encode())
        told(sent.size)

    def _keep(self, path: Path, sent: Sent) -> None:
        """Keep a piece next to its record: the hub takes no file that no commit is to have."""
        place = self._kept(sent.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        new = place.with_name(f".{secrets.token_hex(8)}.part")
        shutil.copyfile(path, new)
        os.replace(new, place)
        write_atomic(self._record(sent.name), json.dumps({**sent._asdict(), "sending": None}).encode())

    def _kept(self, name: str) -> Path:
        return self._state / "pieces" / name.rpartition("/")[2]

    def bring(self, sents: Sequence[Sent], folder: Path) -> Mapping[str, Path]:  # noqa: ARG002
        """Pieces where they lie."""
        return held(self.address, sents, {sent.name: self._kept(sent.name) for sent in sents})

    def finish(self, files: Sequence[tuple[str, Path]], manifests: Mapping[str, bytes]) -> None:
        """Commit the weight files with all others, and forget the run."""
        records = {name: found for name, (_, found) in self._records().items()}
        contents: dict[str, Path | bytes] = {**dict(files), **manifests}
        contents |= {name: found for name, found in records.items() if isinstance(found, bytes)}
        sent = {name: found for name, found in records.items() if isinstance(found, Sending)}
        self._hold_whole({*contents, *sent}, manifests)
        contents |= _checksums(sent, manifests)
        removed = [name for name in self._replaced if name not in contents and name not in sent]
        try:
            interruptible(lambda: self._commit(sent, contents, removed, manifests))
        except RefusedError:
            for name in (name for name, each in sent.items() if each.xet):  # it may be for one of these
                self._record(name).unlink(missing_ok=True)
            raise
        shutil.rmtree(self._state, ignore_errors=True)

    def _commit(
        self,
        sent: Mapping[str, Sending],
        contents: Mapping[str, Path | bytes],
        removed: Sequence[str],
        manifests: Mapping[str, bytes],
    ) -> None:
        for attempt in range(_TRIES):
            try:
                self.place.commit(_TITLE, sent, contents, removed, self._parent)
                return
            except (MovedError, LostAnswerError) as error:
                if self._is_ours(manifests):
                    return
                if attempt + 1 == _TRIES:
                    raise
                if isinstance(error, MovedError):
                    self._go_on_after_others()
                else:
                    time.sleep(_WAIT_SECONDS * 2**attempt)

    def _is_ours(self, manifests: Mapping[str, bytes]) -> bool:
        """Whether the commit was made, although the answer to it was lost.

        Raises
        ------
        OutputError
            Another run has ended here.
        """
        name, data = next(iter(manifests.items()))
        there = self.place.get(name)
        if there is None or there == self._before.get(name):
            return False
        if there == data:
            return True
        raise OutputError(
            f"another run has ended in `{self.address}` first",
            "`taskvec verify` says whether its output is whole; choose another address for this one",
        )

    def _go_on_after_others(self) -> None:
        """Take the branch as others have left it, unless they have put an output there."""
        branch = self.place.look() or Branch("", {})
        if not self._replaced and any(is_weight(name) for name in branch.files):
            raise OutputError(
                f"others have put weights into `{self.address}` during the run",
                "choose another repository or branch, or use --overwrite; what was sent is kept",
            )
        self._parent = branch.commit

    def _hold_whole(self, names: set[str], manifests: Mapping[str, bytes]) -> None:
        """Return if every file of the manifests is about to be committed.

        Raises
        ------
        OutputError
        """
        missing = [
            each for end, data in manifests.items() for each in _listed(end, data) if each not in names
        ]
        if missing:
            raise OutputError(
                f"`{missing[0]}` of `{self.address}` was not sent, or its record is on another machine",
                "run the same command again; parts that write to the hub have to share HF_HOME",
            )

    def close(self, *, failed: bool = False) -> None:
        """Stop what is being sent."""
        if failed:
            self._is_stopped = True


def _checksums(sent: Mapping[str, Sending], manifests: Mapping[str, bytes]) -> dict[str, bytes]:
    """The hub's own checksums of the weight files of each output, as a file of it."""
    made = {}
    for end in manifests:
        below = end.removesuffix(MANIFEST)
        tags = {
            name.removeprefix(below): each.sha256 for name, each in sent.items() if name.startswith(below)
        }
        made[below + WRITTEN] = (json.dumps({"tags": tags}) + "\n").encode()
    return made


def _listed(end: str, data: bytes) -> list[str]:
    """The files of a manifest, by their names at the address."""
    try:
        found = manifests_of.files(manifests_of.parse(data, Path(end)), Path(end))
    except FormatError:
        return []
    return [end.removesuffix(MANIFEST) + file.name for file in found]


def hub_sink(address: str, *, public: bool = False) -> HubSink:
    """The sink of an address; nothing is asked for yet."""
    return HubSink(place_at(address), public=public)
