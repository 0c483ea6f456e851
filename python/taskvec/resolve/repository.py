"""A repository on the hub: ranges of its files read, and files fetched into the hub's cache.

huggingface_hub does the fetching. Nothing but bytes is fetched; no code of a repository is run.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from taskvec._core import write_atomic
from taskvec.errors import Error, HubError, NotFoundError, OutputError
from taskvec.files import look
from taskvec.files.reading import fill, some
from taskvec.models.adapter import FILES as ADAPTER_FILES
from taskvec.models.model import Identity, RemoteFile
from taskvec.progress import Callback, Progress
from taskvec.regex import regex
from taskvec.resolve.hub_errors import explained, is_unreachable
from taskvec.resolve.sub_models import local_reader

log = logging.getLogger("taskvec.hub")

Result = TypeVar("Result")

COMMIT = regex(r"[0-9a-f]{40}")
ATTEMPTS = 4

_MIRROR = "run the same command again; if it stays so, the mirror or proxy (HF_ENDPOINT) serves another file"


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository's name and the revision asked for."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one commit, a :class:`~taskvec.models.model.Remote`.

    Attributes
    ----------
    name : HubName
        As it was asked for.
    commit : str
        The commit that the revision stands for.
    folder : Path
        Where the cache has, or will have, the files of this commit.
    files : mapping of str to RemoteFile
        Every file that the hub lists; those of the cache where it could not, or need not, be asked.
    """

    name: HubName
    commit: str
    folder: Path
    files: Mapping[str, RemoteFile]

    @property
    def identity(self) -> Identity:
        """Repository and commit."""
        repository = self.name.repository
        return Identity(repository, self.commit, f"hf://{repository}@{self.commit}")

    def list(self) -> Mapping[str, RemoteFile]:
        """Every file by its name."""
        return self.files

    def size(self, name: str) -> int:
        """The bytes of one file."""
        return self._file(name).size

    def read(self, name: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Parts of one file, from the cache if it has the file, otherwise by ranged requests."""
        size, url = self.size(name), self._url(name)
        with explained(self.name.repository, self.name.revision, name):
            cached = self._cached(name)
            if cached is not None:
                return _parts(cached, ranges)
            return [
                _repeated(partial(_get_range, url, start, stop, size), is_unreachable)
                for start, stop in ranges
            ]

    def fetch(
        self, names: Collection[str], folder: Path | None = None, progress: Callback | None = None
    ) -> Path:
        """Fetch those of the files that the cache, or the folder, lacks, one after the other.

        A dropped connection is taken up again where it broke off; after an interruption, finished files are
        kept. Weights are compared with the digest that the hub lists for them.

        Raises
        ------
        HubError
            The hub refuses, cannot be reached, or sends something else than it lists.
        OutputError
            The cache cannot be written.
        """
        missing = [name for name in names if folder or self._cached(name) is None]
        total, done, begin = sum(map(self.size, missing)), 0, time.monotonic()

        def report(count: int) -> None:
            if progress is not None:
                progress(Progress("download", min(done + count, total), total, time.monotonic() - begin))

        report(0)
        for name in missing:
            self._fetch(self._file(name), folder, report)
            done += self.size(name)
            report(0)
        if missing and folder is None and (has_weights(self.folder) or has_adapter(self.folder)):
            self._remember()
        return folder or self.folder

    def _file(self, name: str) -> RemoteFile:
        if name not in self.files:
            raise NotFoundError(
                f"`{self.name}` has no file `{name}`", "look at the repository's list of files"
            )
        return self.files[name]

    def _url(self, name: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.name.repository, name, revision=self.commit)

    def _cached(self, name: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.name.repository, name, revision=self.commit)
        return Path(path) if isinstance(path, str) else None

    def _fetch(self, file: RemoteFile, folder: Path | None, report: Callable[[int], None]) -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download

        is_weight = file.name.endswith(".safetensors")
        with explained(self.name.repository, self.name.revision, file.name):
            if is_weight:
                seen = get_hf_file_metadata(self._url(file.name))
                self._compare(file, seen.size, seen.etag)
            path = hf_hub_download(
                self.name.repository,
                file.name,
                revision=self.commit,
                local_dir=folder,
                tqdm_class=_meter(report),
            )
            if is_weight:
                self._check(file, Path(path))

    def _compare(self, file: RemoteFile, size: int | None, etag: str | None) -> None:
        """The answer to a HEAD request against the list: before a mirror's other file is downloaded."""
        for what, found, listed in (("size", size, file.size), ("etag", etag, file.digest)):
            if found is not None and listed is not None and found != listed:
                raise HubError(
                    f"file `{file.name}` of `{self.name}` has {what} `{found}`, the hub lists `{listed}`",
                    _MIRROR,
                )

    def _check(self, file: RemoteFile, path: Path) -> None:
        """A fetched file against the list; huggingface_hub compares no digest."""
        size = path.stat().st_size
        found = _digest(path, file) if file.digest and size == file.size else None
        if size != file.size or found != file.digest:
            blob = path.resolve()
            path.unlink(missing_ok=True)
            blob.unlink(missing_ok=True)
            raise HubError(
                f"file `{file.name}` of `{self.name}` arrived with {size} bytes and digest `{found}`, "
                f"the hub lists {file.size} and `{file.digest}`",
                "the download was damaged and is removed; run the same command again",
            )

    def _remember(self) -> None:
        """Note in the cache which commit a branch or tag stands for, so that it is found again offline.

        huggingface_hub notes it only while it asks for a branch, which may have moved since the files were
        listed: its note would lead to a commit of which the cache has little or nothing.
        """
        revision = self.name.revision or "main"
        if COMMIT.fullmatch(revision):
            return
        note = self.folder.parents[1] / "refs" / revision
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(note, self.commit.encode())
        except OSError as error:
            log.info("the cache's note of `%s` could not be written: %s", revision, error)


def has_weights(snapshot: Path) -> bool:
    """Whether a snapshot of the cache has all its weights; raises where it cannot be looked at."""
    try:
        local_reader(snapshot)
    except OutputError:
        raise
    except Error:
        return False
    return True


def has_adapter(snapshot: Path) -> bool:
    """Whether a snapshot of the cache has a whole adapter."""
    return all(look.exists(snapshot / name) for name in ADAPTER_FILES)


def _repeated(action: Callable[[], Result], again: Callable[[Exception], bool]) -> Result:
    """Call `action` until it succeeds, or fails in another way than is worth trying again, or too often."""
    for attempt in range(1, ATTEMPTS):
        try:
            return action()
        except Exception as error:
            if isinstance(error, Error) or not again(error):
                raise
            log.info("%s; trying again", error)
            time.sleep(0.25 * 2**attempt)
    return action()


def _parts(path: Path, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    parts = []
    with open(path, "rb", buffering=0) as file:
        for start, stop in ranges:
            file.seek(start)
            parts.append(fill(file.fileno(), stop - start))
    return parts


def _get_range(url: str, start: int, stop: int, size: int) -> bytes:
    """Bytes `start` to `stop` of a file of `size` bytes; no more is read, even if the server sends it all."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream(
        "GET", url, headers=headers, timeout=timeout, follow_redirects=True
    ) as response:
        hf_raise_for_status(response)
        is_part = response.status_code == 206
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if is_part and total.isdigit() and int(total) != size:
            raise HubError(f"`{url}` has {total} bytes, but the hub lists {size}", _MIRROR)
        skip, data = 0 if is_part else start, bytearray()
        for chunk in response.iter_bytes(65536):
            data += chunk
            if len(data) >= skip + stop - start:
                break
    data = data[skip : skip + stop - start]
    if len(data) < stop - start:
        raise ConnectionError(f"connection closed after {len(data)} of {stop - start} bytes")
    return bytes(data)


def _digest(path: Path, file: RemoteFile) -> str:
    """The digest in the form that the hub lists: SHA-256 of large files, git's blob SHA-1 of small ones."""
    digest = hashlib.sha256()
    if len(file.digest or "") != 64:
        digest = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with open(path, "rb", buffering=0) as data:
        while part := some(data.fileno(), 1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _meter(report: Callable[[int], None]) -> type:
    """A progress bar for huggingface_hub that shows nothing and reports the bytes of one file so far."""
    from tqdm import tqdm

    count = 0

    class Meter(tqdm):
        """A bar that shows nothing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal count
            count += int(n or 0)
            report(count)

    return Meter
