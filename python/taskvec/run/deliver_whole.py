"""An output that is made in the scratch folder as a whole, and then sent to an address."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from taskvec.errors import FormatError, OutputError
from taskvec.models.state_dict import is_fleeting
from taskvec.plan.part import Part, identity
from taskvec.plan.plan import PlanRecord
from taskvec.progress import Callback, Progress
from taskvec.report.manifest import with_id
from taskvec.report.report import Report
from taskvec.resolve.threads import each
from taskvec.run import pipeline
from taskvec.run.execute import execute
from taskvec.run.inputs import input_rows
from taskvec.run.parts import execute_part
from taskvec.run.scratch import forget, kept_folder, scratch
from taskvec.run.shadow import Shadow
from taskvec.run.sink import Head, Sent, Sink
from taskvec.run.sinks import closing
from taskvec.run.supply import is_to_be_staged
from taskvec.settings import Settings
from taskvec.text import size


def deliver_whole(
    plan: PlanRecord,
    address: str,
    *,
    settings: Settings | None = None,
    progress: Callback | None = None,
) -> Report:
    """Run a plan in the scratch folder, and send what it has written to an address.

    So it is with a vector, the sizes of whose files follow from all of them, with an adapter, which is one
    file, and with tensors in memory. The scratch folder holds the whole output for a while; the same call
    goes on with it.

    Raises
    ------
    taskvec.Error
        As :func:`taskvec.run.deliver.deliver`.
    """
    settings, begin = settings or Settings(), time.monotonic()
    outputs = tuple(output.folder for output in plan.outputs)
    with scratch() as place, closing(address, public=settings.public) as sink:
        shadow = Shadow(outputs, sink, place / "out")
        rows = input_rows(plan.checkpoints) if plan.request is None else plan.request.inputs
        finished = shadow.finished(plan, rows, settings)
        head = Head(identity(plan), 1, b"", outputs)
        kept = kept_folder(address, head.identity)
        if finished is not None:
            forget(kept)
            return finished
        _hold_room(plan, settings)
        sent = sink.begin(head, overwrite=settings.overwrite, resume=settings.resume)
        if settings.rehash:
            sent = {name: one for name, one in sent.items() if sink.reread(one, place / "reread")}
        made = Shadow(outputs, sink, kept)
        made.place.parent.mkdir(parents=True, exist_ok=True)
        with made.told():
            report = _made(plan, made.place, settings, progress)
        finish_made(report, made, sink, sent, head.identity, progress)
        forget(made.place)
        report = replace(report, seconds=time.monotonic() - begin, already_done=False)
        return made.as_sent(report)


def _made(plan: PlanRecord, place: Path, settings: Settings, progress: Callback | None) -> Report:
    """Run a plan into the folder from which its output is sent."""
    is_apart = plan.kind == "vector" and not any(map(is_fleeting, plan.checkpoints))
    if not is_apart or not is_to_be_staged(plan, settings, goes_away=True):
        return execute(plan, place, settings=replace(settings, overwrite=True), progress=progress)
    # piece by piece: the models are nowhere as a whole
    streamed = replace(settings, stream=True, overwrite=False, resume=True)
    try:
        report = execute_part(plan, place, Part(0, 1), settings=streamed, progress=progress).report
    except FormatError:  # what is here is of inputs that have changed
        shutil.rmtree(place, ignore_errors=True)
        raise
    if report is None:
        raise OutputError(
            f"another process makes the output for `{place}`", "wait for it, or give each its own --scratch"
        )
    return report


def finish_made(
    report: Report,
    made: Shadow,
    sink: Sink,
    sent: Mapping[str, Sent],
    identifier: str,
    progress: Callback | None,
) -> None:
    """Send an output that lies here as a whole, and end the run at the address.

    Parameters
    ----------
    report : Report
        Of the run that has made it.
    made : Shadow
        The folder where it lies.
    sink : Sink
        Where it goes.
    sent : mapping
        What is there already.
    identifier : str
        Of the plan.
    progress : callable, optional
    """
    _send_all(report, made, sink, sent, identifier, progress)
    weights = {shard.name for output in report.outputs for shard in output.shards}
    run = secrets.token_hex(8)
    manifests = {name: with_id((made.place / name).read_bytes(), run) for name in made.manifests}
    sink.finish(made.others(weights), manifests)


def _hold_room(plan: PlanRecord, settings: Settings) -> None:
    """Return if the scratch folder may hold the whole output, as far as its size is known before.

    Raises
    ------
    OutputError
    """
    limit = settings.scratch_size
    if limit is not None and plan.kind == "checkpoint" and plan.bytes_out > limit:
        raise OutputError(
            f"the output is made in the scratch folder as a whole and needs {size(plan.bytes_out)} there "
            f"({plan.bytes_out:,} bytes), and `--scratch-size` allows {size(limit)}",
            f"give `--scratch-size {plan.bytes_out}` or more, or save the tensors of this process first",
        )


def _send_all(
    report: Report,
    made: Shadow,
    sink: Sink,
    sent: Mapping[str, Sent],
    identifier: str,
    progress: Callback | None,
) -> None:
    """Send the weight files of outputs that lie here, those that are there left out."""
    files: list[Sent] = []
    for folder, output in zip(made.folders, report.outputs, strict=True):
        for shard in output.shards:
            name = (folder / shard.name).relative_to(made.place).as_posix()
            line = json.dumps({"shard": shard.name, "size": shard.size, "digest": shard.digest})
            files.append(Sent(name, shard.size, shard.digest, identifier, "", line))
    missing = [file for file in files if _digest_there(sent, file) != file.digest]
    begin, total, done = time.monotonic(), sum(file.size for file in missing), dict.fromkeys(files, 0)

    def send(file: Sent) -> None:
        def tell(count: int) -> None:
            done[file] = count
            if progress is not None:
                progress(Progress("merge", sum(done.values()), total, time.monotonic() - begin))

        sink.send(made.place / file.name, file, tell)

    for _ in each(send, missing, pipeline.SENDERS):
        pass


def _digest_there(sent: Mapping[str, Sent], file: Sent) -> str | None:
    """The digest of a file that is there."""
    return sent[file.name].digest if file.name in sent else None
