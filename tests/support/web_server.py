"""A web server of the tests' own: files with ranges and ETags, and faults on demand.

It stands for an object store as well: it lists files as those of Amazon, Google and Azure do, and asks nobody
for credentials.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote


@dataclass
class Fault:
    """What happens in place of an answer, to requests of a path that contains a text, a method and a range.

    ``status`` answers so, with ``body``; ``cut`` ends the connection after so many bytes; ``stall`` sends
    nothing for so many seconds; ``flip`` changes the first byte; ``times`` is how often (-1: always).
    """

    where: str = ""
    status: int = 0
    body: bytes = b""
    cut: int = -1
    stall: float = 0.0
    flip: bool = False
    times: int = -1
    method: str = ""
    given: str | None = None


@dataclass
class Web:
    """Files by path, faults, and the requests so far: method, path, range."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    tags: str = "strong"
    ranges: bool = True
    missing: int = 404
    url: str = ""

    def put(self, prefix: str, folder: Path) -> str:
        """A folder as files; its address."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.files[f"/{prefix}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
        return f"{self.url}/{prefix}"

    def fault(self, method: str, path: str, given: str | None) -> Fault | None:
        for fault in self.faults:
            if (
                fault.where in path
                and fault.times
                and fault.method in ("", method)
                and fault.given in (None, given)
            ):
                fault.times -= 1
                return fault
        return None

    def listed(self, bucket: str, prefix: str, is_azure: bool) -> bytes:
        """The files of a bucket below a prefix, as Azure or the others list them."""
        rows = [(name.removeprefix(f"{bucket}/"), data) for name, data in self.files.items()]
        rows = [(key, data) for key, data in rows if f"{bucket}/{key}".startswith(prefix)]
        if is_azure:
            blobs = (
                f"<Blob><Name>{key}</Name><Properties><Last-Modified>{moment(data)}</Last-Modified>"
                f"<Content-Length>{len(data)}</Content-Length><Content-Type>x</Content-Type>"
                f"<Etag>{(self.tag(data) or '').strip(chr(34))}</Etag></Properties></Blob>"
                for key, data in rows
            )
            blob_list = f"<Blobs>{''.join(blobs)}</Blobs><NextMarker/>"
            return f"<EnumerationResults><Prefix/>{blob_list}</EnumerationResults>".encode()
        contents = (
            f"<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.678Z</LastModified>"
            f"<ETag>{escape(self.tag(data) or '')}</ETag><Size>{len(data)}</Size></Contents>"
            for key, data in rows
        )
        return f"<ListBucketResult>{''.join(contents)}</ListBucketResult>".encode()

    def tag(self, data: bytes) -> str | None:
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return {"strong": f'"{digest}"', "weak": f'W/"{digest}"', "none": None, "other": f'"{digest[::-1]}"'}[
            self.tags
        ]


def moment(data: bytes) -> str:
    """The time of a file's last change."""
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(1_000_000_000 + len(data)))


def _handler(web: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            web.requests.append((self.command, self.path, self.headers.get("Range")))
            fault = web.fault(self.command, self.path, self.headers.get("Range"))
            if fault is not None and fault.stall:
                time.sleep(fault.stall)
            if fault is not None and fault.status:
                return self._answer(fault.status, fault.body, {})
            path, _, query = self.path.partition("?")
            if "list" in query:
                prefix = f"{path}/{parse_qs(query)['prefix'][0]}"
                return self._answer(200, web.listed(path, prefix, "comp=list" in query), {})
            data = web.files.get(unquote(path))
            if data is None:
                return self._answer(web.missing, b"", {})
            tag = web.tag(data)
            if (wanted := self.headers.get("If-Match")) is not None and wanted != tag:
                return self._answer(412, b"", {})
            headers = {"ETag": tag} if tag else {}
            headers["Last-Modified"] = moment(data)
            given, status = self.headers.get("Range"), 200
            if given and web.ranges:
                first, _, last = given.removeprefix("bytes=").partition("-")
                start, stop = int(first), int(last) + 1
                headers["Content-Range"] = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
                data, status = data[start:stop], 206
            if fault is not None and fault.flip:
                data = bytes([data[0] ^ 1]) + data[1:]
            return self._answer(status, data, headers, fault.cut if fault is not None else -1)

        do_HEAD = do_GET  # noqa: N815

        def _answer(self, status: int, body: bytes, headers: dict[str, Any], cut: int = -1) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(body if cut < 0 else body[:cut])
            if cut >= 0:
                self.wfile.flush()
                self.close_connection = True

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client has gone: that is what some tests do."""


@contextmanager
def running_web() -> Iterator[Web]:
    """A server while it runs."""
    web = Web()
    server = _Server(("127.0.0.1", 0), _handler(web))
    web.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
