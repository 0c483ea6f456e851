"""Opening: a folder, a file or an address becomes a :class:`~taskvec.models.model.Model`."""

from __future__ import annotations

import difflib
import gc
import os
from dataclasses import replace
from pathlib import Path

from taskvec._core import Checkpoint as Reader
from taskvec.errors import HubError, NotFoundError, RecipeError
from taskvec.files import folder
from taskvec.models.model import Model
from taskvec.resolve.local import _cached_snapshot, _make, _tensors, open_folder
from taskvec.resolve.remote import _open_repository


def _open_named(spec: str | os.PathLike[str], revision: str | None) -> Model:
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
    from taskvec.resolve import hub

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


def _open_path(spec: str, path: Path) -> Model:
    if path.is_dir():
        snapshot = _cached_snapshot(path)
        opened = open_folder(spec, snapshot or path)
        return replace(opened, revision=snapshot.name) if snapshot else opened
    reader = Reader(str(path))
    if path.name.endswith(folder.INDEX_SUFFIX):
        return _make(spec, path.parent.absolute(), reader)
    return Model(
        spec=spec,
        path=path.parent.absolute(),
        tensors=_tensors(reader),
        config={},
        other_files=(),
        file_sizes=dict(reader.files()),
        fingerprint=reader.fingerprint,
        weights=reader,
    )


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


def open(spec: str | os.PathLike[str] | Model, *, revision: str | None = None) -> Model:  # noqa: A001
    """The record of a model by its headers; see :func:`taskvec.open`, which adds the operators."""
    if isinstance(spec, Model):
        return spec
    # The table of a hundred thousand tensors is as many small objects, none of them in a cycle: the collector
    # would walk through them again and again, and take as long as the opening itself.
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        return _open_named(spec, revision)
    finally:
        if is_collecting:
            gc.enable()
