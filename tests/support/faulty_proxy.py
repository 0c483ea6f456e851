"""A proxy in front of a store that does what networks and servers do: refuse, stall, cut off, lose."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_CODES = {"403": "AccessDenied", "429": "TooManyRequests", "503": "SlowDown"}


@dataclass
class Fault:
    """What happens to the requests that it is for.

    Attributes
    ----------
    what : str
        ``"500"``, ``"503"`` or another status; ``"expired"``: the token is no longer good; ``"cut"``: half
        of the answer; ``"dropped"``: the request is not done; ``"lost"``: it is done, and its answer does not
        come; ``"slow"``: it comes after a while; ``"stale"``: with another
        ETag; ``"flip"``: a bit of what is sent is another one; ``"hang"``: never.
    wanted : callable
        Whether it is for a request, by method and path with query.
    times : int
        How often it happens.
    """

    what: str
    wanted: Callable[[str, str], bool]
    times: int = 1
    happened: int = 0


@dataclass
class Proxy:
    """The proxy while it runs; ``seen`` are the requests that came, method and path."""

    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    hung: threading.Event = field(default_factory=threading.Event)

    def add(self, what: str, method: str, part: str, times: int = 1) -> Fault:
        """A fault of the requests of a method whose path has this part."""
        fault = Fault(what, lambda got, path: got == method and part in path, times)
        self.faults.append(fault)
        return fault

    def taken(self, method: str, path: str) -> str | None:
        with self.lock:
            self.seen.append((method, path))
            for fault in self.faults:
                if fault.happened < fault.times and fault.wanted(method, path):
                    fault.happened += 1
                    return fault.what
        return None


@contextmanager
def running_proxy(target: str) -> Iterator[Proxy]:
    """A proxy to the server at `target`, in threads of this process."""
    behind = urlsplit(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.body()
            what = proxy.taken(self.command, self.path)
            if what is not None and what.isdigit():
                self.refuse(int(what), _CODES.get(what, "InternalError"))
                return
            if what == "expired":
                self.refuse(400, "ExpiredToken")
                return
            if what == "dropped":
                self.hang_up()
                return
            if what == "hang":
                proxy.hung.set()
                time.sleep(3600)
            if what == "flip" and body:
                body = body[:-1] + bytes([body[-1] ^ 1])
            connection = http.client.HTTPConnection(behind.hostname or "", behind.port)
            skipped = ("connection", "transfer-encoding", "content-length", "expect")
            headers = {key: value for key, value in self.headers.items() if key.lower() not in skipped}
            headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body=body, headers=headers)
            response = connection.getresponse()
            data = response.read()
            kept = [(k, v) for k, v in response.getheaders() if k.lower() not in skipped]
            if what == "stale":
                other = '"0123456789abcdef0123456789abcdef"'
                kept = [(k, other if k.lower() == "etag" else v) for k, v in kept]
            connection.close()
            if what == "lost":
                self.hang_up()
                return
            if what == "slow":
                time.sleep(2)
            length = response.getheader("Content-Length")
            if self.command == "HEAD":
                self.reply(response.status, kept, b"", int(length or 0))
            elif what == "cut":
                self.reply(response.status, kept, data[: len(data) // 2], len(data))
                self.hang_up()
            else:
                self.reply(response.status, kept, data)

        def refuse(self, status: int, code: str) -> None:
            self.reply(status, [], f"<Error><Code>{code}</Code></Error>".encode())

        def hang_up(self) -> None:
            self.close_connection = True
            self.connection.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815

        def body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                data = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return data
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def reply(
            self, status: int, headers: list[tuple[str, str]], data: bytes, length: int | None = None
        ) -> None:
            self.send_response_only(status)
            for key, value in headers:
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
                self.wfile.flush()

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, ValueError, OSError):
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
