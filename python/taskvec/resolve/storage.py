"""How addresses are reached: options of object stores, and the folder that files are fetched into.

They hold for what is opened while they are set. They may be secrets: nothing of them is ever written, shown
or put into an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from taskvec.errors import RecipeError

# The folder for fetched files, where none is given.
VARIABLE = "TASKVEC_SCRATCH"


@dataclass(frozen=True, slots=True)
class Storage:
    """Options of object stores by key, in lower case, the folder for fetched files, the variant."""

    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    scratch: Path | None = None
    variant: str | None = None

    @property
    def folder(self) -> Path:
        """Where fetched files are kept: ``TASKVEC_SCRATCH``, or the user's cache, where none is given."""
        if self.scratch is not None:
            return self.scratch.absolute()
        if given := os.environ.get(VARIABLE):
            return Path(given).expanduser().absolute()
        cache = os.environ.get("XDG_CACHE_HOME")
        return (Path(cache) if cache else Path.home() / ".cache") / "taskvec"


_current: ContextVar[Storage | None] = ContextVar("storage", default=None)


def current() -> Storage:
    """What is set now."""
    return _current.get() or Storage()


@contextmanager
def storage(
    options: Mapping[str, str] | None = None,
    *,
    scratch: str | os.PathLike[str] | None = None,
    variant: str | None = None,
) -> Iterator[None]:
    """Set how addresses are reached that this thread or task opens within.

    Parameters
    ----------
    options : mapping, optional
        Options of object stores as obstore has them: ``endpoint``, ``region``, ``allow_http`` … One that
        begins with ``aws_``, ``google_`` or ``azure_`` is for that store alone. By default they come from the
        environment (``AWS_ACCESS_KEY_ID`` and so on).
    scratch : str or path, optional
        The folder that files at ``s3://``, ``gs://``, ``az://`` and ``https://`` are fetched into, and stay
        in; by default ``TASKVEC_SCRATCH``, or ``taskvec`` in the user's cache.

    variant : str, optional
        The weights with this tag in their names, as diffusers has it (``fp16`` of
        ``model.fp16.safetensors``), in folders that have them; for one model alone, ``?variant=fp16`` behind
        its name.

    Examples
    --------
    >>> with tv.storage({"endpoint": "https://minio.example", "region": "eu"}):
    ...     tv.transfer("s3://models/target", "s3://models/donor", "s3://models/reference", "out")
    """
    outer = current()
    known = {str(key).lower(): str(value) for key, value in (options or {}).items()}
    place = outer.scratch if scratch is None else Path(scratch).expanduser()
    token = _current.set(Storage({**outer.options, **known}, place, variant or outer.variant))
    try:
        yield
    finally:
        _current.reset(token)


def parse_options(words: Iterable[str]) -> dict[str, str]:
    """The options of ``KEY=VALUE`` words; a later one of the same key wins.

    Raises
    ------
    RecipeError
        A word is not of that form. It is not repeated, since it may be a secret.
    """
    options: dict[str, str] = {}
    for number, word in enumerate(words, 1):
        key, equals, value = word.partition("=")
        if not equals or not key.strip().replace("_", "").isalnum():
            raise RecipeError(
                f"storage option {number} is not of the form KEY=VALUE",
                "write it as `--storage-option endpoint=https://...`",
            )
        options[key.strip().lower()] = value
    return options
