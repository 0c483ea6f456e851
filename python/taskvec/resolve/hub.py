"""Finding on the hub: a name becomes a repository at one commit, with the list of its files.

huggingface_hub does the asking: its cache, tokens, offline mode and HF_ENDPOINT hold here as everywhere.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from taskvec._core import Checkpoint as Reader
from taskvec.errors import Error, HubError, RecipeError
from taskvec.resolve.hub_errors import explained, is_unreachable
from taskvec.resolve.repository import COMMIT, Location, RemoteFile, Repository

log = logging.getLogger("taskvec.hub")

_NAME = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}")


def parse(spec: str) -> Location | None:
    """Reads ``org/name``, ``org/name@revision``, ``hf://…`` or a model page's address; ``None`` for
    anything else.

    Raises
    ------
    RecipeError
        It is meant for the hub (``hf://``, an address) and is not the name of a model repository.
    """
    text, explicit = spec.strip(), False
    for prefix in ("hf://", "https://huggingface.co/", "https://hf.co/"):
        if text.startswith(prefix):
            text, explicit = text.removeprefix(prefix).removeprefix("models/").rstrip("/"), True
    if explicit:
        text = re.sub(r"/(?:tree|commit)/", "@", text, count=1)
    name, at, revision = text.partition("@")
    named = _REPOSITORY.fullmatch(name) or (explicit and re.fullmatch(_NAME, name))
    if named and (revision or not at):
        return Location(name, revision or None)
    if explicit:
        raise RecipeError(
            f"`{spec}` is not a model repository", "write `hf://org/name` or `hf://org/name@revision`"
        )
    return None


def resolve(location: Location) -> Repository:
    """Finds the commit and the files behind a name.

    A full commit hash whose snapshot the cache holds needs no network. A branch or tag costs one request;
    where the hub cannot be reached, the commit that the cache remembers stands in, with a warning.

    Raises
    ------
    NotFoundError
        No such repository or revision.
    HubError
        The hub cannot be reached, or refuses, and the cache is not complete.
    """
    from huggingface_hub import HfApi, constants

    storage = Path(constants.HF_HUB_CACHE) / f"models--{location.repository.replace('/', '--')}"
    remembered = _remembered(storage, location)
    if remembered and remembered == location.revision and is_complete(storage / "snapshots" / remembered):
        return Repository(location, remembered, storage / "snapshots" / remembered, None)
    try:
        info = HfApi().model_info(
            location.repository,
            revision=location.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
    except Exception as error:
        if is_unreachable(error) and remembered and is_complete(storage / "snapshots" / remembered):
            if not constants.HF_HUB_OFFLINE:
                log.warning("the hub cannot be reached; `%s` is taken from the cache", location)
            return Repository(location, remembered, storage / "snapshots" / remembered, None)
        with explained(location.repository, location.revision):
            raise
    commit = info.sha
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise HubError(
            f"the hub resolves `{location}` to `{commit}`, expected a commit hash", "check HF_ENDPOINT"
        )
    files = {file.name: file for file in _listed(info.siblings or (), location)}
    return Repository(location, commit, storage / "snapshots" / commit, files)


def _remembered(storage: Path, location: Location) -> str | None:
    revision = location.revision or "main"
    if COMMIT.fullmatch(revision):
        return revision
    if ".." in PurePosixPath(revision).parts:
        return None
    try:
        commit = (storage / "refs" / revision).read_text().strip()
    except (OSError, ValueError):
        return None
    return commit if COMMIT.fullmatch(commit) else None


def is_complete(snapshot: Path) -> bool:
    """Whether a snapshot of the cache has config.json and all its weights."""
    if not (snapshot / "config.json").is_file():
        return False
    try:
        Reader(str(snapshot))
    except Error:
        return False
    return True


def _listed(siblings: Iterable[Any], location: Location) -> Iterator[RemoteFile]:
    for sibling in siblings:
        name, path = sibling.rfilename, PurePosixPath(sibling.rfilename)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
            raise HubError(
                f"`{location}` lists a file named `{name}`", "the hub's answer is damaged; check HF_ENDPOINT"
            )
        large = sibling.lfs
        size = large.size if large else sibling.size
        if size is None and name.endswith(".safetensors"):
            raise HubError(
                f"`{location}` lists no size for `{name}`",
                "this mirror leaves out what is needed; download with `hf download` and give the folder",
            )
        yield RemoteFile(name, int(size or 0), large.sha256 if large else sibling.blob_id)
