"""A folder with the files of data sets: what it holds, by its list, and whether the files are as listed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskvec.errors import EvaluationError, NotFoundError
from taskvec.evaluation.record import write_whole
from taskvec.files import look
from taskvec.files.folder import is_inside
from taskvec.files.json import read_object

LIST = "taskvec-data.json"
_FORMAT = 1
_PIECE = 1 << 20


class Fetched:
    """A folder of fetched data sets.

    Parameters
    ----------
    folder : Path
        ``KIND/OWNER/NAME/...`` lies below it.

    Attributes
    ----------
    repositories : dict
        By ``KIND/OWNER/NAME``: ``commit``, and ``files`` with ``size`` and ``sha256`` of each. One that is
        here is whole.

    Raises
    ------
    EvaluationError
        The list is damaged, or of a newer version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repositories: dict[str, dict[str, Any]] = {}
        if look.exists(folder / LIST):
            content = read_object(folder / LIST)
            if content.get("format") != _FORMAT or not isinstance(content.get("repositories"), dict):
                raise EvaluationError(
                    f"`{folder / LIST}` is not a list of data sets that this version reads",
                    "fetch them again into another folder with `taskvec tasks fetch`",
                )
            self.repositories = content["repositories"]

    def place(self, repository: str) -> Path:
        """The folder of a repository."""
        return self.folder.joinpath(*repository.split("/"))

    def add(self, repository: str, commit: str, files: Mapping[str, Any]) -> None:
        """Note that a repository is whole."""
        self.repositories[repository] = {"commit": commit, "files": dict(files)}
        content = {"format": _FORMAT, "repositories": self.repositories}
        write_whole(self.folder / LIST, json.dumps(content, indent=1, sort_keys=True) + "\n")

    def wrong(self, repository: str) -> str | None:
        """The first file of a repository that is missing or changed, and how; None if all are as listed."""
        files = self.repositories[repository]["files"]
        for name, facts in files.items():
            if not is_inside(name):
                return f"`{name}` leads out of the folder"
            found = state(self.place(repository) / name)
            if found is None:
                return f"`{repository}/{name}` is missing"
            if found != facts:
                return f"`{repository}/{name}` has changed since it was fetched"
        return None

    def hold(self, repository: str) -> Path:
        """The folder of a repository that is whole, as it was fetched.

        Raises
        ------
        EvaluationError
            It was not fetched, or a file of it has changed.
        """
        if repository not in self.repositories:
            raise EvaluationError(
                f"the data of `{repository}` are not in `{self.folder}`",
                f"fetch them with a connection: `taskvec tasks fetch NAME -o {self.folder}`",
            )
        wrong = self.wrong(repository)
        if wrong is not None:
            raise EvaluationError(
                f"{wrong} in `{self.folder}`",
                "run `taskvec tasks fetch` again into this folder, with a connection",
            )
        return self.place(repository)


def state(path: Path) -> dict[str, Any] | None:
    """Size and SHA-256 of a file; None where there is none.

    Raises
    ------
    EvaluationError
        It cannot be read.
    """
    if not look.is_file(path):
        return None
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                size += len(piece)
    except OSError as error:
        raise EvaluationError(f"`{path}` cannot be read: {error.strerror or error}") from error
    return {"size": size, "sha256": digest.hexdigest()}


def opened(folder: Path) -> Fetched:
    """A folder that somebody named as one with data.

    Raises
    ------
    NotFoundError, EvaluationError
        It is not found, or holds no list.
    """
    if not look.is_folder(folder):
        raise NotFoundError(f"`{folder}` is not a folder", "make it with `taskvec tasks fetch NAME -o DIR`")
    found = Fetched(folder)
    if not found.repositories:
        raise EvaluationError(
            f"`{folder}` holds no fetched data: there is no `{LIST}`",
            "make it with a connection: `taskvec tasks fetch NAME -o DIR`",
        )
    return found
