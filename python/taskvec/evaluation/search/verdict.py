"""What may be said of the best candidate: paired tests on the held-out part, and one sentence for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from taskvec.errors import EvaluationError
from taskvec.evaluation.analysis import statistics
from taskvec.evaluation.analysis.compare import Comparison, Split, compare, pair
from taskvec.evaluation.record import ArmRecord

Word = Literal["beats", "equals", "does not beat", "is worse than"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The best candidate against one rival, over all tasks.

    Attributes
    ----------
    against : str
        ``baseline``, ``random`` or ``plain``.
    name : str
        The rival's own name.
    same_weights : bool
        Whether the rival has the weights of the best candidate.
    word : str
        ``beats`` and ``is worse than`` by `p_holm`; ``equals`` where the weights are the same or the interval
        lies within the margin; else ``does not beat``.
    difference, low, high : float
        Of the weighted mean score, with its 95 % interval.
    p, p_holm : float
        As tested, and corrected over the rivals.
    n : int
        Documents.
    gained, lost : int
        Documents on which the best is above or below its rival.
    """

    against: str
    name: str
    same_weights: bool
    word: Word
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    n: int
    gained: int
    lost: int
    test: str
    is_share: bool
    margin: float

    @property
    def text(self) -> str:
        """The verdict in plain words."""
        scale, unit, form = (100, " points", "+.1f") if self.is_share else (1, "", "+.4g")
        rival = {
            "baseline": "the baseline",
            "random": f"the best of random search ({self.name})",
            "plain": f"the best plain recipe ({self.name})",
        }[self.against]
        margin = f"{scale * self.margin:g}{unit}".removesuffix("s" if self.margin == 0.01 else "")
        within = f", within {margin}" if self.word == "equals" else ""
        within = ", with the same weights" if self.same_weights else within
        shown = ": no difference shown" if self.word == "does not beat" else ""
        return (
            f"The search {self.word} {rival} on held-out documents{within}{shown}: "
            f"{scale * self.difference:{form}}{unit}, 95 % interval {scale * self.low:{form}} to "
            f"{scale * self.high:{form}}, n = {self.n:,}, p = {self.p_holm:.2g} after Holm's correction."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "text": self.text}


def verdicts(
    best: ArmRecord,
    rivals: Mapping[str, tuple[str, ArmRecord]],
    split: Split,
    *,
    weights: Mapping[str, float],
    margin: float,
    seed: int,
) -> list[Verdict]:
    """The best candidate against each rival over all tasks, with Holm's correction over the rivals.

    Of one task the test is that of a sweep: McNemar's exact test, or a paired bootstrap. Of several it is a
    bootstrap of the weighted mean difference in which each task's documents are drawn by themselves.

    Parameters
    ----------
    best : ArmRecord
        Of the held-out part, as the records of the rivals.
    rivals : mapping of str to (str, ArmRecord)
        ``baseline``, ``random``, ``plain``: each with its own name.
    """
    tested = {kind: _test(best, record, split, weights, seed) for kind, (_, record) in rivals.items()}
    corrected = statistics.holm([found.p for found, _ in tested.values()])
    rows = zip(tested.items(), corrected, strict=True)
    return [
        _verdict(kind, name, record.weights == best.weights, *found, p_holm, margin)
        for (kind, found), p_holm in rows
        for name, record in (rivals[kind],)
    ]


def _verdict(
    kind: str,
    name: str,
    same: bool,
    found: statistics.PairedTest,
    is_share: bool,
    p_holm: float,
    margin: float,
) -> Verdict:
    shown = p_holm < statistics.ALPHA and found.difference != 0
    word: Word = "does not beat"
    if shown:
        word = "beats" if found.difference > 0 else "is worse than"
    elif same or (-margin <= found.low and found.high <= margin):
        word = "equals"
    return Verdict(
        kind, name, same, word, found.difference, found.low, found.high, found.p, p_holm, found.n,
        found.gained, found.lost, found.test, is_share, margin,
    )  # fmt: skip


def _test(
    one: ArmRecord, other: ArmRecord, split: Split, weights: Mapping[str, float], seed: int
) -> tuple[statistics.PairedTest, bool]:
    """The paired test over all tasks, turned so that more is better, and whether scores are shares."""
    columns = []
    is_share = True
    for task, facts in one.tasks.items():
        if facts.metric is None:
            raise EvaluationError(f"task `{task}` has no metric per document, so nothing can be paired")
        left, right = pair(one.samples[task], other.samples[task], facts.metric, split.keep("report"))
        if not left:
            raise EvaluationError(f"`{one.name}` and `{other.name}` share no held-out document of `{task}`")
        is_share = is_share and statistics.is_binary(left) and statistics.is_binary(right)
        if not facts.higher_is_better:
            left, right = [-value for value in left], [-value for value in right]
        columns.append((weights.get(task, 1.0), np.array(left), np.array(right)))
    if len(columns) == 1:
        ((_, first, second),) = columns
        return statistics.paired(first.tolist(), second.tolist(), seed=seed), is_share
    return _stratified([(weight, one - other) for weight, one, other in columns], seed), is_share


def _stratified(columns: Sequence[tuple[float, np.ndarray]], seed: int) -> statistics.PairedTest:
    """A bootstrap of the weighted mean over tasks of the mean difference."""
    draw = np.random.default_rng(seed)
    total = math.fsum(weight for weight, _ in columns)
    mean, means = 0.0, np.zeros(statistics.RESAMPLES)
    for weight, values in columns:
        mean += weight / total * float(values.mean())
        for start in range(0, statistics.RESAMPLES, 500):
            count = min(500, statistics.RESAMPLES - start)
            rows = draw.integers(0, values.size, (count, values.size))
            means[start : start + count] += weight / total * values[rows].mean(axis=1)
    low, high = map(float, np.quantile(means, [statistics.ALPHA / 2, 1 - statistics.ALPHA / 2]))
    beyond = int((np.abs(means - mean) >= abs(mean) * (1 - 1e-12)).sum())
    whole = np.concatenate([values for _, values in columns])
    return statistics.PairedTest(
        mean, low, high, (beyond + 1) / (statistics.RESAMPLES + 1), "bootstrap", whole.size,
        int((whole > 0).sum()), int((whole < 0).sum()), float(whole.std(ddof=1)) if whole.size > 1 else 0.0,
    )  # fmt: skip


def by_task(best: ArmRecord, rivals: Sequence[ArmRecord], split: Split, *, seed: int) -> list[Comparison]:
    """The best candidate against each rival on each task, with Holm's correction over all of these tests."""
    return compare([(best, rival) for rival in rivals], split, "report", seed=seed)
