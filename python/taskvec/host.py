"""This machine: processor, cores, memory, file system, as a benchmark names them; the collector."""

from __future__ import annotations

import errno
import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TYPE_CHECKING = False  # as in `taskvec`
if TYPE_CHECKING:
    from datetime import datetime


def cpu_name() -> str:
    """The processor's name as its maker writes it; the architecture where the system does not tell."""
    if sys.platform == "linux":
        match = re.search(
            r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE
        )
        if match is not None:
            return " ".join(match[1].split())
    if sys.platform == "darwin":
        import subprocess

        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=5
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    import platform

    return platform.processor() or platform.machine()


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the garbage collector from looking while tables are made.

    Those of a hundred thousand tensors are several times as many small objects, none of them in a cycle: the
    collector would walk through them again and again, and take up to as long as the work itself.
    """
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_collecting:
            gc.enable()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_total() -> int | None:
    """Bytes of physical memory."""
    return _meminfo("MemTotal")


def memory_available() -> int | None:
    """Bytes that can be had without swapping; None where the system does not tell."""
    return _meminfo("MemAvailable")


def file_system(path: Path) -> str:
    """The type of the file system that holds `path` (``tmpfs``, ``ext4`` …), or ``unknown``."""
    best, kind = "", "unknown"
    resolved = str(path.resolve())
    for line in _read("/proc/self/mounts").splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        mount = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[1])
        inside = resolved == mount or resolved.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):  # a later mount on the same place hides the earlier one
            best, kind = mount, fields[2]
    return kind


def _meminfo(name: str) -> int | None:
    match = re.search(rf"^{name}:\s+(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match is not None else None


def _read(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return (file.read() or b"").decode("utf-8", "replace")
    except OSError:
        return ""


def now() -> datetime:
    """The time that results bear: that of ``SOURCE_DATE_EPOCH``, where it holds seconds, or the clock's."""
    from datetime import UTC, datetime

    if is_repeatable():
        return datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    return datetime.now(UTC)


def is_repeatable() -> bool:
    """Whether results must not tell when and how fast they were made: ``SOURCE_DATE_EPOCH`` is set."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    return given.isascii() and given.isdigit() and int(given) < 1 << 37


def free_space(out: str | os.PathLike[str]) -> int | None:
    """Free bytes of the file system that `out` lies on, or will lie on; ``None`` where that does not tell.

    Some user-space file systems do not know their size: they do not have the call, or answer with zeros.
    """
    folder = Path(out).absolute()
    while True:
        try:
            found = os.statvfs(folder)
            return found.f_bavail * found.f_frsize if found.f_blocks else None
        except (FileNotFoundError, NotADirectoryError):
            if folder == folder.parent:
                raise
            folder = folder.parent
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                return None
            raise
