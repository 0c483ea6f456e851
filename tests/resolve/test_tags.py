"""What the tags of a store say of its files: digests of some kind, or nothing; files are not read back."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from taskvec.errors import HubError, OutputError
from taskvec.resolve.store import write
from taskvec.resolve.store.address import parse
from taskvec.resolve.store.write import StorePlace

PART = 64


class AlreadyExistsError(Exception):
    """As obstore has it."""


def of_parts(data: bytes) -> str:
    parts = [hashlib.md5(data[at : at + PART]).digest() for at in range(0, len(data), PART)]
    return f'"{hashlib.md5(b"".join(parts)).hexdigest()}-{len(parts)}"'


def plain(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def foreign(data: bytes) -> str:
    """As of an encrypted bucket: of the form of a digest, and another one."""
    return f'"{hashlib.md5(b"key" + data).hexdigest()}-2"'


class Client:
    """A store whose tags are made by two functions, of small files and of uploads; it counts what is read."""

    def __init__(self, small: Any, large: Any) -> None:
        self.small, self.large = small, large
        self.files: dict[str, tuple[bytes, str]] = {}
        self.read_back = 0
        self.damages = False
        self.lock = threading.Lock()

    def put(
        self, path: str, data: Any, *, mode: str = "overwrite", use_multipart: bool = False, **_: Any
    ) -> Mapping[str, Any]:
        whole = b"".join(map(bytes, data)) if isinstance(data, Iterator) or use_multipart else bytes(data)
        if mode == "create" and path in self.files:
            raise AlreadyExistsError
        if self.damages and use_multipart:
            whole = whole[:-1] + bytes([whole[-1] ^ 1])
        tag = (self.large if use_multipart else self.small)(whole)
        self.files[path] = whole, tag
        return {"e_tag": tag}

    def get(self, path: str) -> Any:
        data = self.files[path][0]
        return type("Answer", (), {"bytes": staticmethod(lambda: data)})

    def head(self, path: str) -> Mapping[str, Any]:
        data, tag = self.files[path]
        return {"path": path, "size": len(data), "e_tag": tag, "last_modified": datetime.now(UTC)}

    def get_range(self, path: str, *, start: int, end: int) -> bytes:
        with self.lock:
            self.read_back += end - start
        return self.files[path][0][start:end]

    def delete(self, path: str) -> None:
        del self.files[path]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "PART", PART)


def place(client: Client) -> StorePlace:
    return StorePlace(parse("s3://bucket/out"), client)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 2)
    return path


@pytest.mark.parametrize(
    ("small", "large"),
    [(plain, of_parts), (plain, plain), (foreign, foreign), (lambda _: None, lambda _: None)],
)
def test_no_weight_file_is_read_back(small: Any, large: Any, file: Path) -> None:
    """Two files at a time, as a run sends them; the small one that begins a run is all that may be read."""
    client = Client(small, large)
    sink = place(client)
    assert sink.put_absent("run.json", b"{}")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: sink.write(name, file, lambda _: None), ("one", "two")))
    assert client.read_back <= 2


def test_another_process_finds_the_tags_out_as_well(file: Path) -> None:
    client = Client(foreign, foreign)
    assert place(client).put_absent("run.json", b"{}")
    sink = place(client)
    assert sink.put_absent("run.json", b"{}")
    client.read_back = 0
    sink.write("one", file, lambda _: None)
    assert client.read_back == 0


def test_uploads_with_tags_of_their_own_are_read_once(file: Path) -> None:
    client = Client(plain, foreign)
    sink = place(client)
    assert sink.put_absent("run.json", b"{}")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: sink.write(name, file, lambda _: None), ("one", "two", "three")))
    assert client.read_back == file.stat().st_size


@pytest.mark.parametrize("large", [of_parts, plain, foreign, lambda _: None])
@pytest.mark.parametrize("damages", [False, True])
def test_the_answer_to_a_whole_upload_is_lost(large: Any, damages: bool, file: Path) -> None:
    """And the repeated request finds no upload any more."""
    client = Client(plain, large)
    client.damages = damages
    put = client.put

    def lost(path: str, data: Any, **options: Any) -> Any:
        put(path, data, **options)
        error = type("GenericError", (Exception,), {"__module__": "obstore.exceptions"})
        raise error("status code: 404 <Code>NoSuchUpload</Code>")

    client.put = lost  # type: ignore[method-assign]
    if damages:
        with pytest.raises(HubError, match="ended or given up elsewhere"):
            place(client).write("one", file, lambda _: None)
    else:
        assert place(client).write("one", file, lambda _: None).size == file.stat().st_size


@pytest.mark.parametrize("large", [of_parts, plain, foreign])
def test_what_arrives_damaged_is_named_and_removed(large: Any, file: Path) -> None:
    client = Client(plain, large)
    client.damages = True
    sink = place(client)
    assert sink.put_absent("run.json", b"{}")
    with pytest.raises(OutputError, match="arrived damaged"):
        sink.write("one", file, lambda _: None)
    assert set(client.files) == {"out/run.json"}
