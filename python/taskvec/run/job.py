"""A run while it is executed: the plan, its opened inputs, where it goes, and how it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from taskvec.models.model import Model
from taskvec.plan.plan import PlanRecord
from taskvec.progress import Callback
from taskvec.run.contents import InputDigests
from taskvec.run.inputs import InputRow, Inputs, Source
from taskvec.settings import Settings


class Piece(NamedTuple):
    """A file with some tensors of a vector: its path, its bytes, and what the engine has told of these."""

    path: Path
    size: int
    tensors: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Job:
    """A run while it is executed.

    Attributes
    ----------
    plan : PlanRecord
    out : path
        As it was given.
    folders : sequence of path
        Of the plan's outputs, in their order.
    checkpoints : sequence of Model, SavedVector or Adapter
        The plan's sources, all of them here.
    inputs : Inputs
        Their files with the states that these had before.
    rows : sequence or None
        The same as a manifest keeps them.
    settings : Settings
    progress : callable or None
    begin : float
        When the run began, as ``time.monotonic`` tells it, in seconds.
    ends_only : bool
        Nothing is to be computed: all weight files are in place.
    pieces : sequence of Piece or None
        Those of a vector that parts have extracted, in the order of its tensors.
    digests : InputDigests or None
        Those of the input files.
    """

    plan: PlanRecord
    out: Path
    folders: Sequence[Path]
    checkpoints: Sequence[Source]
    inputs: Inputs
    rows: Sequence[InputRow] | None
    settings: Settings
    progress: Callback | None
    begin: float
    ends_only: bool = False
    pieces: Sequence[Piece] | None = None
    digests: InputDigests | None = None


def format_of(plan: PlanRecord) -> str:
    """What the models of a difference are stored as, if they are packed."""
    models = [each for each in reversed(plan.checkpoints) if isinstance(each, Model) and each.packed]
    return next(iter(models[0].packed.values())).format.words if models else ""
