"""Fetching from the hub: headers by ranged requests, weights when a run needs them, all through its cache.

huggingface_hub does the fetching. Nothing but bytes is fetched; no code of a repository is run.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from taskvec.errors import Error, FormatError, HubError
from taskvec.files.json import MAXIMUM_BYTES, parse_object, read_bytes
from taskvec.progress import Callback, Progress
from taskvec.resolve.hub_errors import explained, is_unreachable

log = logging.getLogger("taskvec.hub")

Result = TypeVar("Result")

COMMIT = re.compile(r"[0-9a-f]{40}")
# Holds the header of a model of about a thousand tensors: one request for most shards.
FIRST_REQUEST = 128 << 10
MAXIMUM_HEADER = 100_000_000
HEADER_REQUESTS = 8
ATTEMPTS = 4

_MIRROR = "run the same command again; if it stays so, the mirror or proxy (HF_ENDPOINT) serves another file"


@dataclass(frozen=True, slots=True)
class Location:
    """A repository's name and the revision asked for."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository: its bytes and, if listed, its digest (SHA-256; small files: git's SHA-1)."""

    name: str
    size: int
    digest: str | None


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one commit.

    Attributes
    ----------
    location : Location
        What was asked for.
    commit : str
        What it was resolved to.
    snapshot : Path
        Where the cache has, or will have, the files of this commit.
    files : mapping, optional
        The files by name; ``None`` where the cache is complete, or the hub could not be asked.
    """

    location: Location
    commit: str
    snapshot: Path
    files: Mapping[str, RemoteFile] | None

    def is_cached(self, name: str) -> bool:
        """Whether the cache holds this file of this commit."""
        return (self.snapshot / name).is_file()

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of the names that the cache does not hold."""
        return [name for name in names if not self.is_cached(name)]

    def size(self, names: Iterable[str]) -> int:
        """The bytes of these files together."""
        files = self.files or {}
        return sum(files[name].size for name in names)

    def read(self, name: str) -> bytes:
        """A small file's bytes, through the cache."""
        size = self.files[name].size if self.files is not None and name in self.files else 0
        if size > MAXIMUM_BYTES:
            raise FormatError(
                f"`{name}` of `{self.location}` has {size} bytes, expected at most {MAXIMUM_BYTES}"
            )
        if not self.is_cached(name):
            self._download(name, None)
        return read_bytes(self.snapshot / name)

    def index(self, name: str) -> dict[str, Any]:
        """The parsed index of the shards."""
        return parse_object(self.read(name), f"{self.location}/{name}")

    def headers(self, names: Collection[str]) -> dict[str, bytes]:
        """The first bytes of safetensors files, at least up to the end of the header, by ranged requests."""
        waiting, results = list(names), dict[str, bytes]()
        finished: queue.SimpleQueue[tuple[str, bytes | Exception]] = queue.SimpleQueue()

        def work() -> None:
            while waiting:
                try:
                    name = waiting.pop()
                except IndexError:
                    return
                try:
                    finished.put((name, self._header(name)))
                except Exception as error:
                    finished.put((name, error))

        # Daemons, where a pool's threads would be waited for: a stalled server must not hold up Ctrl-C.
        for _ in range(min(HEADER_REQUESTS, len(names))):
            threading.Thread(target=work, daemon=True).start()
        for _ in names:
            name, found = finished.get()
            if isinstance(found, Exception):
                waiting.clear()
                raise found
            results[name] = found
        return {name: results[name] for name in names}

    def _header(self, name: str) -> bytes:
        if self.is_cached(name):
            with open(self.snapshot / name, "rb") as file:
                first = file.read(8)
                return first + file.read(min(int.from_bytes(first, "little"), MAXIMUM_HEADER))
        size = (self.files or {})[name].size
        data = self._range(name, 0, min(size, FIRST_REQUEST))
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 + length <= min(size, MAXIMUM_HEADER + 8):
            data += self._range(name, len(data), 8 + length)
        return data

    def _range(self, name: str, start: int, stop: int) -> bytes:
        size = (self.files or {})[name].size
        with explained(self.location.repository, self.location.revision, name):
            return _repeated(lambda: _get_range(self._url(name), start, stop, size), is_unreachable)

    def _url(self, name: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.location.repository, name, revision=self.commit)

    def download(self, names: Collection[str], progress: Callback | None = None) -> Path:
        """Fetch those of the files that the cache lacks, one after the other; gives the snapshot's folder.

        A dropped connection is taken up again where it broke off; after an interruption, finished files are
        kept. Weights are compared with the digest that the hub lists for them.

        Raises
        ------
        HubError
            The hub refuses, cannot be reached, or sends something else than it lists.
        OutputError
            The cache cannot be written.
        """
        missing = self.missing(names)
        total, done, begin = self.size(missing), 0, time.monotonic()

        def report(count: int) -> None:
            if progress is not None:
                progress(Progress("download", min(done + count, total), total, time.monotonic() - begin))

        report(0)
        for name in missing:
            self._download(name, report)
            done += self.size([name])
            report(0)
        self._remember()
        return self.snapshot

    def _download(self, name: str, report: Callable[[int], None] | None) -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download

        file = (self.files or {}).get(name)
        with explained(self.location.repository, self.location.revision, name), _quiet(report) as meter:
            if file is not None and name.endswith(".safetensors"):
                seen = get_hf_file_metadata(self._url(name), token=None)
                self._compare(file, seen.size, seen.etag)
            fetch = partial(hf_hub_download, self.location.repository, name, revision=self.commit, **meter)
            # Before 1.0, huggingface_hub gives up where a body breaks off, but keeps what it has.
            path = Path(_repeated(fetch, lambda error: type(error).__name__ == "ChunkedEncodingError"))
        if file is None or not name.endswith(".safetensors"):
            return
        size = path.stat().st_size
        found = _digest(path, file) if file.digest and size == file.size else None
        if size != file.size or found != file.digest:
            self._discard(path)
            raise HubError(
                f"file `{name}` of `{self.location}` arrived with {size} bytes and digest `{found}`, "
                f"the hub lists {file.size} and `{file.digest}`",
                "the download was damaged and is removed; run the same command again",
            )

    def _compare(self, file: RemoteFile, size: int | None, etag: str | None) -> None:
        for what, found, listed in (("size", size, file.size), ("etag", etag, file.digest)):
            if found is not None and listed is not None and found != listed:
                raise HubError(
                    f"file `{file.name}` of `{self.location}` has {what} `{found}`, the hub lists `{listed}`",
                    _MIRROR,
                )

    @staticmethod
    def _discard(path: Path) -> None:
        blob = path.resolve()
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)

    def _remember(self) -> None:
        """Notes in the cache which commit the revision stands for, so that it is found again offline."""
        revision = self.location.revision or "main"
        if self.files is None or COMMIT.fullmatch(revision):
            return
        try:
            reference = self.snapshot.parent.parent / "refs" / revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            temporary = reference.with_name(f"{reference.name}.{time.monotonic_ns()}.tmp")
            temporary.write_text(self.commit)
            temporary.replace(reference)
        except OSError as error:
            log.info("the cache's note of `%s` could not be written: %s", revision, error)


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


def _digest(path: Path, file: RemoteFile) -> str:
    """The digest in the form that the hub lists: SHA-256 of large files, git's blob SHA-1 of small ones."""
    with open(path, "rb") as data:
        if len(file.digest or "") == 64:
            return hashlib.file_digest(data, "sha256").hexdigest()
        small = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
        small.update(data.read())
        return small.hexdigest()


def _get_range(url: str, start: int, stop: int, size: int) -> bytes:
    """Bytes `start` to `stop` of a file of `size` bytes; no more is read, even if the server sends it all."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    session: Any = get_session()
    # huggingface_hub 1 and later hand out an httpx client, earlier versions a requests session.
    if callable(getattr(session, "stream", None)):
        answer = session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True)
    else:
        answer = closing(session.get(url, headers=headers, timeout=timeout, stream=True))
    with answer as response:
        hf_raise_for_status(response)
        partial = response.status_code == 206
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if partial and total.isdigit() and int(total) != size:
            raise HubError(
                f"`{url}` has {total} bytes, but the hub lists {size}",
                _MIRROR,
            )
        chunks = (
            response.iter_bytes(65536) if hasattr(response, "iter_bytes") else response.iter_content(65536)
        )
        skip, data = 0 if partial else start, bytearray()
        for chunk in chunks:
            data += chunk
            if len(data) >= skip + stop - start:
                break
    data = data[skip : skip + stop - start]
    if len(data) < stop - start:
        raise ConnectionError(f"connection closed after {len(data)} of {stop - start} bytes")
    return bytes(data)


@contextmanager
def _quiet(report: Callable[[int], None] | None) -> Iterator[dict[str, Any]]:
    """Silences huggingface_hub's own bars, and hands its count of bytes to `report` where its version can."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from tqdm import tqdm

    count = 0

    class Meter(tqdm):
        """A bar that shows nothing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal count
            count += int(n or 0)
            if report is not None:
                report(count)

    if "tqdm_class" in inspect.signature(hf_hub_download).parameters:
        yield {"tqdm_class": Meter}
        return
    shown = not are_progress_bars_disabled()
    if shown:
        disable_progress_bars()
    try:
        yield {}
    finally:
        if shown:
            enable_progress_bars()
