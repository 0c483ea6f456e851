"""A map as a folder: the files and tensors of the model that it is of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec._core import digest_file, write_atomic
from taskvec.dtypes import FLOAT_DTYPES
from taskvec.errors import NonFiniteError
from taskvec.evaluation.importance.saved import save
from taskvec.evaluation.importance.squares import Squares
from taskvec.files.folder import INDEX
from taskvec.files.manifest import File
from taskvec.files.names import CARD, CONFIG, STATE
from taskvec.models.model import Model


@dataclass(frozen=True, slots=True)
class Names:
    """Which parameter each stored tensor is.

    Attributes
    ----------
    files : dict of str to dict of str to str
        By weight file: the tensors to write and the parameter of each.
    unknown : tuple of str
        Stored tensors that the model as it is loaded has not: what they matter is not known.
    without_gradient : tuple of str
        Tensors that had no part in the likelihood: they matter nothing there, and are zero.
    """

    files: dict[str, dict[str, str]]
    unknown: tuple[str, ...]
    without_gradient: tuple[str, ...]


def names_of(model: Model, loaded: Any, squares: Squares) -> Names:
    """Which parameter each stored tensor is.

    Parameters that are stored otherwise (experts in one tensor, say) are written under the names that they
    have in the loaded model, into the last file: merges know the layouts.
    """
    own = {id(parameter): name for name, parameter in loaded.named_parameters()}
    state = {key: own.get(id(value)) for key, value in loaded.state_dict(keep_vars=True).items()}
    files: dict[str, dict[str, str]] = {}
    unknown, used = [], set()
    for name, info in model.tensors.items():
        parameter = state.get(name)
        if parameter is not None and squares.sums[parameter].shape == info.shape:
            files.setdefault(info.file, {})[name] = parameter
            used.add(parameter)
        elif info.dtype in FLOAT_DTYPES and (parameter is not None or name not in state):
            unknown.append(name)
    rest = {name: name for name in squares.sums if name not in used}
    if rest:
        last = list(files)[-1] if files else next(iter(model.file_sizes))
        files.setdefault(last, {}).update(rest)
    quiet = [name for each in files.values() for name, own in each.items() if own not in squares.reached]
    return Names(files, () if rest else tuple(unknown), tuple(quiet))


def write_weights(place: Path, names: Names, squares: Squares, documents: int, dtype: str) -> list[File]:
    """The weight files of a map, and their index where there are several.

    Raises
    ------
    NonFiniteError
        A mean is not a number, or beyond the type.
    """
    import torch

    written = []
    sizes: dict[str, int] = {}
    for file, tensors in names.files.items():
        made = {}
        for name, parameter in tensors.items():
            mean = (squares.sums[parameter] / documents).to(getattr(torch, dtype)).cpu()
            if not bool(torch.isfinite(mean).all()):
                raise NonFiniteError(
                    f"values that are not finite: the importance of `{name}`",
                    "compute in a wider type: `--model-arg dtype=float32`",
                )
            made[name] = mean.contiguous().clone()
        sizes[file] = sum(each.numel() * each.element_size() for each in made.values())
        save(place / file, made, {"format": "pt"}, place / STATE)
        written.append(File(file, *digest_file(place / file)))
    if len(names.files) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file for file, tensors in names.files.items() for name in tensors},
        }
        written.append(_put(place, INDEX, (json.dumps(index, indent=2) + "\n").encode()))
    return written


def write_others(place: Path, model: Model, facts: Mapping[str, Any]) -> list[File]:
    """The config of the model, which says how its tensors are laid out, and a card."""
    card = (
        f"# What the weights of {Path(model.spec).name} matter\n\n"
        "Not a model: each value is the mean of the squared derivative of log p(answer | prompt) by that "
        f"weight, the diagonal of the Fisher information, over {facts['documents_total']:,} documents of "
        f"{', '.join(facts['documents'])}. Made by `taskvec importance`; a recipe names it by "
        "`importance:`.\n"
    )
    files = [_put(place, CARD, card.encode())]
    if CONFIG in model.other_files:
        files.append(_put(place, CONFIG, model.read_file(CONFIG)))
    return files


def _put(place: Path, name: str, data: bytes) -> File:
    write_atomic(place / name, data)
    return File(name, *digest_file(place / name))
