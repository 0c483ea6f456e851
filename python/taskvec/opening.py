"""Opening: a folder, a file or a name on the hub becomes a :class:`~taskvec.checkpoint.Checkpoint`."""

from __future__ import annotations

import builtins
import difflib
import gc
import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from taskvec import _core, folder
from taskvec.checkpoint import Checkpoint, TensorInfo
from taskvec.errors import Error, HubError, NotFoundError, RecipeError
from taskvec.jsonfile import parse_object, read_object

if TYPE_CHECKING:
    from taskvec.repository import Repository

CONFIG = "config.json"
# A config is a few kB; the largest published, with a quantisation table per layer, is under 1 MB.
MAXIMUM_CONFIG = 16 << 20


def open_named(spec: str | os.PathLike[str], revision: str | None) -> Checkpoint:
    """What :func:`taskvec.open` does for a name."""
    # The table of a hundred thousand tensors is as many small objects, none of them in a cycle: the collector
    # would walk through them again and again, and take as long as the opening itself.
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        return _open_named(spec, revision)
    finally:
        if is_collecting:
            gc.enable()


def _open_named(spec: str | os.PathLike[str], revision: str | None) -> Checkpoint:
    text = os.fspath(spec)
    path = Path(text).expanduser()
    is_remote = isinstance(spec, str) and text.startswith(("hf://", "https://"))
    if not is_remote and (path.exists() or path.is_symlink()):
        if revision is not None:
            raise RecipeError(
                f"`{text}` is a local path and has no revision `{revision}`",
                f"write `hf://{text}` for the hub",
            )
        return _open_path(text, path)
    from taskvec import hub

    location = hub.parse(text) if isinstance(spec, str) else None
    if location is None:
        raise _not_found(text, path)
    if revision is not None:
        if location.revision not in (None, revision):
            raise RecipeError(f"`{text}` names another revision than `{revision}`", "give the revision once")
        location = replace(location, revision=revision)
    try:
        return _open_repository(text, hub.resolve(location))
    except (NotFoundError, HubError) as error:
        near = None if is_remote else _near(path)
        if near is not None:
            raise type(error)(
                f"{error.message}; and there is no local path `{text}`",
                f"did you mean `{near}`? or {error.hint}",
            ) from error
        raise


def _open_path(spec: str, path: Path) -> Checkpoint:
    if path.is_dir():
        snapshot = _cached_snapshot(path)
        opened = open_folder(spec, snapshot or path)
        return replace(opened, revision=snapshot.name) if snapshot else opened
    reader = _core.Checkpoint(str(path))
    if path.name.endswith(folder.INDEX_SUFFIX):
        return _make(spec, path.parent.absolute(), reader)
    return Checkpoint(
        spec=spec,
        path=path.parent.absolute(),
        tensors=_tensors(reader),
        config={},
        other_files=(),
        file_sizes=dict(reader.files()),
        fingerprint=reader.fingerprint,
        _reader=reader,
    )


def _cached_snapshot(path: Path) -> Path | None:
    """The snapshot to take where the path is a repository in the hub's cache: `main`, or the only one."""
    if not (path / "snapshots").is_dir() or not (path / "blobs").is_dir():
        return None
    snapshots = sorted(entry for entry in (path / "snapshots").iterdir() if entry.is_dir())
    try:
        main = (path / "refs" / "main").read_text().strip()
    except OSError:
        main = ""
    for snapshot in snapshots:
        if snapshot.name == main or len(snapshots) == 1:
            return snapshot
    return None


def open_folder(spec: str, path: Path) -> Checkpoint:
    """Open a local folder."""
    return _make(spec, path.absolute(), _core.Checkpoint(str(path)))


def _make(spec: str, path: Path, reader: _core.Checkpoint) -> Checkpoint:
    sizes = dict(reader.files())
    listing = folder.list_folder(path, sizes)
    config = read_object(path / CONFIG, maximum=MAXIMUM_CONFIG) if os.path.lexists(path / CONFIG) else {}
    return Checkpoint(
        spec=spec,
        path=path,
        tensors=_tensors(reader),
        config=config,
        other_files=listing.other,
        left_files=listing.left,
        file_sizes=sizes,
        fingerprint=reader.fingerprint,
        _reader=reader,
    )


def _open_repository(spec: str, repository: Repository) -> Checkpoint:
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
    return Checkpoint(
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
        _remote=repository,
    )


def _read_headers(
    spec: str, repository: Repository, index: str | None, weights: list[str]
) -> _core.Checkpoint:
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
            return _core.Checkpoint(place)
        except Error as error:
            raise type(error)(error.message.replace(place, spec), error.hint) from None


def needed_files(repository: Repository, weights: Iterable[str]) -> list[str]:
    """The files of a repository that a run needs, small ones first: a refusal then shows early."""
    files = repository.files or {}
    index = folder.index_of(files)
    return [*(name for name in files if folder.is_needed(name)), *([index] if index else []), *weights]


class _Table(dict[str, TensorInfo]):
    """Tensors by name, in file order; can be referred to weakly."""

    __slots__ = ("__weakref__",)


_latest: weakref.ref[_Table] | None = None


def _tensors(reader: _core.Checkpoint) -> Mapping[str, TensorInfo]:
    """The table of a checkpoint. It has the entries of the one opened before where they are equal.

    The models of a run are mostly of one architecture, and entries of its own for each of a hundred thousand
    tensors take 30 MB.
    """
    global _latest
    known: Mapping[str, TensorInfo] = (_latest and _latest()) or {}
    table = _Table()
    for name, dtype, shape, file, _, nbytes in reader.tensors():
        facts = dtype, shape, nbytes, file
        info = known.get(name)
        if info is None or info[1:] != facts:
            info = TensorInfo(name, *facts)
        table[info.name] = info
    _latest = weakref.ref(table)
    return MappingProxyType(table)


def _not_found(spec: str, path: Path) -> NotFoundError:
    near = _near(path)
    hint = (
        f"did you mean `{near}`?" if near else "give a folder, or `org/name` or `hf://org/name` for the hub"
    )
    return NotFoundError(f"`{spec}` is not there: searched for a folder or file at `{path.absolute()}`", hint)


def _near(path: Path) -> Path | None:
    """An existing path that differs from this one by a typing error in its first part that does not exist."""
    parent, wanted = path.parent, path.name
    rest: list[str] = []
    while not parent.is_dir() and parent != parent.parent:
        rest.insert(0, wanted)
        parent, wanted = parent.parent, parent.name
    try:
        names = [entry.name for entry in parent.iterdir() if entry.is_dir() or entry.suffix == ".safetensors"]
    except OSError:
        return None
    for name in difflib.get_close_matches(wanted, names, n=3, cutoff=0.7):
        found = parent.joinpath(name, *rest)
        if found.exists():
            return found
    return None
