"""Which addresses can be written to, and how: the table of sinks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from taskvec.errors import RecipeError
from taskvec.regex import regex
from taskvec.settings import Settings

if TYPE_CHECKING:
    from taskvec.run.sink import Sink


_SCHEME = regex(r"[A-Za-z][A-Za-z0-9+]*://")
_HUB = "hf://"


def _store(address: str, _: bool) -> Sink:
    from taskvec.run.store_sink import store_sink  # obstore, which local folders do not need

    return store_sink(address)


def _hub(address: str, public: bool) -> Sink:
    from taskvec.run.hub_sink import hub_sink  # huggingface_hub, which local folders do not need

    return hub_sink(address, public=public)


# How an address begins, and the function that makes its sink: one that all may read if it is told so. Every
# other text is a local folder.
SCHEMES: dict[str, Callable[[str, bool], Sink]] = {
    "s3://": _store,
    "gs://": _store,
    "az://": _store,
    _HUB: _hub,
}


def is_address(out: str | os.PathLike[str]) -> bool:
    """Whether an output is an address, and no local folder."""
    return isinstance(out, str) and out.startswith(tuple(SCHEMES))


def absolute(out: str | os.PathLike[str]) -> str:
    """An output by a name that holds from any folder."""
    return str(out) if is_address(out) else os.path.abspath(out)


def hold_local(out: str | os.PathLike[str]) -> None:
    """Return if an output that is not a known address is a folder.

    Raises
    ------
    RecipeError
        It is an address of another kind, which would become a folder of a strange name.
    """
    if isinstance(out, str) and _SCHEME.match(out) and not is_address(out):
        kind = out.partition("://")[0]
        known = ", ".join(sorted(SCHEMES))
        raise RecipeError(f"addresses of {kind}:// cannot be written to", f"give one of {known}, or a folder")


def hold_output(out: str | os.PathLike[str], settings: Settings) -> None:
    """Return if an output can be one, and the settings have a meaning for it.

    Raises
    ------
    RecipeError
        It is an address that cannot be written to, or a setting would be passed over.
    """
    hold_local(out)
    if settings.public and not (isinstance(out, str) and out.startswith(_HUB)):
        kind = f"at {out.partition('://')[0]}://" if is_address(out) else "a folder"  # type: ignore[union-attr]
        raise RecipeError(
            f"`--public` is for a repository that is made on the hub, and the output is {kind}",
            "leave it out; who may read the output is decided where it lies",
        )


def hold_folder(out: object, what: str) -> None:
    """Return if an output is not an address: `what` goes to a folder alone.

    Raises
    ------
    RecipeError
    """
    if isinstance(out, str) and _SCHEME.match(out):
        raise RecipeError(
            f"{what} goes to a folder, and not to `{out.partition('://')[0]}://`", "give a folder"
        )


def open_sink(out: str | os.PathLike[str], *, public: bool = False) -> Sink | None:
    """The sink of an address; ``None`` for a local folder. Nothing is asked for yet.

    Parameters
    ----------
    out : str or path
    public : bool
        Whether all may read a repository that is made on the hub.

    Raises
    ------
    RecipeError
        The address cannot be used.
    HubError
        What it needs is not installed.
    """
    if not isinstance(out, str):
        return None
    return next((make(out, public) for begin, make in SCHEMES.items() if out.startswith(begin)), None)


@contextlib.contextmanager
def closing(address: str, *, public: bool = False) -> Iterator[Sink]:
    """The sink of an address while it is used; raises as :func:`open_sink`."""
    sink = open_sink(address, public=public)
    assert sink is not None
    try:
        yield sink
    except BaseException:
        sink.close(failed=True)
        raise
    sink.close()
