"""The end of a run in parts: when all weight files are in place, the rest of the output follows.

The records of the parts become the journal of an unfinished run of the whole plan, and that run, which has
nothing left to compute, is ended as any other: the same report, card and index as one process gives. The
pieces of a vector are joined then.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskvec._core import assemble_output
from taskvec.errors import FormatError, OutputError
from taskvec.files import look
from taskvec.files.json import read_bytes
from taskvec.files.names import JOURNAL, PARTS, PLAN, STATE
from taskvec.plan.part import dealt, files_of
from taskvec.plan.plan import PlanRecord
from taskvec.progress import Callback
from taskvec.report.report import Report
from taskvec.run import shared_state
from taskvec.run.execute import execute
from taskvec.run.finished import finished_run
from taskvec.run.inputs import Source, input_rows
from taskvec.run.job import Piece
from taskvec.run.locked import paths_of
from taskvec.run.shared_state import Records
from taskvec.settings import Settings
from taskvec.text import listed


def finish_if_complete(
    plan: PlanRecord,
    out: Path,
    checkpoints: Sequence[Source],
    settings: Settings,
    progress: Callback | None,
    *,
    is_staged: bool = False,
    begins: Callable[[], object] = lambda: None,
) -> Report | None:
    """End the run if no weight file is missing and no other process is about to end it.

    ``begins`` is called before that.
    """
    folders = folders_of(plan, out)
    records = Records(plan, out, folders)
    if not look.exists(out / STATE / PARTS):
        return None
    if not is_assembled(folders) and records.missing():
        return None
    if not shared_state.claim_end(out):
        return None
    begins()
    return _end(plan, out, checkpoints, records, settings, progress, is_staged=is_staged)


def finish(
    plan: PlanRecord,
    out: Path,
    checkpoints: Sequence[Source],
    settings: Settings,
    progress: Callback | None = None,
    *,
    is_staged: bool = False,
) -> Report:
    """End the run in parts in a folder, whoever else has begun to.

    Raises
    ------
    OutputError
        Weight files are missing; the message says which, and which parts write them.
    FormatError
        Parts have read different inputs.
    """
    folders = folders_of(plan, out)
    finished = finished_run(plan, folders, input_rows(plan.checkpoints), settings)
    if finished is not None:  # stopped when some of its folders had lost their state
        shared_state.clear_ended(out, folders)
        return finished
    records = Records(plan, out, folders)
    missing = [] if is_assembled(folders) else records.missing()
    if missing:
        noted = shared_state.head(out).get("parts")
        raise incomplete(plan, out, missing, noted if isinstance(noted, int) else 1)
    shared_state.give_up_end(out)
    shared_state.claim_end(out)
    return _end(plan, out, checkpoints, records, settings, progress, is_staged=is_staged)


def folders_of(plan: PlanRecord, out: Path) -> list[Path]:
    """The output folders of a plan."""
    return [out / output.folder if output.folder else out for output in plan.outputs]


def is_assembled(folders: Sequence[Path]) -> bool:
    """Whether the records of the parts have become journals, so that they are needed no more."""
    return all(look.exists(folder / STATE / PLAN) for folder in folders)


def _end(
    plan: PlanRecord,
    out: Path,
    checkpoints: Sequence[Source],
    records: Records,
    settings: Settings,
    progress: Callback | None,
    *,
    is_staged: bool = False,
) -> Report:
    folders = folders_of(plan, out)
    try:
        if not is_assembled(folders):
            _assemble(plan, folders, checkpoints, records)
        staged = checkpoints if is_staged else None
        if plan.kind == "vector":
            return _join(plan, out, staged, records, settings, progress)
        shared_state.clear(out)
        report = end_assembled(plan, out, staged, settings, progress)
    except BaseException:
        shared_state.give_up_end(out)
        raise
    shared_state.clear_ended(out, folders)
    return report


def end_assembled(
    plan: PlanRecord,
    out: Path,
    staged: Sequence[Source] | None,
    settings: Settings,
    progress: Callback | None,
) -> Report:
    """End a run whose weight files are all in place and in its journals.

    Sources that are staged lie elsewhere in every process: the journals become those of a run over these.
    """
    if staged is not None:
        _take_over(plan, out, staged)
    # a machine that ends a run of many has not read its inputs
    settings = replace(settings, input_digests=False)
    return execute(plan, out, settings=settings, progress=progress, checkpoints=staged)


def _take_over(plan: PlanRecord, out: Path, staged: Sequence[Source]) -> None:
    for folder in folders_of(plan, out):
        lines = read_bytes(folder / STATE / JOURNAL).decode().splitlines()[1:]
        (folder / STATE / PLAN).unlink()
        assemble_output(folder, paths_of(staged), plan.json, lines)


def _assemble(
    plan: PlanRecord, folders: Sequence[Path], checkpoints: Sequence[Source], records: Records
) -> None:
    found = [records.read(file.name) for file in records.files]
    whole = [record for record in found if record is not None]
    _hold_one_state(records, {record["inputs"] for record in whole})
    for number, folder in enumerate(folders):
        # the weight files of a vector are yet to be joined
        lines = [record["lines"][number] for record in whole if plan.kind == "checkpoint"]
        assemble_output(folder, paths_of(checkpoints), plan.json, lines)


def _join(
    plan: PlanRecord,
    out: Path,
    staged: Sequence[Source] | None,
    records: Records,
    settings: Settings,
    progress: Callback | None,
) -> Report:
    """Make the vector of its pieces, which stay until its manifest is there."""
    folder, pieces = records.folders[0], []
    for file in records.files:
        record = records.read(file.name)
        if record is None:
            raise OutputError(f"`{out}` has lost the record of `{file.name}`", "run the same part again")
        line = json.loads(record["lines"][0])
        pieces.append(Piece(folder / file.name, line["size"], line["extra"]))
    settings = replace(settings, resume=True, overwrite=False)
    if staged is not None:
        _take_over(plan, out, staged)
    return execute(plan, out, settings=settings, progress=progress, pieces=pieces, checkpoints=staged)


def _hold_one_state(records: Records, digests: set[str]) -> None:
    """Return if all parts have read the same inputs, wherever these lay.

    Raises
    ------
    FormatError
        They have not.
    """
    seen: set[tuple[tuple[Any, ...], ...]] = set()
    times: defaultdict[tuple[Any, ...], set[Any]] = defaultdict(set)
    for digest in sorted(digests):
        rows = records.inputs(digest)
        seen.add(tuple(sorted((Path(row["path"]).name, row["size"], str(row.get("sample"))) for row in rows)))
        for row in rows:
            # the same file of the same machine: a change of its contents shows in the time as well
            times[row["path"], row.get("inode")].add(row["modified"])
    changed = next((path for (path, _), each in times.items() if len(each) > 1), None)
    if len(seen) > 1 or changed is not None:
        what = "an input" if changed is None else f"`{changed}`"
        raise FormatError(
            f"{what} changed between two parts of the run",
            "remove the output folder, and run all parts again when nothing writes to the inputs",
        )


def incomplete(plan: PlanRecord, out: Path | str, missing: Sequence[int], parts: int) -> OutputError:
    """The error for weight files that are missing, with the parts of so many that write them."""
    files = files_of(plan)
    names = [files[number].name for number in missing]
    count = max(parts, 1)
    late = [
        f"{number}/{count}"
        for number, units in enumerate(dealt(plan, count))
        if any(each in missing for unit in units for each in unit)
    ]
    what = "pieces" if plan.kind == "vector" else "weight files"
    return OutputError(
        f"{len(missing)} of {len(files)} {what} of `{out}` are missing: {listed(names)}",
        f"run what writes them: `--part` {listed(late)}",
    )
