"""Paths as Windows writes them, which name nothing on other systems."""

from __future__ import annotations

import os

from taskvec.files import look
from taskvec.regex import regex

_DRIVE = regex(r"([A-Za-z]):[\\/]")
_SHARE = "\\\\"


def way_out(text: str) -> str | None:
    """What to write instead of a path that only Windows has; ``None`` of any other text."""
    if os.name == "nt" or not is_of_windows(text):
        return None
    drive = _DRIVE.match(text)
    own = text.replace("\\", "/")
    if drive is not None:
        mounted = f"/mnt/{drive[1].lower()}/{own[3:]}"
        own = mounted if look.exists(mounted) else ""
    elif text.startswith(_SHARE):
        own = ""
    return f"it is a path of Windows: write {f'`{own}`' if own else 'where the folder is on this machine'}"


def is_of_windows(text: str) -> bool:
    """Whether a text is a path with a drive, or with backslashes between its parts."""
    return _DRIVE.match(text) is not None or "\\" in text
