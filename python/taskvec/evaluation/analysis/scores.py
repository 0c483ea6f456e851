"""Scores and answer lengths of an arm on one part of the documents."""

from __future__ import annotations

import math
from collections.abc import Sequence

from taskvec.evaluation.analysis import statistics
from taskvec.evaluation.analysis.compare import Part, Split
from taskvec.evaluation.record import ArmRecord, Sample, Score


def part_scores(record: ArmRecord, split: Split, part: Part) -> dict[str, dict[str, Score]]:
    """Every score by task and metric.

    A score that is not a mean over samples is of all documents; one of a part that holds none of the task's
    documents is not known.
    """
    if not split.share:
        return record.scores
    keep = split.keep(part)
    found: dict[str, dict[str, Score]] = {}
    for task, scores in record.scores.items():
        samples = record.samples[task]
        means = {metric for sample in samples for metric in sample.metrics}
        rows = [sample for sample in samples if keep(sample.doc_hash)]
        found[task] = {
            metric: _mean(rows, metric) if metric in means else score for metric, score in scores.items()
        }
    return found


def _mean(samples: Sequence[Sample], metric: str) -> Score:
    values = [sample.metrics[metric] for sample in samples if metric in sample.metrics]
    if not values:
        return Score(None, None, None, 0)
    return Score(math.fsum(values) / len(values), *statistics.interval(values), len(values))


def part_lengths(record: ArmRecord, split: Split, part: Part) -> dict[str, dict[str, float]]:
    """Mean answer length in tokens by task, and the share that the limit cut."""
    keep = split.keep(part)
    found = {
        task: mean_length([sample for sample in samples if keep(sample.doc_hash)])
        for task, samples in record.samples.items()
    }
    return {task: lengths for task, lengths in found.items() if lengths is not None}


def mean_length(samples: Sequence[Sample]) -> dict[str, float] | None:
    """``mean`` tokens of answers and the share ``cut`` at the limit; None where nothing was generated."""
    rows = [sample for sample in samples if sample.tokens is not None]
    if not rows:
        return None
    mean = math.fsum(sample.tokens or 0.0 for sample in rows) / len(rows)
    return {"mean": mean, "cut": sum(bool(sample.cut) for sample in rows) / len(rows)}
