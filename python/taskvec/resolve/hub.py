"""Finding on the hub: a name becomes a repository at one commit, with the list of its files.

huggingface_hub does the asking: its cache, tokens, offline mode and HF_ENDPOINT hold here as everywhere.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.errors import HubError, RecipeError
from taskvec.files import look
from taskvec.files.folder import is_inside
from taskvec.files.names import CONFIG
from taskvec.models.adapter_config import CONFIG as ADAPTER_CONFIG
from taskvec.models.model import RemoteFile
from taskvec.regex import regex
from taskvec.resolve.hub_errors import explained, is_unreachable
from taskvec.resolve.repository import COMMIT, HubName, Repository, has_adapter, has_weights

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

log = logging.getLogger("taskvec.hub")

_NAME = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
_REPOSITORY = regex(rf"{_NAME}/{_NAME}")


def find(spec: str, revision: str | None = None) -> Repository | None:
    """The repository that a text names; ``None`` if it is not the name of one.

    Parameters
    ----------
    spec : str
        ``org/name``, ``org/name@revision``, ``hf://...`` or the address of a model's page.
    revision : str, optional
        A branch, tag or commit, if the text names none.

    Raises
    ------
    RecipeError
        The text is meant for the hub and is not the name of a model repository, or names another revision.
    NotFoundError, HubError
        As :func:`resolve`.
    """
    name = parse(spec)
    if name is None:
        return None
    if revision is not None and name.revision not in (None, revision):
        raise RecipeError(f"`{spec}` names another revision than `{revision}`", "give the revision once")
    return resolve(replace(name, revision=revision or name.revision))


def parse(spec: str) -> HubName | None:
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
        return HubName(name, revision or None)
    if explicit:
        raise RecipeError(
            f"`{spec}` is not a model repository", "write `hf://org/name` or `hf://org/name@revision`"
        )
    return None


def resolve(name: HubName) -> Repository:
    """Find the commit and the files behind a name.

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

    with explained(name.repository, name.revision):
        snapshot = _remembered(name)
        if snapshot and snapshot.name == name.revision and has_weights(snapshot):
            return _cached(name, snapshot)
        try:
            info = HfApi().model_info(
                name.repository,
                revision=name.revision,
                files_metadata=True,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
            )
        except Exception as error:
            if not is_unreachable(error):
                raise
            snapshot = snapshot if snapshot and has_weights(snapshot) else _remembered_adapter(name)
            if snapshot is None:
                raise
            if not constants.HF_HUB_OFFLINE:
                log.warning("the hub cannot be reached; `%s` is taken from the cache", name)
            return _cached(name, snapshot)
    return _listed(name, info)


def _remembered(name: HubName) -> Path | None:
    """The snapshot with a config that the cache has of this revision, by what it stood for when fetched."""
    return _snapshot_with(name, CONFIG)


def _remembered_adapter(name: HubName) -> Path | None:
    """The snapshot with a whole adapter that the cache has of this revision."""
    snapshot = _snapshot_with(name, ADAPTER_CONFIG)
    return snapshot if snapshot and has_adapter(snapshot) else None


def _snapshot_with(name: HubName, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name.repository, file, revision=name.revision)
    return Path(found).parent if isinstance(found, str) else None


def _cached(name: HubName, snapshot: Path) -> Repository:
    files = {file.name: file for file in _on_disk(snapshot)}
    return Repository(name, snapshot.name, snapshot, files)


def _on_disk(snapshot: Path) -> Iterator[RemoteFile]:
    for level in look.walk(snapshot):
        for name in level.files:
            path = Path(level.path, name)
            stamp = look.stamp(snapshot / path)
            if stamp is not None:
                yield RemoteFile(path.as_posix(), stamp.size)


def _listed(name: HubName, info: ModelInfo) -> Repository:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    commit = info.sha
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise HubError(
            f"the hub resolves `{name}` to `{commit}`, expected a commit hash", "check HF_ENDPOINT"
        )
    cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name.repository, repo_type="model")
    files = {file.name: file for file in _files(info.siblings or (), name)}
    return Repository(name, commit, cache / "snapshots" / commit, files)


def _files(siblings: Iterable[Any], repository: HubName) -> Iterator[RemoteFile]:
    for sibling in siblings:
        name = sibling.rfilename
        if not is_inside(name):
            raise HubError(
                f"`{repository}` lists a file named `{name}`",
                "the hub's answer is damaged; check HF_ENDPOINT",
            )
        large = sibling.lfs
        size = large.size if large else sibling.size
        if size is None and name.endswith(".safetensors"):
            raise HubError(
                f"`{repository}` lists no size for `{name}`",
                "this mirror leaves out what is needed; download with `hf download` and give the folder",
            )
        yield RemoteFile(name, int(size or 0), large.sha256 if large else sibling.blob_id)
