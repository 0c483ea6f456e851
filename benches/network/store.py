"""A store in a namespace, its objects as files, and the requests that it has answered."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from network.hosts import Host

_LINE = re.compile(r'"([A-Z]+) (\S+) HTTP[^"]*" (\d+)')
# localbucket does not know the request that removes several objects at once.
_SERVE = """
import re
from xml.sax.saxutils import unescape
from localbucket import S3Handler, main
post = S3Handler.do_POST

def do_post(self):
    if not self.path.endswith("?delete"):
        return post(self)
    text = self.rfile.read(int(self.headers["Content-Length"])).decode()
    for key in re.findall("<Key>(.*?)</Key>", text):
        (self.data_root / self.path[1:].split("?")[0] / unescape(key)).unlink(missing_ok=True)
    answer = b"<DeleteResult></DeleteResult>"
    self.send_response(200)
    self.send_header("Content-Length", str(len(answer)))
    self.end_headers()
    self.wfile.write(answer)

S3Handler.do_POST = do_post
main()
"""


class Store:
    """The server while it runs."""

    def __init__(self, log: Path) -> None:
        self.log, self._at = log, 0

    def requests(self) -> Counter[str]:
        """The requests since the last call, by what they are."""
        text = self.log.read_text(encoding="utf-8")
        new, self._at = text[self._at :], len(text)
        return Counter(_kind(*found.groups()[:2]) for found in _LINE.finditer(new))


def _kind(method: str, path: str) -> str:
    if "uploadId=" in path or "uploads" in path.partition("?")[2]:
        return f"{method} upload"
    if method == "GET" and "list-type" in path:
        return "LIST"
    kind = "weights" if ".safetensors" in path and ".json" not in path else "small files"
    return f"{method} {kind}"


@contextmanager
def running_store(namespace: str, folder: Path, log: Path) -> Iterator[Store]:
    """Buckets are folders below `folder`."""
    words = ["ip", "netns", "exec", namespace, sys.executable, "-c", _SERVE, "--host", "0.0.0.0", str(folder)]
    with open(log, "w", encoding="utf-8") as lines:
        server = subprocess.Popen(words, stdout=lines, stderr=lines)
    try:
        for _ in range(200):
            if "serving" in log.read_text(encoding="utf-8"):
                break
            assert server.poll() is None, log.read_text(encoding="utf-8")
            time.sleep(0.05)
        yield Store(log)
    finally:
        server.kill()
        server.wait()


_READ = """
import http.client, sys, threading, time
place, path, size, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), 4
def read(number):
    connection = http.client.HTTPConnection(place)
    at = size // count * number
    connection.request("GET", path, headers={"Range": f"bytes={at}-{at + size // count - 1}"})
    connection.getresponse().read()
begin = time.monotonic()
threads = [threading.Thread(target=read, args=(number,)) for number in range(count)]
[each.start() for each in threads]
[each.join() for each in threads]
print(size / (time.monotonic() - begin))
"""
_WRITE = """
import http.client, sys, threading, time
place, path, size, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), 4
def write(number):
    connection = http.client.HTTPConnection(place)
    connection.request("PUT", f"{path}-{number}", body=bytes(size // count))
    connection.getresponse().read()
begin = time.monotonic()
threads = [threading.Thread(target=write, args=(number,)) for number in range(count)]
[each.start() for each in threads]
[each.join() for each in threads]
print(size / (time.monotonic() - begin))
"""


_LIST = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1])
connection.request("GET", "/models?list-type=2")
connection.getresponse().read()
"""


def warm(host: Host) -> None:
    """Let a new server make the digests of its files, as a store has them that keeps them."""
    words = [sys.executable, "-c", _LIST, urlsplit(host.store).netloc]
    subprocess.run(host.command(words), check=True)


def rates(host: Host, file: str, size: int) -> tuple[float, float]:
    """Bytes a second that four plain requests read, and write, over a host's link."""
    place = urlsplit(host.store).netloc

    def rate(code: str, path: str) -> float:
        words = host.command([sys.executable, "-c", code, place, path, str(size)])
        return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

    rate(_READ, file)  # the first requests of a server are slow
    return rate(_READ, file), rate(_WRITE, "/results/rate")
