"""A folder for what a run has on the disk for a while, gone when it ends, or when the next one begins."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from taskvec._core import blake3_hex
from taskvec.files import look
from taskvec.resolve import storage
from taskvec.run.shared_state import is_abandoned, process_name

_FOLDER = "runs"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A new folder below that for fetched files; a termination of the process ends the run in order."""
    root = storage.current().folder / _FOLDER
    for name in look.listing(root) if look.exists(root) else ():
        if is_abandoned(name):
            shutil.rmtree(root / name, ignore_errors=True)
    place = root / process_name()
    place.mkdir(parents=True)
    try:
        with _terminable():
            yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def kept_folder(address: str, identity: str) -> Path:
    """Where the whole output for an address is made, and kept until it has been sent."""
    root = storage.current().folder / "outputs"
    return root / blake3_hex(f"{address}\0{identity}".encode())[:24]


def forget(place: Path) -> None:
    """Remove a kept folder, which nothing needs any more; also one that a kill has left after the end."""
    with contextlib.suppress(OSError):
        shutil.rmtree(place)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM is answered as Ctrl-C is, where nobody else answers it."""
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
