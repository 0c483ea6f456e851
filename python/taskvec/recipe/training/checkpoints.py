"""The checkpoints of a training run: found by patterns, put in the order of their steps, and chosen."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from taskvec.arguments import path as path_of
from taskvec.errors import NotFoundError, RecipeError
from taskvec.files import distributed, look
from taskvec.files.folder import is_weight
from taskvec.files.json import read_object
from taskvec.files.matching import matching
from taskvec.regex import regex
from taskvec.text import listed

STATE = "trainer_state.json"
_STEP = regex(r"(?:global_?step|step|checkpoint|ckpt|iteration|iter|epoch)s?[-_=]?(\d{1,18})", re.IGNORECASE)
# Folders that a trainer writes to before it gives them their names: `tmp-checkpoint-500`.
_UNFINISHED = regex(r"\.|tmp[-_.]|.*[-._](?:tmp|temp|part|partial|incomplete)(?:[-._]?\d+)?$", re.IGNORECASE)
_NUMBER = regex(r"\d{1,18}")


@dataclass(frozen=True, slots=True)
class TrainingCheckpoint:
    """A checkpoint and the training step that it was saved at; ``None`` where nothing tells it."""

    spec: str
    step: int | None


def find(patterns: Sequence[str | os.PathLike[str]]) -> list[TrainingCheckpoint]:
    """The checkpoints that paths, patterns and addresses name, each once, the oldest first.

    Parameters
    ----------
    patterns : sequence of str or path
        ``run/checkpoint-*``, a folder that holds checkpoints and is not one, a checkpoint, or an address.
        Where the step of one is not known, they stay in the order given.

    Folders that patterns match and that are not saved to their end are left out: :func:`unfinished`.

    Raises
    ------
    NotFoundError
        A pattern that no folder matches.
    """
    specs: dict[str, str] = {}
    for pattern in patterns:
        for spec in _expanded(os.fspath(path_of(pattern, "checkpoints"))):
            specs.setdefault(os.path.realpath(spec) if look.exists(spec) else spec, spec)
    found = [TrainingCheckpoint(spec, step_of(spec)) for spec in specs.values()]
    if any(each.step is None for each in found):
        return found
    return sorted(found, key=lambda each: each.step or 0)


def _expanded(pattern: str) -> list[str]:
    if look.exists(pattern):
        return _inside(pattern) or [pattern]
    if not glob.has_magic(pattern) or "://" in pattern:
        return [pattern]
    found = [path for path in _matched(pattern) if not _is_unfinished(path)]
    if not found:
        raise NotFoundError(
            f"no folder matches `{pattern}`: searched from `{Path.cwd()}`",
            "give the checkpoints of the run, such as 'run/checkpoint-*', or its folder",
        )
    return found


def _matched(pattern: str) -> list[str]:
    return [path for path in matching(pattern) if look.is_folder(path) or _is_safe(path)]


def _is_unfinished(path: str) -> bool:
    """Whether a folder is called as those are that a trainer still writes to."""
    return _UNFINISHED.match(os.path.basename(path.rstrip("/"))) is not None


def unfinished(patterns: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The checkpoints that :func:`find` leaves out: still being written by their names, or without weights.

    Of a run's folder these are all folders called by a step. A folder without weights that a pattern matches
    is not among them: it was asked for, and cannot be opened.
    """
    left: list[str] = []
    for each in patterns:
        pattern = os.fspath(each)
        if look.exists(pattern):
            inside = _inside(pattern)
            names = look.listing(pattern) if inside else []
            places = [os.path.join(pattern, name) for name in sorted(names)]
            left += [place for place in places if _is_step(place) and place not in inside]
        elif glob.has_magic(pattern) and "://" not in pattern:
            left += [path for path in _matched(pattern) if _is_unfinished(path)]
    return list(dict.fromkeys(left))


def _inside(path: str) -> list[str]:
    """The checkpoints in the folder of a run, which holds no weights itself."""
    if not look.is_folder(path):
        return []
    if _holds_weights(path):
        return []
    places = (os.path.join(path, name) for name in sorted(look.listing(path)))
    return [place for place in places if _is_saved(place)]


def _is_saved(path: str) -> bool:
    """Whether a folder is called by a step, was given its name, and holds weights."""
    return _is_step(path) and not _is_unfinished(path) and _holds_weights(path)


def _is_step(path: str) -> bool:
    return _STEP.search(os.path.basename(path)) is not None and look.is_folder(path)


def _holds_weights(path: str) -> bool:
    return any(map(is_weight, look.listing(path))) or distributed.place_of(path) is not None


def _is_safe(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.index.json"))


def step_of(spec: str) -> int | None:
    """The training step that a checkpoint was saved at, by its name or by its trainer's state."""
    path, _, revision = (
        spec.rstrip("/").partition("@") if not look.exists(spec) else (spec.rstrip("/"), "", "")
    )
    name = revision or os.path.basename(path)
    named = _STEP.findall(name)
    if named:
        return int(named[-1])
    state = Path(spec) / STATE
    if look.exists(state):
        step = read_object(state).get("global_step")
        if isinstance(step, int) and not isinstance(step, bool):
            return step
    numbers = _NUMBER.findall(name)
    return int(numbers[-1]) if numbers else None


def chosen(
    checkpoints: Sequence[TrainingCheckpoint],
    *,
    first: int | None = None,
    last: int | None = None,
    every: int | None = None,
) -> list[TrainingCheckpoint]:
    """Those from one step to another, both included, and of these each `every` steps from the first.

    Raises
    ------
    RecipeError
        A step that is asked for is not known, the range is empty, or `every` leaves nothing out.
    """
    if first is None and last is None and every is None:
        return list(checkpoints)
    unknown = [each.spec for each in checkpoints if each.step is None]
    if unknown:
        raise RecipeError(
            f"the training step of {listed(unknown)} is not known, which a range needs",
            f"name the folders by their step (`checkpoint-500`), or keep their `{STATE}`",
        )
    steps = [each.step or 0 for each in checkpoints]
    within = [
        each
        for each, step in zip(checkpoints, steps, strict=True)
        if (first is None or step >= first) and (last is None or step <= last)
    ]
    if not within:
        raise RecipeError(
            f"no checkpoint lies in the range: there are steps {min(steps)} to {max(steps)}",
            "give another `--from` or `--to`",
        )
    return within if every is None else _each(within, every, first)


def _each(within: Sequence[TrainingCheckpoint], every: int, first: int | None) -> list[TrainingCheckpoint]:
    steps = [each.step or 0 for each in within]
    start = steps[0] if first is None else first
    gaps = [after - before for before, after in pairwise(steps) if after > before]
    if every < 1 or (gaps and every < min(gaps)):
        apart = f"the checkpoints are {min(gaps)} steps apart" if gaps else "a distance is 1 step or more"
        raise RecipeError(
            f"every {every} steps: {apart}",
            f"`--every {2 * min(gaps)}` takes every second one" if gaps else "give a whole number above zero",
        )
    taken = [each for each, step in zip(within, steps, strict=True) if (step - start) % every == 0]
    if not taken:
        raise RecipeError(
            f"no checkpoint is a multiple of {every} steps from {start}",
            "give another `--every`, or a `--from` at which there is a checkpoint",
        )
    return taken
