"""What is asked of an importance map, checked before a model is opened."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from taskvec.arguments import texts
from taskvec.errors import RecipeError
from taskvec.evaluation.backend.identity import settings_identity, versions
from taskvec.evaluation.keywords import MapOptions
from taskvec.evaluation.settings import Settings
from taskvec.text import nearest

Labels = Literal["reference", "model"]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for.

    Attributes
    ----------
    model : str
        As it was named.
    settings : Settings
    labels : {"reference", "model"}
    dtype : {"float32", "bfloat16"}
        Of the map.
    """

    model: str
    settings: Settings
    labels: Labels
    dtype: Dtype

    def plan(self, weights: str) -> bytes:
        """What the map depends on, as plain data."""
        content = {
            "format": "importance",
            "weights": weights,
            "labels": self.labels,
            "dtype": self.dtype,
            "settings": settings_identity(self.settings),
            "versions": versions(self.settings),
        }
        return json.dumps(content, sort_keys=True, default=str).encode()

    def recipe(self) -> dict[str, Any]:
        """What the manifest has of it."""
        settings = self.settings
        folder = settings.include_path
        found = {
            "verb": "importance",
            "model": self.model,
            "tasks": list(settings.tasks),
            "labels": self.labels,
            "dtype": self.dtype,
            "limit": settings.limit,
            "seed": settings.seed,
            "chat_template": settings.chat_template or None,
            "include_path": None if folder is None else str(folder),
            "data": None if settings.data is None else str(settings.data),
            "model_arg": [f"{key}={value}" for key, value in settings.model_args],
        }
        return {key: value for key, value in found.items() if value not in (None, [])}


def asked_for(
    model: str | os.PathLike[str],
    tasks: str | Sequence[str],
    labels: str,
    dtype: str,
    settings: MapOptions,
) -> Asked:
    """What the arguments of a call ask for.

    Raises
    ------
    RecipeError
        A value that cannot be honoured.
    TypeError
        A setting that is not known.
    """
    for name, value, known in (("labels", labels, get_args(Labels)), ("dtype", dtype, get_args(Dtype))):
        if value not in known:
            raise RecipeError(f"`{name}` is {' or '.join(known)}, found `{value}`")
    unknown = [name for name in settings if name not in MapOptions.__annotations__]
    if unknown:
        near = nearest(unknown[0], MapOptions.__annotations__)
        raise TypeError(f"unknown setting `{unknown[0]}`" + (f"; did you mean `{near}`?" if near else ""))
    names = tuple(tasks.split(",")) if isinstance(tasks, str) else texts(tasks, "tasks")
    if not any(names):
        raise RecipeError("no task was named", "name tasks with `--tasks gsm8k,sciq`")
    found = Settings.of({"tasks": names, **settings})
    if found.backend != "hf":
        raise RecipeError(f"backend `{found.backend}` gives no gradients", "leave it out: `hf` does")
    arguments = {"dtype": "float32", **dict(found.model_args)}
    found = replace(found, model_args=tuple(sorted(arguments.items())), batch_size=1)
    return Asked(os.fspath(model), found, labels, dtype)  # type: ignore[arg-type]
