"""How far an unfinished map has come, in the state folder of its output."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.importance.saved import save
from taskvec.evaluation.importance.squares import Squares
from taskvec.files import look
from taskvec.files.names import STATE

_FILE = "importance.safetensors"


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
    save(place / STATE / _FILE, squares.sums, facts)


def restore(place: Path, squares: Squares) -> Counts:
    """Go on from what was kept, if anything was.

    Raises
    ------
    EvaluationError
        It cannot be read, or is damaged.
    """
    path = place / STATE / _FILE
    if not look.is_file(path):
        return Counts()
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
