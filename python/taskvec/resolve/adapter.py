"""Opening a LoRA adapter: a folder or an address becomes an :class:`~taskvec.models.adapter.Adapter`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from taskvec._core import Checkpoint as Reader
from taskvec.errors import Error, NotFoundError
from taskvec.files import look
from taskvec.files.json import parse_object, read_object
from taskvec.models.adapter import FILES, WEIGHTS, Adapter, read_adapter
from taskvec.models.adapter_config import CONFIG
from taskvec.models.model import Remote, fetched_bytes
from taskvec.resolve.headers import headers
from taskvec.resolve.local import cached_snapshot
from taskvec.resolve.open import reach


def open_adapter(spec: str | os.PathLike[str]) -> Adapter:
    """Open a LoRA adapter by its header and its settings: a folder, or an address as models have them.

    Raises
    ------
    NotFoundError
        There is no adapter.
    FormatError
        It is damaged, or of a kind whose change of a weight is not B·A alone; the message names it.
    HubError
        The address refuses, cannot be reached, or sends something else than it lists.
    """
    return reach(spec, None, _open_folder, _open_remote)


def _open_folder(spec: str, path: Path) -> Adapter:
    folder = (cached_snapshot(path) or path).absolute()
    _check_files(spec, look.listing(folder) if look.is_folder(folder) else (), look.is_folder(folder))
    return read_adapter(spec, folder, read_object(folder / CONFIG), Reader(str(folder / WEIGHTS)))


def _open_remote(spec: str, remote: Remote) -> Adapter:
    files = remote.list()
    _check_files(spec, files)
    missing = [name for name in FILES if not look.exists(remote.folder / name)]
    if missing:
        config = parse_object(fetched_bytes(spec, remote, CONFIG), f"{spec}/{CONFIG}")
        adapter = _with_header(spec, remote, lambda reader: read_adapter(spec, remote.folder, config, reader))
    else:
        adapter = _open_folder(spec, remote.folder)
    repository, revision, _ = remote.identity
    return replace(
        adapter,
        repository=repository,
        revision=revision,
        remote=remote if WEIGHTS in missing else None,
        download_bytes=remote.size(WEIGHTS) if WEIGHTS in missing else 0,
    )


def _with_header(spec: str, remote: Remote, read: Callable[[Reader], Adapter]) -> Adapter:
    """What is read of weights whose header alone is fetched; a hole stands for the data."""
    with tempfile.TemporaryDirectory(prefix="taskvec-headers-") as place:
        file = Path(place) / WEIGHTS
        with open(file, "wb") as data:
            data.write(headers(remote, [WEIGHTS])[WEIGHTS])
            data.truncate(remote.size(WEIGHTS))
        try:
            return read(Reader(str(file)))
        except Error as error:
            raise type(error)(error.message.replace(place, spec), error.hint) from None


def _check_files(spec: str, names: Collection[str], is_folder: bool = True) -> None:
    missing = [name for name in FILES if name not in names]
    if not missing:
        return
    hint = f"an adapter is a folder or a repository on the hub with `{CONFIG}` and `{WEIGHTS}`"
    if not is_folder:
        raise NotFoundError(f"`{spec}` is a file, and no LoRA adapter", hint)
    if missing == [WEIGHTS] and "adapter_model.bin" in names:
        hint = "`adapter_model.bin` is a pickle, which is not read: load it with `peft` and save it again"
    raise NotFoundError(f"`{spec}` holds no LoRA adapter: `{missing[0]}` is not found", hint)
