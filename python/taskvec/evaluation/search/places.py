"""What a search stands on: documents in both parts, and a place for merged models."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

from taskvec.errors import EvaluationError
from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.backend.evaluate import document_hashes
from taskvec.evaluation.search.space import Space
from taskvec.evaluation.settings import Settings
from taskvec.files import look
from taskvec.text import plural

MEMORY = Path("/dev/shm")


def check_documents(space: Space, settings: Settings) -> dict[str, tuple[int, int]]:
    """The documents of each task in the development and in the held-out part.

    Raises
    ------
    EvaluationError
        A part has none of a task's documents, or a weight is of no task.
    """
    split = Split(space.form.development, settings.seed)
    found = {}
    for task, hashes in document_hashes(settings).items():
        inside = sum(map(split.is_development, hashes))
        if inside in (0, len(hashes)):
            part = "development" if inside == 0 else "held-out"
            raise EvaluationError(
                f"of the {plural(len(hashes), 'document')} of task `{task}` none is in the {part} part",
                "raise `limit`, or change the `development` share",
            )
        found[task] = inside, len(hashes) - inside
    return found


def scratch_place(
    out: Path, named: str | os.PathLike[str] | None, size: int, at_once: int, *, shared: bool
) -> Path:
    """Where merged models lie: in memory if they are small compared with what is free there."""
    if named is not None:
        return Path(named)
    name = hashlib.blake2b(os.fsencode(out.absolute()), digest_size=8).hexdigest()
    place = MEMORY / f"taskvec-search-{os.getuid()}-{name}"
    if not shared and _is_ours(place) and 4 * size * at_once <= shutil.disk_usage(MEMORY).free:
        return place
    return out / "scratch"


def _is_ours(place: Path) -> bool:
    """Whether a folder in memory can be made, or was made by this user: anyone may write where it lies."""
    if not os.access(MEMORY, os.W_OK):
        return False
    try:
        status = place.lstat()
    except OSError as error:
        look.hold_absent(place, error)
        return True
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
