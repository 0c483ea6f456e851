"""A small local server that speaks the hub's protocol, and can be told to misbehave.

It serves model repositories from memory: the listing of a revision (``/api/models/…``), and files under
``/resolve/`` with the headers that huggingface_hub reads. Large files redirect to another origin, as the
hub redirects to its CDN.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from support.hub_uploads import Uploads

# Of a repository: data sets and spaces have their kind in front.
_NAME = r"(?:datasets/|spaces/)?[^/]+/[^/]+"


@dataclass
class Repo:
    """A repository: its files at one commit."""

    files: dict[str, bytes]
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    token: str | None = None
    private: bool = False
    # Further branches: commit and files of each.
    branches: dict[str, tuple[str, dict[str, bytes]]] = field(default_factory=dict)
    # Titles of the commits that were made, and the files that each took away.
    history: list[tuple[str, str, list[str]]] = field(default_factory=list)

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        """Commit and files of a branch, or of a commit."""
        for commit, files in self.branches.values():
            if commit == revision:
                return commit, files
        return self.branches.get(revision, (self.commit, self.files))

    @classmethod
    def from_folder(cls, folder: Path, **settings: Any) -> Repo:
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        return cls(files, **settings)

    def is_large(self, name: str) -> bool:
        return name.endswith((".safetensors", ".bin", ".gguf", ".parquet"))

    def digest(self, name: str, files: dict[str, bytes] | None = None) -> str:
        data = (files or self.files)[name]
        if self.is_large(name):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@dataclass(frozen=True)
class Request:
    """What a client asked for, and the bytes of body that it was sent."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    sent: int


@dataclass
class Faults:
    """How to misbehave; keys are file names, ``*`` stands for every request."""

    status: dict[str, int] = field(default_factory=dict)
    retry_after: int | None = None
    # Closes the connection after so many bytes of the file's body, as many times as given.
    drop: dict[str, tuple[int, int]] = field(default_factory=dict)
    etag: dict[str, str] = field(default_factory=dict)
    listed_size: dict[str, int] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)
    ignore_ranges: bool = False
    extra_listed: list[str] = field(default_factory=list)
    commit: str | None = None
    # Files whose bodies are never sent; `stalled` is set when one is asked for.
    stall: set[str] = field(default_factory=set)
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    # Steps of an upload (`support.hub_uploads`) that are refused: the status, and how often.
    refuse: dict[str, tuple[int, int]] = field(default_factory=dict)
    # Steps that are done, and then the connection is closed, so often.
    lose: dict[str, int] = field(default_factory=dict)
    # Called before a step.
    before: dict[str, Callable[[], object]] = field(default_factory=dict)
    # Names that the hub keeps in its history instead of its store of large files.
    regular: tuple[str, ...] = ()


class Hub:
    """The server: ``url`` is its endpoint, ``repos`` what it has, ``requests`` what was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.faults = Faults()
        # Large files by their SHA-256, those of no commit too, and which were sent, in order.
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        # The token without which nothing is written.
        self.write_token: str | None = None
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> Hub:
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def new_repo(self, files: dict[str, bytes], *, private: bool) -> Repo:
        """An empty repository."""
        return Repo(files, private=private)

    @property
    def bytes_sent(self) -> int:
        """Body bytes of every answer so far."""
        return sum(request.sent for request in self.requests)

    def weight_bytes_sent(self) -> int:
        """Body bytes of safetensors files."""
        return sum(request.sent for request in self.requests if ".safetensors" in request.path)


class _Handler(Uploads, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: Hub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.sent = 0
        try:
            self._route()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self._note()

    def _note(self) -> None:
        self.server_hub.requests.append(
            Request(self.command, self.path, self.headers["Range"], self.headers["Authorization"], self.sent)
        )

    def _route(self) -> None:
        hub, url = self.server_hub, urlsplit(self.path)
        path = unquote(url.path)
        if match := re.fullmatch(rf"/cdn/({_NAME})/(.+)", path):
            revision = parse_qs(url.query).get("revision", ["main"])[0]
            self._send_file(hub.repos[match[1]].at(revision)[1], match[2], {})
        elif match := re.fullmatch(rf"/api/(?:models/)?({_NAME}?)(?:/revision/(.+))?", path):
            self._send_listing(match[1], match[2] or "main", "blobs" in parse_qs(url.query))
        elif match := re.fullmatch(rf"/({_NAME})/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        else:
            self._refuse(404, None)

    def _allowed(self, name: str, revision: str, file: str | None) -> Repo | None:
        hub = self.server_hub
        status = hub.faults.status.get(file or "", hub.faults.status.get("*"))
        repo = hub.repos.get(name)
        if status is not None:
            self._refuse(status, None)
        elif repo is None:
            # The public hub answers 401 to anonymous requests for what does not exist.
            self._refuse(401 if not self.headers["Authorization"] else 404, "RepoNotFound")
        elif repo.gated:
            self._refuse(403 if self.headers["Authorization"] else 401, "GatedRepo")
        elif repo.token and self.headers["Authorization"] != f"Bearer {repo.token}":
            self._refuse(401, None)
        elif revision not in (
            *repo.revisions,
            repo.commit,
            *repo.branches,
            *(c for c, _ in repo.branches.values()),
        ):
            self._refuse(404, "RevisionNotFound")
        else:
            return repo
        return None

    def _refuse(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", f"{code} for {self.path}")
        if status == 429 and self.server_hub.faults.retry_after is not None:
            self.send_header("Retry-After", str(self.server_hub.faults.retry_after))
        self._body(json.dumps({"error": code or f"status {status}"}).encode())

    def _body(self, data: bytes) -> None:
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            self.sent += len(data)

    def _send_listing(self, name: str, revision: str, blobs: bool) -> None:
        repo, faults = self._allowed(name, revision, None), self.server_hub.faults
        if repo is None:
            return
        siblings: list[dict[str, Any]] = []
        own, files = repo.at(revision)
        for file, data in files.items():
            entry: dict[str, Any] = {"rfilename": file}
            if blobs:
                size = faults.listed_size.get(file, len(data))
                entry |= {"size": size, "blobId": repo.digest(file, files)}
                if repo.is_large(file):
                    entry["lfs"] = {"sha256": repo.digest(file, files), "size": size, "pointerSize": 134}
            siblings.append(entry)
        siblings += [{"rfilename": file, "size": 1, "blobId": "0" * 40} for file in faults.extra_listed]
        commit = faults.commit or own
        answer = {
            "id": name,
            "modelId": name,
            "sha": commit,
            "private": repo.private,
            "gated": False,
            "siblings": siblings,
        }
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self._body(json.dumps(answer).encode())

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repo, hub = self._allowed(name, revision, file), self.server_hub
        if repo is None:
            return
        commit, files = repo.at(revision)
        if file not in files:
            self._refuse(404, "EntryNotFound")
            return
        etag = hub.faults.etag.get(file, repo.digest(file, files))
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}
        if not repo.is_large(file):
            self._send_file(files, file, headers)
            return
        self.send_response(302)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("X-Linked-Etag", f'"{etag}"')
        self.send_header("X-Linked-Size", str(len(files[file])))
        self.send_header(
            "Location", f"{hub.cdn}/cdn/{name}/{quote(file)}?revision={quote(revision, safe='')}"
        )
        self._body(b"")

    def _send_file(self, files: dict[str, bytes], file: str, headers: dict[str, str]) -> None:
        faults = self.server_hub.faults
        data = faults.content.get(file, files[file])
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        start, stop = 0, len(data)
        if match and not faults.ignore_ranges:
            start = int(match[1])
            stop = min(int(match[2]) + 1, stop) if match[2] else stop
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        else:
            self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Accept-Ranges", "bytes")
        if self.command == "GET" and file in faults.stall:
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            faults.stalled.set()
            faults.released.wait()
            self.close_connection = True
            return
        at, times = faults.drop.get(file, (0, 0))
        if self.command == "GET" and times and start <= at < stop:
            faults.drop[file] = (at, times - 1)
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            self.wfile.write(data[start:at])
            self.sent += at - start
            self.close_connection = True
            return
        self._body(data[start:stop])


@contextmanager
def running_hub(**repos: Repo) -> Iterator[Hub]:
    """A server with these repositories; ``org__name`` stands for ``org/name``."""
    with Hub() as hub:
        hub.repos.update({name.replace("__", "/"): repo for name, repo in repos.items()})
        yield hub
