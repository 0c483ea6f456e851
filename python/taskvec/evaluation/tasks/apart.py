"""Outputs keep out of the folder of tasks."""

from __future__ import annotations

import os
from pathlib import Path

from taskvec.errors import EvaluationError
from taskvec.evaluation.settings import Settings


def keep_apart(settings: Settings, *written: str | os.PathLike[str] | None) -> None:
    """Refuse to write below the folder of tasks, whose files are all part of what an arm's scores rest on.

    Parameters
    ----------
    settings : Settings
    *written : path, optional
        Folders that are written to; addresses and None are passed over.

    Raises
    ------
    EvaluationError
        One of them is the folder of tasks, or lies in it.
    """
    if settings.include_path is None:
        return
    tasks = Path(settings.include_path).resolve()
    for folder in written:
        if folder is None or "://" in os.fspath(folder):
            continue
        if Path(folder).resolve().is_relative_to(tasks):
            raise EvaluationError(
                f"`{os.fspath(folder)}` lies in the folder of tasks `{settings.include_path}`: what is "
                "written there would count as a change of the tasks",
                "name an output outside of it, or give the YAML tasks a folder of their own",
            )
