"""Opening: a folder, a file or an address becomes a :class:`~taskvec.models.model.Model`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from taskvec.arguments import path as path_of
from taskvec.errors import HubError, NotFoundError, OutputError, RecipeError
from taskvec.files import look, variants
from taskvec.files.names import PATCH
from taskvec.files.windows import way_out
from taskvec.host import collector_paused
from taskvec.models.model import Model, Remote
from taskvec.resolve import storage
from taskvec.resolve.local import open_path
from taskvec.resolve.remote import open_remote
from taskvec.text import alike

Found = TypeVar("Found")


def _hub(address: str, revision: str | None) -> Remote | None:
    from taskvec.resolve import hub  # huggingface_hub takes a third of a second

    return hub.find(address, revision)


def _store(address: str, revision: str | None) -> Remote | None:
    from taskvec.resolve.store import files  # obstore, which local folders do not need

    return files.find(address, revision)


# How an address begins, and the function that finds its files: called with the address and the revision given
# apart from it, it returns `None` for a text that is not an address of its kind. The longest beginning
# decides. The empty one is that of every other text, which is a local path if there is one.
SCHEMES: dict[str, Callable[[str, str | None], Remote | None]] = {
    "": _hub,
    "hf://": _hub,
    "https://huggingface.co/": _hub,
    "https://hf.co/": _hub,
    "s3://": _store,
    "gs://": _store,
    "az://": _store,
    "https://": _store,
    "http://": _store,
}


def open(  # noqa: A001
    spec: str | os.PathLike[str] | Model, *, revision: str | None = None, has_variants: bool = True
) -> Model:
    """The record of a model by its headers; see :func:`taskvec.open`, which adds the operators.

    Of what has no variants, as saved vectors, the one that is set for all models is not asked for.
    """
    if isinstance(spec, Model):
        return spec
    variant = storage.current().variant if has_variants else None
    if variant is not None and PATCH not in os.fspath(spec) and variants.split(os.fspath(spec))[1] is None:
        named = f"{os.fspath(spec)}{variants.MARK}{variant}"
        spec = named if isinstance(spec, str) else Path(named)
    with collector_paused():
        return _open(spec, revision)


def _open(spec: str | os.PathLike[str], revision: str | None) -> Model:
    text = os.fspath(path_of(spec, "model"))
    if PATCH in text and not look.exists(text):
        from taskvec.resolve.patch.staged import open_patched  # NumPy, which headers do without

        return open_patched(text, lambda base: _open(base, revision))
    return reach(spec, revision, lambda text, path: _open_local(text, path, revision), open_remote)


def reach(
    spec: str | os.PathLike[str],
    revision: str | None,
    local: Callable[[str, Path], Found],
    remote: Callable[[str, Remote], Found],
) -> Found:
    """What `local` makes of a path that is there, or `remote` of an address; both take the text first.

    Raises
    ------
    NotFoundError, HubError
        There is neither; the message says where it was looked for.
    """
    given, scheme = os.fspath(path_of(spec, "model")), _scheme(spec)
    text = variants.split(given)[0]
    path = Path(text).expanduser()
    if not scheme and look.exists(path, follow_links=False):
        return local(given, path)
    try:
        address = SCHEMES[scheme](text, revision) if isinstance(spec, str) else None
        if address is not None:
            return remote(given, address)
    except (NotFoundError, HubError) as error:
        near = None if scheme else _near(path)
        if near is None:
            raise
        raise type(error)(
            f"{error.message}; and there is no local path `{text}`", f"did you mean `{near}`? or {error.hint}"
        ) from error
    raise _not_found(text, path)


def _scheme(spec: str | os.PathLike[str]) -> str:
    if not isinstance(spec, str):
        return ""
    return max((begin for begin in SCHEMES if spec.startswith(begin)), key=len)


def _open_local(text: str, path: Path, revision: str | None) -> Model:
    if revision is not None:
        raise RecipeError(
            f"`{text}` is a local path and has no revision `{revision}`", f"write `hf://{text}` for the hub"
        )
    return open_path(text, path)


def _not_found(spec: str, path: Path) -> NotFoundError:
    kind, colon, _ = spec.partition("://")
    if colon and kind.replace("+", "").isalnum():
        # not repeated: it may hold a password
        known = ", ".join(sorted(scheme for scheme in SCHEMES if scheme.endswith("://")))
        return NotFoundError(f"addresses of {kind}:// cannot be opened", f"give one of {known}, or a folder")
    near = _near(path)
    hint = way_out(spec) or (
        f"did you mean `{near}`?" if near else "give a folder, or `org/name` or `hf://org/name` for the hub"
    )
    return NotFoundError(f"`{spec}` is not found: searched for a folder or file at `{path.absolute()}`", hint)


def _near(path: Path) -> Path | None:
    """An existing path that differs from this one by a typing error in its first part that does not exist."""
    try:
        return _similar(path)
    except OutputError:  # it is only a suggestion: the error that it belongs to is the one to show
        return None


def _similar(path: Path) -> Path | None:
    parent, wanted = path.parent, path.name
    rest: list[str] = []
    while not look.is_folder(parent) and parent != parent.parent:
        rest.insert(0, wanted)
        parent, wanted = parent.parent, parent.name
    names = [
        name
        for name in look.listing(parent)
        if name.endswith(".safetensors") or look.is_folder(parent / name)
    ]
    for name in alike(wanted, names, n=3, cutoff=0.7):
        found = parent.joinpath(name, *rest)
        if look.exists(found):
            return found
    return None
