"""Arms in place: the target is loaded once, and the weights of every arm are put into it and taken back.

A change is taken back by what was there before, bit for bit. The values of the target are kept on the device,
on the host where the device has no room for them and for the answers as well; where that has none either,
they are read from the target's files again. What a model is besides its weights is the target's: a donor or
reference that differs in more than weights is loaded by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from taskvec.errors import EvaluationError
from taskvec.evaluation.backend import held
from taskvec.evaluation.backend.changed import (
    EXACT,
    TYPES,
    Sums,
    changed_names,
    changed_tensors,
    note_facts,
)
from taskvec.evaluation.backend.delta import Delta, Placement
from taskvec.evaluation.backend.load import load_model
from taskvec.evaluation.settings import Settings
from taskvec.host import memory_available


@dataclass(slots=True)
class _Place:
    """A target that is held, and what it was before it was changed."""

    target: str
    key: tuple[Any, ...]
    loaded: Any
    batch: Any
    within: dict[str, torch.Tensor]
    keeps: torch.device | None
    originals: dict[str, torch.Tensor] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)
    holds: tuple[str, Delta] | None = None


_places: list[_Place] = []


def load_placed(model: str, settings: Settings, placement: Placement) -> Any:
    """The model of an arm: the target with the arm's weights in it, or a model loaded by itself.

    The model that was given before must not be used any more.

    Raises
    ------
    EvaluationError
        The target cannot be loaded, or its module holds other tensors than its files.
    taskvec.Error
        The weights cannot be made.
    """
    is_other = placement.delta is None and model != placement.target
    if is_other and held.key_of(model, settings) != held.key_of(placement.target, settings):
        let_go()
        return load_model(model, settings)
    place = _held_target(placement.target, settings)
    place.loaded.batch_size_per_gpu = place.batch  # it may have been halved
    try:
        if placement.delta is None:
            place.holds = None
        if is_other:
            _keep(place, place.within)
            place.moved.update(place.within)
            if not held.fill(place.loaded.model, Path(model)):
                let_go()
                return load_model(model, settings)
        elif placement.delta is None:
            _put_back(place, place.moved)
        elif place.holds != (placement.identity, placement.delta):
            _add(place, placement, placement.delta)
    except BaseException:
        let_go()  # it holds weights of two arms
        raise
    return place.loaded


def let_go() -> None:
    """Give the memory of the model back."""
    if _places:
        from taskvec.evaluation.backend.memory import free_memory

        _places.clear()
        free_memory()


def _held_target(target: str, settings: Settings) -> _Place:
    key = held.key_of(target, settings)
    if _places and key is not None and (_places[0].target, _places[0].key) == (target, key):
        return _places[0]
    let_go()
    loaded = load_model(target, settings)
    within = held.places_of(loaded.model, Path(target), loosely=True) if key is not None else None
    if within is None or any(value.is_meta for value in within.values()):
        raise EvaluationError(
            f"`{target}` is loaded into other tensors than its files hold: arms cannot be made in it",
            "`--arms merged`",
        )
    assert key is not None
    _places.append(
        _Place(target, key, loaded, getattr(loaded, "batch_size_per_gpu", 1), within, _room(within))
    )
    return _places[0]


def _room(within: dict[str, torch.Tensor]) -> torch.device | None:
    """Where the target's values are kept; None where only its files have them."""
    size = sum(value.nbytes for value in within.values())
    device = next(iter(within.values())).device
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] >= 2 * size:
        return device
    host = memory_available()
    return torch.device("cpu") if host is None or host >= 2 * size else None


def _keep(place: _Place, names: Iterable[str]) -> None:
    """Copies of tensors that are about to change for the first time."""
    if place.keeps is None:
        return
    for name in names:
        if name not in place.originals:
            place.originals[name] = place.within[name].detach().to(place.keeps, copy=True)


def _put_back(place: _Place, names: Iterable[str]) -> None:
    """The target's own values, bit for bit."""
    names = set(names)
    if place.keeps is None and names:
        if not held.fill(place.loaded.model, Path(place.target), loosely=True):
            raise EvaluationError(f"the files of `{place.target}` are not those that were loaded")
        names = place.moved
    else:
        with torch.no_grad():
            for name in names:
                place.within[name].copy_(place.originals[name])
    place.moved -= set(names)


def _add(place: _Place, placement: Placement, delta: Delta) -> None:
    """The target plus a delta; the facts of it are written as those of a merge are."""
    plan = delta.plan(placement.target)
    names = [name for name in changed_names(plan) if name in place.within]
    place.holds = None
    _put_back(place, place.moved if place.keeps is None else place.moved - set(names))
    _keep(place, names)
    sums: Sums = {}
    stored = {name: TYPES[info.dtype] for name, info in plan.checkpoints[0].tensors.items() if name in names}
    exact = {
        name: place.originals[name]
        for name, dtype in stored.items()
        if name in place.originals
        and place.originals[name].device.type in EXACT
        and place.originals[name].dtype == dtype
    }
    with torch.no_grad():
        for name, value in changed_tensors(plan, exact, sums, delta.force):
            if name in place.within:
                place.moved.add(name)
                place.within[name].copy_(value)
    note_facts(placement, plan, delta, sums)
    place.holds = placement.identity, delta
