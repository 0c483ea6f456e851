"""Pass@k and majority@k of sampled answers: unbiased, with intervals, paired by document."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from taskvec.evaluation.analysis import statistics
from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.analysis.mistakes import NOT_FOUND
from taskvec.evaluation.record import ArmRecord, Draw, Sample

Measure = Literal["pass", "majority"]
SUBSETS = 2000  # above so many, that many are drawn


@dataclass(frozen=True, slots=True)
class AtK:
    """Pass@k or majority@k of one arm on one task.

    Attributes
    ----------
    measure : {"pass", "majority"}
    k, samples, n : int
        Answers that count, answers drawn for each document, documents.
    value, low, high : float
        With the 95 % interval over documents.
    against : str or None
        The baseline; None of the baseline itself.
    difference, difference_low, difference_high, p, p_holm : float or None
        Arm minus baseline, paired by document; p as tested and corrected over all of these tests.
    """

    arm: str
    task: str
    measure: Measure
    k: int
    samples: int
    n: int
    value: float
    low: float
    high: float
    against: str | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    p_holm: float | None = None


def pass_at(right: int, samples: int, k: int) -> float:
    """The probability that one of k answers is right, of `samples` of which `right` are.

    The unbiased estimator of Chen et al. (arXiv 2107.03374).
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k = {k} of {samples} samples")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority_at(draws: Sequence[Draw], k: int, *, seed: int = 0) -> float | None:
    """The probability that the most frequent of k answers is right, over all choices of k of the draws.

    Answers that were not found do not vote. A tie counts as the share of the tied answers that is right.
    None where answers are not extracted, as of programs.
    """
    if any(draw.answer is None for draw in draws):
        return None
    right: dict[str, list[float]] = {}
    for draw in draws:
        right.setdefault(draw.answer or "", []).append(draw.value)
    worth = {answer: math.fsum(values) / len(values) for answer, values in right.items()}
    answers = [draw.answer or "" for draw in draws]
    values = [_vote(chosen, worth) for chosen in _choices(answers, k, seed)]
    return math.fsum(values) / len(values)


def _choices(answers: list[str], k: int, seed: int) -> list[tuple[str, ...]]:
    """Every choice of k answers, or some of them at random where there are too many."""
    if math.comb(len(answers), k) <= SUBSETS:
        return list(itertools.combinations(answers, k))
    rng = random.Random(seed)
    return [tuple(rng.sample(answers, k)) for _ in range(SUBSETS)]


def _vote(chosen: Sequence[str], worth: dict[str, float]) -> float:
    counts = Counter(answer for answer in chosen if answer != NOT_FOUND)
    if not counts:
        return 0.0
    most = max(counts.values())
    tied = [answer for answer, count in counts.items() if count == most]
    return math.fsum(worth[answer] for answer in tied) / len(tied)


def at_k(
    records: Sequence[ArmRecord], baseline: ArmRecord | None, ks: Sequence[int], split: Split
) -> list[AtK]:
    """Every arm on every task that has draws, on the report part, against the baseline."""
    found: list[AtK] = []
    for record in records:
        for task in record.tasks:
            for measure, k in itertools.product(("pass", "majority"), ks):
                row = _row(record, baseline, task, measure, k, split)  # type: ignore[arg-type]
                if row is not None:
                    found.append(row)
    tested = [row for row in found if row.p is not None]
    corrected = iter(statistics.holm([row.p for row in tested if row.p is not None]))
    return [replace(row, p_holm=next(corrected)) if row.p is not None else row for row in found]


def _row(
    record: ArmRecord, baseline: ArmRecord | None, task: str, measure: Measure, k: int, split: Split
) -> AtK | None:
    own = _values(record, task, measure, k, split)
    if not own:
        return None
    values = list(own.values())
    samples = max(len(sample.draws) for sample in record.samples[task])
    low, high = statistics.interval(values, seed=split.seed)
    mean = math.fsum(values) / len(values)
    row = AtK(record.name, task, measure, k, samples, len(values), mean, low, high)
    if baseline is None or baseline is record or task not in baseline.samples:
        return row
    theirs = _values(baseline, task, measure, k, split)
    shared = [key for key in own if key in theirs]
    if not shared:
        return row
    test = statistics.paired([own[key] for key in shared], [theirs[key] for key in shared], seed=split.seed)
    return replace(
        row,
        against=baseline.name,
        difference=test.difference,
        difference_low=test.low,
        difference_high=test.high,
        p=test.p,
    )


def _values(
    record: ArmRecord, task: str, measure: Measure, k: int, split: Split
) -> dict[tuple[str | None, int], float]:
    """The value of every document that has at least k draws."""
    keep, found = split.keep("report"), {}
    for sample in record.samples[task]:
        if not keep(sample.doc_hash) or len(sample.draws) < k:
            continue
        value = _value(sample, measure, k, split.seed)
        if value is not None:
            found[(sample.subtask, sample.doc_id)] = value
    return found


def _value(sample: Sample, measure: Measure, k: int, seed: int) -> float | None:
    if measure == "majority":
        return majority_at(sample.draws, k, seed=seed)
    if not statistics.is_binary([draw.value for draw in sample.draws]):
        return None
    return pass_at(sum(draw.value == 1 for draw in sample.draws), len(sample.draws), k)
