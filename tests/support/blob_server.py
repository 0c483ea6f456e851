"""Servers that speak as much of the protocols of Google's and Azure's object stores as obstore asks for.

Objects are in memory. Tags are opaque, as these stores give them for files that came in parts.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

SECRET = "cGxhbnRlZC1henVyZS1rZXk="  # planted, and base64 as Azure's keys are
_XML = '<?xml version="1.0" encoding="utf-8"?>'


@dataclass
class Blobs:
    """A server while it runs: its objects by ``bucket/name``, and parts of files that are not whole yet."""

    endpoint: str
    scheme: str
    objects: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    parts: dict[str, dict[str, bytes]] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def options(self) -> dict[str, str]:
        """The storage options by which taskvec reaches it."""
        if self.scheme == "az":
            keys = {"account_name": "account", "account_key": SECRET}
            return {**keys, "endpoint": self.endpoint, "allow_http": "true"}
        account = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        whole = {**account, "gcs_base_url": self.endpoint, "disable_oauth": True}
        return {"service_account_key": json.dumps(whole), "allow_http": "true"}

    def put(self, path: str, data: bytes) -> str:
        tag = f'"{secrets.token_hex(6).upper()}="'
        with self.lock:
            self.objects[path] = data, tag
        return tag

    def below(self, prefix: str) -> dict[str, bytes]:
        """Objects by their names below a prefix."""
        return {
            path.removeprefix(prefix): data
            for path, (data, _) in self.objects.items()
            if path.startswith(prefix)
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    blobs: Blobs

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path, query = unquote(url.path)[1:], parse_qs(url.query, keep_blank_values=True)
        self.blobs.seen.append((self.command, self.path))
        if self.command in ("GET", "HEAD"):
            if "prefix" in query or "list-type" in query or query.get("comp") == ["list"]:
                self.listing(path.strip("/"), query.get("prefix", [""])[0])
            else:
                self.send_object(path)
        elif self.command == "DELETE":
            self.reply(204 if self.blobs.objects.pop(path, None) else 404)
        elif self.command == "PUT":
            self.take(path, query, body)
        else:
            self.post(path, query, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815

    def listing(self, bucket: str, prefix: str) -> None:
        rows = [
            (path.removeprefix(f"{bucket}/"), data, tag)
            for path, (data, tag) in sorted(self.blobs.objects.items())
            if path.startswith(f"{bucket}/{prefix}")
        ]
        if self.blobs.scheme == "az":
            found = "".join(
                f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{formatdate(usegmt=True)}"
                f"</Last-Modified><Etag>{escape(tag)}</Etag><Content-Length>{len(data)}</Content-Length>"
                f"<Content-Type>x/y</Content-Type></Properties></Blob>"
                for name, data, tag in rows
            )
            text = f"{_XML}<EnumerationResults><Blobs>{found}</Blobs><NextMarker/></EnumerationResults>"
        else:
            found = "".join(
                f"<Contents><Key>{escape(name)}</Key><LastModified>2026-01-01T00:00:00Z</LastModified>"
                f"<ETag>{escape(tag)}</ETag><Size>{len(data)}</Size></Contents>"
                for name, data, tag in rows
            )
            text = f"{_XML}<ListBucketResult>{found}</ListBucketResult>"
        self.reply(200, text.encode())

    def send_object(self, path: str) -> None:
        if path not in self.blobs.objects:
            code = "BlobNotFound" if self.blobs.scheme == "az" else "NoSuchKey"
            self.reply(404, f"<Error><Code>{code}</Code></Error>".encode())
            return
        data, tag = self.blobs.objects[path]
        if self.headers.get("If-Match", tag) != tag:
            self.reply(412)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            self.reply(200, data, {"ETag": tag})
            return
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        where = f"bytes {start}-{stop - 1}/{len(data)}"
        self.reply(206, data[start:stop], {"ETag": tag, "Content-Range": where})

    def take(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        """A file, a part of one, or the list of its parts."""
        if part := query.get("blockid") or query.get("partNumber"):
            self.blobs.parts.setdefault(path, {})[part[0]] = body
            self.reply(201, b"", {"ETag": f'"{part[0]}"'})
            return
        if query.get("comp") == ["blocklist"]:
            names = re.findall("<Uncommitted>(.*?)</Uncommitted>", body.decode())
            self.whole(path, names)
            return
        is_new = "If-None-Match" in self.headers or self.headers.get("x-goog-if-generation-match") == "0"
        with self.blobs.lock:
            is_there = path in self.blobs.objects
            if is_new and not is_there:
                self.blobs.objects[path] = body, '"first="'
        if is_new:
            code = "BlobAlreadyExists" if self.blobs.scheme == "az" else "PreconditionFailed"
            status = 409 if self.blobs.scheme == "az" else 412
            if is_there:
                self.reply(status, f"<Error><Code>{code}</Code></Error>".encode())
            else:
                self.reply(201, b"", {"ETag": '"first="'})
            return
        self.reply(201, b"", {"ETag": self.blobs.put(path, body)})

    def whole(self, path: str, names: list[str]) -> None:
        parts = self.blobs.parts.pop(path)
        tag = self.blobs.put(path, b"".join(parts[name] for name in names))
        text = (
            f"{_XML}<CompleteMultipartUploadResult><ETag>{escape(tag)}</ETag></CompleteMultipartUploadResult>"
        )
        self.reply(201 if self.command == "PUT" else 200, text.encode(), {"ETag": tag})

    def post(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if "uploads" in query:
            text = "<InitiateMultipartUploadResult><UploadId>one</UploadId></InitiateMultipartUploadResult>"
            self.reply(200, f"{_XML}{text}".encode())
        elif "uploadId" in query:
            self.whole(path, re.findall("<PartNumber>(.*?)</PartNumber>", body.decode()))
        else:
            self.delete_many(body.decode())

    def delete_many(self, body: str) -> None:
        """A batch: one answer for each of its requests."""
        answers = []
        for number, found in re.findall(r"Content-ID: (\S+)\r\n(?:.*\r\n)*?\r\nDELETE (\S+) HTTP", body):
            path = unquote(
                found.split("/b/")[-1].replace("/o/", "/", 1) if "/storage/v1/" in found else found
            )
            was_there = self.blobs.objects.pop(path.lstrip("/"), None)
            status = "202 Accepted" if was_there else "404 Not Found"
            answers.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
                f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        text = "".join(answers) + "--batch--\r\n"
        self.reply(202, text.encode(), {"Content-Type": "multipart/mixed; boundary=batch"})

    def reply(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for key, value in {"Last-Modified": formatdate(usegmt=True), **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running_blobs(scheme: str) -> Iterator[Blobs]:
    """A server of one kind, ``gs`` or ``az``, in threads of this process."""
    made: type[_Handler] = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), made)
    server.daemon_threads = True
    made.blobs = Blobs(f"http://127.0.0.1:{server.server_port}", scheme)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield made.blobs
    finally:
        server.shutdown()
        server.server_close()
