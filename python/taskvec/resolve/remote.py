"""A remote checkpoint opened by its headers, and fetched when a run needs it."""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from taskvec._core import Checkpoint as Reader
from taskvec.errors import Error, HubError
from taskvec.files import folder
from taskvec.files.json import parse_object
from taskvec.models.model import Model, Remote
from taskvec.resolve.local import CONFIG, _tensors, open_folder

if TYPE_CHECKING:
    from taskvec.progress import Callback
    from taskvec.resolve.repository import Repository

Source = TypeVar("Source")


def _open_repository(spec: str, repository: Repository) -> Model:
    name, commit = repository.location.repository, repository.commit
    files = repository.files
    if files is None:
        return replace(open_folder(spec, repository.snapshot), repository=name, revision=commit)
    index = folder.index_of(files)
    weights = folder.weights_of(files, repository.index(index) if index else None)
    needed = needed_files(repository, weights)
    if weights and not repository.missing(needed):
        return replace(open_folder(spec, repository.snapshot), repository=name, revision=commit)
    reader = _read_headers(spec, repository, index, weights)
    config: dict[str, Any] = {}
    if CONFIG in files:
        config = parse_object(repository.read(CONFIG), f"{spec}/{CONFIG}")
    structural = {*weights, index}
    return Model(
        spec=spec,
        path=None,
        tensors=_tensors(reader),
        config=config,
        other_files=tuple(sorted(file for file in needed if file not in structural)),
        left_files=tuple(sorted(files.keys() - set(needed))),
        file_sizes=dict(reader.files()),
        fingerprint=reader.fingerprint,
        repository=name,
        revision=commit,
        download_bytes=repository.size(repository.missing(needed)),
        remote=repository,
    )


def _read_headers(spec: str, repository: Repository, index: str | None, weights: list[str]) -> Reader:
    """Let the one reader judge a repository: its headers laid out in a folder, with holes for the data."""
    import tempfile  # with random and hashes, more than a millisecond: local folders need none of it

    files = repository.files or {}
    with tempfile.TemporaryDirectory(prefix="taskvec-headers-") as place:
        # Without weights, the reader says what is there instead: pickles, an adapter, nothing.
        for name in () if weights else files:
            if "/" not in name:
                (Path(place) / name).touch()
        if index:
            (Path(place) / index).write_bytes(repository.read(index))
        for name, header in repository.headers(weights).items():
            with builtins.open(Path(place) / name, "wb") as file:
                file.write(header[: files[name].size])
                file.truncate(files[name].size)
        try:
            return Reader(place)
        except Error as error:
            raise type(error)(error.message.replace(place, spec), error.hint) from None


def needed_files(repository: Remote, weights: Iterable[str]) -> list[str]:
    """The files of a repository that a run needs, small ones first: a refusal then shows early."""
    files = repository.files or {}
    index = folder.index_of(files)
    return [*(name for name in files if folder.is_needed(name)), *([index] if index else []), *weights]


def materialised(source: Source, progress: Callback | None = None) -> Source:
    """The source with its files here: of a remote model what a run needs is fetched; the others are local.

    Raises
    ------
    HubError
        The download failed, or its headers are not those seen before.
    """
    if not isinstance(source, Model) or source.remote is None:
        return source
    names = needed_files(source.remote, source.file_sizes)
    local = open_folder(source.spec, source.remote.download(names, progress))
    if local.fingerprint != source.fingerprint:
        raise HubError(
            f"the weights of `{source.spec}` have other headers than the hub sent before",
            "run the same command again; if it stays so, look at the mirror or proxy (HF_ENDPOINT)",
        )
    local = replace(local, repository=source.repository, revision=source.revision)
    return cast(Source, local)
