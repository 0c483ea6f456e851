"""Fetching the files of data sets from the hub into a folder, for machines without a network."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.errors import EvaluationError, HubError, OutputError
from taskvec.evaluation.tasks.fetched import Fetched, state
from taskvec.evaluation.tasks.known import repositories
from taskvec.files.folder import is_inside
from taskvec.resolve.hub_errors import explained

# What of a repository is data, or says which file is which part of it; a script is run for metrics alone.
_DATA = (".parquet", ".json", ".jsonl", ".json.gz", ".jsonl.gz", ".csv", ".tsv", ".arrow", ".txt")
_SCRIPTS = (".py",)

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Arrived:
    """A repository after fetching: its commit, its files and their bytes, and how many had to come."""

    repository: str
    commit: str
    files: int
    nbytes: int
    came: int


def fetch(names: Iterable[str], out: Path, report: Report | None = None) -> list[Arrived]:
    """Fetch what some tasks need; files that are there and as the hub lists them stay.

    Each repository stays at the commit at which it was begun, so that a folder that was fetched in two turns
    is of one state.

    Parameters
    ----------
    names : iterable of str
        Tasks, or data sets.
    out : Path
        The folder; made if need be.
    report : callable, optional
        Called as ``report(repository, done, total)`` after each file.

    Raises
    ------
    EvaluationError
        A task is not known.
    HubError, NotFoundError
        The hub cannot be reached or refuses, or sends something else than it lists.
    OutputError
        The folder cannot be written.
    """
    needed = repositories(names)
    try:
        held = Fetched(out)
        return [_repository(held, repository, report) for repository in needed]
    except OSError as error:
        if isinstance(error, (EvaluationError, HubError, OutputError)):
            raise
        raise OutputError(
            f"`{out}` cannot be written: {error.strerror or error}", "name another folder with -o"
        ) from error


def _repository(held: Fetched, repository: str, report: Report | None) -> Arrived:
    if repository in held.repositories and held.wrong(repository) is None:
        return _arrived(held, repository, 0)  # nothing is asked of the hub
    kind, _, name = repository.partition("/")
    known = held.repositories.get(repository, {}).get("commit")
    commit, listed = _listed(kind, name, repository, known)
    place, files, came = held.place(repository), {}, 0
    for number, (file, facts) in enumerate(listed.items(), 1):
        if not _is_right(place / file, facts):
            _fetch(kind, name, repository, commit, file, place)
            came += 1
            if not _is_right(place / file, facts):
                (place / file).unlink(missing_ok=True)
                raise HubError(
                    f"`{file}` of `{repository}` is not the file that the hub lists",
                    "run the same command again; files that are right stay",
                )
        files[file] = state(place / file)
        if report is not None:
            report(repository, number, len(listed))
    shutil.rmtree(place / ".cache", ignore_errors=True)
    held.add(repository, commit, files)
    return _arrived(held, repository, came)


def _arrived(held: Fetched, repository: str, came: int) -> Arrived:
    row = held.repositories[repository]
    nbytes = sum(facts["size"] for facts in row["files"].values())
    return Arrived(repository, row["commit"], len(row["files"]), nbytes, came)


def _listed(kind: str, name: str, repository: str, commit: str | None) -> tuple[str, dict[str, Any]]:
    """The commit of a repository, and its files with what the hub says of each."""
    from huggingface_hub import HfApi

    with explained(repository, commit):
        info: Any = HfApi().repo_info(
            name, repo_type=kind.removesuffix("s"), revision=commit, files_metadata=True
        )
    wanted = _SCRIPTS if kind == "spaces" else _DATA
    found = {}
    for file in info.siblings or ():
        if file.rfilename == "README.md" or file.rfilename.lower().endswith(wanted):
            if not is_inside(file.rfilename):
                raise HubError(f"`{repository}` lists a file named `{file.rfilename}`", "use another copy")
            found[file.rfilename] = {
                "size": file.size, "blob": file.blob_id, "sha256": file.lfs.sha256 if file.lfs else None,
            }  # fmt: skip
    if not any(file.lower().endswith(wanted) for file in found):
        raise HubError(f"`{repository}` holds no data that can be fetched", "look at its files on the hub")
    return str(info.sha), found


def _fetch(kind: str, name: str, repository: str, commit: str, file: str, place: Path) -> None:
    from huggingface_hub import hf_hub_download

    with explained(repository, commit, file):
        hf_hub_download(
            name, file, repo_type=kind.removesuffix("s"), revision=commit, local_dir=place,
            force_download=place.joinpath(file).exists(),
        )  # fmt: skip


def _is_right(path: Path, listed: dict[str, Any]) -> bool:
    """Whether a file is there, with the size and the digest that the hub lists."""
    found = state(path)
    if found is None or (listed["size"] is not None and found["size"] != listed["size"]):
        return False
    if listed["sha256"] is not None:
        return bool(found["sha256"] == listed["sha256"])
    return listed["blob"] is None or _blob(path) == listed["blob"]


def _blob(path: Path) -> str:
    """The digest by which git names the contents of a file."""
    data = path.read_bytes()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
