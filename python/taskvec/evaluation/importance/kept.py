"""How far an unfinished map has come, in the state folder of its output.

The file of the sums is called by the digest of its bytes: sums that were zeroed or changed since are not
gone on from, which no look at the finished map would show.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from taskvec._core import digest_file
from taskvec.errors import EvaluationError
from taskvec.evaluation.importance.saved import save
from taskvec.evaluation.importance.squares import Squares
from taskvec.evaluation.record import writing
from taskvec.files import look
from taskvec.files.names import STATE
from taskvec.files.place import sync_folders

_STEM, _END = "importance.", ".safetensors"


@dataclass(slots=True)
class Counts:
    """What has gone into a map.

    Attributes
    ----------
    seen : int
        Documents, those without an answer included.
    documents : dict of str to int
        By task, those that count.
    tokens : int
        Of their answers.
    left_out : int
        Documents without an answer.
    """

    seen: int = 0
    documents: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    left_out: int = 0

    @property
    def total(self) -> int:
        """Documents that count."""
        return sum(self.documents.values())


def keep(place: Path, squares: Squares, counts: Counts) -> None:
    """Write the sums so far; what was kept before stays until they are whole."""
    facts = {"counts": json.dumps(asdict(counts)), "reached": json.dumps(sorted(squares.reached))}
    state, before = place / STATE, _kept(place)
    written = state / f"{_STEM}whole{_END}"
    save(written, squares.sums, facts, state)
    with writing(written):
        name = f"{_STEM}{digest_file(written)[1]}{_END}"
        os.replace(written, state / name)
        sync_folders(state, [])
        for old in before:
            if old.name != name:
                old.unlink(missing_ok=True)


def _kept(place: Path) -> list[Path]:
    """The files of sums, the one that was written last first."""
    state = place / STATE
    found = [
        (stamp.modified, state / name)
        for name in look.listing(state)
        if name.startswith(_STEM) and name.endswith(_END) and name != f"{_STEM}whole{_END}"
        if (stamp := look.stamp(state / name)) is not None
    ]
    return [path for _, path in sorted(found, reverse=True)]


def restore(place: Path, squares: Squares) -> Counts:
    """Go on from what was kept, if anything was.

    Raises
    ------
    EvaluationError
        It cannot be read, or is damaged.
    """
    kept = _kept(place)
    if not kept:
        return Counts()
    # two, where a run was killed before it removed the older one
    path = next((path for path in kept if path.name == f"{_STEM}{digest_file(path)[1]}{_END}"), None)
    if path is None:
        raise EvaluationError(
            f"what an earlier run has kept in `{kept[0]}` is damaged: its bytes are not those of its name",
            "begin again with --no-resume",
        )
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = file.metadata()
            sums = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        squares.restore(sums, set(json.loads(facts["reached"])))
        return Counts(**json.loads(facts["counts"]))
    except (OSError, RuntimeError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"what an earlier run has kept in `{path}` cannot be read: {error}",
            "begin again with --no-resume",
        ) from error
