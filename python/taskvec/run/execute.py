"""A plan → folders: the engine's pass, then the other files of an output, the manifest last.

The folders are locked until the last of them is ended. An output that is replaced stays until the new one is
whole. The order is what makes a killed run safe. Weights get their names while config.json is missing, then
come the other files, the card, config.json and the index, and at the end the manifest; only then does the
state of the run go, which lets the same command go on until that moment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec._core import finish_folder, replace_output
from taskvec._core import run as engine_run
from taskvec.compat.findings import enforce, enforce_strictly
from taskvec.models.model import Model
from taskvec.models.state_dict import buffers_of, is_fleeting
from taskvec.plan.checks import with_lineage
from taskvec.plan.plan import PlanRecord
from taskvec.progress import Callback, heard, meter
from taskvec.report import manifest
from taskvec.report.report import (
    Report,
    noise_findings,
    parse_engine_report,
    rounding_findings,
    unweighted_findings,
)
from taskvec.resolve.remote import materialised
from taskvec.run.contents import InputDigests
from taskvec.run.finished import finished_run
from taskvec.run.inputs import InputRow, Inputs, Source, input_rows
from taskvec.run.job import Job, Piece, format_of
from taskvec.run.locked import engine_paths, locked, place_of
from taskvec.run.publish import Publisher
from taskvec.settings import Settings


def execute(
    plan: PlanRecord,
    out: str | os.PathLike[str],
    *,
    settings: Settings | None = None,
    progress: Callback | None = None,
    pieces: Sequence[Piece] | None = None,
    checkpoints: Sequence[Source] | None = None,
) -> Report:
    """Run a plan into a folder, or into one folder for each alpha below it.

    Parameters
    ----------
    plan : PlanRecord
        Of a checkpoint, a task vector or an adapter.
    out : str or path
        The output folder: new, empty, or holding an unfinished or a finished run of this plan. Over the same
        inputs, a finished one is left as it is, and reported as ``already_done``.
    settings : Settings, optional
        ``threads``, ``max_memory``, ``overwrite``, ``resume``, ``rehash`` and ``force`` matter here.
    progress : callable, optional
        Called with a :class:`taskvec.Progress`.
    pieces : sequence of Piece, optional
        Those of a vector that parts have extracted.
    checkpoints : sequence of Model, SavedVector or Adapter, optional
        The plan's sources as they lie here, with holes in place of weights: all weight files have to be in
        place, and the run is only ended.

    Raises
    ------
    OutputError
        The folder is not empty, touches an input, or the disk is full.
    FormatError
        An input is damaged, or changed while it was read.
    NonFiniteError
        NaN or infinity, unless ``non-finite`` is forced.
    KeyboardInterrupt
        Stopped; the same call goes on where it was.
    """
    settings = settings or Settings()
    begin = time.monotonic()
    out = Path(out)
    folders = [out / output.folder if output.folder else out for output in plan.outputs]
    rows = input_rows(plan.checkpoints) if plan.request is None else plan.request.inputs
    finished = finished_run(plan, folders, rows, settings)
    if finished is not None:
        _forget_rows(plan, out, rows)
        return finished
    ends_only = checkpoints is not None
    if checkpoints is None:
        checkpoints = [materialised(checkpoint, progress) for checkpoint in plan.checkpoints]
        plan = looked_through(plan, checkpoints, settings)
    inputs = Inputs(checkpoints)
    digests = InputDigests(checkpoints, settings, is_apart=ends_only or pieces is not None)
    publish = None if plan.kind != "checkpoint" else _publisher(plan, checkpoints, settings, inputs, progress)
    with locked(plan, folders, checkpoints, settings):
        # another run may have ended it meanwhile
        finished = finished_run(plan, folders, rows, settings, is_locked=True)
        if finished is not None:
            _forget_rows(plan, out, rows)
            return finished
        job = Job(
            plan,
            out,
            folders,
            checkpoints,
            inputs,
            rows,
            settings,
            progress,
            begin,
            ends_only,
            pieces,
            digests,
        )
        if publish is not None and plan.tokens is not None:
            from taskvec.run.tokens import with_rows  # which most runs do without

            with with_rows(job) as (job, publish.tokens):
                return _execute(job, publish)
        if publish is not None:
            return _execute(job, publish)
        if plan.kind == "adapter":
            from taskvec.run.lora import execute_lora

            return execute_lora(job)
        from taskvec.run.extract import execute_extract

        return execute_extract(job)


def _forget_rows(plan: PlanRecord, out: Path, rows: Sequence[InputRow] | None) -> None:
    """Remove the rows that a run has kept which was killed after its end, before it could do so."""
    if plan.tokens is not None:
        from taskvec.run.scratch import forget  # which most runs do without
        from taskvec.run.tokens import kept_rows

        forget(kept_rows(plan, out, rows))


def looked_through(plan: PlanRecord, checkpoints: Sequence[Source], settings: Settings) -> PlanRecord:
    """The plan with what a sample of the weights shows, where they were not here when it was made.

    Raises
    ------
    CompatibilityError
        It shows an error that is not forced.
    """
    if plan.download and plan.kind == "checkpoint":
        plan = with_lineage(plan, checkpoints)
        enforce(plan.findings, settings.force)
        if settings.strict:
            enforce_strictly(plan.findings, settings.force)
    return plan


def _publisher(
    plan: PlanRecord,
    checkpoints: Sequence[Source],
    settings: Settings,
    inputs: Inputs,
    progress: Callback | None,
) -> Publisher:
    base = checkpoints[0]
    assert isinstance(base, Model)
    publish = Publisher(plan, base, settings, inputs, meter(progress, "publish"))
    publish.foresee()
    return publish


def _execute(job: Job, publish: Publisher) -> Report:
    """Write checkpoints into folders that are locked."""
    plan, out, settings, progress = job.plan, job.out, job.settings, job.progress
    base = publish.base
    # an unfinished run cannot know whether tensors in memory are what they were
    buffers = buffers_of(job.checkpoints)
    engine, outputs = parse_engine_report(
        engine_run(
            plan.json,
            out,
            threads=settings.threads or 0,
            max_memory=settings.max_memory,
            progress=meter(progress, "merge"),
            notice=heard(progress),
            resume=settings.resume and not any(map(is_fleeting, job.checkpoints)),
            overwrite=settings.overwrite,
            rehash=settings.rehash,
            allow_non_finite="non-finite" in settings.force,
            memories=buffers,
            paths=engine_paths(job.checkpoints),
            ends_only=job.ends_only,
            contents=job.digests.asked if job.digests else (),
        ),
        out,
        _merged_tensors(plan.document),
        format_of(plan),
        lambda name: len(base.tensors[name].shape) > 1 if name in base.tensors else False,
        _logical(plan.document),
    )
    contents = engine.pop("contents", ())
    publish.contents = job.digests.take(contents) if job.digests else ()
    places = [
        place_of(folder, replaces) for folder, replaces in zip(job.folders, engine["replaces"], strict=True)
    ]
    for place, output in zip(places, outputs, strict=True):
        publish(place, output, manifest.run_facts(plan, engine, job.begin, job.rows))
    publish.hold()
    for folder, place in zip(job.folders, places, strict=True):
        if place != folder:
            replace_output(folder)
    for folder in job.folders:
        finish_folder(folder)
    return Report(
        outputs=outputs,
        seconds=time.monotonic() - job.begin,
        bytes_read=engine["bytes_read"],
        bytes_written=engine["bytes_written"],
        threads=engine["threads"],
        cpu_level=engine["cpu_level"],
        resumed_shards=engine["resumed_shards"],
        findings=(
            *plan.findings,
            *rounding_findings(outputs, settings.rounding, is_packed="encodings" in plan.document),
            *noise_findings(outputs),
            *unweighted_findings(outputs),
        ),
        plan=plan.digest,
        tokens=publish.tokens,
    )


def _merged_tensors(document: Mapping[str, Any]) -> int:
    """How many tensors are computed and not copied, where that is by operations of more than one kind."""
    merges = {number for number, each in enumerate(document["operations"]) if each["kind"] != "copy"}
    if len(merges) < 2:
        return 0
    # of the parts of a packed tensor its codes count
    rows = (row for row in document["tensors"] if len(row) < 7 or row[6][1] == "codes")
    return sum(row[4] in merges for row in rows)


def _logical(document: Mapping[str, Any]) -> dict[str, str]:
    """The weights that are written packed, by the stored names of their parts."""
    return {row[0]: row[6][2] for row in document["tensors"] if len(row) == 7}
