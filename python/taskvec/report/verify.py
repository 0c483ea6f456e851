"""Holding an output folder against its manifest."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from taskvec._core import digest_file
from taskvec.errors import NotFoundError, VerificationError
from taskvec.files import look
from taskvec.files.manifest import File, files, parse, read_text
from taskvec.files.names import MANIFEST, STATE
from taskvec.files.seal import Sealed, seal_of, worst
from taskvec.progress import Callback, Progress
from taskvec.report.tables import Tabled, table_html
from taskvec.text import listed

Status = Literal["ok", "missing", "truncated", "differs", "extra"]


class FileCheck(NamedTuple):
    """One file, as the manifest has it and as it was found; ``None`` where nothing was."""

    name: str
    status: Status
    expected_bytes: int | None
    found_bytes: int | None
    expected_blake3: str | None
    found_blake3: str | None


@dataclass(frozen=True, slots=True, repr=False)
class Verification(Tabled):
    """The outcome of :func:`taskvec.verify`.

    Attributes
    ----------
    folder : str
        What was verified.
    kind : str
        ``checkpoint`` or ``vector``.
    files : tuple of FileCheck
        Every file of the manifest, then those that it does not list (``extra``, no failure).
    seconds : float
        Time taken.
    seal : {"sealed", "not-sealed", "broken"}
        Whether the manifest is as it was written, by the digest at its own end; older ones have
        none.
    """

    folder: str
    kind: str
    files: tuple[FileCheck, ...]
    seconds: float
    seal: Sealed = "not-sealed"

    @property
    def ok(self) -> bool:
        """Whether the manifest is as written, and every file of it is there and has its digest."""
        return not self.problems and self.seal != "broken"

    @property
    def problems(self) -> tuple[FileCheck, ...]:
        """The files that are missing, truncated or different."""
        return tuple(file for file in self.files if file.status not in ("ok", "extra"))

    @property
    def extra(self) -> tuple[str, ...]:
        """Files that the manifest does not list."""
        return tuple(file.name for file in self.files if file.status == "extra")

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = [f"{file.status:<9}  {file.name}" for file in self.files]
        if self.seal == "broken":
            lines.append(f"{'differs':<9}  {MANIFEST}")
        bad = len(self.problems) + (self.seal == "broken")
        verdict = f"{bad} files are not as written" if bad else "all files are as the manifest says"
        return "\n".join([*lines, verdict])

    def _subject(self) -> str:
        return self.folder

    def _facts(self) -> dict[str, str]:
        facts = {"ok": "yes" if self.ok else "no", "files": str(len(self.files) - len(self.extra))}
        if self.problems:
            facts["problems"] = listed([file.name for file in self.problems])
        if self.extra:
            facts["not in the manifest"] = listed(self.extra)
        return facts

    def _tables(self) -> Mapping[str, Any]:
        return {"files": lambda: [file._asdict() for file in self.files]}

    def _more_html(self) -> str:
        rows = [{"file": file.name, "status": file.status} for file in self.problems]
        return table_html(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "schema": 1,
            "folder": self.folder,
            "kind": self.kind,
            "ok": self.ok,
            "seal": self.seal,
            "seconds": self.seconds,
            "files": [file._asdict() for file in self.files],
        }


def verify(
    path: str | os.PathLike[str], *, threads: int | None = None, progress: Callback | None = None
) -> Verification:
    """Compare every file of an output folder with the digest in its manifest.

    A folder that holds the outputs of several values of alpha is verified as a whole.

    Parameters
    ----------
    path : str or path
        A checkpoint or a task vector that taskvec wrote.
    threads : int, optional
        All cores by default.
    progress : callable, optional
        Called with a :class:`taskvec.Progress`.

    Raises
    ------
    NotFoundError
        There is no such folder, or it has no manifest.
    FormatError
        The manifest is damaged.
    VerificationError
        The folder holds an unfinished run.
    OutputError
        A file or folder cannot be looked at.
    """
    begin = time.monotonic()
    folder = Path(path)
    if not look.is_folder(folder):
        raise NotFoundError(f"`{path}` is not a folder", "name the folder that taskvec wrote")
    found = _parts(folder)
    parts = [(prefix, part) for prefix, part, _ in found]
    listed = [(prefix, file) for prefix, part in parts for file in files(part, folder / prefix)]
    total, done = sum(file.bytes for _, file in listed), 0
    checks = []
    for prefix, file in listed:
        checks.append(_check(folder / prefix, prefix, file, threads or 0))
        done += file.bytes
        if progress is not None:
            progress(Progress("verify", done, total, time.monotonic() - begin))
    known = {f"{prefix}{file.name}" for prefix, file in listed}
    known |= {f"{prefix}{MANIFEST}" for prefix, _ in parts}
    checks += [FileCheck(name, "extra", None, None, None, None) for name in _others(folder, known)]
    kind, seal = str(parts[0][1].get("kind")), worst(state for _, _, state in found)
    return Verification(str(path), kind, tuple(checks), time.monotonic() - begin, seal)


def _parts(folder: Path) -> list[tuple[str, dict[str, Any], Sealed]]:
    """The manifests of a folder, with the prefixes of their names and their seals: one, or one per alpha."""
    if not look.exists(folder / MANIFEST):
        if look.is_folder(folder / STATE):
            raise _unfinished(folder)
        named = [folder / name for name in look.listing(folder) if name.startswith("alpha=")]
        several = [entry for entry in named if look.is_folder(entry)]
        for entry in several:
            if not look.exists(entry / MANIFEST) and look.is_folder(entry / STATE):
                raise _unfinished(entry)
        if several:
            return [(f"{entry.name}/", *_read(entry)) for entry in several]
    return [("", *_read(folder))]


def _read(folder: Path) -> tuple[dict[str, Any], Sealed]:
    data = read_text(folder)
    manifest = parse(data, folder / MANIFEST)
    return manifest, seal_of(data, manifest)


def _unfinished(folder: Path) -> VerificationError:
    return VerificationError(
        f"`{folder}` holds an unfinished run: it has no manifest yet",
        "run the command that began it again; it goes on where it stopped",
    )


def _check(folder: Path, prefix: str, file: File, threads: int) -> FileCheck:
    name, path = f"{prefix}{file.name}", folder / file.name
    stamp = look.stamp(path)
    if stamp is None:
        verdict: Status = "differs" if look.exists(path) else "missing"
        return FileCheck(name, verdict, file.bytes, None, file.blake3, None)
    if stamp.size != file.bytes:
        verdict = "truncated" if stamp.size < file.bytes else "differs"
        return FileCheck(name, verdict, file.bytes, stamp.size, file.blake3, None)
    size, digest = digest_file(path, threads=threads)
    verdict = "ok" if (size, digest) == (file.bytes, file.blake3) else "differs"
    return FileCheck(name, verdict, file.bytes, size, file.blake3, digest)


def _others(folder: Path, known: set[str]) -> list[str]:
    others = []
    for level in look.walk(folder, without=frozenset({".git", ".cache", STATE})):
        relative = PurePosixPath(level.path)
        others += [str(relative / name) for name in level.files]
    return [name for name in others if name not in known]
