"""Python's calls on files: counted, and one of them made to fail."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv

# What takes a path or a descriptor first; what is done with an open file or a listing is counted apart.
_CALLS = (
    *(
        "open",
        "stat",
        "lstat",
        "fstat",
        "listdir",
        "scandir",
        "mkdir",
        "replace",
        "rename",
        "link",
        "symlink",
    ),
    *(
        "unlink",
        "remove",
        "rmdir",
        "readlink",
        "access",
        "statvfs",
        "truncate",
        "ftruncate",
        "utime",
        "chmod",
    ),
    *("fsync", "fdatasync", "read", "write", "pread", "pwrite", "sendfile", "copy_file_range", "close"),
)
# None is an interrupt.
FAULTS = (
    *(errno.EIO, errno.ENOSPC, errno.EACCES, errno.ESTALE, errno.EMFILE, errno.ENOMEM, errno.EINTR),
    None,
)
_PACKAGE = os.path.dirname(tv.__file__)

Site = tuple[object, ...]


class Injector:
    """Counts the calls on what lies below a folder, and lets one of them fail.

    Attributes
    ----------
    sites : dict of Site to list of int
        Where in the package each call was made, with the numbers of the calls that were made there.
    hit : str or None
        The call that failed.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = os.fspath(root)
        self.sites: dict[Site, list[int]] = {}
        self.hit: str | None = None
        self._count, self._at, self._fault = 0, -1, None
        for name in _CALLS:
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))
        opened = self._watched(builtins.open)
        for module in (builtins, io):
            monkeypatch.setattr(module, "open", opened)
        monkeypatch.setattr(os, "statvfs", self._watched(os.statvfs))

    def listen(self) -> None:
        """Count from nought, and note where calls come from."""
        self.sites, self._count, self._at, self.hit = {}, 0, 0, None

    def arm(self, at: int, fault: int | None) -> None:
        """Count from nought, and let call number `at` fail with this errno, or be interrupted."""
        self._count, self._at, self._fault, self.hit = 0, at, fault, None

    def rest(self) -> None:
        """Count no more."""
        self._at = -1

    def tell(self, name: str, path: object) -> None:
        """A call is about to be made."""
        if self._at < 0 or self.hit is not None or not self._counts(path):
            return
        self._count += 1
        if self._at == 0:
            self.sites.setdefault((name, *_stack()), []).append(self._count)
        elif self._count == self._at:
            self.hit = f"{name} {path} -> {self._fault}"
            if self._fault is None:
                raise KeyboardInterrupt
            raise OSError(self._fault, os.strerror(self._fault), path if isinstance(path, str) else None)

    def _counts(self, path: object) -> bool:
        if isinstance(path, int) and not isinstance(path, bool):
            with contextlib.suppress(OSError):
                path = _readlink(f"/proc/self/fd/{path}")
        return isinstance(path, str | Path) and os.fspath(path).startswith(self.root)

    def _watched(self, genuine: Callable[..., Any]) -> Callable[..., Any]:
        name = genuine.__name__

        def call(*arguments: Any, **options: Any) -> Any:
            path = arguments[0] if arguments else options.get("path")
            if name == "close":
                return self._close(path, genuine)
            self.tell(name, path)
            made = genuine(*arguments, **options)
            if self._at >= 0 and name in ("open", "scandir") and not isinstance(made, int):
                return (_Entries if name == "scandir" else _File)(made, path, self)
            return made

        return call

    def _close(self, descriptor: int, genuine: Callable[[int], None]) -> None:
        """A descriptor is closed also where that fails, as the system does it; not before an interrupt."""
        try:
            self.tell("close", descriptor)
        except OSError:
            genuine(descriptor)
            raise
        genuine(descriptor)


def fails_honestly(injector: Injector, fault: int | None, job: Callable[[], object]) -> bool:
    """Whether some work fails: as an interrupt, or with an error of ours and a way out."""
    caught: BaseException | None = None
    try:
        job()
    except (tv.Error, KeyboardInterrupt) as error:
        caught = error
    finally:
        injector.rest()
    if isinstance(caught, tv.Error):
        assert fault is not None, injector.hit
        assert caught.hint, (injector.hit, caught.message)
    elif caught is not None:
        assert fault is None, injector.hit
    return caught is not None


class _File:
    """An open file whose reads, writes and closing are counted."""

    def __init__(self, genuine: Any, path: object, injector: Injector) -> None:
        self._genuine, self._path, self._injector = genuine, path, injector

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._genuine, name)
        if name not in ("read", "readinto", "readline", "write", "flush", "truncate"):
            return value

        def call(*arguments: Any) -> Any:
            self._injector.tell(f"file.{name}", self._path)
            return value(*arguments)

        return call

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._genuine)

    def close(self) -> None:
        try:
            if not self._genuine.closed:
                self._injector.tell("file.close", self._path)
        finally:
            self._genuine.close()


class _Entries:
    """A listing whose reading is counted once."""

    def __init__(self, genuine: Any, path: object, injector: Injector) -> None:
        self._genuine, self._path, self._injector = genuine, path, injector

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *_: object) -> None:
        self._genuine.close()

    def __iter__(self) -> Iterator[Any]:
        self._injector.tell("readdir", self._path)
        return iter(self._genuine)

    def close(self) -> None:
        self._genuine.close()


_readlink = os.readlink


def _stack() -> Iterator[tuple[str, int]]:
    """The lines of the package that lead to a call."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_PACKAGE):
            yield file, frame.f_lineno
        frame = frame.f_back
