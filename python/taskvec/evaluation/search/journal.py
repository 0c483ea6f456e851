"""The journal of a search: a line for each candidate that is done, from which a killed search goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.backend.journal import Journal
from taskvec.evaluation.record import writing
from taskvec.evaluation.search.trial import Trial
from taskvec.files import look

NAME = "journal.jsonl"


class Book:
    """The trials of a search on disk, by their names.

    Parameters
    ----------
    out : Path
        Folder of the search.
    identity : mapping
        All that decides a trial, as plain data.
    overwrite : bool
        Begin again whatever is there.

    Raises
    ------
    EvaluationError
        The folder holds the journal of another search; the message says in what it differs.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        path = out / NAME
        text = json.dumps(identity, sort_keys=True)
        if overwrite:
            with writing(path):
                path.unlink(missing_ok=True)
        self._hold_same(path, text)
        self._journal = Journal(path, text)
        if not look.exists(path):
            self._journal.begin()

    def get(self, name: str) -> Trial | None:
        """A trial that is done."""
        found = self._journal.get(name)
        return Trial(**found[0]) if found is not None else None

    def put(self, trial: Trial) -> None:
        """Record a trial; it is on the disk when this returns."""
        self._journal.put(trial.name, [trial.to_json()])

    def close(self) -> None:
        """Close the file and keep it."""
        self._journal.close()

    def _hold_same(self, path: Path, identity: str) -> None:
        found = Journal.identity_of(path)
        if found is None or found == identity:
            return
        before, now = json.loads(found), json.loads(identity)
        differs = ", ".join(key for key in now if before.get(key) != now[key]) or "its version"
        raise EvaluationError(
            f"`{path}` is of another search: {differs} differs",
            "name another folder with -o, or give --overwrite to begin again",
        )


def seconds_measured(out: Path) -> list[float]:
    """How long each candidate of a search took that was run here."""
    path = out / NAME
    identity = Journal.identity_of(path)
    if identity is None:
        return []
    return [
        content[0]["seconds"]
        for content in Journal(path, identity).contents()
        if content[0].get("seconds") is not None
    ]
