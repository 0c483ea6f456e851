"""A model at an address: opened by its headers, and fetched when a run needs it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from taskvec._core import Checkpoint as Reader
from taskvec.errors import Error, FormatError, HubError
from taskvec.files import distributed, folder, gguf, look
from taskvec.files.json import parse_object
from taskvec.files.modules import module_weights
from taskvec.files.names import CONFIG
from taskvec.files.sub_models import SubModels
from taskvec.models.adapter import FILES as ADAPTER_FILES
from taskvec.models.adapter import Adapter
from taskvec.models.model import Model, Remote, fetched_bytes
from taskvec.models.saved_vector import SavedVector
from taskvec.resolve.local import open_folder, tensor_table
from taskvec.resolve.packed import recognised
from taskvec.resolve.sub_models import configs_of, hold_listed, indices_of, sub_models_at

if TYPE_CHECKING:
    from taskvec.progress import Callback

Source = TypeVar("Source")


def open_remote(spec: str, remote: Remote) -> Model:
    """Open a model by its headers, its index and its config; by its local files if all are here.

    Raises
    ------
    NotFoundError, FormatError
        The address holds no checkpoint, or a damaged one.
    HubError
        It refuses, cannot be reached, or sends something else than it lists.
    """
    files = remote.list()
    outside = next((name for name in files if not folder.is_inside(name)), None)
    if outside is not None:
        raise HubError(f"`{spec}` lists a file named `{outside}`", "take that file out, or use another copy")
    made = sub_models_at(spec, remote, files)
    if made:
        return _open_sub_models(spec, remote, made)
    index = folder.index_of(files)
    parsed = parse_object(fetched_bytes(spec, remote, index), f"{spec}/{index}") if index else None
    weights = folder.weights_of(files, parsed)
    if not weights and any(name.endswith(distributed.SUFFIX) for name in files):
        raise FormatError(
            f"`{spec}` is a distributed checkpoint of torch, which is read from a local folder",
            "download the folder, and give its path",
        )
    if not weights and any(map(gguf.is_one, files)):
        raise FormatError(
            f"`{spec}` is a model in GGUF, which is read from a local file",
            "download the file, and give its path",
        )
    unused = [name for name in files if folder.is_weight(name) and name not in weights]
    modules = module_weights(unused, files, lambda name: fetched_bytes(spec, remote, name))
    needed = needed_files(files, weights, modules)
    if weights and not _missing(remote, needed):
        return _identified(open_folder(spec, remote.folder), remote)
    if index is None:
        folder.hold_whole(spec, weights)
    reader = _read_headers(spec, remote, index, weights)
    config = parse_object(fetched_bytes(spec, remote, CONFIG), f"{spec}/{CONFIG}") if CONFIG in files else {}
    model = Model(
        spec=spec,
        path=None,
        tensors=tensor_table(reader),
        config=config,
        other_files=tuple(sorted(set(needed) - {*weights, index})),
        left_files=tuple(sorted(files.keys() - set(needed))),
        file_sizes=dict(reader.files()),
        fingerprint=reader.fingerprint,
        download_bytes=sum(map(remote.size, _missing(remote, needed))),
        remote=remote,
        header_metadata=reader.metadata,
    )
    return _identified(recognised(model, reader), remote)


def _open_sub_models(spec: str, remote: Remote, made: SubModels) -> Model:
    """The same of weights in several folders, or of a variant."""
    files = remote.list()
    weights = [name for chosen in made.values() for name in chosen.files]
    unused = folder.without_folders_of(weights, files)
    modules = module_weights(unused, files, lambda name: fetched_bytes(spec, remote, name))
    needed = needed_files(files, weights, modules, made)
    if not _missing(remote, needed):
        return _identified(open_folder(spec, remote.folder), remote)
    reader = _read_headers(spec, remote, None, weights, weights)
    config, configs = configs_of(
        made, files, lambda name: parse_object(fetched_bytes(spec, remote, name), f"{spec}/{name}")
    )
    model = Model(
        spec=spec,
        path=None,
        tensors=tensor_table(reader),
        config=config,
        other_files=tuple(sorted(set(needed) - {*weights, *indices_of(made)})),
        left_files=tuple(sorted(files.keys() - set(needed))),
        file_sizes=dict(reader.files()),
        fingerprint=reader.fingerprint,
        download_bytes=sum(map(remote.size, _missing(remote, needed))),
        remote=remote,
        header_metadata=reader.metadata,
        sub_models=made,
        configs=configs,
    )
    hold_listed(model)
    return _identified(recognised(model, reader), remote)


def needed_files(
    names: Collection[str],
    weights: Iterable[str],
    modules: Iterable[str] = (),
    made: SubModels | None = None,
) -> list[str]:
    """Those of an address's files that a run needs, small ones first: a refusal then shows early."""
    index = folder.index_of(names)
    indices = indices_of(made) if made else [index] if index else []
    small = [name for name in names if folder.is_needed(name)]
    return [*small, *indices, *sorted(modules), *weights]


def materialised(source: Source, progress: Callback | None = None) -> Source:
    """The source with its files here: of a remote model, vector or adapter what a run needs is fetched.

    Raises
    ------
    HubError
        The download failed, or its headers are not those seen before.
    """
    if isinstance(source, Adapter) and source.remote is not None:
        return cast(Source, _fetched_adapter(source, source.remote, progress))
    if isinstance(source, SavedVector):
        return cast(Source, replace(source, stored=materialised(source.stored, progress)))
    if not isinstance(source, Model) or source.remote is None:
        return source
    modules = filter(folder.is_weight, source.other_files)
    names = needed_files(source.remote.list(), source.file_sizes, modules, source.sub_models)
    local = open_folder(source.spec, source.remote.fetch(names, progress=progress))
    if local.fingerprint != source.fingerprint:
        raise _changed(source.spec)
    return cast(Source, _identified(local, source.remote))


def _fetched_adapter(adapter: Adapter, remote: Remote, progress: Callback | None) -> Adapter:
    remote.fetch(ADAPTER_FILES, progress=progress)
    if Reader(str(adapter.path / ADAPTER_FILES[1])).fingerprint != adapter.fingerprint:
        raise _changed(adapter.spec)
    return replace(adapter, remote=None, download_bytes=0)


def _changed(spec: str) -> HubError:
    return HubError(
        f"the weights of `{spec}` have other headers than those read before",
        "run the same command again; if it stays so, a mirror or proxy on the way serves other files",
    )


def _missing(remote: Remote, names: Iterable[str]) -> list[str]:
    return [name for name in names if not look.exists(remote.folder / name)]


def _identified(model: Model, remote: Remote) -> Model:
    repository, revision, address = remote.identity
    return replace(model, repository=repository, revision=revision, address=address)


def _read_headers(
    spec: str, remote: Remote, index: str | None, weights: list[str], listed: list[str] | None = None
) -> Reader:
    """Let the one reader judge an address: its headers laid out in a folder, with holes for the data."""
    import tempfile  # with random and hashes, more than a millisecond: local folders need none of it

    from taskvec.resolve.headers import headers  # nor threads and queues

    with tempfile.TemporaryDirectory(prefix="taskvec-headers-") as place:
        # Without weights, the reader says what is there instead: pickles, an adapter, nothing.
        for name in remote.list():
            if "/" not in name and (not weights or folder.is_variant_index(name)):
                (Path(place) / name).touch()
        if index:
            (Path(place) / index).write_bytes(fetched_bytes(spec, remote, index))
        for name, header in headers(remote, weights).items():
            (Path(place) / name).parent.mkdir(parents=True, exist_ok=True)
            with open(Path(place) / name, "wb") as file:
                file.write(header)
                file.truncate(remote.size(name))
        try:
            return Reader(place, listed)
        except Error as error:
            raise type(error)(error.message.replace(place, spec), error.hint) from None
