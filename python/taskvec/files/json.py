"""JSON from a file that somebody else wrote: read with a size limit, without duplicate keys, as an object."""

from __future__ import annotations

import codecs
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskvec.errors import FormatError, NotFoundError
from taskvec.files import look
from taskvec.files.lfs import PULL, is_pointer
from taskvec.files.reading import fill

# The largest tokenizer.json published is about 35 MB; a config is a few kB.
MAXIMUM_BYTES = 256 << 20


_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key `{key}`")
            seen.add(key)
    return result


def parse_object(data: bytes, subject: str) -> dict[str, Any]:
    """Parse a JSON object.

    Parameters
    ----------
    data : bytes
        UTF-8 text.
    subject : str
        What the text is, for messages: a path, or a repository and a file name.

    Raises
    ------
    FormatError
        Not UTF-8, not JSON, a duplicate key at any level, nested too deeply, or not an object.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        if is_pointer(data):
            raise FormatError(f"`{subject}` is a git-lfs pointer and not the file itself", PULL) from None
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        hint = "the file is damaged; copy or download it again"
        if not data:
            reason = "it is empty"
        elif data.startswith(_MARKS):
            reason, hint = "it begins with a byte order mark", "save it as UTF-8 without a byte order mark"
        raise FormatError(f"`{subject}` is not valid JSON: {reason}", hint) from None
    if not isinstance(value, dict):
        raise FormatError(
            f"`{subject}` holds a JSON {type(value).__name__}, expected an object",
            "the file is damaged, or another one is meant: copy it again, or name that one",
        )
    return value


def read_bytes(path: Path, *, maximum: int = MAXIMUM_BYTES) -> bytes:
    """The bytes of a regular file of at most `maximum` bytes; symbolic links are followed.

    Raises
    ------
    NotFoundError
        There is no such file.
    FormatError
        It is a folder, a FIFO, a device, or larger than `maximum`.
    OutputError
        It cannot be opened or read.
    """
    try:
        # A FIFO must not block the open, so that it can be refused.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        look.hold_absent(path, error)
        raise NotFoundError(f"`{path}` does not exist", "give the path of a file") from None
    try:
        try:
            return _read(descriptor, path, maximum)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise look.unanswered(path, error) from error


def _read(descriptor: int, path: Path, maximum: int) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(f"`{path}` is not a regular file")
    if status.st_size > maximum:
        raise FormatError(
            f"`{path}` has {status.st_size} bytes, expected at most {maximum}",
            "this is not a file of its kind; look at what it holds",
        )
    return fill(descriptor, maximum + 1)


def read_object(path: Path, *, maximum: int = MAXIMUM_BYTES) -> dict[str, Any]:
    """Read and parse a JSON object from a file; see :func:`read_bytes` and :func:`parse_object`."""
    return parse_object(read_bytes(path, maximum=maximum), str(path))


def jsonable(value: Any) -> Any:
    """`value` with everything that JSON lacks replaced: NaN and infinities become null, paths strings."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    if hasattr(value, "to_dict"):
        return jsonable(value.to_dict())
    if hasattr(value, "item"):
        return jsonable(value.item())
    return str(value)
