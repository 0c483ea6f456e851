"""One evaluation at a time in an output folder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from taskvec.errors import EvaluationError


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep a second run out of an output folder; the lock ends with the process, however that ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("w")
    except OSError as error:
        raise EvaluationError(f"cannot write into `{out}`: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EvaluationError(
                f"another evaluation is writing into `{out}`",
                "wait for it, or name another folder with -o",
            ) from error
        yield
