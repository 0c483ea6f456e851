"""Data sets and metrics given from a folder of fetched files, in place of the hub."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taskvec.evaluation.tasks.fetched import LIST, Fetched, opened
from taskvec.files import look

VARIABLE = "HF_DATASETS_CACHE"


def data_folder(given: Path | None) -> Path | None:
    """The folder that data come from: the given one, or HF_DATASETS_CACHE where `tasks fetch` wrote there."""
    if given is not None:
        return Path(given)
    named = os.environ.get(VARIABLE)
    return Path(named) if named and look.exists(Path(named) / LIST) else None


@contextlib.contextmanager
def served(given: Path | None) -> Iterator[None]:
    """While it lasts, data sets and metrics of the hub come from a folder, and the hub is not asked.

    Raises
    ------
    NotFoundError, EvaluationError
        The folder is not found or holds no data; inside, a data set is not in it, or has changed.
    """
    folder = data_folder(given)
    if folder is None:
        yield
        return
    import datasets
    import evaluate

    held = opened(folder)
    data, metric = datasets.load_dataset, evaluate.load
    datasets.load_dataset = functools.partial(_data_set, held, data)  # type: ignore[assignment]
    evaluate.load = functools.partial(_metric, held, metric)  # type: ignore[assignment]
    try:
        yield
    finally:
        datasets.load_dataset = data
        evaluate.load = metric


def _data_set(held: Fetched, load: Any, path: str, name: str | None = None, **arguments: Any) -> Any:
    if path.count("/") != 1 or Path(path).exists():
        return load(path=path, name=name, **arguments)
    arguments = {key: value for key, value in arguments.items() if key not in ("token", "revision")}
    row = held.repositories.get(f"datasets/{path}", {})
    key = str(held.folder.absolute()), path, name, str(row.get("commit")), repr(sorted(arguments.items()))
    if key not in _loaded:
        place = held.hold(f"datasets/{path}")
        _loaded[key] = load(path=str(place.absolute()), name=name, **arguments)
    return _loaded[key]


# Parts of data sets that this process has loaded: BIG-bench Hard has 27, and every arm asks for them.
_loaded: dict[tuple[str | None, ...], Any] = {}


def _metric(held: Fetched, load: Any, path: str, *arguments: Any, **rest: Any) -> Any:
    if "/" in path or Path(path).exists():
        return load(path, *arguments, **rest)
    return load(str(held.hold(f"spaces/evaluate-metric/{path}").absolute()), *arguments, **rest)
