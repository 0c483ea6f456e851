"""What an experiment can show, before any of it is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskvec.evaluation.analysis import statistics
from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.analysis.conclusions import GATE

# The share of documents on which two arms disagree, where nothing was measured yet: as in published runs of
# models of this kind, and of GSM8K for tasks that are not here. Longest name wins.
DISCORDANT: Mapping[str, float] = {"gsm8k": 0.25, "humaneval": 0.15, "sciq": 0.06, "bbh": 0.30}
OTHERWISE = 0.25
POOLED = "all tasks"
MORE = (2, 4)  # times as many documents


@dataclass(frozen=True, slots=True)
class Power:
    """The smallest differences that one task, or all of them pooled, shows with a probability of 80 %.

    Attributes
    ----------
    task : str
    documents, development, report : int
        Documents, and those of each part.
    discordant : float
        Share of documents on which two arms are taken to disagree.
    gate : float or None
        Of donor over reference, at p < 0.01 on all documents; None where too few are there for any difference
        to show.
    choice : float or None
        Between two values of alpha, so that the better one is chosen.
    claim : float or None
        Of +v over another arm, after Holm's correction over the primary tests, on the report part.
    gate_whole, claim_whole : float or None
        Of gate and claim on all documents, without a division; the gate has none anyway.
    more : dict of int to pair of float or None
        Of gate and claim with so many times the documents.
    """

    task: str
    documents: int
    development: int
    report: int
    discordant: float
    gate: float | None
    choice: float | None
    claim: float | None
    gate_whole: float | None
    claim_whole: float | None
    more: dict[int, tuple[float | None, float | None]]


@dataclass(frozen=True, slots=True)
class Size:
    """The documents of a task, and how many of them are to choose on."""

    documents: int
    development: int

    @classmethod
    def of(cls, hashes: Sequence[str], split: Split) -> Size:
        """The sizes of a division of documents, by their hashes."""
        return cls(len(hashes), sum(map(split.keep("development"), hashes)))

    @classmethod
    def expected(cls, documents: int, split: Split) -> Size:
        """The sizes to be expected of a division, where the documents are not at hand."""
        return cls(documents, round(documents * split.share) if split.share else documents)


def power(sizes: Mapping[str, Size], split: Split, *, tests: int) -> list[Power]:
    """The power of every task, and of all of them pooled if there are several.

    Parameters
    ----------
    sizes : mapping of str to Size
        By task.
    split : Split
        The division into a development and a report part.
    tests : int
        Primary tests of the report, for Holm's correction at its strictest.
    """
    rows = [_power(task, size, split, tests, discordance(task)) for task, size in sizes.items()]
    if len(rows) > 1:
        whole = Size(sum(row.documents for row in rows), sum(row.development for row in rows))
        share = sum(row.discordant * row.documents for row in rows) / max(1, whole.documents)
        rows.append(_power(POOLED, whole, split, tests, share))
    return rows


def discordance(task: str) -> float:
    """The share of documents on which two arms are taken to disagree."""
    known = [name for name in sorted(DISCORDANT, key=len, reverse=True) if task.startswith(name)]
    return DISCORDANT[known[0]] if known else OTHERWISE


def _power(task: str, size: Size, split: Split, tests: int, share: float) -> Power:
    inside = size.development
    outside = size.documents - inside if split.share else size.documents
    claimed = statistics.ALPHA / max(1, tests)

    def smallest(n: int, level: float) -> float | None:
        enough = n >= statistics.fewest(level)
        return statistics.detectable(n, discordant=share, level=level) if enough else None

    return Power(
        task=task,
        documents=size.documents,
        development=inside,
        report=outside,
        discordant=share,
        gate=smallest(size.documents, GATE),
        choice=statistics.told_apart(inside, share) if inside and split.share else None,
        claim=smallest(outside, claimed),
        gate_whole=smallest(size.documents, GATE),
        claim_whole=smallest(size.documents, claimed),
        more={
            times: (smallest(times * size.documents, GATE), smallest(times * outside, claimed))
            for times in MORE
        },
    )
