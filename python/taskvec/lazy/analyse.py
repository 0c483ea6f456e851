"""The vectors that an analysis is of, opened as the user names them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from taskvec.arguments import number, switch
from taskvec.errors import RecipeError
from taskvec.lazy.composition import composition
from taskvec.lazy.either import Named, opened
from taskvec.lazy.vector import TaskVector
from taskvec.models.model import Model
from taskvec.models.selection import Selection
from taskvec.report.composition import Composition
from taskvec.shown import shown

if TYPE_CHECKING:
    from taskvec.progress import Callback


def analyse(
    vector: Named,
    reference: Named | None = None,
    *,
    sft: Named | None = None,
    others: Iterable[Named] = (),
    groups: int | None = None,
    spectra: bool = True,
    selection: Selection | None = None,
    force: Iterable[str] = (),
    progress: Callback | bool | None = None,
) -> Composition:
    """Measure a vector; see :func:`taskvec.analyse`."""
    number(groups, "groups", least=1)
    switch(spectra, "spectra")
    selection, force = selection or Selection(), tuple(force)
    first = opened(vector)
    if isinstance(first, TaskVector):
        if reference is not None:
            raise RecipeError(
                f"`{_shown(vector)}` is a task vector: it has no reference of its own",
                "name a vector, or a donor and a reference; another vector is compared with `--with`",
            )
        base: Model | None = None
    else:
        second = opened(reference) if reference is not None else None
        if not isinstance(second, Model):
            raise RecipeError(
                f"`{_shown(vector)}` is a model: its vector needs a reference",
                "name a donor and a reference, or a saved task vector",
            )
        first, base = TaskVector.difference(first, second, force=force), second
    whole = first.select_by(selection)
    compared: dict[str, TaskVector] = {}
    for label, given in [("SFT", sft), *((None, other) for other in others)]:
        if given is not None:
            name = label or _label(given, compared)
            compared[name] = _other(given, label, base, force).select_by(selection)
    name = f"{_shown(vector)} - {_shown(reference)}" if reference is not None else _shown(vector)
    with shown(progress) as tell:
        return composition(whole, compared, name=name, groups=groups, spectra=spectra, progress=tell)


def _other(given: Named, label: str | None, reference: Model | None, force: tuple[str, ...]) -> TaskVector:
    """The SFT vector, reference - model; or the vector of another donor, model - reference."""
    found = opened(given)
    if isinstance(found, TaskVector):
        return found
    if reference is None:
        raise RecipeError(
            f"`{_shown(given)}` is a model: its vector needs the reference of the first one",
            "name a donor and a reference instead of a saved vector, or save this vector too",
        )
    if label is not None:
        return TaskVector.difference(reference, found, force=force)
    return TaskVector.difference(found, reference, force=force)


def _shown(given: Named | None) -> str:
    return os.fspath(given) if isinstance(given, (str, os.PathLike)) else str(given)


def _label(given: Named, taken: dict[str, TaskVector]) -> str:
    """A short name that no other vector has."""
    whole = _shown(given).rstrip("/")
    short = whole.rpartition("/")[2] or whole
    return short if short not in taken and short != "v" else whole
