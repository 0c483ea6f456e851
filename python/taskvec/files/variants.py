"""The weights in one folder, and their variants: ``model.fp16.safetensors`` next to ``model.safetensors``."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from taskvec.errors import FormatError, NotFoundError
from taskvec.files.names import listed_file
from taskvec.regex import regex
from taskvec.text import listed

MARK = "?variant="
# What transformers, diffusers and sentence-transformers call weights.
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_STEM = rf"(?P<stem>{'|'.join(_STEMS)})"
_TAG = r"[A-Za-z0-9_]+"
_FILE = regex(
    rf"{_STEM}(?:\.(?P<tag>{_TAG}))?(?P<shard>-\d{{5}}-of-\d{{5}})?(?:\.(?P<last>{_TAG}))?\.safetensors"
)
_INDEX = regex(
    rf"{_STEM}(?:\.(?P<first>{_TAG}))?\.safetensors(?:\.(?P<tag>{_TAG}))?\.index(?:\.(?P<last>{_TAG}))?\.json"
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class Chosen:
    """The weights of one folder.

    Attributes
    ----------
    files : tuple of str
        Their files in order, relative POSIX names.
    index : str or None
        The index that lists them.
    weight_map : mapping of str to str
        What it lists: stored names -> files, both as they are in that folder.
    variant : str or None
        The variant that they are of; ``None`` for weights without a tag.
    others : tuple of str
        The variants that lie there besides; the empty text for weights without a tag.
    """

    files: tuple[str, ...]
    index: str | None = None
    weight_map: Mapping[str, str] = field(default_factory=dict, repr=False)
    variant: str | None = None
    others: tuple[str, ...] = ()


def split(spec: str) -> tuple[str, str | None]:
    """The name of a model and the variant asked for behind it: ``sdxl?variant=fp16``."""
    name, mark, tag = spec.rpartition(MARK)
    return (name, tag) if mark and re.fullmatch(_TAG, tag) else (spec, None)


class _Group:
    def __init__(self) -> None:
        self.files: list[str] = []
        self.index: str | None = None


def choose(
    folder: str, names: Collection[str], read: Callable[[str], Mapping[str, Any]], variant: str | None
) -> Chosen | None:
    """The weights to take in a folder: those of a variant, or those without a tag.

    A folder that has only other ones gives these: the variant, where it lacks weights without a tag and has
    one variant; the weights without a tag, where it lacks the variant.

    Parameters
    ----------
    folder : str
        Relative, with ``/`` behind it; empty for the top.
    names : collection of str
        The files in that folder itself, without it.
    read : callable
        A JSON file by its whole relative name.
    variant : str or None
        The variant asked for.

    Returns
    -------
    Chosen or None
        ``None`` where the folder has no safetensors file.

    Raises
    ------
    FormatError
        It cannot be told which files are the weights.
    NotFoundError
        Files that the index lists are not found.
    """
    groups = _groups(names)
    if not groups:
        return _only(folder, names)
    stems = {stem for stem, _ in groups}
    if len(stems) > 1:
        raise FormatError(
            f"`{folder or '.'}` has weights of several names: {listed(sorted(stems))}",
            "remove those that are not the model's",
        )
    (stem,) = stems
    tags = sorted(tag for _, tag in groups)
    taken = _taken(folder, tags, variant)
    group = groups[stem, taken]
    others = tuple(tag for tag in tags if tag != taken)
    if group.index is not None and any("-of-" not in name for name in group.files):
        raise FormatError(
            f"both `{folder}{group.files[-1]}` and `{folder}{group.index}` are there",
            "one of them is left over from another save: remove it",
        )
    if group.index is None:
        whole = [name for name in group.files if "-of-" not in name]
        if len(whole) != 1:
            raise FormatError(
                f"`{folder}{group.files[0]}` is one of several files, and their index is not found",
                "the checkpoint is incomplete: download or save it again",
            )
        return Chosen((folder + whole[0],), None, {}, taken or None, others)
    files, weight_map = _indexed(folder, group.index, names, read)
    return Chosen(
        tuple(folder + name for name in files), folder + group.index, weight_map, taken or None, others
    )


def beside(names: Collection[str]) -> Chosen | None:
    """Weights of other names, next to each other, that are one model: ``encoder.safetensors`` and so on.

    Parameters
    ----------
    names : collection of str
        The files in a folder itself.

    Returns
    -------
    Chosen or None
        ``None`` of fewer than two, and where an index, shards or usual names say what the model is.
    """
    found = sorted(name for name in names if name.endswith(".safetensors") and not name.startswith("."))
    is_told = any(name.endswith(".index.json") for name in names) or any(
        _FILE.fullmatch(name) or "-of-" in name or name.startswith("adapter_") for name in found
    )
    return None if is_told or len(found) < 2 else Chosen(tuple(found))


def _groups(names: Collection[str]) -> dict[tuple[str, str], _Group]:
    """Files and indices by stem and variant."""
    groups: dict[tuple[str, str], _Group] = {}
    for name in sorted(names):
        if match := _FILE.fullmatch(name):
            key = match["stem"], match["tag"] or match["last"] or ""
            groups.setdefault(key, _Group()).files.append(name)
    for name in sorted(names):
        if match := _INDEX.fullmatch(name):
            key = match["stem"], match["first"] or match["tag"] or match["last"] or ""
            groups.setdefault(key, _Group()).index = name
    return groups


def _only(folder: str, names: Collection[str]) -> Chosen | None:
    """The one safetensors file of another name."""
    found = sorted(name for name in names if name.endswith(".safetensors") and not name.startswith("."))
    if len(found) > 1:
        raise FormatError(
            f"`{folder or '.'}` has {len(found)} safetensors files and no index: {listed(found)}",
            "remove those that are not the model's",
        )
    return Chosen((folder + found[0],)) if found else None


def _taken(folder: str, tags: list[str], variant: str | None) -> str:
    if variant is not None and variant in tags:
        return variant
    if "" in tags:
        return ""
    if len(tags) == 1:
        return tags[0]
    raise FormatError(
        f"`{folder or '.'}` has no weights without a tag, and several variants: {listed(tags)}",
        f"name one: --variant {tags[0]}, or `{MARK}{tags[0]}` behind the model",
    )


def _indexed(
    folder: str, index: str, names: Collection[str], read: Callable[[str], Mapping[str, Any]]
) -> tuple[list[str], Mapping[str, str]]:
    found = read(folder + index).get("weight_map")
    weight_map: dict[str, str] = found if isinstance(found, dict) else {}
    if not weight_map or not all(isinstance(file, str) for file in weight_map.values()):
        raise FormatError(f"`{folder}{index}` lists no tensors", "download or save the checkpoint again")
    weight_map = {tensor: listed_file(file) for tensor, file in weight_map.items()}
    files = sorted(set(weight_map.values()))
    outside = [name for name in files if "/" in name or "\\" in name or not name.endswith(".safetensors")]
    if outside:
        raise FormatError(
            f"`{folder}{index}` names the file `{outside[0]}`, which is not a bare name that ends in "
            "`.safetensors`",
            "shards lie next to their index; a path could lead anywhere and is not followed",
        )
    missing = [name for name in files if name not in names]
    if missing:
        raise NotFoundError(
            f"{len(missing)} of {len(files)} files of `{folder}{index}` are not found: {listed(missing)}",
            "the checkpoint is incomplete: download or copy it again",
        )
    return files, weight_map


def pickles(names: Collection[str]) -> list[str]:
    """Weights in pickle form among the names of a folder's files."""
    return sorted(name for name in names if name.endswith(_PICKLES) and any(stem in name for stem in _STEMS))


def renamed(chosen: Chosen, folder: str, count: int) -> tuple[list[str], str]:
    """Names for so many files in place of these, and for their index, of the same stem and variant."""
    name = chosen.files[0].removeprefix(folder)
    match = _FILE.fullmatch(name)
    # Of several files that lie next to each other, none lends its name to the others.
    alone = "model" if len(chosen.files) > 1 else name.removesuffix(".safetensors")
    stem = match["stem"] if match else alone
    tag = f".{chosen.variant}" if chosen.variant else ""
    numbers = [f"-{number:05d}-of-{count:05d}" for number in range(1, count + 1)] if count > 1 else [""]
    index = f"{stem}.safetensors.index{tag}.json"
    return [f"{folder}{stem}{tag}{number}.safetensors" for number in numbers], folder + index
