"""What the parts of a run share in the state folder of their output.

``parts.json`` is the plan, as a file, made by the first part; ``done/FILE.json`` stands for a weight file
that is in place, ``inputs/DIGEST.json`` for the states of the inputs that it was computed from; ``work/``
has a folder for each process that is at work; ``pieces/`` the pieces of a vector that are whole;
``finisher.json`` names the one that ends the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec._core import blake3_hex, digest_file
from taskvec.errors import NotFoundError, OutputError
from taskvec.files import look
from taskvec.files.flush import flush
from taskvec.files.json import read_bytes
from taskvec.files.names import PARTS, STATE
from taskvec.files.place import sync_folders
from taskvec.plan.document import to_file
from taskvec.plan.part import Part, files_of, identity
from taskvec.plan.plan import PlanRecord

DONE = "done"
INPUTS = "inputs"
WORK = "work"
PIECES = "pieces"
FINISHER = "finisher.json"


def place(out: Path) -> Path:
    """A folder for this process to compute in, which does not exist yet; its name says whose it is."""
    return out / STATE / WORK / process_name()


def process_name() -> str:
    """A new name that says which process of which machine has given it."""
    return f"{_host()}.{os.getpid()}.{_started(os.getpid())}.{secrets.token_hex(4)}"


def is_abandoned(name: str) -> bool:
    """Whether a process of this machine has given the name, and has ended."""
    host, process, started, _ = name.rsplit(".", 3) if name.count(".") >= 3 else ("", "", "", "")
    return host == _host() and process.isdigit() and _started(int(process)) != started


def begin(out: Path, plan: PlanRecord, part: Part) -> None:
    """Put the plan of a run in parts into the state folder; of several processes one succeeds.

    Raises
    ------
    OutputError
        Another plan is there, or the folder cannot be written to.
    """
    state = out / STATE
    data = json.dumps({"identity": identity(plan), "parts": part.total}).encode() + b"\n" + to_file(plan)
    try:
        for folder in (state, state / DONE, state / INPUTS, state / PIECES, state / WORK):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise look.unanswered(state, error) from error
    if not look.exists(state / PARTS):
        _put(state / PARTS, data, is_first=True)
    hold_same(out, plan)


def head(out: Path) -> Mapping[str, Any]:
    """What the first part has noted of the run: ``identity`` of its plan, and ``parts``, how many it knew of.

    Raises
    ------
    OutputError
        It cannot be read.
    """
    return _parse(out, read_bytes(out / STATE / PARTS).partition(b"\n")[0])


def saved_plan(out: Path) -> bytes:
    """The plan that the first part has saved, as a file."""
    return read_bytes(out / STATE / PARTS).partition(b"\n")[2]


def hold_same(out: Path, plan: PlanRecord) -> None:
    """Return if the run in parts in this folder is of this plan.

    Raises
    ------
    OutputError
        It is of another one.
    """
    if head(out).get("identity") != identity(plan):
        raise OutputError(
            f"`{out}` holds parts of a run of a different plan",
            "give every part the same models and options and run them with one version, or choose another "
            "output folder",
        )


def _put(path: Path, data: bytes, *, is_first: bool = False) -> None:
    """Write a small file as a whole, whoever else is writing it; where one is there it stays if ``is_first``.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    new = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(new, "xb") as file:
            file.write(data)
            file.flush()
            flush(file.fileno())
        if is_first and _linked(new, path):
            new.unlink()
        else:
            os.replace(new, path)
        sync_folders(path.parent, [])
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        if isinstance(error, OutputError):
            raise
        raise not_written(path, error) from error


def not_written(path: Path, error: OSError) -> OutputError:
    """The error for what a part could not write, with the way out."""
    if isinstance(error, FileNotFoundError):
        return OutputError(
            f"writing `{path}` failed: a folder of it was removed while the part ran",
            "run all parts again; those whose files are still there write nothing",
        )
    return OutputError(
        f"writing `{path}` failed: {error.strerror or error}",
        "free space, check permissions, then run the same part again",
    )


def _linked(new: Path, path: Path) -> bool:
    """Whether the file is known by the other name now, or another one was before."""
    try:
        os.link(new, path)
    except FileExistsError:
        return True
    except OSError:  # a file system without links: of several that begin at once the last one stays
        return look.exists(path)
    return True


def _parse(out: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise OutputError(
            f"`{out / STATE / PARTS}` is damaged: {error}", "remove the output folder, and begin again"
        ) from None
    return value if isinstance(value, dict) else {}


class Records:
    """The records of the weight files that are in place."""

    def __init__(self, plan: PlanRecord, out: Path, folders: Sequence[Path]) -> None:
        self.files = files_of(plan)
        # where these lie, for each output
        self.folders = [out / STATE / PIECES] if plan.kind == "vector" else list(folders)
        self.state = out / STATE
        self.identity = identity(plan)
        self._known: dict[str, dict[str, Any]] = {}

    def see(self, inputs: bytes) -> str:
        """Keep the states of the inputs, as the engine has noted them; their digest."""
        digest = blake3_hex(inputs)
        path = self.state / INPUTS / f"{digest}.json"
        if not look.exists(path):
            _put(path, inputs)
        return digest

    def inputs(self, digest: str) -> list[dict[str, Any]]:
        """The states of the inputs that :meth:`see` has kept.

        Raises
        ------
        OutputError
            They are not what was kept.
        """
        path = self.state / INPUTS / f"{digest}.json"
        data = read_bytes(path)
        if blake3_hex(data) != digest:
            raise OutputError(f"`{path}` is damaged", "remove the output folder, and begin again")
        rows: list[dict[str, Any]] = json.loads(data)
        return rows

    def _note(self, name: str) -> Path:
        """Where the record of a file is, which itself may lie in a sub-folder."""
        flat = name.replace("%", "%25").replace("/", "%2F") if "/" in name else name
        return self.state / DONE / f"{flat}.json"

    def write(self, name: str, lines: Sequence[str], inputs: str) -> None:
        """Note a weight file: the line that the engine's journal has of it, for each output."""
        record = {"plan": self.identity, "inputs": inputs, "lines": list(lines)}
        _put(self._note(name), json.dumps(record).encode())

    def has(self, unit: Sequence[int], *, rehash: bool = False) -> bool:
        """Whether these weight files, by number, are in place; read again and compared if ``rehash``."""
        return all(self._has(self.files[number].name, rehash) for number in unit)

    def _has(self, name: str, rehash: bool) -> bool:
        record = self.read(name)
        if record is None:
            return False
        for folder, line in zip(self.folders, record["lines"], strict=True):
            known = json.loads(line)
            stamp = look.stamp(folder / name)
            if stamp is None or stamp.size != known["size"]:
                return False
            if rehash and digest_file(folder / name)[1] != known["digest"]:
                return False
        return True

    def read(self, name: str) -> dict[str, Any] | None:
        """The record of a weight file; ``None`` where there is no whole one of this plan."""
        path = self._note(name)
        if not look.exists(path):
            return None
        try:
            record = json.loads(read_bytes(path))
            is_ours = record["plan"] == self.identity and isinstance(record["inputs"], str)
            is_ours = is_ours and len(record["lines"]) == len(self.folders)
            for line in record["lines"]:
                known = json.loads(line)
                is_ours = is_ours and known["shard"] == name and isinstance(known["size"], int)
        except (ValueError, KeyError, TypeError):
            return None
        return record if is_ours else None

    def missing(self) -> list[int]:
        """The numbers of the weight files that are not in place."""
        return [number for number in range(len(self.files)) if not self.has((number,))]

    def count(self) -> int:
        """How many weight files are in place."""
        return len(self.files) - len(self.missing())


def claim_end(out: Path) -> bool:
    """Whether this process is the one that ends the run: the first to ask, or after one that has died.

    Raises
    ------
    OutputError
        The folder cannot be written to.
    """
    path = out / STATE / FINISHER
    me = json.dumps({"host": _host(), "process": os.getpid(), "started": _started(os.getpid())}).encode()
    # it appears with all that it says: nobody takes one that is being written for that of a dead process
    mine = path.with_name(f".{secrets.token_hex(8)}.part")
    is_mine = False
    try:
        mine.write_bytes(me)
        for _ in range(3):
            is_mine = _claimed(mine, path)
            if is_mine or not _take_away(path):
                break
    except OSError as error:
        raise look.unanswered(path, error) from error
    finally:
        try:
            with contextlib.suppress(OSError):
                mine.unlink(missing_ok=True)
        except BaseException:  # an interrupt: this process may live on, and would seem to be ending the run
            if is_mine:
                give_up_end(out)
            raise
    return is_mine


def _claimed(mine: Path, path: Path) -> bool:
    """Whether the file got the other name, which no other has then."""
    try:
        os.link(mine, path)
    except FileExistsError:
        return False
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        try:
            with open(path, "xb") as file:
                file.write(mine.read_bytes())
        except FileExistsError:
            return False
    return True


def _take_away(path: Path) -> bool:
    """Remove the name of a process that has died; true where there is none now."""
    if not _is_dead(path):
        return False
    # another process may have done so meanwhile, and put its own there
    taken = path.with_name(f".{secrets.token_hex(8)}.part")
    with contextlib.suppress(FileNotFoundError):
        path.rename(taken)
        is_dead = _is_dead(taken)
        if not is_dead:
            _claimed(taken, path)
        taken.unlink()
        return is_dead
    return True


def give_up_end(out: Path) -> None:
    """Let another process end the run."""
    with contextlib.suppress(OSError):
        (out / STATE / FINISHER).unlink()


def ender(out: Path) -> str | None:
    """Who ends the run, in words; ``None`` where nobody does, or one that has died."""
    path = out / STATE / FINISHER
    if _is_dead(path):
        return None
    try:
        who = json.loads(read_bytes(path))
        here = "" if who["host"] == _host() else f" of `{who['host']}`"
        return f"process {who['process']}{here}"
    except (NotFoundError, ValueError, KeyError, TypeError):  # it has just given up, or ended the run
        return None


def clear(out: Path) -> None:
    """Remove what the parts have shared but the plan, by which `finish` goes on after a kill at the end."""
    for name in (DONE, INPUTS, PIECES, WORK):
        shutil.rmtree(out / STATE / name, ignore_errors=True)


def clear_ended(out: Path, folders: Sequence[Path]) -> None:
    """Remove what is left of the state of a run that has ended, if it is not in the folder of an output."""
    if out in folders:
        return
    with contextlib.suppress(OSError):
        clear(out)
        for name in (PARTS, FINISHER):
            (out / STATE / name).unlink(missing_ok=True)
        os.rmdir(out / STATE)


def clear_abandoned(out: Path) -> None:
    """Remove the folders of processes of this machine that have died at work."""
    for name in look.listing(out / STATE / WORK):
        if is_abandoned(name):
            shutil.rmtree(out / STATE / WORK / name, ignore_errors=True)


def _is_dead(path: Path) -> bool:
    """Whether the process that a file names ran on this machine and has ended."""
    try:
        who = json.loads(read_bytes(path))
        return who["host"] == _host() and _started(int(who["process"])) != who["started"]
    except NotFoundError:
        return True  # it has given up, or ended the run
    except (ValueError, KeyError, TypeError):
        return True  # it was killed while it wrote its name


def _host() -> str:
    """This machine as long as it runs."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
        return f"{socket.gethostname()}-{boot}"
    return socket.gethostname()


def _started(process: int) -> str:
    """When a process of this machine began, in a unit of the system's; empty where it does not exist."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        with contextlib.suppress(OSError):
            os.kill(process, 0)
            return "0"
        return ""
