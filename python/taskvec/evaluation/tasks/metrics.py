"""The metrics that a user chooses: known to their tasks, and honoured of arms that are done already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.record import ArmRecord
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.tasks.defaults import names_metric, primary_metric
from taskvec.text import nearest


def check_metrics(settings: Settings, members: Mapping[str, Sequence[str]], tasks: Mapping[str, Any]) -> None:
    """See, before a model is loaded, that every task for which a metric is chosen is asked and knows it.

    Parameters
    ----------
    settings : Settings
    members : mapping of str to sequence of str
        Leaf tasks by the name under which they are reported.
    tasks : mapping of str to Task
        Every leaf task.

    Raises
    ------
    EvaluationError
        It is not so; the hint has the names that there are.
    """
    for name, wanted in settings.metrics:
        if name not in members:
            near = nearest(name, members)
            raise EvaluationError(
                f"a metric is chosen for task `{name}`, which is not evaluated",
                f"did you mean `{near}`?" if near else f"the tasks are {', '.join(members)}",
            )
        for member in members[name]:
            _hold_known(name, wanted, _metrics_of(tasks[member]))


def _metrics_of(task: Any) -> list[str]:
    """The metrics of a task with their filters, as lm-eval names them in its results."""
    filters = [each.name for each in getattr(task, "_filters", ())] or ["none"]
    return [f"{metric},{each}" for each in filters for metric in task.aggregation()]


def _hold_known(task: str, wanted: str, metrics: Iterable[str]) -> None:
    known = list(metrics)
    if not any(names_metric(wanted, metric) for metric in known):
        raise EvaluationError(f"task `{task}` has no metric `{wanted}`", f"it has {', '.join(known)}")


def chosen_metric(task: str, metrics: list[str], chosen: str | None) -> str | None:
    """The metric that comparisons of a task use, of those that are means over documents.

    Raises
    ------
    EvaluationError
        The one that was chosen is none of these.
    """
    if chosen is not None and not any(names_metric(chosen, metric) for metric in metrics):
        raise EvaluationError(
            f"task `{task}` has no metric `{chosen}` that is a mean over its documents: arms are compared "
            "document by document",
            f"it has {', '.join(metrics)}" if metrics else "leave out --metric",
        )
    return primary_metric(task, metrics, chosen)


def as_chosen(record: ArmRecord, settings: Settings) -> ArmRecord | None:
    """The record of an arm under the metrics that are chosen now; None where it does not hold what they need.

    A record has every metric of each document, but the direction of the compared one alone, and the value of
    drawn answers by that one.
    """
    tasks = dict(record.tasks)
    for name, facts in record.tasks.items():
        rows = record.samples[name]
        metrics = [key for key in rows[0].metrics if all(key in row.metrics for row in rows)] if rows else []
        metric = chosen_metric(name, metrics, settings.metric_for(name))
        if metric == facts.metric:
            continue
        is_drawn = any(row.draws for row in rows)
        if metric is None or facts.metric is None or is_drawn:
            return None
        if metric.split(",")[0] != facts.metric.split(",")[0]:
            return None
        tasks[name] = replace(facts, metric=metric)
    return replace(record, tasks=tasks)
