"""A local folder or file opened by its headers."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from taskvec._core import Checkpoint as Reader
from taskvec.errors import FormatError, NotFoundError
from taskvec.files import distributed, folder, gguf, look
from taskvec.files.json import read_bytes, read_object
from taskvec.files.names import CONFIG
from taskvec.files.sub_models import SubModels
from taskvec.models.model import Model, TensorInfo
from taskvec.resolve.packed import recognised
from taskvec.resolve.sub_models import configs_of, hold_listed, indices_of, sub_models_in

# A config is a few kB; the largest published, with a quantisation table per layer, is under 1 MB.
MAXIMUM_CONFIG = 16 << 20


def open_path(spec: str, path: Path) -> Model:
    """Open a folder, a repository's folder in the hub's cache, an index, or a single file.

    Raises
    ------
    NotFoundError, FormatError
        The path holds no checkpoint, or a damaged one.
    OutputError
        It cannot be looked at.
    """
    place = distributed.place_of(path)
    if place is not None:
        return _distributed(spec, path.absolute(), place.absolute())
    file = gguf.file_of(path)
    if file is not None:
        return _gguf(spec, file.absolute())
    if look.is_folder(path):
        snapshot = cached_snapshot(path)
        try:
            opened = open_folder(spec, snapshot or path)
        except (NotFoundError, FormatError) as error:
            if lacking := distributed.lacking(path):
                raise _unfinished(spec, lacking) from error
            raise
        return replace(opened, revision=snapshot.name) if snapshot else opened
    reader = Reader(str(path))
    if path.name.endswith(folder.INDEX_SUFFIX):
        return _of_folder(spec, path.parent.absolute(), reader)
    model = Model(
        spec=spec,
        path=path.parent.absolute(),
        tensors=tensor_table(reader),
        config={},
        other_files=(),
        file_sizes=dict(reader.files()),
        fingerprint=reader.fingerprint,
        weights=reader,
    )
    return recognised(model, reader)


def open_folder(spec: str, path: Path) -> Model:
    """Open a local folder; raises as :func:`open_path`."""
    made = sub_models_in(spec, path)
    if made:
        return _of_sub_models(spec, path.absolute(), made)
    reader = Reader(str(path))
    names = [name for name, _ in reader.files()]
    if len(names) == 1 and folder.index_of(look.listing(path)) is None:
        folder.hold_whole(spec, names)
    return _of_folder(spec, path.absolute(), reader)


def _of_sub_models(spec: str, path: Path, made: SubModels) -> Model:
    """A folder with weights in several sub-folders, or of a variant."""
    files = [name for chosen in made.values() for name in chosen.files]
    try:
        reader = Reader(str(path), files)
    except FormatError as error:
        if error.hint is not None or set(made) != {""}:
            raise
        raise FormatError(error.message, "of several models, give the path of one file") from error
    listing = folder.list_folder(path, {*files, *indices_of(made)})
    config, configs = configs_of(
        made, listing.other, lambda name: read_object(path / name, maximum=MAXIMUM_CONFIG)
    )
    model = Model(
        spec=spec,
        path=path,
        tensors=tensor_table(reader),
        config=config,
        other_files=listing.other,
        left_files=listing.left,
        stamps=listing.stamps,
        file_sizes=dict(reader.files()),
        fingerprint=reader.fingerprint,
        weights=reader,
        sub_models=made,
        configs=configs,
    )
    hold_listed(model)
    return recognised(model, reader)


def _unfinished(spec: str, lacking: str) -> FormatError:
    return FormatError(
        f"`{spec}` is a distributed checkpoint of torch without its `{lacking}`",
        "it was not saved or copied to its end, as the metadata is written last: save or copy it again",
    )


def _distributed(spec: str, path: Path, place: Path) -> Model:
    """A distributed checkpoint of torch, by what is laid out of it; it is known by its own path and state."""
    from taskvec.resolve.distributed.staged import staged  # torch, which takes seconds

    folder, identity, left = staged(path, place)
    return replace(_laid_out(spec, path, folder, identity), left_states=left)


def _gguf(spec: str, path: Path) -> Model:
    """A GGUF file, by what is laid out of it; it is known by its own path and bytes."""
    from taskvec.resolve.gguf.staged import staged

    folder, identity, kinds = staged(path)
    return replace(_laid_out(spec, path, folder, identity), decoded=kinds)


def _laid_out(spec: str, path: Path, folder: Path, identity: str) -> Model:
    """What lies in `folder`, made of the checkpoint at `path`, of which `identity` is the state."""
    opened = open_folder(spec, folder)
    return replace(opened, repository=str(path), revision=identity, address=str(path), is_laid_out=True)


def cached_snapshot(path: Path) -> Path | None:
    """The snapshot to take where the path is a repository in the hub's cache: `main`, or the only one.

    huggingface_hub knows the latter only by scanning every repository of the cache.
    """
    parent = path / "snapshots"
    if not look.is_folder(parent) or not look.is_folder(path / "blobs"):
        return None
    snapshots = [name for name in look.listing(parent) if look.is_folder(parent / name)]
    try:
        main = read_bytes(path / "refs" / "main").decode(errors="replace").strip()
    except NotFoundError:
        main = ""
    taken = main if main in snapshots else snapshots[0] if len(snapshots) == 1 else None
    return parent / taken if taken else None


def _of_folder(spec: str, path: Path, reader: Reader) -> Model:
    sizes = dict(reader.files())
    listing = folder.list_folder(path, sizes)
    has_config = look.exists(path / CONFIG, follow_links=False)
    model = Model(
        spec=spec,
        path=path,
        tensors=tensor_table(reader),
        config=read_object(path / CONFIG, maximum=MAXIMUM_CONFIG) if has_config else {},
        other_files=listing.other,
        left_files=listing.left,
        stamps=listing.stamps,
        file_sizes=sizes,
        fingerprint=reader.fingerprint,
        weights=reader,
    )
    return recognised(model, reader)


class _Table(dict[str, TensorInfo]):
    """Tensors by name, in file order; can be referred to weakly."""

    __slots__ = ("__weakref__",)


_latest: weakref.ref[_Table] | None = None


def tensor_table(reader: Reader) -> Mapping[str, TensorInfo]:
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
