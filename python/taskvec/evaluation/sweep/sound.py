"""Whether a folder that an earlier run has written is as it was left."""

from __future__ import annotations

from pathlib import Path

import taskvec as tv
from taskvec.errors import FormatError, NotFoundError, VerificationError


def is_sound(folder: Path) -> bool:
    """Whether a folder holds every file of its manifest, with the bytes that are listed there.

    Reading a model once is little next to evaluating it, and what a power cut leaves of a file may have its
    size.
    """
    try:
        return bool(tv.verify(folder))
    except (FormatError, NotFoundError, VerificationError):
        return False
