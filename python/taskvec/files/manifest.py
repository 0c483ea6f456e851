"""The manifest as a file: its bytes read, and the files that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from taskvec.errors import FormatError, NotFoundError
from taskvec.files import look
from taskvec.files.json import parse_object, read_bytes
from taskvec.files.manifest_schema import VERSION
from taskvec.files.names import MANIFEST
from taskvec.regex import regex

# A row of survival figures takes about 150 bytes: room for a few million tensors.
MAXIMUM_BYTES = 1 << 30

DIGEST = regex(r"[0-9a-f]{64}")


class File(NamedTuple):
    """A file of the folder: relative POSIX name, size in bytes, BLAKE3."""

    name: str
    bytes: int
    blake3: str


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, checked as far as this program relies on it.

    Raises
    ------
    NotFoundError
        The folder has none.
    FormatError
        It is not a manifest of this version, or names files outside the folder.
    """
    return parse(read_text(folder), folder / MANIFEST)


def read_text(folder: Path) -> bytes:
    """The bytes of the manifest of a folder.

    Raises
    ------
    NotFoundError
        The folder has none.
    """
    path = folder / MANIFEST
    if not look.exists(path):
        raise NotFoundError(
            f"`{folder}` has no `{MANIFEST}`", "only folders that taskvec wrote have one; name such a folder"
        )
    return read_bytes(path, maximum=MAXIMUM_BYTES)


def parse(data: bytes, path: Path) -> dict[str, Any]:
    """The same from the bytes of the manifest at `path`.

    Raises
    ------
    FormatError
        As :func:`read`.
    """
    manifest = parse_object(data, str(path))
    if manifest.get("schema") != VERSION:
        raise FormatError(
            f"`{path}` has schema {manifest.get('schema')!r}, expected {VERSION}",
            "it was written by another version of taskvec: use that one",
        )
    files(manifest, path)
    return manifest


def files(manifest: Mapping[str, Any], path: Path) -> list[File]:
    """The files that a manifest lists.

    Raises
    ------
    FormatError
        The list is damaged, or a name leads out of the folder.
    """
    listed = manifest.get("files")
    if not isinstance(listed, list) or not listed:
        raise FormatError(f"`{path}` lists no files", "the manifest is damaged; make the merge again")
    result: dict[str, File] = {}
    for entry in listed:
        file = _file(entry)
        if file is None or file.name in result:
            raise FormatError(
                f"`{path}` has a damaged entry {json.dumps(entry)[:120]}",
                "make the merge again, or do not trust it",
            )
        result[file.name] = file
    return list(result.values())


def _file(entry: Any) -> File | None:
    """An entry of the list, if it is sound: a name that stays in the folder, a size, a digest."""
    if not isinstance(entry, dict):
        return None
    name, size, digest = entry.get("name"), entry.get("bytes"), entry.get("blake3")
    if not (isinstance(name, str) and isinstance(size, int) and isinstance(digest, str)):
        return None
    path = PurePosixPath(name)
    is_inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
    if not is_inside or str(path) != name or name == MANIFEST or size < 0 or not DIGEST.fullmatch(digest):
        return None
    return File(name, size, digest)
