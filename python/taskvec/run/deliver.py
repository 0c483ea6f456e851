"""A plan whose outputs go to an address: one weight file after the other is computed here and sent off.

While one is computed, what the next one reads is fetched and the last one is sent; of the models and of the
output no more lies here than the scratch folder is to hold. When all weight files are there, the rest of the
output is made as that of a local run, in a folder where files of the right sizes stand for the weights: the
same report, card and index.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from taskvec.plan.part import Part, dealt, files_of, identity
from taskvec.plan.plan import PlanRecord, Request
from taskvec.progress import Callback
from taskvec.report.report import Report
from taskvec.run.delivery import ALL, Delivery, names_of, saved
from taskvec.run.execute import looked_through
from taskvec.run.finish import incomplete
from taskvec.run.finished import finished_report, manifests_of_request
from taskvec.run.inputs import input_rows
from taskvec.run.parts import PartReport
from taskvec.run.piece_delivery import PieceDelivery
from taskvec.run.scratch import scratch
from taskvec.run.shadow import Shadow
from taskvec.run.sink import Head, Sent
from taskvec.run.sinks import closing
from taskvec.run.supply import supply_of
from taskvec.settings import Settings, format_alpha

Unit = tuple[int, ...]


def deliver(
    plan: PlanRecord,
    address: str,
    *,
    part: Part = ALL,
    chosen: Sequence[Unit] | None = None,
    settings: Settings | None = None,
    progress: Callback | None = None,
    is_last: bool = True,
) -> PartReport:
    """Write the weight files of a plan, or of one part of it, to an address, and end the run there.

    Parameters
    ----------
    plan : PlanRecord
        Of a checkpoint or a vector whose sources lie in files.
    address : str
        New, empty, or with what other parts or an unfinished run of this plan have left.
    part : Part
        Which part; all of it by default.
    chosen : sequence of tuple of int, optional
        The weight files, where they are not those that the plan deals to this part.
    settings : Settings, optional
    progress : callable, optional
        Called with a :class:`taskvec.Progress`; the bytes are those fetched, computed and sent.
    is_last : bool
        Whether to end the run where no weight file is missing.

    Raises
    ------
    OutputError
        The address holds something else, another run has ended there first, or the scratch folder is too
        small.
    HubError
        An address refuses, or cannot be reached.
    FormatError, NonFiniteError, CompatibilityError
        As :func:`taskvec.run.execute.execute`.
    KeyboardInterrupt
        Stopped, and uploads given up; the same call goes on where it was.
    """
    settings, begin = settings or Settings(), time.monotonic()
    with scratch() as place, closing(address, public=settings.public) as sink:
        shadow = Shadow([output.folder for output in plan.outputs], sink, place / "out")
        rows = input_rows(plan.checkpoints) if plan.request is None else plan.request.inputs
        finished = shadow.finished(plan, rows, settings)
        files = files_of(plan)
        if finished is not None:
            return PartReport(part, (), 0, len(files), len(files), 0, 0, 0.0, finished)
        supply = supply_of(plan, settings, place, progress, goes_away=True)
        plan = looked_through(plan, supply.sources, settings)
        kind = PieceDelivery if plan.kind == "vector" else Delivery
        job = kind(plan, sink, supply, place, settings, progress)
        done = job.begin(part)
        mine = dealt(plan, part.total)[part.number] if chosen is None else list(chosen)
        missing = [unit for unit in mine if not job.has(unit, done)]
        read = job.write(missing)
        report = job.end(shadow, rows, is_whole=part == ALL) if is_last else None
        count = len(files) if report is not None else job.count()
        shards = tuple(files[number] for unit in missing for number in unit)
        written, kept = job.written, sum(map(len, mine)) - len(shards)
        if report is not None:
            report = replace(report, seconds=time.monotonic() - begin, bytes_read=read, bytes_written=written,
                             resumed_shards=(len(files) - len(shards)) * len(plan.outputs))  # fmt: skip
        return PartReport(part, shards, kept, count, len(files), read, written,
                          time.monotonic() - begin, report)  # fmt: skip


def finished_request(
    address: str, alphas: Sequence[float] | None, asked: Request, settings: Settings
) -> Report | None:
    """The report of a recipe of several documents that has been finished at an address; ``None`` otherwise.

    Parameters
    ----------
    address : str
    alphas : sequence of float, optional
        Where the output has a folder for each.
    asked : Request
        The recipe, and the states of its inputs.
    settings : Settings
    """
    if asked.inputs is None:
        return None
    outputs = [""] if alphas is None else [f"alpha={format_alpha(alpha)}" for alpha in alphas]
    rows = asked.inputs
    with scratch() as place, closing(address) as sink:
        shadow = Shadow(outputs, sink, place / "out")

        def look() -> Report | None:
            manifests = manifests_of_request(asked.digest, shadow.folders)
            if not manifests:
                return None
            factors = [data["recipe"].get("alpha") for data in manifests]
            return finished_report(shadow.folders, manifests, rows, replace(settings, rehash=False), factors)

        return shadow.looked_at(settings, look)


def sent_at(plan: PlanRecord, address: str) -> Mapping[str, Sent]:
    """The weight files that an unfinished run of a plan has at an address, by name."""
    head = Head(identity(plan), 2, saved(plan), tuple(output.folder for output in plan.outputs))
    with closing(address) as sink:
        return sink.begin(head)


def finish_at(
    plan: PlanRecord, address: str, parts: int, settings: Settings, progress: Callback | None = None
) -> Report:
    """End a run in parts at an address.

    Raises
    ------
    OutputError
        Weight files are missing; the message says which, and which parts write them.
    taskvec.Error
        As :func:`deliver`.
    """
    part = Part(0, max(parts, 2))
    done = deliver(plan, address, part=part, chosen=(), settings=settings, progress=progress)
    if done.report is not None:
        return done.report
    there = sent_at(plan, address)
    missing = [
        number for number, names in enumerate(names_of(plan)) if not all(name in there for name in names)
    ]
    raise incomplete(plan, address, missing, parts)
