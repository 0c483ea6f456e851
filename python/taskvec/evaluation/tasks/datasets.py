"""Data sets of the hub, loaded once for all arms of an experiment.

lm-eval asks the hub for a data set whenever a task is loaded, so every arm of a sweep would ask again, with
several requests for each of the 27 parts of BIG-bench Hard.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from taskvec.files import look


@contextlib.contextmanager
def loaded_once() -> Iterator[None]:
    """While it lasts, a data set of the hub that was loaded before is given again.

    One within another shares what the outer one has loaded.
    """
    import datasets

    load = datasets.load_dataset
    if isinstance(load, _Loader):
        yield
        return
    datasets.load_dataset = _Loader(load)  # type: ignore[assignment]
    try:
        yield
    finally:
        datasets.load_dataset = load


class _Loader:
    """`datasets.load_dataset` that remembers."""

    def __init__(self, load: Any) -> None:
        self._load = load
        self._loaded: dict[str, Any] = {}

    def __call__(self, path: str, name: str | None = None, **arguments: Any) -> Any:
        key = _key(path, name, arguments)
        if key is None:
            return self._load(path=path, name=name, **arguments)
        if key not in self._loaded:
            self._loaded[key] = self._load(path=path, name=name, **arguments)
        return self._loaded[key]


def _key(path: str, name: str | None, arguments: dict[str, Any]) -> str | None:
    """What names a data set of the hub; None for local files, which may change meanwhile."""
    if path.count("/") != 1 or look.exists(path) or {"data_files", "data_dir"} & arguments.keys():
        return None
    try:
        return json.dumps([path, name, arguments], sort_keys=True)
    except TypeError:  # an argument that is not a plain value
        return None
