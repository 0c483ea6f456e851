"""Weights in several sub-folders: pipelines of diffusers, and modules of sentence-transformers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

from taskvec.errors import FormatError, NotFoundError
from taskvec.files import variants
from taskvec.files.modules import MODULES, strings
from taskvec.files.names import CONFIG
from taskvec.files.variants import Chosen
from taskvec.text import listed

PIPELINE = "model_index.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

Read = Callable[[str], bytes]
Parsed = Callable[[str], Mapping[str, Any]]
# By the path of the folder with `/` behind it, empty for the top.
SubModels = Mapping[str, Chosen]


def find(names: Collection[str], read: Read, parsed: Parsed, variant: str | None = None) -> dict[str, Chosen]:
    """The folders of a checkpoint that hold weights, where these are more than the top, or of a variant.

    Parameters
    ----------
    names : collection of str
        Every file of the checkpoint, relative POSIX names.
    read, parsed : callable
        The bytes of one of these, and the object in a JSON file.
    variant : str or None
        The variant asked for.

    Returns
    -------
    dict of str to Chosen
        By the folder's path with ``/`` behind it, in order; empty for a checkpoint of one folder without
        variants to choose from.

    Raises
    ------
    FormatError, NotFoundError
        A sub-folder's weights cannot be told, are not found, or are pickles; no folder has the variant.
    """
    if PIPELINE in names:
        folders, is_pipeline = _of_pipeline(names, parsed(PIPELINE)), True
    else:
        folders, is_pipeline = _of_modules(names, read), False
    if not folders and variant is None:
        return {}
    found: dict[str, Chosen] = {}
    has_top = not is_pipeline or _is_model(names)
    for folder in sorted({"", *folders}) if has_top else folders:
        here = in_folder(names, folder)
        chosen = variants.choose(folder, here, parsed, variant)
        if chosen is not None:
            found[folder] = chosen
        elif is_pipeline and (old := variants.pickles(here)):
            raise FormatError(
                f"the weights in `{folder}` are in pickle form ({listed(old)}), which can run code when "
                "it is loaded",
                "convert them where you trust them: "
                "`DiffusionPipeline.from_pretrained(FOLDER).save_pretrained(NEW)`",
            )
    _hold_variant(found, variant)
    # the top alone is a checkpoint as any other
    return {} if set(found) <= {""} and variant is None else found


def _is_model(names: Collection[str]) -> bool:
    """Whether the top is a model too: weights of the usual names next to a config.json."""
    return CONFIG in names and any(name in names for name in (SINGLE, INDEX))


def in_folder(names: Collection[str], folder: str) -> list[str]:
    """The files in a folder itself, by their names in it."""
    return [
        name[len(folder) :] for name in names if name.startswith(folder) and "/" not in name[len(folder) :]
    ]


def _of_pipeline(names: Collection[str], index: Mapping[str, Any]) -> list[str]:
    """The folders of the components that ``model_index.json`` names."""
    there = {name.partition("/")[0] for name in names if "/" in name}
    listed_there = [
        key
        for key, value in index.items()
        if not key.startswith("_") and isinstance(value, list) and len(value) == 2 and value[1] is not None
    ]
    missing = [key for key in listed_there if key not in there and isinstance(index[key][1], str)]
    if missing:
        raise NotFoundError(
            f"`{PIPELINE}` names {listed(missing)}, and there are no such folders",
            "the checkpoint is incomplete: download or copy it again; links to folders are not followed",
        )
    several = [
        re.compile(rf"{re.escape(key)}_\d+") for key in listed_there if isinstance(index[key][1], list)
    ]
    more = [name for name in there if any(pattern.fullmatch(name) for pattern in several)]
    return [f"{folder}/" for folder in sorted({*listed_there, *more} & there)]


def _of_modules(names: Collection[str], read: Read) -> list[str]:
    """The folders with weights that the list of modules of sentence-transformers names."""
    lists = [name for name in MODULES if name in names]
    named = {word for name in lists for word in strings(read(name))}
    weights = {str(PurePosixPath(name).parent) for name in names if name.endswith(".safetensors")}
    return [f"{folder}/" for folder in sorted(weights & named - {"."})]


def _hold_variant(found: SubModels, variant: str | None) -> None:
    if variant is None or any(chosen.variant == variant for chosen in found.values()):
        return
    tags = sorted({tag for each in found.values() for tag in (*each.others, each.variant) if tag})
    there = f"there is {listed(tags)}" if tags else "there are no variants"
    raise NotFoundError(
        f"no file of the variant `{variant}` is there: {there}",
        "name one that is there, or none; of single models by `MODEL?variant=TAG`",
    )
