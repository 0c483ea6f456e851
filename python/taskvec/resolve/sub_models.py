"""Checkpoints whose weights lie in several folders: which files these are, and whether they agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from taskvec._core import Checkpoint as Reader
from taskvec.errors import FormatError, NotFoundError
from taskvec.files import look, variants
from taskvec.files.folder import SKIPPED_FOLDERS
from taskvec.files.json import parse_object, read_bytes
from taskvec.files.modules import MODULES
from taskvec.files.names import CONFIG
from taskvec.files.sub_models import PIPELINE, SubModels, find
from taskvec.models.adapter import Adapter
from taskvec.models.model import Model, Remote, fetched_bytes
from taskvec.models.saved_vector import SavedVector
from taskvec.text import listed

_MARKS = (PIPELINE, *MODULES)


def sub_models_in(spec: str, path: Path) -> SubModels:
    """The folders of a local checkpoint that hold its weights; none of a plain one.

    Raises
    ------
    FormatError, NotFoundError
        As :func:`taskvec.files.sub_models.find`.
    """
    variant = variants.split(spec)[1]
    if variant is None and not any(look.is_file(path / name) for name in _MARKS):
        if not look.is_folder(path):
            return {}  # a single file, or nothing: what opens it says so
        return _beside(next((level.files for level in look.walk(path, without=SKIPPED_FOLDERS)), ()))
    names = [
        str(PurePosixPath(level.path) / name)
        for level in look.walk(path, without=SKIPPED_FOLDERS)
        for name in level.files
    ]
    with _named(spec):
        return find(
            names,
            lambda name: read_bytes(path / name),
            lambda name: parse_object(read_bytes(path / name), f"{path}/{name}"),
            variant,
        )


def local_reader(path: Path) -> Reader:
    """A reader of a local checkpoint, whose weights may lie in several folders; raises as its opening."""
    made = sub_models_in("", path)
    files = [name for chosen in made.values() for name in chosen.files]
    return Reader(str(path), files or None)


def sub_models_at(spec: str, remote: Remote, files: Collection[str]) -> SubModels:
    """The same of an address."""
    variant = variants.split(spec)[1]
    if variant is None and not any(name in files for name in _MARKS):
        return _beside([name for name in files if "/" not in name])
    with _named(spec):
        return find(
            files,
            lambda name: fetched_bytes(spec, remote, name),
            lambda name: parse_object(fetched_bytes(spec, remote, name), f"{spec}/{name}"),
            variant,
        )


def _beside(names: Collection[str]) -> SubModels:
    """Files at the top that are one model together."""
    chosen = variants.beside(names)
    return {} if chosen is None else {"": chosen}


@contextmanager
def _named(spec: str) -> Iterator[None]:
    """Let errors about the files of a model begin with its name."""
    name = variants.split(spec)[0]
    try:
        yield
    except (FormatError, NotFoundError) as error:
        if not name or f"`{name}`" in error.message or f"`{name}/" in error.message:
            raise
        raise type(error)(f"`{name}`: {error.message}", error.hint) from error


def indices_of(made: SubModels) -> list[str]:
    """The indices of all folders."""
    return [chosen.index for chosen in made.values() if chosen.index]


def configs_of(
    made: SubModels, names: Collection[str], read: Callable[[str], dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The config.json at the top, and those of the sub-folders with weights; empty where there is none."""
    top = read(CONFIG) if CONFIG in names else {}
    below = [folder for folder in made if folder]
    return top, {folder: read(folder + CONFIG) if folder + CONFIG in names else {} for folder in below}


def reader_of(source: Model | SavedVector | Adapter, folder: str | os.PathLike[str]) -> Reader:
    """A reader of a source's weight files in a folder that has them under their names."""
    model = source.stored if isinstance(source, SavedVector) else source
    is_listed = isinstance(model, Model) and model.sub_models
    return Reader(str(folder), list(model.file_sizes) if is_listed else None)


def hold_listed(model: Model) -> None:
    """Return if each folder's index names the tensors that are there, and no sub-folder is packed.

    Raises
    ------
    FormatError
        An index names others, or the weights of a sub-folder are packed.
    """
    for folder, chosen in model.sub_models.items():
        if chosen.index is not None:
            _hold_index(model, folder, chosen.index, chosen.weight_map)
        if model.configs.get(folder, {}).get("quantization_config"):
            raise FormatError(
                f"the weights in `{folder}` of `{model.spec}` are packed, as its config.json says",
                "give the path of that folder alone, or save it unpacked",
            )


def _hold_index(model: Model, folder: str, index: str, weight_map: Mapping[str, str]) -> None:
    there = {
        name.removeprefix(folder): info.file.removeprefix(folder)
        for name, info in model.stored.items()
        if info.file.rpartition("/")[0] == folder.rstrip("/")
    }
    wrong = sorted(name for name in {*there, *weight_map} if there.get(name) != weight_map.get(name))
    if wrong:
        raise FormatError(
            f"`{index}` of `{model.spec}` lists other tensors than its files have: {listed(wrong)}",
            "index and shards come from different saves: download or save the checkpoint again",
        )
