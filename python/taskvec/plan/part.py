"""A plan divides itself: which files each of n parts writes, and the plan of some of them.

Any process that has the plan knows every part of it: nobody hands out work. A file does not depend on the
others, so that any division gives the same bytes.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from taskvec._core import blake3_hex
from taskvec.errors import RecipeError
from taskvec.plan.plan import ARITHMETIC, PlanRecord, Shard
from taskvec.plan.rows import Row, encode
from taskvec.regex import regex

_PART = regex(r"(\d+)/(\d+)")
# More than any cluster runs: a number above it is a typing error.
_MOST = 1_000_000
# A piece of a vector has at most so many bytes of differences, as bfloat16: what a kill can cost.
_PIECE = 256 << 20


class Part(NamedTuple):
    """One part of so many, counted from zero."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part that a text such as ``3/16`` names.

        Raises
        ------
        RecipeError
            It names none.
        """
        match = _PART.fullmatch(text.strip())
        if match is None:
            raise RecipeError(f"`{text}` is not a part", "write it as `3/16`: part 3 of 16, counted from 0")
        return cls.of(int(match[1]), int(match[2]))

    @classmethod
    def of(cls, number: int, count: int) -> Part:
        """The same from two numbers; raises as :meth:`parse`."""
        if not 0 < count <= _MOST or not 0 <= number < count:
            raise RecipeError(
                f"there is no part {number} of {count}", f"parts are counted from 0: 0/{count} is the first"
            )
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


def files_of(plan: PlanRecord) -> tuple[Shard, ...]:
    """The files that parts write: the weight files of a checkpoint, or the pieces of a vector.

    The weight files of a vector follow from what is stored of all of its tensors. What is stored of a tensor
    does not depend on the others, so that parts write pieces of it, which are joined at the end.
    """
    return plan.shards if plan.kind == "checkpoint" else tuple(_pieces(plan))


def _pieces(plan: PlanRecord) -> Iterator[Shard]:
    for number, names in enumerate(_pieces_of(plan.document)):
        elements = sum(names.values())
        yield Shard(f"piece-{number + 1:05}.safetensors", len(names), elements, 2 * elements)


def _pieces_of(document: Mapping[str, Any]) -> list[dict[str, int]]:
    """The tensors of a vector as they follow each other in pieces, with the elements of each."""
    limit = min(document["max_shard_size"], _PIECE)
    pieces: list[dict[str, int]] = [{}]
    size = 0
    for name, shape, *_ in document["tensors"]:
        more = 2 * math.prod(shape)
        if pieces[-1] and size + more > limit:
            pieces.append({})
            size = 0
        pieces[-1][name] = math.prod(shape)
        size += more
    return pieces


def tensors_of_pieces(plan: PlanRecord) -> list[int]:
    """How many tensors each piece of a vector has; they follow each other as in the plan."""
    return [len(names) for names in _pieces_of(plan.document)]


def as_checkpoint(plan: PlanRecord) -> bytes:
    """The plan of a checkpoint, for the engine, of which each file reads what a piece of this vector reads.

    It is never run: only what it reads is asked.
    """
    rows: list[Row] = []
    tensors = iter(plan.document["tensors"])
    for number, count in enumerate(tensors_of_pieces(plan)):
        for name, shape, donor, reference in itertools.islice(tensors, count):
            inputs = [(1, reference), (0, donor), (1, reference)]
            rows.append((name, "F32", shape, number, 0, inputs))
    terms = [{"model": 1, "reference": 2, "weight": 1.0}]
    document = {
        "format": plan.document["format"],
        "arithmetic": ARITHMETIC,
        "sources": plan.document["sources"],
        "outputs": [{"folder": "", "alpha": 1.0}],
        "shards": [piece.name for piece in files_of(plan)],
        "operations": [{"kind": "task_arithmetic", "terms": terms, "lambda": 1.0}],
        "tensors": rows,
        "rounding": "nearest",
        "seed": 0,
    }
    return encode(document)


def of_piece(plan: PlanRecord, number: int) -> bytes:
    """The engine's part of a plan for one piece of a vector, as one file."""
    names = _pieces_of(plan.document)[number]
    rows = [row for row in plan.document["tensors"] if row[0] in names]
    document = {**plan.document, "tensors": rows, "max_shard_size": (1 << 63) - 1, "piece": True}
    return json.dumps(document, separators=(",", ":")).encode()


def units(plan: PlanRecord) -> list[tuple[int, ...]]:
    """The files that have to be written together, as numbers of :func:`files_of`; mostly one each.

    The parts of a packed weight, which are computed together, may lie in several.
    """
    groups: dict[int, set[int]] = {number: {number} for number in range(len(files_of(plan)))}
    if plan.kind == "vector":
        return [(number,) for number in groups]
    first: dict[str, int] = {}
    for row in plan.document["tensors"]:
        if len(row) < 7:
            continue
        shard, other = row[3], first.setdefault(row[6][2], row[3])
        if groups[shard] is not groups[other]:
            groups[other] |= groups[shard]
            for each in groups[shard]:
                groups[each] = groups[other]
    return sorted({tuple(sorted(group)) for group in groups.values()})


def dealt(plan: PlanRecord, count: int) -> list[list[tuple[int, ...]]]:
    """The units of each of `count` parts: the largest first, each to the part that has the least so far."""
    files = files_of(plan)
    size = {unit: sum(files[number].bytes for number in unit) for unit in units(plan)}
    parts: list[list[tuple[int, ...]]] = [[] for _ in range(count)]
    load = [0] * count
    for unit in sorted(size, key=lambda unit: (-size[unit], unit)):
        least = min(range(count), key=lambda part: (load[part], part))
        parts[least].append(unit)
        load[least] += max(size[unit], 1)
    return [sorted(part) for part in parts]


def of_shards(plan: PlanRecord, shards: Sequence[int]) -> bytes:
    """The engine's part of a plan for some of its weight files alone."""
    numbers = {number: place for place, number in enumerate(shards)}
    document = {
        **plan.document,
        "shards": [plan.shards[number].name for number in shards],
        "tensors": _rows(plan.document, numbers),
    }
    return encode(document)


def _rows(document: Mapping[str, Any], numbers: Mapping[int, int]) -> Iterator[Row]:
    chosen: defaultdict[int, list[Row]] = defaultdict(list)
    for row in document["tensors"]:
        if row[3] in numbers:
            chosen[numbers[row[3]]].append((*row[:3], numbers[row[3]], *row[4:]))
    for place in range(len(numbers)):
        yield from chosen[place]


def identity(plan: PlanRecord) -> str:
    """What a plan is known by on every machine: its digest without the local paths of its sources."""
    data = plan.json
    for source in plan.document["sources"]:
        if "://" in source["path"]:
            continue
        path = b'"path":' + json.dumps(source["path"]).encode()
        data = data.replace(path, b'"path":""', 1)
    return blake3_hex(data)
