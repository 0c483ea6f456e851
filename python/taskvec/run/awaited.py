"""The end of a run in parts by another process, which a part waits for that had lost what they share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from taskvec.errors import NotFoundError, OutputError
from taskvec.files import look
from taskvec.files.json import read_bytes
from taskvec.files.names import JOURNAL, PARTS, STATE
from taskvec.plan.plan import PlanRecord
from taskvec.progress import Callback, heard
from taskvec.report.report import Report
from taskvec.run import shared_state
from taskvec.run.finish import folders_of, is_assembled
from taskvec.run.finished import finished_run, is_of_another
from taskvec.run.inputs import input_rows
from taskvec.settings import Settings

# How long it is waited for, in steps of seconds, and after how many of them that is told.
_STEPS, _STEP, _TELL = 600, 0.1, 10


def ended_meanwhile(
    plan: PlanRecord,
    out: Path,
    settings: Settings,
    progress: Callback | None,
    error: OutputError | NotFoundError,
    *,
    is_own: bool,
) -> Report | None:
    """The report of a run that another process has ended, or ends while this is asked; ``None`` otherwise.

    A process that ends a run takes away what the parts have shared before the manifest is there. It is waited
    for as long as it lives and has its place in the folder: where the folder has gone, nobody ends anything
    there.

    Parameters
    ----------
    plan : PlanRecord
    out : path
        The folder that the parts share.
    settings : Settings
    progress : callable, optional
        Hears after a second what is waited for.
    error : OutputError or NotFoundError
        What a part of this process failed with.
    is_own : bool
        Whether this process was ending the run when it failed: then it waits for nobody.

    Raises
    ------
    OutputError
        The other process has not ended the run within a minute, or the output is not as its manifest says.
    """
    folders, who = folders_of(plan, out), None
    for step in range(_STEPS):
        who = None if is_own else _ender(plan, out, folders, error)
        finished = finished_run(plan, folders, input_rows(plan.checkpoints), settings)
        if finished is not None or who is None:
            return finished
        if step == _TELL:
            heard(progress)(f"waiting for {who}, which ends the run in `{out}`")
        time.sleep(_STEP)
    raise OutputError(
        f"{who} was to end the run in `{out}`, and has not done so in {_STEPS * _STEP:.0f} s",
        "wait for it; `taskvec finish` ends a run whose process has died",
    ) from error


def _ender(
    plan: PlanRecord, out: Path, folders: Sequence[Path], error: OutputError | NotFoundError
) -> str | None:
    """Who ends the run, in words."""
    who = shared_state.ender(out)
    if who is not None:
        return who
    # what was left of a killed end has been taken up by a run, which needs no name: it has the folder's lock
    is_locked = isinstance(error, OutputError) and is_of_another(error)
    return "another run" if is_locked and is_written(plan, folders) else None


def is_written(plan: PlanRecord, folders: Sequence[Path]) -> bool:
    """Whether the journals have a line for every weight file."""
    if not is_assembled(folders):
        return False
    try:
        journals = [read_bytes(folder / STATE / JOURNAL) for folder in folders]
    except NotFoundError:
        return True  # the run has just ended
    return all(journal.count(b"\n") > len(plan.shards) for journal in journals)


def lacks_its_end_alone(plan: PlanRecord, out: Path, folders: Sequence[Path]) -> bool:
    """Whether a part was killed when nothing was missing any more but the files next to the weights."""
    if look.exists(out / STATE / PARTS) or plan.kind == "vector":
        return False
    return is_written(plan, folders)
