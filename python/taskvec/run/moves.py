"""What a run moves over the network, and how much scratch it needs: known from the plan alone."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import NamedTuple

from taskvec.models.adapter import Adapter
from taskvec.models.model import Model
from taskvec.plan.part import tensors_of_pieces, units
from taskvec.plan.plan import PlanRecord
from taskvec.resolve.stage import remote_of
from taskvec.run.inputs import Source
from taskvec.run.supply import is_to_be_staged
from taskvec.settings import Settings


class Moves(NamedTuple):
    """Bytes that a run fetches, and sends, and that it needs in the scratch folder at a time, at least."""

    fetch: int
    send: int
    scratch: int


def moves(plan: PlanRecord, settings: Settings, *, goes_away: bool) -> Moves:
    """The bytes that a run of a plan moves.

    Parameters
    ----------
    plan : PlanRecord
    settings : Settings
        ``stream`` matters here.
    goes_away : bool
        Whether the output goes to an address.
    """
    send = plan.bytes_out if goes_away else 0
    if plan.kind == "adapter" or (
        plan.kind == "vector" and not is_to_be_staged(plan, settings, goes_away=goes_away)
    ):
        return Moves(plan.download, send, plan.download + send)
    if plan.kind == "vector":
        pieces = _fetched_of_pieces(plan)
        return Moves(sum(pieces), send, max(pieces, default=0) + (2 * send if goes_away else 0))
    out = [sum(plan.shards[number].bytes for number in unit) * len(plan.outputs) for unit in units(plan)]
    largest = max(out, default=0) if goes_away else 0
    if not is_to_be_staged(plan, settings, goes_away=goes_away):
        return Moves(plan.download, send, plan.download + largest)
    into = _fetched(plan)
    needs = [got + (made if goes_away else 0) for got, made in zip(into, out, strict=True)]
    return Moves(sum(into), send, max(needs, default=0))


def _fetched(plan: PlanRecord) -> list[int]:
    """Bytes of the inputs at addresses that each unit reads."""
    unit_of = {shard: number for number, unit in enumerate(units(plan)) for shard in unit}
    read: list[dict[int, set[str]]] = [defaultdict(set) for _ in units(plan)]
    for row in plan.document["tensors"]:
        for source, name in row[5]:
            read[unit_of[row[3]]][source].add(name)
    far = {number for number, source in enumerate(plan.checkpoints) if remote_of(source) is not None}
    return [
        sum(
            _bytes(plan.checkpoints[source], name)
            for source, names in each.items()
            if source in far
            for name in names
        )
        for each in read
    ]


def _fetched_of_pieces(plan: PlanRecord) -> list[int]:
    """The same of each piece of a vector."""
    rows = iter(plan.document["tensors"])
    far = [(at, source) for at, source in enumerate(plan.checkpoints, 2) if remote_of(source) is not None]
    return [
        sum(_bytes(source, row[at]) for row in itertools.islice(rows, count) for at, source in far)
        for count in tensors_of_pieces(plan)
    ]


def _bytes(source: Source, name: str) -> int:
    info = source.tensors.get(name)
    if info is None and isinstance(source, Model):
        info = source.stored.get(name)
    if isinstance(source, Adapter) and info is None:
        return 0
    return info.nbytes if info is not None else 0
