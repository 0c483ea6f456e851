"""The digests of the input files of a run: which the engine is asked for, and which are known already.

The engine makes the digest of a file in the pass that reads it. BLAKE3 takes about a quarter of a second of
one core for a gigabyte, half as much again as a transfer of files in memory takes. So a digest that was made
is kept with the state of its file, and a file in the same state is not digested again.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec._core import blake3_hex, digest_file, write_atomic
from taskvec.files import look
from taskvec.files.manifest import DIGEST
from taskvec.files.reading import read_up_to
from taskvec.models.model import Model
from taskvec.models.source_contents import NOT_COMPUTED, NOT_READ_WHOLE, Contents, listed_sha256
from taskvec.run.inputs import Source
from taskvec.settings import Settings

# A file that has changed within so many nanoseconds may change again under the same time: file systems count
# in steps of up to two seconds.
_STEADY = 2_000_000_000
# Digests that are kept, and how many of the oldest go when there are more.
_MOST, _FEWER = 8192, 4096
# Characters of a digest.
_LENGTH = 64


class InputDigests:
    """The digests of the weight files of some sources.

    Parameters
    ----------
    sources : sequence of Model, SavedVector or Adapter
        Those of a run, here.
    settings : Settings
        ``input_digests`` says whether any are made, ``rehash`` whether known ones are made again.
    is_apart : bool
        Whether the weights were read elsewhere, or in parts: then none are made.
    """

    def __init__(self, sources: Sequence[Source], settings: Settings, *, is_apart: bool = False) -> None:
        is_wanted = settings.input_digests and not is_apart
        self._paths = [dict(_paths(source)) if is_wanted else {} for source in sources]
        self._known: dict[str, str] = {}
        self._keys: dict[str, str] = {}
        for path in dict.fromkeys(path for paths in self._paths for path in paths.values()):
            key = _key(path)
            known = None if key is None or settings.rehash else _remembered(key)
            if known is not None:
                self._known[path] = known
            elif key is not None:
                self._keys[path] = key
        self._found: dict[str, str] = {}

    @property
    def asked(self) -> list[tuple[str, bool]]:
        """The files that the engine is asked about, each with whether its digest is to be made."""
        paths = dict.fromkeys(path for paths in self._paths for path in paths.values())
        return [(path, path not in self._known) for path in paths]

    def take(self, answers: Sequence[Mapping[str, Any]]) -> Contents:
        """What the engine has found, with what was known; new digests are kept."""
        for answer in answers:
            path, digest = answer["path"], answer["blake3"]
            if not answer["whole"]:
                self._found[path] = NOT_READ_WHOLE
            elif digest is not None:
                self._found[path] = digest
                self._keep(path, digest)
            elif path in self._known:
                self._found[path] = self._known[path]
        return self._contents()

    def read(self, threads: int = 0) -> Contents:
        """The digests of all files, each read by itself: for runs whose arithmetic is not the engine's."""
        for path, is_new in self.asked:
            self._found[path] = digest_file(path, threads=threads)[1] if is_new else self._known[path]
            if is_new:
                self._keep(path, self._found[path])
        return self._contents()

    def _contents(self) -> Contents:
        return [
            {name: self._found.get(path, NOT_COMPUTED) for name, path in paths.items()}
            for paths in self._paths
        ]

    def _keep(self, path: str, digest: str) -> None:
        """Keep a digest if its file is in the state in which it was before, and has been for a while."""
        key = self._keys.get(path)
        if key is not None and key == _key(path) and _is_steady(path):
            _remember(key, digest)


def _paths(source: Source) -> Iterator[tuple[str, str]]:
    """The weight files of a source that the hub lists no digest of, by name."""
    if source.path is None or (isinstance(source, Model) and source.is_laid_out):
        return
    for name in source.file_sizes:
        if listed_sha256(source, name) is None:
            yield name, str(source.location / name)


# --- digests that are kept --------------------------------------------------------------------------------
def _folder() -> Path | None:
    """Where digests are kept; nowhere for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "taskvec" / "digests" if os.path.isabs(base) else None


def _key(path: str) -> str | None:
    """What a file and its state are known by; none where there is no such file."""
    stamp = look.stamp(path)
    return None if stamp is None else blake3_hex(repr((os.path.realpath(path), *stamp)).encode())


def _is_steady(path: str) -> bool:
    stamp = look.stamp(path)
    return stamp is not None and time.time_ns() - max(stamp.modified, stamp.changed) > _STEADY


def _remembered(key: str) -> str | None:
    folder = _folder()
    # what cannot be read is not known, and what others have written is not believed
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if folder is not None and _is_own(folder) and _is_own(folder / key):
            text = read_up_to(folder / key, _LENGTH + 2).decode("ascii").removesuffix("\n")
            return text if DIGEST.fullmatch(text) else None
    return None


def _is_own(path: Path) -> bool:
    """Whether a file or folder is this user's, and not open to all; one that is a link is not believed."""
    status = os.lstat(path)
    is_mine = status.st_uid == os.geteuid() and not stat.S_ISLNK(status.st_mode)
    return is_mine and not status.st_mode & stat.S_IWOTH


def _remember(key: str, digest: str) -> None:
    folder = _folder()
    if folder is None:
        return
    # a cache that cannot be written costs time and nothing else
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = [entry for entry in os.scandir(folder) if entry.is_file()]
        if len(kept) >= _MOST:
            for entry in sorted(kept, key=lambda entry: entry.stat().st_mtime)[:_FEWER]:
                os.unlink(entry)
        write_atomic(folder / key, f"{digest}\n".encode())
