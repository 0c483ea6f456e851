"""Paths that a pattern matches, where a folder that cannot be listed is not one that is empty."""

from __future__ import annotations

import fnmatch
import glob
import os

from taskvec.files import look


def matching(pattern: str) -> list[str]:
    """The sorted paths that a pattern matches, those that ``glob.glob`` finds.

    Parameters
    ----------
    pattern : str
        With ``*``, ``?`` and ``[...]`` in any of its parts; what begins with a dot is named by one.

    Raises
    ------
    OutputError
        The file system does not answer, or refuses to; ``glob.glob`` passes over the folder.
    """
    head, tail = os.path.split(pattern)
    folders = matching(head) if glob.has_magic(head) else [head]
    if not tail:
        return [os.path.join(folder, "") for folder in folders if look.is_folder(folder)]
    return sorted(os.path.join(folder, name) for folder in folders for name in _inside(folder, tail))


def _inside(folder: str, pattern: str) -> list[str]:
    """The names in a folder that a pattern without a separator matches."""
    if not glob.has_magic(pattern):
        return [pattern] if look.exists(os.path.join(folder, pattern), follow_links=False) else []
    names = fnmatch.filter(look.listing(folder or os.curdir), pattern)
    return [name for name in names if pattern.startswith(".") or not name.startswith(".")]
