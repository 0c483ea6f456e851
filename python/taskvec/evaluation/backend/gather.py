"""From lm-eval's results to the record of an arm: samples, scores with intervals, lengths."""

from __future__ import annotations

import contextlib
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.analysis import statistics
from taskvec.evaluation.analysis.scores import mean_length
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.record import ArmRecord, Draw, Sample, Score, TaskFacts
from taskvec.evaluation.tasks.metrics import chosen_metric
from taskvec.text import plural


def gather(
    arm: Arm,
    model: str,
    weights: str,
    key: str,
    settings: dict[str, Any],
    found_versions: dict[str, str],
    results: dict[str, Any],
    tasks: Any,
    lm: Any,
    begun: float,
) -> ArmRecord:
    """The record of an arm, from the results of `simple_evaluate` and what model and tasks kept of it."""
    facts, scores, tokens, samples = {}, {}, {}, {}
    for name, members in tasks.members.items():
        rows = [row for member in members for row in _samples(member, members != [name], results, tasks, lm)]
        if not rows:
            raise EvaluationError(f"task `{name}` gave no sample")
        samples[name] = rows
        facts[name] = _facts(name, members, results, tasks, rows)
        scores[name] = _scores(name, members, results, rows)
        lengths = mean_length(rows)
        if lengths is not None:
            tokens[name] = lengths
    warnings = [*tasks.warnings, *lm.warnings]
    if lm.truncated_prompts:
        warnings.append(
            f"cut on the left to leave room for the answer: {plural(lm.truncated_prompts, 'prompt')}"
        )
    return ArmRecord(
        name=arm.name,
        kind=arm.kind,
        alpha=arm.alpha,
        think=arm.think,
        perturb=arm.perturb,
        seed=arm.seed,
        origin=arm.origin,
        part=arm.part,
        identity=key,
        model=model,
        weights=weights,
        settings=settings,
        versions=found_versions,
        environment=_environment(lm),
        tasks=facts,
        scores=scores,
        output_tokens=tokens,
        samples=samples,
        warnings=warnings,
        batch_size=lm.batch_size,
        seconds=round(time.monotonic() - begun, 3),
    )


def with_draws(
    record: ArmRecord, drawn: Sequence[tuple[dict[str, Any], dict[Any, Any]]], tasks: Any
) -> ArmRecord:
    """An arm's record with the answers that were drawn.

    Parameters
    ----------
    record : ArmRecord
    drawn : sequence of (dict, dict)
        For each draw of all questions: the results of `simple_evaluate`, and the lengths of the answers.
    tasks : PreparedTasks
        Those that generate.
    """
    samples = dict(record.samples)
    for name, members in tasks.members.items():
        metric = record.tasks[name].metric
        if metric is None:
            continue
        rows: dict[tuple[str | None, int], list[Draw]] = {}
        for results, lengths in drawn:
            model = SimpleNamespace(lengths=lengths)
            for member in members:
                for sample in _samples(member, members != [name], results, tasks, model):
                    if metric in sample.metrics:
                        own = rows.setdefault((sample.subtask, sample.doc_id), [])
                        own.append(_draw(sample, metric))
        samples[name] = [
            replace(sample, draws=rows.get((sample.subtask, sample.doc_id), [])) for sample in samples[name]
        ]
    return replace(record, samples=samples)


def _draw(sample: Sample, metric: str) -> Draw:
    answer = sample.extracted.get(metric.partition(",")[2])
    return Draw(sample.output, sample.metrics[metric], answer, sample.tokens, sample.cut)


def _samples(task: str, grouped: bool, results: dict[str, Any], tasks: Any, lm: Any) -> list[Sample]:
    """lm-eval's samples of one task, one per document; it has one per document and filter."""
    setup, means = tasks.setups[task], _means(task, results)
    merged: dict[int, dict[str, Any]] = {}
    for raw in results["samples"][task]:
        index = int(raw["doc_id"])
        row = merged.setdefault(index, {"raw": raw, "extracted": {}, "metrics": {}})
        answer = raw["filtered_resps"]
        if lm.lengths.get((task, index)) and raw["filter"] != "none":
            row["extracted"][raw["filter"]] = _text(answer[0] if isinstance(answer, list) else answer)
        for metric in raw["metrics"]:
            name = f"{metric},{raw['filter']}"
            if name in means:
                row["metrics"][name] = float(raw[metric])
    found = []
    for index, row in sorted(merged.items()):
        raw, lengths = row["raw"], lm.lengths.get((task, index), [])
        hashes = setup.clean_hashes
        found.append(
            Sample(
                doc_id=setup.doc_ids[index],
                doc_hash=hashes[index] if hashes is not None else str(raw["doc_hash"]),
                subtask=task if grouped else None,
                question=_question(tasks.tasks[task], raw),
                target=_target(tasks.tasks[task], raw),
                output=_output(tasks.tasks[task], raw),
                extracted=row["extracted"],
                metrics=row["metrics"],
                tokens=math.fsum(length.tokens for length in lengths) / len(lengths) if lengths else None,
                cut=any(length.cut for length in lengths) if lengths else None,
            )
        )
    return found


def _means(task: str, results: dict[str, Any]) -> set[str]:
    """The metrics of a task that are plain means of one number per sample."""
    sums: dict[str, list[float]] = {}
    for raw in results["samples"][task]:
        for metric in raw["metrics"]:
            value = raw[metric]
            name = f"{metric},{raw['filter']}"
            if isinstance(value, (bool, int, float)) or hasattr(value, "item"):
                sums.setdefault(name, []).append(float(value))
    found = set()
    for name, values in sums.items():
        whole = results["results"][task].get(name)
        if (
            isinstance(whole, (int, float))
            and values
            and all(map(math.isfinite, values))
            and math.isclose(math.fsum(values) / len(values), float(whole), rel_tol=1e-6, abs_tol=1e-9)
        ):
            found.add(name)
    return found


def _facts(
    name: str, members: list[str], results: dict[str, Any], tasks: Any, rows: list[Sample]
) -> TaskFacts:
    setups = [tasks.setups[member] for member in members]
    shared = [metric for metric in rows[0].metrics if all(metric in row.metrics for row in rows)]
    order = list(results["results"][members[0]])
    shared.sort(key=lambda metric: order.index(metric) if metric in order else len(order))
    metric = chosen_metric(name, shared, tasks.metric_for(name))
    higher = results.get("higher_is_better", {}).get(members[0], {})
    up = higher.get(metric.split(",")[0], True) if metric else True
    lengths = [setup.max_gen_toks for setup in setups if setup.max_gen_toks is not None]
    return TaskFacts(
        metric=metric,
        higher_is_better=up is not False,
        output_type=str(tasks.tasks[members[0]].OUTPUT_TYPE),
        version=str(tasks.group_versions.get(name) or results["versions"].get(name)),
        num_fewshot=int(results["n-shot"].get(members[0]) or 0),
        max_gen_toks=max(lengths, default=None),
        stop=sorted({stop for setup in setups for stop in setup.stop}),
        dropped_stops=sorted({stop for setup in setups for stop in setup.dropped_stops}),
        documents=len(rows),
        left_out=sum(setup.left_out for setup in setups),
        subtasks=members if members != [name] else [],
        removed_requests=sorted({text for setup in setups for text in setup.removed_requests}),
    )


def _scores(name: str, members: list[str], results: dict[str, Any], rows: list[Sample]) -> dict[str, Score]:
    """Every metric with its interval: from the samples if it is their mean, else from lm-eval's error."""
    scores: dict[str, Score] = {}
    for metric in rows[0].metrics:
        values = [row.metrics[metric] for row in rows if metric in row.metrics]
        if len(values) == len(rows):
            low, high = statistics.interval(values)
            scores[metric] = Score(math.fsum(values) / len(values), low, high, len(values))
    if members == [name]:
        whole = results["results"][name]
        for metric, value in whole.items():
            if "," in metric and "_stderr," not in metric and metric not in scores:
                if not isinstance(value, (int, float)) or not math.isfinite(value):
                    continue
                error = whole.get(metric.replace(",", "_stderr,", 1))
                half = 1.96 * float(error) if isinstance(error, (int, float)) else None
                low, high = (None, None) if half is None else (float(value) - half, float(value) + half)
                scores[metric] = Score(float(value), low, high, len(rows))
    return scores


def _question(task: Any, raw: dict[str, Any]) -> str:
    """The question, without worked examples; the end of the whole prompt where that is all there is."""
    with contextlib.suppress(Exception):
        asked = task.doc_to_text(raw["doc"])
        if isinstance(asked, str):
            return asked
    return str(raw["arguments"][0][0])[-4000:]


def _target(task: Any, raw: dict[str, Any]) -> str:
    target = raw["target"]
    if isinstance(target, int) and task.get_config("doc_to_choice") is not None:
        with contextlib.suppress(Exception):
            return str(task.doc_to_choice(raw["doc"])[target])
    return _text(target)


def _output(task: Any, raw: dict[str, Any]) -> str:
    """The answer of the model: its text, or the choice it found likeliest, or a log-likelihood."""
    responses = raw["resps"]
    if task.OUTPUT_TYPE == "generate_until":
        return _text(responses[0][0])
    values = [float(first[0] if isinstance(first, (list, tuple)) else first) for first, *_ in responses]
    if task.OUTPUT_TYPE == "multiple_choice":
        best = max(range(len(values)), key=values.__getitem__)
        with contextlib.suppress(Exception):
            choices = task.doc_to_choice(raw["doc"])
            return f"{choices[best % len(choices)]} (log-likelihood {values[best]:.4f})"
    return f"log-likelihood {values[0]:.4f}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return str(value)


def _environment(lm: Any) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(lm.device),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    model = getattr(lm.inner, "model", None)
    found["dtype"] = str(getattr(model, "dtype", None)).removeprefix("torch.")
    found["attention"] = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return found
