"""The files of a checkpoint folder or repository: weights in use, files that come along, files that stay
behind."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from taskvec.errors import FormatError
from taskvec.files import look
from taskvec.files.json import read_bytes
from taskvec.files.modules import module_weights
from taskvec.files.names import STATE, listed_file
from taskvec.regex import regex

INDEX = "model.safetensors.index.json"
INDEX_SUFFIX = ".safetensors.index.json"
SINGLE = "model.safetensors"

# Formats that hold weights, trainer state included. None of them is copied: the output's weights are new.
_WEIGHT_SUFFIXES = (
    *(".safetensors", ".pt", ".pth", ".ckpt", ".pkl", ".ot", ".distcp", ".nemo", ".h5", ".msgpack", ".npz"),
    *(".npy", ".gguf", ".ggml", ".onnx", ".onnx_data", ".tflite", ".mlmodel"),
)
# `.bin` is anything: the pickled weights have these words in their names, `training_args.bin` does not.
_WEIGHT_BIN = regex(r"(?:model|weights|consolidated|optimizer|adapter)[^/]*\.bin$")
# `model.safetensors.index.fp16.json` and `model.safetensors.fp16.index.json` are those of a variant.
_VARIANT = regex(r"\.safetensors\.(?:index\.[^./]+|[^./]+\.index)\.json$")
_WEIGHT_INDEX = regex(
    r"\.(?:safetensors|bin|pt|pth|msgpack|h5)(?:\.index|\.index\.[^./]+|\.[^./]+\.index)\.json$"
)
_SHARD = regex(r"-\d{5}-of-(\d{5})\.safetensors$")
SKIPPED_FOLDERS = frozenset({".git", ".cache", "__pycache__", STATE})
# Second copies of the weights in another vendor's layout; a repository's are not downloaded, whatever they
# hold.
_SECOND_COPIES = frozenset({"original", "metal", "onnx", "openvino", "coreml", "gguf"})


def is_inside(name: str) -> bool:
    """Whether a relative name that a server lists stays in the folder that it is put into."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and not {"\\", "\0"} & set(name)
    )


def is_weight(name: str) -> bool:
    """Whether a file holds weights, or is an index of such files, judging by its name."""
    base = PurePosixPath(name).name.lower()
    if base.endswith(_WEIGHT_SUFFIXES):
        return True
    return _WEIGHT_BIN.search(base) is not None or _WEIGHT_INDEX.search(base) is not None


def is_needed(name: str) -> bool:
    """Whether a repository's file is worth downloading besides its weights in use."""
    parts = PurePosixPath(name).parts
    return not (is_weight(name) or SKIPPED_FOLDERS & set(parts) or is_second_copy(name))


def is_second_copy(name: str) -> bool:
    """Whether a file lies in a folder that holds the same weights in another vendor's layout."""
    return PurePosixPath(name).parts[0].lower() in _SECOND_COPIES


def index_of(names: Iterable[str]) -> str | None:
    """The index among the names of a folder's files: the standard one, or the only one."""
    indices = [name for name in names if "/" not in name and name.endswith(INDEX_SUFFIX)]
    return INDEX if INDEX in indices else indices[0] if len(indices) == 1 else None


def is_variant_index(name: str) -> bool:
    """Whether a file is the index of a variant: weights in another type next to those without a tag."""
    return _VARIANT.search(name) is not None


def weights_of(names: Collection[str], index: Mapping[str, Any] | None) -> list[str]:
    """The weight files among the names, from the parsed index if there is one.

    This only says which headers to look at; whether they make a checkpoint is for the reader to judge.
    """
    if index is not None:
        weight_map = index.get("weight_map")
        listed = weight_map.values() if isinstance(weight_map, dict) else ()
        return sorted({listed_file(file) for file in listed if isinstance(file, str)} & {*names})
    return (
        [SINGLE]
        if SINGLE in names
        else sorted(n for n in names if "/" not in n and n.endswith(".safetensors"))
    )


def hold_whole(spec: str, weights: Collection[str]) -> None:
    """Return unless the only weights, without an index, are one of several shards.

    Raises
    ------
    FormatError
        They are, so that the others are missing.
    """
    shard = _SHARD.search(next(iter(weights))) if len(weights) == 1 else None
    if shard is not None and int(shard[1]) > 1:
        raise FormatError(
            f"`{spec}` holds `{next(iter(weights))}`, one of {int(shard[1])} shards, without the others and "
            "their index",
            "the checkpoint is incomplete: download or copy it again; for that file alone, give its path",
        )


def without_folders_of(weights: Collection[str], names: Iterable[str]) -> list[str]:
    """The weight files among the names, but for those in sub-folders of which other files are in use."""
    used = {name.rpartition("/")[0] for name in weights if "/" in name}
    return [name for name in names if is_weight(name) and name.rpartition("/")[0] not in used]


class Listing(NamedTuple):
    """The files of a folder besides its weights in use, as relative POSIX names in order.

    ``other`` come along to an output, weights of modules among them; ``left`` do not: weights that are not in
    use, links to folders, special files. ``stamps`` are the states of ``other``.
    """

    other: tuple[str, ...]
    left: tuple[str, ...]
    stamps: dict[str, look.Stamp]


def list_folder(folder: Path, weights: Collection[str]) -> Listing:
    """List a folder and its sub-folders; symbolic links to files are followed, those to folders are not.

    Raises
    ------
    OutputError
        A folder or a file cannot be looked at.
    """
    stamps: dict[str, look.Stamp] = {}
    left: list[str] = []
    for level in look.walk(folder, without=SKIPPED_FOLDERS):
        relative = PurePosixPath(level.path)
        left += [f"{relative / name}/" for name in level.links_to_folders]
        for path in (str(relative / name) for name in level.files):
            if path in weights or ("/" not in path and path.endswith(INDEX_SUFFIX)):
                continue
            is_candidate = not is_weight(path) and _is_text(path)
            stamp = look.stamp(folder / path) if is_candidate else None
            if stamp is None:
                left.append(path)
            else:
                stamps[path] = stamp
    unused = [name for name in without_folders_of(weights, left) if look.is_file(folder / name)]
    for name in module_weights(unused, sorted(stamps), lambda name: read_bytes(folder / name)):
        stamp = look.stamp(folder / name)
        if stamp is not None:
            stamps[name] = stamp
            left.remove(name)
    shown = (path.encode("utf-8", "replace").decode() for path in left)
    return Listing(tuple(sorted(stamps)), tuple(sorted(shown)), stamps)


def _is_text(name: str) -> bool:
    """Whether a file name is Unicode; any other could not be written down in the manifest."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
